"""Films that go on, for people: a GIF, a strip of frames with the energy under each, and the mode generate of video."""

import io
import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import files, page, runs
from ebt_jax.config import Config, ConfigError
from ebt_jax.data import film_pictures, pictures
from ebt_jax.evaluation import thoughts
from ebt_jax.evaluation.asked import Asked
from ebt_jax.tasks import rollout
from ebt_jax.tasks.base import Data, Params, Task
from ebt_jax.use import video
from ebt_jax.use.video import Films, VideoModel

TILE = 64  # least pixels of a frame
STRIP = 20  # most frames on a strip


class Continued(NamedTuple):
  """One film: what was given, what was added, and what followed in truth as far as that is known; features."""

  name: str
  given: np.ndarray
  added: np.ndarray
  truth: np.ndarray
  energies: np.ndarray | None  # None for models without energies
  steps: np.ndarray | None


def go_on(task: Task, params: Params, found: Films, count: int, seed: int) -> list[Continued]:
  """`count` frames after the first `sample.given_frames` of each film."""
  given = min(task.config.sample.given_frames, *(len(f) for f in found.features))
  added = video.go_on(task, params, [f[:given] for f in found.features], count, seed)
  return [
    Continued(name, f[:given], one.frames, f[given : given + count], one.energies, one.steps)
    for name, f, one in zip(found.names, found.features, added)
  ]


def trace(task: Task, params: Params) -> None:
  """Traces what `write_sample` would compute."""
  s = task.config.sample
  given = jax.ShapeDtypeStruct((1, s.given_frames, *task.config.video.frame_shape), jnp.float32)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  jax.eval_shape(lambda p, g, k: rollout.rollout(task, p, g, s.frames, k), params, given, keys)


def _some_held_out(task: Task, count: int) -> Films:
  """Held-out films, spread over all that are longer than what is given of them."""
  given = task.config.sample.given_frames
  shots = [s for s in task.problem.split.held_out if len(s.frames) > given] or task.problem.split.held_out
  some = [shots[i] for i in np.unique(np.linspace(0, len(shots) - 1, min(count, len(shots))).astype(int))]
  return Films(task.problem.encoded(some), [s.id for s in some])


def write_sample(task: Task, params: Params, data: Data, folder: pathlib.Path) -> str:
  """Goes on with some held-out films; saves `sample.gif`, `sample.png` and `sample.json`; returns a line on them."""
  s = task.config.sample
  if not s.pictures:
    return ""
  found = go_on(task, params, _some_held_out(task, s.pictures), s.frames, 0)
  files.write_json(folder / "sample.json", as_json(task, found))
  text = f"{len(found)} held-out films go on for {s.frames} frames: {folder / 'sample.json'}"
  return text + ", .png, .gif" if write_pictures(task, found, folder / "sample") else text


def as_json(task: Task, found: list[Continued]) -> list[dict[str, Any]]:
  """Of each film: names, numbers of frames, energies, steps, and errors where the truth is known."""
  out = []
  for one in found:
    row = {"film": one.name, "given": len(one.given), "added": len(one.added)}
    if one.energies is not None:
      row |= {"energy": [float(e) for e in one.energies], "steps": [int(n) for n in one.steps]}
    if n := len(one.truth):
      row["loss"] = _errors(task, one.added[:n], one.truth)
      row["copy_loss"] = _errors(task, np.broadcast_to(one.given[-1], one.truth.shape), one.truth)
    out.append(row)
  return out


def _errors(task, x, truth):
  return [float(e) for e in task.problem.error(jnp.asarray(x)[None], jnp.asarray(truth)[None])[0]]


def write_pictures(task: Task, found: list[Continued], path: pathlib.Path) -> list[str]:
  """Strips of all films as a PNG, and the films as a GIF and, with the package `av`, an MP4; returns the files' names.

  Nothing where features cannot be made pictures again.
  """
  encoder = task.problem.encoder
  if encoder is None or encoder.decode is None:
    return []
  strips, moving = [], []
  for one in found:
    made = encoder.decode(np.concatenate([one.given, one.added]))
    truth = encoder.decode(np.concatenate([one.given, one.truth]))
    energies = [None] * len(one.added) if one.energies is None else [float(e) for e in one.energies]
    strips.append(film_pictures.Strip(one.name, made, truth, [None] * len(one.given) + energies))
    moving.append(made)
  frames = film_pictures.beside(moving, TILE)
  written = {
    ".png": film_pictures.strips(strips, len(found[0].given), TILE, STRIP),
    ".gif": film_pictures.gif(frames),
    ".mp4": film_pictures.mp4(frames),
  }
  for ending, content in written.items():
    if content:
      files.replace_bytes(path.with_suffix(ending), content)
  return [path.with_suffix(ending).name for ending, content in written.items() if content]


def read(asked: Asked, config: Config) -> str:
  """What films to go on with: those of a file, or nothing, for held-out ones."""
  if asked.prompts:
    raise ConfigError("--prompt: is text, and this run goes on with films; give one as --prompts_file, or nothing")
  return asked.prompts_file


def answer(run: runs.Run, source: str, asked: Asked) -> list[Continued]:
  """Goes on with films for `--max_tokens` frames, and prints their energies.

  Writes a JSON, and beside it pictures and the frames' features; all in one page, if that is asked for.
  """
  path, task = pathlib.Path(asked.out or pathlib.Path(asked.home, "generated.json")), run.task
  found = VideoModel(run).read(source) if source else _some_held_out(task, max(1, run.config.sample.pictures))
  continued = go_on(task, run.params, found, asked.max_tokens, asked.seed)
  for row in results(run, continued):
    print(_line(row))
  if not asked.page:
    files.write_json(path, results(run, continued))
    written = [path.name, *write_pictures(task, continued, path.with_suffix(""))]
    features = io.BytesIO()
    np.savez(features, features=np.stack([one.added for one in continued]))
    files.replace_bytes(path.with_suffix(".npz"), features.getvalue())
    print(f"written to {path.parent}: {', '.join([*written, path.with_suffix('.npz').name])}")
  return continued


def results(run: runs.Run, found: list[Continued]) -> list[dict[str, Any]]:
  """The answers as JSON."""
  return as_json(run.task, found)


def held_out(run: runs.Run, sets: dict[str, Any]) -> list[Continued]:
  """Held-out films that go on for `sample.frames` frames."""
  s = run.config.sample
  return go_on(run.task, run.params, _some_held_out(run.task, max(1, s.pictures)), s.frames, 0)


def sections(run: runs.Run, found: list[Continued]) -> list[str]:
  """The frames that were added, with their energies; of features that are no pictures the energies alone."""
  out, encoder = [], run.task.problem.encoder
  for one in found:
    shown, chart = [], ""
    if encoder is not None and encoder.decode is not None:
      frames = encoder.decode(np.concatenate([one.given[-1:], one.added]))
      for i, frame in enumerate(frames):
        name = f"frame {i}" if i else "last frame that was given"
        energy = f", energy {one.energies[i - 1]:.4f}" if i and one.energies is not None else ""
        width = max(TILE, frame.shape[1])
        shown.append((thoughts.picture(pictures.png(frame), f"{one.name}, {name}", width), name + energy))
    if one.energies is not None:
      said = "Energy of each frame that was added"
      curve = page.curves(np.asarray(one.energies)[:, None], 0, said, first=1)
      chart = f"<figure>{curve}<figcaption>{said}</figcaption></figure>"
    out.append(thoughts.section(one.name, thoughts.steps_of(shown), chart))
  return out


def _line(row):
  parts = [f"{row['film']}  {row['given']} frames and {row['added']}"]
  if "energy" in row:
    parts.append(f"energy {np.mean(row['energy']):.4f}")
  if "loss" in row:
    parts.append(f"loss {np.mean(row['loss']):.4f} (copy {np.mean(row['copy_loss']):.4f})")
  return "  ".join(parts)


def example(task: Task) -> str:
  """Held-out films."""
  return "--max_tokens=64"
