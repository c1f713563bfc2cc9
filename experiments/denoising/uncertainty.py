"""Energy of pictures as uncertainty (paper Figs. 8 and 11): noise, errors, and pictures of another kind.

  python -m experiments.denoising.uncertainty --workdir=runs/denoising [--sources=NAME=SOURCE,...]

Does the energy rise with the noise of a picture, and does the energy of an answer tell its error, picture by picture
and patch by patch (maps of both are drawn)? Does it rank pictures of another kind above held-out ones? Beside it: how
far thinking has moved the picture, and of every model the error of an answer to a picture that was noised first
(reconstruction). Other kinds are noise, held-out pictures with their patches shuffled, and any source that
`config.data.source` takes (a folder, an .npz, fetched CIFAR-10).
"""

import dataclasses
import functools
import hashlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from ebt_jax import cli, files, record, streams, thinking
from ebt_jax.config import ConfigError
from ebt_jax.data import images
from ebt_jax.evaluation import image_report
from ebt_jax.models import patches
from ebt_jax.tasks.base import Examples, Task, Thinks, corrupted
from ebt_jax.use.image import denoised
from experiments.denoising.page import label_of
from experiments.denoising.study import Model, at_level, find, once
from experiments.thinking import common
from experiments.thinking.verifier import auroc

LEVELS = (0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
SIGNALS = {
  "energy": "energy of the picture",
  "thought": "energy after thinking",
  "moved": "how far thinking moves it",
  "error": "error after noise, reconstruction",
}


@dataclasses.dataclass(frozen=True)
class Other:
  """Examples whose pictures a function of (pictures, their numbers) replaces."""

  examples: Examples
  change: Any

  def __len__(self) -> int:
    return len(self.examples)

  def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
    rows = self.examples.rows(index)
    return {**rows, "picture": self.change(rows["picture"], index)}


def noise(pictures: np.ndarray, index: np.ndarray) -> np.ndarray:
  """Values drawn evenly from 0 to 255."""
  return np.stack([np.random.default_rng(int(i)).integers(0, 256, p.shape, np.uint8) for i, p in zip(index, pictures)])


def shuffled(patch: int, pictures: np.ndarray, index: np.ndarray) -> np.ndarray:
  """The same patches in another order."""
  cut = np.array(patches.cut(jnp.asarray(pictures, jnp.float32), patch))
  for i, row in zip(index, cut):
    np.random.default_rng(int(i)).shuffle(row)
  return np.asarray(patches.join(jnp.asarray(cut), patch, pictures.shape[-1])).astype(np.uint8)


def others(model: Model, held_out: Examples, sources: str) -> dict[str, Examples]:
  """Pictures of another kind, by name. Raises ConfigError where a source is wrong."""
  image = model.run.config.image
  found = {"noise": Other(held_out, noise)}
  found["patches shuffled"] = Other(held_out, functools.partial(shuffled, image.patch))
  for part in filter(None, sources.split(",")):
    name, equals, source = part.partition("=")
    if not (name and equals and source):
      raise ConfigError(f"--sources: expected NAME=SOURCE, found {part!r}")
    found[name] = images.whole(dataclasses.replace(model.run.config.data, source=source), image)
  return found


def energy_of(task: Task, params: Any, batch: Any) -> jax.Array:
  """Energy `[b]` of noised pictures as they are, before any step."""
  context = thinking.at_landscape(task.context(params, batch), 0)
  return task.model.energy(params["model"], context, task.problem.inputs(batch))


def answered(task: Task, params: Any, batch: Any, keys: Any) -> dict[str, jax.Array]:
  """Of a noised picture `[b]`: the error of the answer, and of EBT the energies before and after; by patch `[b, s]`."""
  batch = corrupted(task.problem, batch, keys)
  clean, size = task.problem.target(batch), task.config.image.patch
  if not isinstance(task, Thinks):
    answer, out = task.answers(params, batch, keys)[-1], {}
  else:
    found = task.verified(params, batch, keys, lambda x: x)
    answer = found.best(found.observed, 1)[-1]
    by_patch = task.model.patch_energies(params["model"], answer)
    out = {"noised": energy_of(task, params, batch), "energy": found.best(found.final), "patch_energy": by_patch}
  errors = jnp.mean(patches.cut((answer - clean) ** 2, size), -1)
  return {**out, "error": jnp.mean(errors, -1), "patch_error": errors}


def looked_at(task: Task, params: Any, batch: Any, keys: Any) -> dict[str, jax.Array]:
  """`SIGNALS` of pictures as they are, `[b]`; `error` is of the same picture after noise."""
  error = {"error": answered(task, params, batch, keys)["error"]}
  if not isinstance(task, Thinks):
    return error
  clean = jnp.asarray(batch["picture"], float) / 127.5 - 1
  given = {**batch, "clean": clean, "noised": clean, "step": jnp.zeros(len(clean), jnp.int32)}
  found = task.verified(params, given, keys, lambda x: x)
  moved = jnp.mean((found.best(found.observed, 1)[-1] - clean) ** 2, (1, 2, 3))
  return {**error, "energy": energy_of(task, params, given), "thought": found.best(found.final), "moved": moved}


def over(step, params: Any, examples: Examples, count: int) -> dict[str, np.ndarray]:
  """`step(params, batch, keys)` of at most `count` examples."""
  key = streams.key_for(0, streams.EVALUATE)
  found: dict[str, list] = {}
  for numbers, batch in common.batches(examples, min(count, len(examples))):
    counts = batch["weights"] > 0
    for name, value in jax.device_get(step(params, batch, streams.each(key, numbers))).items():
      found.setdefault(name, []).append(value[counts])
  return {name: np.concatenate(parts) for name, parts in found.items()}


def spearman(a: np.ndarray, b: np.ndarray) -> float:
  return float(stats.spearmanr(np.ravel(a), np.ravel(b))[0])


def ranked(usual: np.ndarray, other: np.ndarray) -> list[float]:
  """AUROC of `other` above `usual`, and a 95% bootstrap interval over pictures."""

  def of(usual, other):
    return auroc(np.concatenate([usual, other]), np.repeat([0, 1], [len(usual), len(other)]))

  draws = stats.bootstrap((usual, other), of, n_resamples=200, vectorized=False, method="percentile", rng=0)
  return [of(usual, other), float(draws.confidence_interval.low), float(draws.confidence_interval.high)]


def of_run(model: Model, sources: str, count: int) -> dict[str, Any]:
  """All numbers of one run."""
  held_out = next(iter(record.data_of(model.run.task, model.run.folder).held_out.values()))
  values: dict[str, Any] = {}
  params, answer, look = model.run.params, model.program(answered), model.program(looked_at)
  if isinstance(model.run.task, Thinks):
    by_level = [over(answer, params, at_level(model, level), count) for level in LEVELS]
    before = np.stack([f["noised"] for f in by_level])  # [levels, pictures]
    values["energy_at_level"] = before.mean(1).tolist()
    values["energy_and_level"] = spearman(before, np.repeat(LEVELS, before.shape[1]))
    values["in_order"] = float(np.mean(np.diff(before, axis=0) > 0))
    values["energy_and_error"] = {str(level): spearman(f["energy"], f["error"]) for level, f in zip(LEVELS, by_level)}
    values["by_patch"] = {
      str(level): spearman(f["patch_energy"], f["patch_error"]) for level, f in zip(LEVELS, by_level)
    }
  usual = over(look, params, held_out, count)
  values["auroc"] = {}
  for name, examples in others(model, held_out, sources).items():
    other = over(look, params, examples, count)
    values["auroc"][name] = {s: ranked(usual[s], other[s]) for s in SIGNALS if s in usual}
  return values


def as_map(by_patch: np.ndarray, image: Any) -> np.ndarray:
  """Numbers of patches `[n, s]` as pictures: the least is black, the largest of all white."""
  low, high = by_patch.min(), by_patch.max()
  scaled = 2 * (by_patch - low) / max(high - low, 1e-30) - 1
  squares = scaled.reshape(-1, image.side, image.side).repeat(image.patch, 1).repeat(image.patch, 2)
  return np.repeat(squares[..., None], image.channels, -1)


def maps(model: Model, level: float, count: int = 6) -> bytes:
  """A PNG of some noised pictures: answers, their energy and their error, patch by patch."""
  task, examples, image = model.run.task, at_level(model, level), model.run.config.image
  batch = examples.rows(np.linspace(0, len(examples) - 1, count).astype(int))
  found = jax.device_get(denoised(task, model.run.params, batch, 0))
  answer, clean = jnp.asarray(found.steps[-1]), jnp.asarray(found.batch["clean"])
  energies = np.asarray(task.model.patch_energies(model.run.params["model"], answer))
  errors = np.asarray(jnp.mean(patches.cut((answer - clean) ** 2, image.patch), -1))
  columns = {"clean": clean, "noised": found.batch["noised"], "answer": answer}
  return image_report.sheet({**columns, "energy": as_map(energies, image), "error": as_map(np.sqrt(errors), image)})


def over_seeds(runs: list[dict[str, Any]], *path: str) -> str:
  """Mean and interval of one number over several seeds; of one seed its interval over pictures, where it has one."""
  values = [functools.reduce(lambda tree, key: tree[key], path, run) for run in runs]
  first = [v[0] if isinstance(v, list) else v for v in values]
  if len(values) > 1:
    return common.over_seeds(first, ".3f")
  return f"{first[0]:.3f}" + (f" [{values[0][1]:.3f}, {values[0][2]:.3f}]" if isinstance(values[0], list) else "")


def table(found: dict[str, list[dict[str, Any]]], count: int) -> list[str]:
  rows = [f"at most {count} pictures of each kind; AUROC of pictures of another kind above held-out ones, 0.5: chance"]
  for series, runs in found.items():
    rows.append(f"{label_of(series)}, {len(runs)} seed{'s' if len(runs) > 1 else ''}:")
    if "energy_and_level" in runs[0]:
      rows.append(f"  Spearman of energy and noise level        {over_seeds(runs, 'energy_and_level')}")
      rows.append(f"  the same picture, more noise, more energy {over_seeds(runs, 'in_order')}")
      for key, words in (("energy_and_error", "pictures"), ("by_patch", "patches")):
        cells = "  ".join(f"{level}: {over_seeds(runs, key, str(level))}" for level in LEVELS)
        rows.append(f"  Spearman of energy and error, {words:<8}    {cells}")
    for kind, signals in runs[0]["auroc"].items():
      for signal in signals:
        rows.append(f"  AUROC, {kind}, {SIGNALS[signal]}: {over_seeds(runs, 'auroc', kind, signal)}")
  return rows


def draw(found: dict[str, list[dict[str, Any]]]):
  """Energy against level, and AUROC of each kind."""
  fig, (left, right) = common.figure(9.0, 3.2, nrows=1, ncols=2)
  for series, runs in found.items():
    if "energy_at_level" in runs[0]:
      energies = np.array([r["energy_at_level"] for r in runs])
      left.plot(LEVELS, (energies - energies[:, :1]).mean(0), "o-", ms=3, label=label_of(series))
  left.set(xlabel="noise level", ylabel=f"energy less that at {LEVELS[0]}", xscale="log")
  bars = [(s, signal) for s, runs in found.items() for signal in next(iter(runs[0]["auroc"].values()))]
  kinds = list(next(iter(found.values()))[0]["auroc"])
  for i, (series, signal) in enumerate(bars):
    heights = [np.mean([r["auroc"][kind][signal][0] for r in found[series]]) for kind in kinds]
    places = np.arange(len(kinds)) + (i - len(bars) / 2) * 0.8 / len(bars)
    right.bar(places, heights, 0.8 / len(bars), label=f"{label_of(series)}: {SIGNALS[signal]}")
  right.axhline(0.5, color="#888888", lw=1, ls=":")
  right.set(ylabel="AUROC")
  right.set_xticks(range(len(kinds)), kinds)
  for axes in (left, right):
    axes.legend(frameon=False, fontsize=6)
  return fig


def main():
  args = common.arguments(__doc__, "uncertainty", "denoising", windows=256, among="models", sources="")
  args.study = f"uncertainty_{args.among}"
  found: dict[str, list[dict[str, Any]]] = {}
  digest = hashlib.sha256(args.sources.encode()).hexdigest()[:8] if args.sources else ""
  about = f"{args.among},{args.windows},{digest}"
  models = find(args.workdir, args.among)
  for model in models:
    mine = once(args.workdir / "uncertainty", about, model, lambda m: of_run(m, args.sources, args.windows))
    found.setdefault(model.series, []).append(mine)
    print(f"measured: {model.series}, seed {model.seed}", flush=True)
  if first := next((m for m in models if isinstance(m.run.task, Thinks)), None):
    files.replace_bytes(args.out / f"{args.study}_maps.png", maps(first, first.run.config.image.noise_level))
  common.write_study(args, {"levels": LEVELS, "models": found}, "\n".join(table(found, args.windows)), draw(found))


if __name__ == "__main__":
  sys.exit(cli.door(main))
