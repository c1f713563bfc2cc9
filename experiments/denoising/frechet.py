"""Fréchet distance of denoised pictures to clean ones, on features of EfficientNet-Lite0 (not of Inception: no FID).

  python -m experiments.denoising.frechet --workdir=runs/denoising [--level=0.1] [--windows=128]

Both sets are described by mean and covariance of their 1,280 features, the distance is that of two normal distributions
(Heusel et al. 2017). It falls with the number of pictures, so that only numbers of one table can be compared; its first
rows show what other pictures of the same photographs, noise and clean pictures come to.
"""

import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import linalg

from ebt_jax import cli, record, streams
from ebt_jax.config import ConfigError
from ebt_jax.models import efficientnet
from ebt_jax.tasks.base import Thinks
from ebt_jax.use import image
from experiments.denoising.page import label_of
from experiments.denoising.study import Model, at_level, find, once
from experiments.thinking import common

PASSES = {"ebt": (2, 4), "dit": (1, 10), "flow": (1, 10)}


class Normal(NamedTuple):
  """Mean `[d]` and covariance `[d, d]`."""

  mean: np.ndarray
  covariance: np.ndarray

  @classmethod
  def of(cls, x: np.ndarray) -> "Normal":
    """Of samples `[n, d]`."""
    return cls(x.mean(0), np.cov(x, rowvar=False))


def distance(a: Normal, b: Normal) -> float:
  """|m_a - m_b|^2 + tr(A + B - 2 (A B)^(1/2)); the last trace is that of (R B R)^(1/2) with R = A^(1/2)."""
  values, vectors = linalg.eigh(a.covariance)
  root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
  both = linalg.eigvalsh(root @ b.covariance @ root)
  apart = np.sum((a.mean - b.mean) ** 2)
  return float(apart + np.trace(a.covariance) + np.trace(b.covariance) - 2 * np.sum(np.sqrt(np.maximum(both, 0))))


class Features:
  """Features of pictures with values from -1 to 1, a few at a time."""

  def __init__(self):
    weights = efficientnet.weights()
    self._of = jax.jit(lambda x: efficientnet.features(weights, x))

  def normal(self, pictures: np.ndarray) -> Normal:
    parts = np.array_split(pictures, max(1, len(pictures) // 32))
    return Normal.of(np.concatenate([np.asarray(self._of(part), np.float64) for part in parts]))


def answers(model: Model, level: float, passes: int, count: int) -> dict[str, np.ndarray]:
  """`clean`, `noised` and `answer` of held-out pictures, `[n, h, w, c]`."""
  key, step = streams.key_for(0, streams.EVALUATE), model.program(image.denoise, steps=passes)
  found: dict[str, list] = {}
  examples = at_level(model, level)
  for numbers, batch in common.batches(examples, min(count, len(examples))):
    counts = batch["weights"] > 0
    done = step(model.run.params, batch, streams.each(key, numbers))
    for name, x in {**{n: done.batch[n] for n in ("clean", "noised")}, "answer": done.steps[-1]}.items():
      found.setdefault(name, []).append(np.asarray(x)[counts])
  return {name: np.concatenate(parts) for name, parts in found.items()}


def of_run(model: Model, of: Features, clean: Normal, level: float, count: int) -> dict[str, float]:
  """Passes, as text -> distance of the answers to the clean pictures."""
  kind = "ebt" if isinstance(model.run.task, Thinks) else model.run.config.model.kind
  return {
    str(passes): distance(of.normal(answers(model, level, passes, count)["answer"]), clean) for passes in PASSES[kind]
  }


def trivial(model: Model, of: Features, found: dict[str, np.ndarray], clean: Normal) -> dict[str, float]:
  """Distances of training pictures and of noised ones to the clean pictures."""
  train = record.data_of(model.run.task, model.run.folder).train
  rows = train.rows(np.linspace(0, len(train) - 1, len(found["clean"])).astype(int))["picture"]
  return {
    "as many training pictures": distance(of.normal(jnp.asarray(rows, jnp.float32) / 127.5 - 1), clean),
    "noised pictures": distance(of.normal(found["noised"]), clean),
  }


def main():
  args = common.arguments(__doc__, "frechet", "denoising", windows=128, among="models", level="0.1")
  args.study = f"frechet_{args.among}_{args.level}"
  try:
    level = float(args.level)
  except ValueError as e:
    raise ConfigError(f"--level: expected a number above 0, at most 1, found {args.level!r}") from e
  models, of = find(args.workdir, args.among), Features()
  if models[0].run.config.image.channels != 3:
    raise ConfigError("--workdir: these features are of pictures with three channels, not of grey ones")
  here, about = args.workdir / "frechet", f"{args.among},{level:g},{args.windows}"
  pictures = answers(models[0], level, 1, args.windows)
  clean = of.normal(pictures["clean"])
  plain = once(here, f"plain,{about}", models[0], lambda m: trivial(m, of, pictures, clean))
  found: dict[str, list[dict[str, float]]] = {}
  for model in models:
    mine = once(here, about, model, lambda m: of_run(m, of, clean, level, args.windows))
    found.setdefault(model.series, []).append(mine)
    print(f"measured: {model.series}, seed {model.seed}", flush=True)
  rows = [f"Fréchet distance on EfficientNet-Lite0 features, {args.windows} pictures at most, noise level {level:g}"]
  rows += [f"  {name:<28} {value:.2f}" for name, value in plain.items()]
  fig, axes = common.figure(5.2, 3.2)
  for series, seeds in found.items():
    for passes in seeds[0]:
      values = [s[passes] for s in seeds]
      said = common.over_seeds(values, ".2f") if len(values) > 1 else f"{values[0]:.2f}"
      rows.append(f"  {label_of(series)}, passes {passes:<4} {said}")
    axes.plot([int(p) for p in seeds[0]], [np.mean([s[p] for s in seeds]) for p in seeds[0]], "o-", ms=3,
              label=label_of(series))  # fmt: skip
  for name, value in plain.items():
    axes.axhline(value, color="#888888", lw=1, ls=":")
    axes.annotate(name, (1, value), fontsize=7, color="#666666")
  axes.set(xscale="log", xlabel="passes", ylabel="Fréchet distance")
  axes.legend(frameon=False, fontsize=7)
  common.write_study(args, {"models": found, "plain": plain}, "\n".join(rows), fig)


if __name__ == "__main__":
  sys.exit(cli.door(main))
