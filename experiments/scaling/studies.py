"""Studies as data: the axes, what varies along each axis, and the series (config files) that are compared.

A run is named by its series, size, batch size, steps and seed. Axes that need the same run share it.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import inspect
from typing import Any

from ebt_jax import modules, sweep
from ebt_jax.config import ConfigError, near
from ebt_jax.sweep import Run, Variant, chain, named

RECIPE = "experiments/scaling/recipe.py"
SERIES = {"transformer": f"{RECIPE}:transformer", "ebt": f"{RECIPE}:ebt"}


@dataclasses.dataclass(frozen=True)
class Axis:
  """One quantity that is varied, and how its runs are read.

  Attributes:
    name: in flags and file names.
    title: in the report.
    x: field of a point (`points.py`) that the axis varies.
    levels: the variants that each series is trained in.
    seeds: each level is trained with the seeds 0 to `seeds` - 1.
    y: field of a point that is compared: a positive number, lower is better.
    curve: every evaluation of a run is a point of the axis; False: only the last one.
    kinds: `model.kind` of the series that take part; empty: all.
    without: series of the study that do not take part.
  """

  name: str
  title: str
  x: str
  levels: Sequence[Variant]
  seeds: int = 3
  y: str = "loss"
  curve: bool = False
  kinds: tuple[str, ...] = ()
  without: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Study:
  """Axes, overrides (`base`) that all runs share, and the series (label -> config file); the first is the baseline."""

  name: str
  about: str
  base: Mapping[str, Any]
  axes: Sequence[Axis]
  series: Mapping[str, str] = dataclasses.field(default_factory=lambda: dict(SERIES))

  def runs(self, series: Mapping[str, str], extra: Mapping[str, Any] | None = None) -> dict[str, dict[str, list[Run]]]:
    """Axis -> series -> runs.

    Args:
      series: label -> config file, `FILE.py` or `FILE.py:arg`.
      extra: overrides of all runs. They replace those of `base`; see `check_extra` for those of an axis.

    Raises:
      ConfigError: a config file cannot be loaded, or two runs of the same name differ.
    """
    kinds = {label: sweep.read_config(config).model.kind for label, config in series.items()}
    base = {**self.base, **(extra or {})}
    out = {
      a.name: {
        label: sweep.runs(config, a.levels, base, label, range(a.seeds))
        for label, config in series.items()
        if (not a.kinds or kinds[label] in a.kinds) and label not in a.without
      }
      for a in self.axes
    }
    sweep.unique(r for of_axis in out.values() for runs in of_axis.values() for r in runs)
    return out

  def check_extra(self, extra: Iterable[str], axes: Iterable[str]) -> None:
    """Raises ConfigError where one of these axes sets one of these keys itself, and would silently win."""
    axes = set(axes)
    for axis in self.axes:
      if axis.name in axes:
        own = {"seed"}.union(*(v.values for v in axis.levels))
        for key in sorted(own.intersection(extra)):
          raise ConfigError(
            f"--set {key}: axis {axis.name} of study {self.name} sets config.{key} itself; "
            f"leave it out, choose other axes with --axes, or edit the axis in experiments/scaling/studies.py"
          )


def at(
  layers: int, width: int, batch: int, steps: int, rate: float = 1.0, evaluations: int = 16, **more: Any
) -> list[Variant]:
  """One model size, batch size and number of training steps.

  The learning rate is `rate` times 2.4e-3 sqrt(128 / width), which is within a sixth of the paper's rates for 4xs, 3xs
  and xxs. As in the paper, it does not depend on depth or batch size. `more`: other keys, with `__` in place of dots.
  """
  values = {
    "model.layers": layers,
    "model.width": width,
    "model.heads": 2 if width <= 128 else width // 64,
    "train.batch_size": batch,
    "train.steps": steps,
    "train.learning_rate": float(f"{rate * 2.4e-3 * (128 / width) ** 0.5:.3g}"),
    "eval.every": max(1, steps // evaluations),
    **{key.replace("__", "."): value for key, value in more.items()},
  }
  extra = [f"{key.replace('__', '.')}={value}" for key, value in more.items()]
  label = ",".join(
    [f"{layers}x{width}", f"batch{batch}", f"steps{steps}", *([f"rate{rate:g}"] if rate != 1 else []), *extra]
  )
  return named({label: values})


def _quick() -> Study:
  sizes = chain(*(at(2, width, 16, 256) for width in (48, 64, 96, 128)))
  return Study(
    "quick",
    "Fifteen minutes on two cores: the data, width, parameter and FLOP axes of small models, three seeds.",
    {"train.warmup": 32, "eval.max_windows": 256},
    [
      Axis("data", "Data", "items", at(2, 128, 16, 256), curve=True),
      Axis("width", "Width", "width", sizes),
      Axis("params", "Parameters", "params_non_embedding", sizes, curve=True),
      Axis("flops", "FLOPs", "flops", sizes),
    ],
  )


def _laptop() -> Study:
  steps = 500
  base = at(2, 128, 16, steps)
  batches = chain(*(at(2, 128, b, steps) for b in (2, 4, 8, 16)))
  depths = chain(*(at(n, 128, 16, steps) for n in (1, 2, 3, 4, 6)))
  widths = chain(*(at(2, w, 16, steps) for w in (48, 64, 96, 128, 192, 256)))
  sizes = chain(*(at(n, w, 16, steps) for n, w in ((2, 48), (2, 64), (2, 96), (2, 128), (3, 192), (4, 256))))
  decayed = chain(*(at(2, 128, 16, 3 * steps // part, train__schedule="cosine") for part in (8, 4, 2, 1)))
  thinking = chain(base, *(at(2, 128, 16, steps, thinking__steps=k, thinking__landscapes=k) for k in (1, 3, 4)))
  rates = chain(*(at(n, w, 16, steps, rate) for n, w in ((2, 64), (2, 128), (2, 192)) for rate in (0.5, 1, 2)))
  return Study(
    "laptop",
    "All axes of the paper between 4xs/7 and 3xs on bytes, half a million to four million tokens a run.",
    {"eval.max_windows": 256},
    [
      Axis("data", "Data", "items", at(2, 128, 16, 3 * steps), curve=True),
      Axis("long", "Data, further", "items", at(2, 128, 16, 8 * steps), curve=True),
      Axis("batch", "Batch size", "batch_items", batches),
      Axis("depth", "Depth", "layers", depths),
      Axis("width", "Width", "width", widths),
      Axis("params", "Parameters", "params_non_embedding", sizes, curve=True),
      Axis("flops", "FLOPs", "flops", sizes),
      Axis("decay", "Data, cosine to each budget", "items", decayed),
      Axis("thinking", "Thinking steps in training", "thinking_steps", thinking, kinds=("ebt",), without=("residual",)),
      Axis("rates", "Check of the learning rate", "learning_rate", rates, seeds=1),
    ],
    {**SERIES, "residual": f"{RECIPE}:residual"},
  )


def _residual() -> Study:
  return Study(
    "residual",
    "Is a residual EBT ever behind Transformer++? 0.1 to 1.5 million tokens with six seeds, to 4.1 million with three.",
    {"eval.max_windows": 256},
    [
      Axis("data", "Data", "items", at(2, 128, 16, 1500), seeds=6, curve=True),
      Axis("long", "Data, further", "items", at(2, 128, 16, 4000), curve=True),
    ],
    {"transformer": f"{RECIPE}:transformer", "residual": f"{RECIPE}:residual"},
  )


def _recurrent() -> Study:
  sizes = chain(*(at(n, w, 16, 500) for n, w in ((2, 48), (2, 96), (3, 192))))  # of `laptop`, as the data axis
  return Study(
    "recurrent",
    "RG-LRU and an LSTM in place of attention, beside Transformer++: 0.5 to 1.5 million tokens, three seeds.",
    {"eval.max_windows": 256},
    [
      Axis("data", "Data", "items", at(2, 128, 16, 1500), curve=True),
      Axis("params", "Parameters", "params_non_embedding", sizes, curve=True),
    ],
    {series: f"{RECIPE}:{series}" for series in ("transformer", "rnn", "lstm")},
  )


def _optimizers() -> Study:
  families = ("transformer", "ebt", "residual")
  muon = tuple(f"{family}_muon" for family in families)
  names = [name for family in families for name in (family, f"{family}_muon")]

  def rates(*several):
    return chain(*(at(2, 128, 16, 500, rate) for rate in several))

  def further(axis, series, rate):
    others = tuple(name for name in names if name != series)
    levels = at(2, 128, 16, 3800, rate, 19)
    return Axis(axis, f"{series}, further", "items", levels, curve=True, without=others)

  return Study(
    "optimizers",
    "AdamW and Muon for both families, each with its own learning rate: the same trunk, data and tokens.",
    {"eval.max_windows": 256},
    [
      Axis("rates", "Learning rate", "learning_rate", rates(0.5, 1, 2, 4, 8), seeds=1),
      # at the rates that are best there
      Axis("adamw", "AdamW, three seeds", "learning_rate", rates(0.5, 1), without=muon),
      Axis("muon", "Muon, three seeds", "learning_rate", rates(2, 4), without=families),
      # as long as the paper's EBT takes: Transformer++ at equal FLOPs and at equal time
      further("further_adamw", "transformer", 1),
      further("further_muon", "transformer_muon", 2),
    ],
    {name: f"{RECIPE}:{name}" for name in names},
  )


def _images() -> Study:
  """Denoisers; the learning rate at width 128 is that of their own configs, 1e-3. One run serves several axes."""

  def size(layers, width):
    return at(layers, width, 16, 480, 0.42, 4)

  widths, depths = chain(*(size(2, w) for w in (32, 64, 128))), chain(*(size(n, 64) for n in (1, 2, 4)))
  data = size(2, 64)
  return Study(
    "images",
    "EBT and DiT denoise crops of photographs: data, width and depth; smooth L1, and squared error, whose logarithm is "
    "PSNR. Passes of an answer: 2 of EBT, 4 of DiT.",
    {
      "train.schedule": "constant",
      "train.warmup": 50,
      "train.health_every": 0,
      "image.passes": 4,
      "sample.pictures": 0,
      "checkpoint.keep": 1,
    },
    [
      Axis("data", "Data", "items", data, curve=True),
      Axis("data_mse", "Data, squared error (PSNR)", "items", data, y="mse", curve=True),
      Axis("data_far", "Data, at twice the noise of EBT's training", "items", data, y="level_0.2/loss", curve=True),
      Axis("width", "Width", "width", widths),
      Axis("width_mse", "Width, squared error (PSNR)", "width", widths, y="mse"),
      Axis("depth", "Depth", "layers", depths),
      Axis("depth_mse", "Depth, squared error (PSNR)", "layers", depths, y="mse"),
    ],
    {"dit": "configs/image_dit.py", "ebt": "configs/image_ebt.py"},
  )


def _video() -> Study:
  """Frames of moving shapes; the learning rate at width 64 is that of the laptop's Transformer++, 6e-3. One run serves
  several axes."""

  def size(layers, width):
    return at(layers, width, 16, 600, 1.8, 8)

  widths, depths = chain(*(size(2, w) for w in (32, 64, 128))), chain(*(size(n, 64) for n in (1, 2, 4)))
  sizes = chain(size(2, 32), size(2, 64), size(4, 128))
  return Study(
    "video",
    "EBT and Transformer++ predict the next frame of moving shapes: data, width, depth and parameters; as in the paper "
    "(Fig. 9), y is the loss.",
    {
      "train.schedule": "constant",
      "train.warmup": 50,
      "train.health_every": 0,
      "sample.pictures": 0,
      "checkpoint.keep": 1,
    },
    [
      Axis("data", "Data", "items", size(2, 64), curve=True),
      Axis("width", "Width", "width", widths),
      Axis("depth", "Depth", "layers", depths),
      Axis("params", "Parameters", "params_non_embedding", sizes, curve=True),
    ],
    {
      "transformer": "configs/video_transformer.py",
      "ebt": "configs/video_ebt.py",
      "residual": "configs/video_ebt.py:residual",
    },
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
      Axis("data", "Data", "items", sizes[1], seeds=2, curve=True),
      Axis("width", "Width", "width", chain(*sizes), seeds=2),
      Axis("params", "Parameters", "params_non_embedding", chain(*sizes), seeds=2, curve=True),
    ],
  )


_STUDIES = {
  "tiny": _tiny,
  "quick": _quick,
  "laptop": _laptop,
  "residual": _residual,
  "recurrent": _recurrent,
  "optimizers": _optimizers,
  "images": _images,
  "video": _video,
}


def get(name: str) -> Study:
  """A study by name, or your own: what `package.module:function` returns. Raises ConfigError where there is none."""
  module, colon, function = name.partition(":")
  if colon:
    try:
      make = getattr(modules.imported(module, "--study"), function)
    except ConfigError:
      raise
    except (ImportError, AttributeError, ValueError) as e:
      raise ConfigError(f"--study: {name} cannot be loaded ({e}); expected package.module:function") from e
    try:
      inspect.signature(make).bind()
    except TypeError as e:
      raise ConfigError(f"--study: {name} is no function without arguments ({e})") from e
    found = make()
    if not isinstance(found, Study):
      raise ConfigError(
        f"--study: {name} returned {type(found).__name__}, expected an experiments.scaling.studies.Study"
      )
    return found
  if name not in _STUDIES:
    raise ConfigError(f"--study: no study {name!r}; {near(name, _STUDIES)}")
  return _STUDIES[name]()
