"""Functions that the studies of thinking share: opening runs, scores of answers, intervals over seeds, results."""

import argparse
import atexit
from collections.abc import Callable, Iterable, Iterator
import dataclasses
import functools
import io
import math
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np

from ebt_jax import cli, files, record, runs, scaling, streams
from ebt_jax.config import Config, ConfigError, near
from ebt_jax.data.loader import in_order
from ebt_jax.evaluation.evaluator import pretty
from ebt_jax.owner import Owner
from ebt_jax.tasks import registry
from ebt_jax.tasks.base import Examples, Scores, Task, corrupted

EXPERIMENTS = pathlib.Path(__file__).parent.parent


class Kind(NamedTuple):
  """Runs that differ by their seed alone: the set of `train.py` that has them, what they are, how they are drawn."""

  among: str
  label: str
  color: str = ""


KINDS = {
  "s1": Kind("models", "paper's EBT, System 1", "#d1495b"),
  "s2": Kind("models", "paper's EBT, System 2", "#1b6ca8"),
  "residual_context": Kind("residual", "residual EBT, one step from its context", "#2a9d8f"),
  "residual_noise": Kind("residual", "residual EBT, System 1", "#e9a23b"),
  "residual_s2": Kind("residual", "residual EBT, System 2", "#7b5ea7"),
  "transformer": Kind("models", "Transformer++", "#444444"),
  "passes_2": Kind("controls", "Transformer++, each block used twice"),
  "passes_3": Kind("controls", "Transformer++, each block used three times"),
  "layers_6": Kind("controls", "Transformer++, three times the blocks"),
  "energy_gain_0": Kind("controls", "residual EBT without E_theta"),
}


class Model(NamedTuple):
  """A trained run."""

  run: runs.Run

  @property
  def config(self) -> Config:
    return self.run.config

  @property
  def params(self) -> Any:
    return self.run.params

  @property
  def step(self) -> int:
    return self.run.step

  @property
  def problem(self) -> Any:
    return self.run.task.problem

  def task(self, **inference) -> Task:
    """The task that thinks as `inference` (keys of `config.eval`) says."""
    changed = dataclasses.replace(self.config.eval, **inference)
    return registry.make(dataclasses.replace(self.config, eval=changed), kept=record.kept(self.run.folder))


def arguments(about: str, name: str, room: str = "thinking", windows: int = 256, **defaults) -> argparse.Namespace:
  """--workdir, --windows, --out, and the flags in `defaults`: integers (0 only where it is the default), texts, paths.

  They are those of the study `name`, whose results this process owns; `room` is its folder below `experiments/`.
  Compiled programs are cached, since seeds share them. A study with a default `kind` runs on other kinds of models too;
  their results have the kind in their names.

  Raises:
    ConfigError: a flag is wrong, or the steps --first and --last to compare are not in order.
  """
  parser = cli.Parser(description=about.split("\n")[0])
  parser.add_argument("--workdir", type=cli.path, default=pathlib.Path("runs") / room, help="of train.py")
  parser.add_argument("--windows", type=cli.at_least(1), default=windows, help="held-out examples to evaluate on")
  parser.add_argument("--out", type=cli.path, default=EXPERIMENTS / room / "results")
  for flag, default in defaults.items():
    kind = cli.at_least(min(1, default)) if isinstance(default, int) else str if isinstance(default, str) else cli.path
    parser.add_argument(f"--{flag}", type=kind, default=default)
  args = parser.parse_args()
  if {"first", "last"} <= defaults.keys() and not args.first < args.last <= vars(args).get("steps", args.last):
    most = f" and at most --steps={args.steps}" if "steps" in defaults else ""
    raise ConfigError(f"--last: expected more than --first={args.first}{most}, found {args.last}")
  if (kind := defaults.get("kind")) and args.kind != kind:
    for one in args.kind.split(","):
      if one not in KINDS:
        raise ConfigError(f"--kind: no kind {one!r}; {near(one, KINDS)}")
    name = f"{name}_{args.kind.replace(',', '_')}"
  args.study, args.owner = name, Owner(args.out, "--out", f"{name}.owner.json")
  atexit.register(args.owner.close)
  share_programs(args.workdir)
  return args


def program(function: Callable, config: Config, **inference) -> Callable:
  """`function(task, *arrays)`, compiled, as a function of the arrays; seeds share it. The data of runs do not enter.

  Args:
    config: of a run, whose task answers as `inference` (keys of `config.eval`) says.
  """
  return _program(function, dataclasses.replace(config, seed=0, eval=dataclasses.replace(config.eval, **inference)))


@functools.cache
def _program(function, config):
  return jax.jit(functools.partial(function, registry.make(config)))


def share_programs(workdir: pathlib.Path) -> None:
  """Keeps compiled programs in a folder, since seeds share them."""
  if not jax.config.jax_compilation_cache_dir:  # else the environment has chosen one
    jax.config.update("jax_compilation_cache_dir", str((workdir / "programs").absolute()))


def find(workdir: pathlib.Path, kind: str, among: str = "models", room: str = "thinking") -> list[pathlib.Path]:
  """Folders of the finished runs of a set whose names start with `kind`, one for each seed."""
  found = sorted(p.parent for p in (workdir / among / "runs").glob(f"{kind}*/final_result.json"))
  if not found:
    raise ConfigError(
      f"--workdir: {workdir / among} holds no finished run {kind}*; train first: "
      f"python -m experiments.{room}.train --set={among} --workdir={workdir}"
    )
  return found


def of_kind(workdir: pathlib.Path, kind: str) -> list[pathlib.Path]:
  """Folders of the finished runs of one of `KINDS`, one for each seed."""
  return find(workdir, f"{kind},seed", KINDS[kind].among)


def trained_kinds(workdir: pathlib.Path, kinds: Iterable[str]) -> dict[str, list[pathlib.Path]]:
  """Folders of those kinds that are trained. Raises ConfigError where none is."""
  out, missing = {}, None
  for kind in kinds:
    try:
      out[kind] = of_kind(workdir, kind)
    except ConfigError as e:
      missing = missing or e
  if missing and not out:
    raise missing
  return out


def open_model(folder: pathlib.Path, step: int | None = None) -> Model:
  """A run's parameters at a checkpoint, the newest by default, on one device."""
  return Model(runs.open_run(folder, step))


def items_per_step(model: Model) -> float:
  """Items that a training step is made of, on average."""
  result = files.read_json(model.run.folder / runs.RESULT, "a final result", "train this run again")
  return result["items"] / result["steps"]


def held_out(model: Model) -> Examples:
  """The run's first held-out set."""
  return next(iter(record.data_of(model.run.task, model.run.folder).held_out.values()))


class _Every:
  """Every k-th of some examples."""

  def __init__(self, examples: Examples, k: int, count: int):
    self._examples, self._numbers = examples, np.arange(0, len(examples), k)[:count]

  def __len__(self) -> int:
    return len(self._numbers)

  def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
    return self._examples.rows(self._numbers[index])


def batches(examples: Examples, count: int, rows: int = 32) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
  """Numbers and batches of at most `count` examples, spread evenly over all of them."""
  return in_order(_Every(examples, max(1, len(examples) // count), count), min(rows, count))


def scores(model: Model, examples: Examples, count: int, **inference) -> dict[str, np.ndarray]:
  """`task.scores` of every answer that counts, flat.

  Returns:
    `loss` and, where there are energies, `energy`, `[t, answers]`; `final_energy`, `steps`, `weight` and,
    where each has a weight, `target`, `[answers]`; and the problem's counts as values.
  """
  task = model.task(**inference)
  key = streams.key_for(inference.get("seed", 0), streams.EVALUATE)

  @jax.jit
  def score(params, batch, numbers):
    keys = streams.each(key, numbers)
    batch = corrupted(task.problem, batch, keys)
    found: Scores = task.scores(params, batch, keys)
    counts = {name: mean for name, mean in task.problem.counts(batch).items()}
    return found, task.problem.target(batch), task.problem.weights(batch), counts

  found: dict[str, list] = {}
  sums: dict[str, np.ndarray] = {}
  for numbers, batch in batches(examples, count):
    seen, target, weights, counts = jax.device_get(score(model.params, batch, numbers))
    asked = weights > 0
    parts = {"loss": seen.error, "energy": seen.energy, "final_energy": seen.final_energy, "steps": seen.steps}
    parts |= {"target": target if target.shape == weights.shape else None, "weight": weights}
    for name, value in parts.items():
      if value is not None:
        found.setdefault(name, []).append(value[..., asked])
    for name, mean in counts.items():
      sums[name] = sums.get(name, 0.0) + np.array([mean.total, mean.weight], np.float64)
  values = {name: total / weight for name, (total, weight) in sums.items()}
  return {**{name: np.concatenate(parts, axis=-1) for name, parts in found.items()}, **values}


def headline(model: Model, found: dict[str, np.ndarray]) -> np.ndarray:
  """The problem's headline number after each step, `[t]`."""
  problem = model.problem
  constants = {name: float(v) for name, v in found.items() if np.ndim(v) == 0}

  def after(losses):
    loss = float(np.average(losses, weights=found["weight"]))
    return {"loss": loss, **problem.numbers({**constants, "loss": loss})}[problem.headline]

  return np.array([after(losses) for losses in found["loss"]])


def headline_name(model: Model) -> str:
  """The problem's headline number as people write it."""
  return pretty(model.problem.headline)


def gain(before, after):
  """The fall of exp(loss), in percent of exp(loss before)."""
  return 100 * (1 - np.exp(np.subtract(after, before)))


GAIN = "fall of exp(loss), %"


def mean_interval(values, level: float = 0.95) -> tuple[float, float]:
  """Mean and half width of its Student interval; the width is NaN for one value."""
  mean, half = scaling.student(values, level)
  return mean, half if math.isfinite(half) else math.nan


def plus_minus(value: tuple[float, float], form: str = ".4f") -> str:
  return f"{value[0]:{form}} ± {value[1]:{form}}"


def over_seeds(values, form: str = ".4f") -> str:
  """Mean and interval of one value for each seed, as text."""
  return plus_minus(mean_interval(values), form)


def figure(width: float, height: float, **grid):
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                       "grid.alpha": 0.25, "savefig.dpi": 160, "text.parse_math": False})  # fmt: skip
  return plt.subplots(**grid, figsize=(width, height), layout="constrained")


def write_study(args: argparse.Namespace, result: dict[str, Any], table: str, fig) -> None:
  """Writes `NAME.json` (with the flags as `settings`), `.txt` and `.png` of a study, and prints the table.

  Results of other settings that are there keep another name.
  """
  path = args.out / f"{args.study}.json"
  settings = {k: str(v) if isinstance(v, pathlib.Path) else v for k, v in vars(args).items()}
  settings = {k: v for k, v in settings.items() if k not in ("out", "study", "owner")}
  drawn = io.BytesIO()
  fig.savefig(drawn, format="png")
  if kept := files.keep_others(path, settings):
    for suffix in (".txt", ".png"):
      files.set_aside(path.with_suffix(suffix), ".old")
    print(f"results of other settings that were there are kept as {kept}")
  files.replace_text(path.with_suffix(".txt"), table + "\n")
  files.replace_bytes(path.with_suffix(".png"), drawn.getvalue())
  files.write_json(path, {"settings": settings, **result})
  args.owner.close()
  print(table)
  print(f"\nwritten to {path}, .txt and .png")
