"""Linear probe (paper Table 4): what a frozen denoiser knows of what a picture shows.

  python -m experiments.denoising.probe --workdir=runs/denoising [--among=cifar] [--pictures=2000] [--windows=1024]

Features of a clean picture are the mean of its patches after a block, DiT and flow matching at time 0. A logistic
regression is fitted to features of training pictures and tells labels of held-out ones (`--windows`). Labels are
classes (CIFAR-10), or which of the photographs in this package a crop is of. Beside it: raw pixels, as many principal
components as features, and the same models before their first step. Needs scikit-learn.
"""

from collections.abc import Callable
import functools
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from ebt_jax import cli, record, streams
from ebt_jax.config import ConfigError
from ebt_jax.models import dit
from ebt_jax.tasks.base import Examples, Task, Thinks
from experiments.denoising.page import label_of
from experiments.denoising.study import Model, find, once
from experiments.thinking import common

STRENGTHS = tuple(10.0**k for k in range(-4, 2))  # C of the regression; the smaller, the stronger its L2 penalty
ROWS = 64  # pictures at once
VALIDATION = 0.2  # of the training pictures of each class


class Set(NamedTuple):
  """Pictures `[n, size, size, channels]`, uint8, and their labels `[n]`."""

  pictures: np.ndarray
  labels: np.ndarray


class Probed(NamedTuple):
  """Share of held-out pictures that are told right, a 95% Wilson interval over pictures, and the C that was chosen."""

  top1: float
  low: float
  high: float
  strength: float


def some(examples: Examples, count: int) -> Set:
  """At most `count` pictures, spread evenly over all."""
  count = min(count, len(examples))
  rows = examples.rows(np.linspace(0, len(examples) - 1, count).astype(int))
  return Set(rows["picture"], rows["label"])


def features(task: Task, params: Any, layers: int) -> Callable[[np.ndarray], np.ndarray]:
  """uint8 pictures -> `[n, width]`, the mean over patches after the first `layers` blocks."""
  model, weights = dit.first_layers(task.model, params["model"], layers)
  of_batch = _of_batch(model, isinstance(task, Thinks))

  def of(pictures):
    rows = min(ROWS, len(pictures))
    filled = np.pad(pictures, ((0, -len(pictures) % rows), *[(0, 0)] * 3))  # one compiled program
    parts = [np.asarray(of_batch(weights, part)) for part in np.split(filled, len(filled) // rows)]
    return np.concatenate(parts)[: len(pictures)]

  return of


@functools.cache
def _of_batch(model: Any, thinks: bool) -> Callable:
  @jax.jit
  def of_batch(weights, pictures):
    x = jnp.asarray(pictures, jnp.float32) / 127.5 - 1
    return jnp.mean(model.tokens(weights, x if thinks else (x, jnp.zeros(len(x)))), 1)

  return of_batch


def validation(labels: np.ndarray) -> np.ndarray:
  """Which examples C is chosen on: the last of each class, since crops that lie side by side share most pixels."""
  chosen = np.zeros(len(labels), bool)
  for label in np.unique(labels):
    mine = np.flatnonzero(labels == label)
    chosen[mine[len(mine) - round(VALIDATION * len(mine)) :]] = True
  return chosen


def probe(train: np.ndarray, labels: np.ndarray, held_out: np.ndarray, truth: np.ndarray) -> Probed:
  """Multinomial logistic regression on standardised features, with the C that is best on a part of the training set.

  Args:
    train, held_out: features `[n, d]`.
    labels, truth: their labels `[n]`.
  """
  from sklearn.linear_model import LogisticRegression
  from sklearn.pipeline import make_pipeline
  from sklearn.preprocessing import StandardScaler
  from threadpoolctl import threadpool_limits

  def fitted(strength, x, y):
    with threadpool_limits(1):  # threads that wait for each other made this ten times slower on a busy machine
      return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=3000, tol=1e-3)).fit(x, y)

  chosen = validation(labels)
  right = [fitted(c, train[~chosen], labels[~chosen]).score(train[chosen], labels[chosen]) for c in STRENGTHS]
  strength = STRENGTHS[int(np.argmax(right))]  # of equals the one with the strongest penalty
  hits = int(np.sum(fitted(strength, train, labels).predict(held_out) == truth))
  interval = stats.binomtest(hits, len(truth)).proportion_ci(method="wilson")
  return Probed(hits / len(truth), float(interval.low), float(interval.high), strength)


def baselines(train: Set, held_out: Set, width: int) -> dict[str, Probed]:
  """Raw pixels, and as many principal components as the models have features."""
  from sklearn.decomposition import PCA

  x, y = (s.pictures.reshape(len(s.labels), -1) / 255.0 for s in (train, held_out))
  components = PCA(min(width, *x.shape), random_state=0).fit(x)
  return {
    "pixels": probe(x, train.labels, y, held_out.labels),
    f"{components.n_components_} principal components": probe(
      components.transform(x), train.labels, components.transform(y), held_out.labels
    ),
  }


def of_run(model: Model, train: Set, held_out: Set) -> dict[str, Probed]:
  """After each block of the trained model, and after the last one of the same before its first step."""
  task, layers = model.run.task, model.run.config.model.layers
  fresh = task.init(streams.key_for(model.run.config.seed, streams.INIT))
  places = {f"block {n}": (model.run.params, n) for n in range(1, layers + 1)} | {"untrained": (fresh, layers)}
  found = {}
  for name, (params, count) in places.items():
    of = features(task, params, count)
    found[name] = probe(of(train.pictures), train.labels, of(held_out.pictures), held_out.labels)
  return found


def percent(values) -> str:
  """Mean over seeds in percent, with its interval where there are several seeds."""
  values = 100 * np.asarray(values)
  return common.over_seeds(values, ".1f") if len(values) > 1 else f"{values[0]:.1f}"


def table(found: dict[str, list[dict[str, Probed]]], plain: dict[str, Probed], train: Set, held_out: Set) -> list[str]:
  """Baselines, then models: mean over seeds after each block; then differences to DiT, paired by seed."""
  classes = np.bincount(held_out.labels)
  rows = [
    f"top-1, %; {len(train.labels)} training and {len(held_out.labels)} held-out pictures, {np.sum(classes > 0)} "
    f"classes, the most frequent one {100 * classes.max() / classes.sum():.1f}"
  ]
  rows += [f"  {name:<28} {100 * p.top1:.1f} [{100 * p.low:.1f}, {100 * p.high:.1f}]" for name, p in plain.items()]
  for series, seeds in found.items():
    rows.append(f"  {label_of(series)}, {len(seeds)} seed{'s' if len(seeds) > 1 else ''}:")
    rows += [f"    {place:<26} {percent([s[place].top1 for s in seeds])}" for place in seeds[0]]
  for series, seeds in found.items():
    if series != "dit" and len(found.get("dit", ())) == len(seeds):
      last = list(seeds[0])[-2]
      apart = [a[last].top1 - b[last].top1 for a, b in zip(seeds, found["dit"])]
      rows.append(f"  {label_of(series)} less DiT, {last}, paired by seed: {percent(apart)} points")
  return rows


def draw(found: dict[str, list[dict[str, Probed]]], plain: dict[str, Probed]):
  fig, axes = common.figure(5.2, 3.2)
  for series, seeds in found.items():
    blocks = [place for place in seeds[0] if place.startswith("block")]
    values = 100 * np.mean([[s[place].top1 for place in blocks] for s in seeds], 0)
    axes.plot(range(1, len(blocks) + 1), values, "o-", ms=3, label=label_of(series))
  for style, (name, p) in zip((":", "--"), plain.items()):
    axes.axhline(100 * p.top1, color="#888888", lw=1, ls=style, label=name)
  axes.set(xlabel="after block", ylabel="top-1, %")
  axes.legend(frameon=False, fontsize=7)
  return fig


def main():
  args = common.arguments(__doc__, "probe", "denoising", windows=1024, among="models", pictures=2000)
  args.study = f"probe_{args.among}"
  try:
    import sklearn  # noqa: F401
  except ImportError as e:
    raise ConfigError("the probe needs scikit-learn; run `pip install scikit-learn`") from e
  models = find(args.workdir, args.among)
  data = record.data_of(models[0].run.task, models[0].run.folder)
  train, held_out = some(data.train, args.pictures), some(next(iter(data.held_out.values())), args.windows)
  found: dict[str, list[dict[str, Probed]]] = {}
  about = f"{args.among},{args.pictures},{args.windows}"
  for model in models:
    mine = once(args.workdir / "probe", about, model, lambda m: of_run(m, train, held_out))
    found.setdefault(model.series, []).append({name: Probed(*p) for name, p in mine.items()})
    print(f"probed: {model.series}, seed {model.seed}", flush=True)
  plain = baselines(train, held_out, models[0].run.config.model.width)
  result = {
    "models": {series: [{k: p._asdict() for k, p in s.items()} for s in seeds] for series, seeds in found.items()},
    "baselines": {name: p._asdict() for name, p in plain.items()},
  }
  common.write_study(args, result, "\n".join(table(found, plain, train, held_out)), draw(found, plain))


if __name__ == "__main__":
  sys.exit(cli.door(main))
