"""Denoised pictures for people: a contact sheet, energy and error of each step, and the mode generate of pictures."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import files, runs, streams
from ebt_jax.config import Config, ConfigError
from ebt_jax.data import pictures
from ebt_jax.data.find import LeftOut
from ebt_jax.evaluation.asked import Asked
from ebt_jax.tasks import image_quality
from ebt_jax.tasks.base import Batch, Data, Params, Task, Thinks, corrupted

SHOWN = 8  # most steps on a contact sheet
TILE = 96  # least pixels of a picture on it


class Denoised(NamedTuple):
  """What a task makes of noised pictures, `[b, ...]`; values from -1 to 1."""

  batch: Batch
  steps: jax.Array  # the answer after each step, [t, b, ...]
  energies: jax.Array | None  # before each step and at the end, [t + 1, b]


def denoise(task: Task, params: Params, batch: Batch, keys: jax.Array) -> Denoised:
  """The answer after each step, of the candidate that is kept where there are several; `keys` `[b]`."""
  batch = corrupted(task.problem, batch, keys)
  if not isinstance(task, Thinks):
    return Denoised(batch, task.answers(params, batch, keys), None)
  found = task.verified(params, batch, keys, lambda x: x)
  energies = jnp.concatenate([found.best(found.energies, 1), found.best(found.final)[None]])
  return Denoised(batch, found.best(found.observed, 1), energies)


def write_sample(task: Task, params: Params, data: Data, folder: pathlib.Path) -> str:
  """Denoises some held-out pictures, spread over all; saves `sample.png` and `sample.json`; returns a line on them."""
  held_out = data.held_out["held_out"]
  count = min(task.config.sample.pictures, len(held_out))
  if not count:
    return ""
  batch = held_out.rows(np.linspace(0, len(held_out) - 1, count).astype(int))
  found = jax.device_get(denoised(task, params, batch, 0))
  files.replace_bytes(folder / "sample.png", contact_sheet(found))
  files.write_json(folder / "sample.json", as_json(found, [f"held-out picture {i}" for i in range(count)]))
  return f"{count} held-out pictures, each step and what is left of the noise: {folder / 'sample.png'}"


def trace(task: Task, params: Params) -> None:
  """Traces what `write_sample` would compute."""
  rows = {n: jax.ShapeDtypeStruct((1, *a.shape), a.dtype) for n, a in task.problem.spec().items()}
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  jax.eval_shape(lambda params, batch, keys: denoise(task, params, batch, keys), params, rows, keys)


def denoised(task: Task, params: Params, batch: Batch, seed: int) -> Denoised:
  """`denoise`, compiled, with the keys of a seed."""
  keys = streams.each(streams.key_for(seed, streams.GENERATE), np.arange(len(batch["weights"])))
  return jax.jit(lambda params, batch, keys: denoise(task, params, batch, keys))(params, batch, keys)


def as_json(found: Denoised, names: list[str]) -> list[dict[str, Any]]:
  """Of each picture: the energy before each step and at the end, and where the clean one is known the PSNR."""
  out = []
  for i, name in enumerate(names):
    row = {"picture": name}
    if found.energies is not None:
      row["energy"] = [float(e) for e in found.energies[:, i]]
    if "clean" in found.batch:
      clean, noised = found.batch["clean"][i : i + 1], found.batch["noised"][i : i + 1]
      row["input_psnr"] = float(image_quality.psnr(noised, clean)[0])
      row["psnr"] = [float(image_quality.psnr(x[i : i + 1], clean)[0]) for x in found.steps]
    out.append(row)
  return out


def shown(x: Any) -> np.ndarray:
  """Pixels of values from -1 to 1."""
  return np.round((np.clip(np.asarray(x, np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def contact_sheet(found: Denoised) -> bytes:
  """A PNG: a row for each picture, with the clean one where it is known, the noised one, some of the steps, and the
  difference that is left (4 times as strong, grey is none)."""
  steps = sorted({*np.linspace(0, len(found.steps) - 1, SHOWN).astype(int).tolist()})
  columns = {"noised": found.batch["noised"], **{f"{i + 1}": found.steps[i] for i in steps}}
  if "clean" in found.batch:
    left = 4 * (found.steps[-1] - found.batch["clean"])
    columns = {"clean": found.batch["clean"], **columns, "difference": left}
  return sheet(columns)


def sheet(columns: dict[str, Any]) -> bytes:
  """A PNG with a column of pictures `[rows, h, w, c]`, values from -1 to 1, under each name."""
  return pictures.sheet({name: shown(x) for name, x in columns.items()}, TILE)


class Pictures(NamedTuple):
  """Pictures to denoise, `[n, h, w, c]`, their names, and what was left out."""

  pixels: np.ndarray
  names: list[str]
  left_out: LeftOut


def read(asked: Asked, config: Config) -> Pictures:
  """The pictures of a folder.

  Raises:
    ConfigError: there is no picture that can be used.
  """
  if asked.prompts:
    raise ConfigError("--prompt: is text, and this run denoises pictures; give their folder as --prompts_file")
  if not asked.prompts_file:
    raise ConfigError("--prompts_file: give a folder of pictures to denoise, or a picture")
  found, left_out = pictures.find(asked.prompts_file)
  names, pixels = [], []
  for file in found:
    try:
      pixels.append(pictures.read(file.path, config.image))
      names.append(file.id)
    except pictures.BadPicture as e:
      left_out.add(str(e), file.id)
  if not names:
    raise ConfigError(f"--prompts_file: {asked.prompts_file} holds no picture that can be used; found {left_out}")
  return Pictures(np.stack(pixels), names, left_out)


def answer(run: runs.Run, found: Pictures, asked: Asked) -> list[dict[str, Any]]:
  """Denoises pictures; clean ones are given noise of `image.noise_level` first, unless `sample.noised`.

  Writes a JSON with energies, and beside it a contact sheet and a folder of the answers.
  """
  path = pathlib.Path(asked.out) if asked.out else run.folder / "generated.json"
  answers = jax.device_get(denoised(run.task, run.params, _batch(run.task, found.pixels), asked.seed))
  results = as_json(answers, found.names)
  files.write_json(path, results)
  files.replace_bytes(path.with_suffix(".png"), contact_sheet(answers))
  _write_answers(path.with_suffix(""), found.names, shown(answers.steps[-1]))
  _print(results, found.left_out)
  print(f"written to {path}, {path.with_suffix('.png').name} and {path.with_suffix('').name}/")
  return results


def example(task: Task) -> str:
  """Pictures of the user's own."""
  return "--prompts_file=FOLDER_OF_PICTURES"


def _batch(task: Task, pixels: np.ndarray) -> Batch:
  n, c = len(pixels), task.config
  batch = {"picture": pixels, "label": np.zeros(n, np.int32), "level": np.zeros(n, np.float32)}
  batch["weights"] = np.ones(n, np.float32)
  if c.sample.noised:
    step = int(task.problem.schedule.step_of(c.image.noise_level))
    batch |= {"noised": pixels.astype(np.float32) / 127.5 - 1, "step": np.full(n, step, np.int32)}
  return batch


def _write_answers(folder: pathlib.Path, names: list[str], pixels: np.ndarray) -> None:
  for name, answer in zip(names, pixels):
    path = (folder / name).with_suffix(".png")
    path.parent.mkdir(parents=True, exist_ok=True)
    files.replace_bytes(path, pictures.png(answer))


def _print(results: list[dict[str, Any]], left_out: LeftOut) -> None:
  for row in results:
    parts = [row["picture"]]
    if "psnr" in row:
      parts.append(f"psnr {row['input_psnr']:.2f} -> {row['psnr'][-1]:.2f}")
    if "energy" in row:
      parts.append(f"energy {row['energy'][0]:.4f} -> {row['energy'][-1]:.4f}")
    print("  ".join(parts))
  if left_out.counts:
    print(f"left out: {left_out}")
