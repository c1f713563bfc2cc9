"""Denoised pictures for people: a contact sheet, energy and error of each step, and the mode generate of pictures."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import files, page, runs
from ebt_jax.config import Config, ConfigError
from ebt_jax.data import pictures
from ebt_jax.data.find import LeftOut
from ebt_jax.evaluation import thoughts
from ebt_jax.evaluation.asked import Asked
from ebt_jax.tasks import image_quality
from ebt_jax.tasks.base import Data, Examples, Params, Task
from ebt_jax.use import image
from ebt_jax.use.image import Denoised, ImageModel, Pictures, pixels_of

SHOWN = 8  # most steps on a contact sheet
TILE = 96  # least pixels of a picture on it


class Answers(NamedTuple):
  """Denoised pictures and their names."""

  found: Denoised
  names: list[str]


def write_sample(task: Task, params: Params, data: Data, folder: pathlib.Path) -> str:
  """Denoises some held-out pictures, spread over all; saves `sample.png` and `sample.json`; returns a line on them."""
  if not task.config.sample.pictures:
    return ""
  answers = _sample(task, params, data.held_out["held_out"])
  files.replace_bytes(folder / "sample.png", contact_sheet(answers.found))
  files.write_json(folder / "sample.json", as_json(answers))
  count = len(answers.names)
  return f"{count} held-out pictures, each step and what is left of the noise: {folder / 'sample.png'}"


def _sample(task: Task, params: Params, examples: Examples) -> Answers:
  """`sample.pictures` of a set, but at least one, denoised."""
  count = min(task.config.sample.pictures or 1, len(examples))
  batch = examples.rows(np.linspace(0, len(examples) - 1, count).astype(int))
  found = jax.device_get(image.denoised(task, params, batch, 0))
  return Answers(found, [f"held-out picture {i}" for i in range(count)])


def trace(task: Task, params: Params) -> None:
  """Traces what `write_sample` would compute."""
  rows = {n: jax.ShapeDtypeStruct((1, *a.shape), a.dtype) for n, a in task.problem.spec().items()}
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  jax.eval_shape(lambda params, batch, keys: image.denoise(task, params, batch, keys), params, rows, keys)


def as_json(answers: Answers) -> list[dict[str, Any]]:
  """Of each picture: the energy before each step and at the end, and where the clean one is known the PSNR."""
  found, out = answers.found, []
  for i, name in enumerate(answers.names):
    row = {"picture": name}
    if found.energies is not None:
      row["energy"] = [float(e) for e in found.energies[:, i]]
    if "clean" in found.batch:
      clean = jnp.asarray(found.batch["clean"][i : i + 1])
      tried = [jnp.asarray(x[i : i + 1]) for x in (found.batch["noised"], *found.steps)]
      row["input_psnr"], *row["psnr"] = (float(image_quality.psnr(x, clean)[0]) for x in tried)
    out.append(row)
  return out


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
  return pictures.sheet({name: pixels_of(x) for name, x in columns.items()}, TILE)


def read(asked: Asked, config: Config) -> Pictures:
  """The pictures of a folder.

  Raises:
    ConfigError: there is no picture that can be used.
  """
  if asked.prompts:
    raise ConfigError("--prompt: is text, and this run denoises pictures; give their folder as --prompts_file")
  if not asked.prompts_file:
    raise ConfigError("--prompts_file: give a folder of pictures to denoise, or a picture")
  try:
    return image.read(asked.prompts_file, config.image)
  except ConfigError as e:
    raise ConfigError(f"--prompts_file: {e}") from e


def answer(run: runs.Run, found: Pictures, asked: Asked) -> Answers:
  """Denoises pictures; clean ones are given noise of `image.noise_level` first, unless `sample.noised`.

  Writes a JSON with energies, and beside it a contact sheet and a folder of the answers; all in one page, if that is
  asked for.
  """
  denoised = ImageModel(run).denoise(found.pixels, noised=run.config.sample.noised, seed=asked.seed)
  answers, path = Answers(denoised, found.names), pathlib.Path(asked.out or pathlib.Path(asked.home, "generated.json"))
  _print(as_json(answers), found.left_out)
  if not asked.page:
    files.write_json(path, as_json(answers))
    files.replace_bytes(path.with_suffix(".png"), contact_sheet(denoised))
    _write_answers(path.with_suffix(""), found.names, denoised.answer)
    print(f"written to {path}, {path.with_suffix('.png').name} and {path.with_suffix('').name}/")
  return answers


def results(run: runs.Run, answers: Answers) -> list[dict[str, Any]]:
  """The answers as JSON."""
  return as_json(answers)


def held_out(run: runs.Run, sets: dict[str, Any]) -> Answers:
  """`sample.pictures` held-out pictures, denoised."""
  return _sample(run.task, run.params, next(iter(sets.values())))


def sections(run: runs.Run, answers: Answers) -> list[str]:
  """The picture after each step, with energy and PSNR."""
  found, out = answers.found, []
  for i, row in enumerate(as_json(answers)):

    def figure(x, name, energy=None, psnr=None):
      said = name if energy is None else f"{name}, energy {energy:.4f}"
      said = said if psnr is None else f"{said}, PSNR {psnr:.2f}"
      pixels = pixels_of(x[i])
      return thoughts.picture(pictures.png(pixels), f"{row['picture']}, {name}", max(TILE, pixels.shape[1])), said

    energies, psnr = row.get("energy"), row.get("psnr")
    shown = [figure(found.batch["clean"], "clean")] if psnr else []
    shown.append(figure(found.batch["noised"], "noised", energies and energies[0], row.get("input_psnr")))
    for j, x in enumerate(found.steps):
      shown.append(figure(x, f"step {j + 1}", energies and energies[j + 1], psnr and psnr[j]))
    chart = ""
    if energies:
      said = "Energy before the first step and after each"
      chart = f"<figure>{page.curves(found.energies[:, i : i + 1], 0, said)}<figcaption>{said}</figcaption></figure>"
    out.append(thoughts.section(row["picture"], thoughts.steps_of(shown), chart))
  return out


def example(task: Task) -> str:
  """Pictures of the user's own."""
  return "--prompts_file=FOLDER_OF_PICTURES"


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
