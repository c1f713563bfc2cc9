"""Studies as data: axes, what varies along them, and the series (config files) that are compared.

Every run of a study is named by its size, batch, steps and seed, so that axes share runs.
"""

from collections.abc import Mapping, Sequence
import dataclasses
from typing import Any

from ebt_jax import sweep
from ebt_jax.config import ConfigError, near
from ebt_jax.sweep import Run, Variant, chain, grid, named, product

RECIPE = "experiments/scaling/recipe.py"
SERIES = {"transformer": f"{RECIPE}:transformer", "ebt": f"{RECIPE}:ebt"}


@dataclasses.dataclass(frozen=True)
class Axis:
  """What is varied, and how the runs are read.

  Attributes:
    name: in flags and files.
    title: in the report.
    x: field of a point that is the axis.
    sweep: the variants that each series is trained in.
    way: every evaluation of a run is a point, not its end alone.
    kinds: `model.kind` of the series that take part; empty: all.
  """

  name: str
  title: str
  x: str
  sweep: Sequence[Variant]
  way: bool = False
  kinds: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Study:
  """Axes, and overrides that all runs share."""

  name: str
  about: str
  base: Mapping[str, Any]
  axes: Sequence[Axis]

  def runs(self, series: Mapping[str, str], extra: Mapping[str, Any] | None = None) -> dict[str, dict[str, list[Run]]]:
    """Axis -> series -> runs.

    Args:
      series: label -> config file, with `:arg` or without.
      extra: overrides of all runs, before all others.

    Raises:
      ConfigError: a config file cannot be loaded, or two runs of one name differ.
    """
    kinds = {label: sweep.load(config).model.kind for label, config in series.items()}
    base = {**self.base, **(extra or {})}
    out = {
      a.name: {s: sweep.runs(c, a.sweep, base, s) for s, c in series.items() if not a.kinds or kinds[s] in a.kinds}
      for a in self.axes
    }
    sweep.unique(r for of_axis in out.values() for runs in of_axis.values() for r in runs)
    return out


def at(layers: int, width: int, batch: int, steps: int, rate: float = 1.0, **more: Any) -> list[Variant]:
  """One size, batch and number of steps.

  The learning rate is 2.4e-3 sqrt(128 / width), within a sixth of the paper's for 4xs, 3xs and xxs; `rate` multiplies
  it. As in the paper, it does not depend on depth or batch. `more`: other keys, with `__` for dots.
  """
  values = {
    "model.layers": layers,
    "model.width": width,
    "model.heads": 2 if width <= 128 else width // 64,
    "train.batch_size": batch,
    "train.steps": steps,
    "train.learning_rate": float(f"{rate * 2.4e-3 * (128 / width) ** 0.5:.3g}"),
    "eval.every": max(1, steps // 16),
    **{key.replace("__", "."): value for key, value in more.items()},
  }
  extra = [f"{key.replace('__', '.')}={value}" for key, value in more.items()]
  label = ",".join(
    [f"{layers}x{width}", f"batch{batch}", f"steps{steps}", *([f"rate{rate:g}"] if rate != 1 else []), *extra]
  )
  return named({label: values})


def _seeds(n: int) -> list[Variant]:
  return grid({"seed": list(range(n))})


def _quick() -> Study:
  sizes = [at(2, width, 16, 256) for width in (48, 64, 96, 128)]
  return Study(
    "quick",
    "Fifteen minutes on two cores: the data, width, parameter and FLOP axes of small models, three seeds.",
    {"train.warmup": 32, "eval.max_windows": 256},
    [
      Axis("data", "Data", "tokens", product(at(2, 128, 16, 256), _seeds(3)), way=True),
      Axis("width", "Width", "width", product(chain(*sizes), _seeds(3))),
      Axis("params", "Parameters", "params_non_embedding", product(chain(*sizes), _seeds(3)), way=True),
      Axis("flops", "FLOPs", "flops", product(chain(*sizes), _seeds(3))),
    ],
  )


def _laptop() -> Study:
  steps = 500
  base = at(2, 128, 16, steps)
  sizes = [at(n, w, 16, steps) for n, w in ((2, 48), (2, 64), (2, 96), (2, 128), (3, 192), (4, 256))]
  decayed = [at(2, 128, 16, 3 * steps // part, train__schedule="cosine") for part in (8, 4, 2, 1)]
  rates = [at(n, w, 16, steps, rate) for n, w in ((2, 64), (2, 128), (2, 192)) for rate in (0.5, 1, 2)]
  thinking = [at(2, 128, 16, steps, thinking__steps=k, thinking__landscapes=k) for k in (1, 3, 4)]

  def seeds(variants, n=3):
    return product(chain(*variants), _seeds(n))

  return Study(
    "laptop",
    "All axes of the paper between 4xs/7 and 3xs on bytes, half a million to four million tokens a run.",
    {"eval.max_windows": 256},
    [
      Axis("data", "Data", "tokens", seeds([at(2, 128, 16, 3 * steps)]), way=True),
      Axis("long", "Data, further", "tokens", seeds([at(2, 128, 16, 8 * steps)]), way=True),
      Axis("batch", "Batch size", "batch_tokens", seeds([at(2, 128, b, steps) for b in (2, 4, 8, 16)])),
      Axis("depth", "Depth", "layers", seeds([at(n, 128, 16, steps) for n in (1, 2, 3, 4, 6)])),
      Axis("width", "Width", "width", seeds([at(2, w, 16, steps) for w in (48, 64, 96, 128, 192, 256)])),
      Axis("params", "Parameters", "params_non_embedding", seeds(sizes), way=True),
      Axis("flops", "FLOPs", "flops", seeds(sizes)),
      Axis("decay", "Data, cosine to each budget", "tokens", seeds(decayed)),
      Axis("thinking", "Thinking steps in training", "thinking_steps", seeds([base, *thinking]), kinds=("ebt",)),
      Axis("rates", "Check of the learning rate", "learning_rate", seeds(rates, 1)),
    ],
  )


def _tiny() -> Study:
  sizes = [at(1, width, 4, 8) for width in (16, 24, 32)]
  return Study(
    "tiny",
    "A minute: shows that everything runs; its numbers mean nothing.",
    {
      "train.warmup": 1,
      "train.log_every": 1,
      "data.context_length": 16,
      "eval.max_windows": 8,
      "checkpoint.every": 2,
    },
    [
      Axis("data", "Data", "tokens", product(sizes[1], _seeds(2)), way=True),
      Axis("width", "Width", "width", product(chain(*sizes), _seeds(2))),
      Axis("params", "Parameters", "params_non_embedding", product(chain(*sizes), _seeds(2)), way=True),
    ],
  )


_STUDIES = {"tiny": _tiny, "quick": _quick, "laptop": _laptop}


def get(name: str) -> Study:
  """A study by name. Raises ConfigError where there is none."""
  if name not in _STUDIES:
    raise ConfigError(f"--study: no study {name!r}; {near(name, _STUDIES)}")
  return _STUDIES[name]()
