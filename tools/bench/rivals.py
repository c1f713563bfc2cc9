"""Rivals of a benchmark, and their training steps: compiled, timed in turn, compared with Transformer++."""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import flops
from ebt_jax.config import SIZES, ConfigError, resolve
from ebt_jax.tasks import registry
from tools.bench import authors, timing

SHAPE = ("layers", "heads", "width", "context", "batch", "vocab")
LAST = dict(gradient="last", learn_step_size=False)
BASE = "Transformer++"


@dataclasses.dataclass(frozen=True)
class Rival:
  """One row of a table: a task, options of its loss, and the family and steps by which figures group it."""

  name: str
  task: object
  family: str = ""
  steps: int = 0
  options: tuple = ()


def configured(shape, kind="ebt", model=None, thinking=None, evaluation=None):
  sizes = {k: shape[k] for k in ("layers", "heads", "width")}
  return resolve(
    {
      "model": {**sizes, "kind": kind, "vocab_size": shape["vocab"], "dtype": shape["dtype"], **(model or {})},
      "thinking": thinking or {},
      "data": {"context_length": shape["context"]},
      "train": {"batch_size": shape["batch"]},
      "eval": evaluation or {},
    }
  )


def transformer(shape, name=BASE, **model):
  return Rival(name, registry.make(configured(shape, "transformer", model)), BASE)


def ebt(shape, steps, gradient="each", model=None, rule=None, note="", **thinking):
  """This package's EBT; `note` distinguishes rivals with the same steps."""
  thinking = {"steps": steps, **(LAST if gradient == "last" else {}), **thinking}
  family = gradient + note
  options = (("rule", rule),) if rule else ()
  name = f"EBT, {gradient} {steps}{note}"
  return Rival(name, registry.make(configured(shape, model=model, thinking=thinking)), family, steps, options)


def rival_ebt(shape, steps, gradient="each", **thinking):
  """The authors' formulation."""
  thinking = {"steps": steps, **(LAST if gradient == "last" else {}), **thinking}
  family = f"authors' {gradient}"
  return Rival(f"{family} {steps}", authors.AuthorsText.of(configured(shape, thinking=thinking)), family, steps)


def counted(rival) -> int:
  """FLOPs of one batch without recomputation."""
  return rival.task.config.train.batch_size * rival.task.flops().row["total"]


def random_batch(task) -> dict:
  """Rows as the problem describes them: random integers, and ones."""
  rows, rng = task.config.train.batch_size, np.random.default_rng(0)
  if task.config.task == "text":  # without what only evaluation reads
    length = task.config.data.context_length
    tokens = rng.integers(0, task.config.model.vocab_size, (rows, length + 1)).astype(np.int32)
    return {"tokens": jnp.asarray(tokens), "weights": jnp.ones((rows, length))}
  batch = {}
  for name, like in task.problem.spec().items():
    shape = (rows, *like.shape)
    whole = jnp.issubdtype(like.dtype, jnp.integer)
    batch[name] = jnp.asarray(rng.integers(0, 255, shape) if whole else np.ones(shape), like.dtype)
  return batch


class Steps:
  """Compiled steps of rivals that share parameters and a batch."""

  def __init__(self, rivals, limit_gb: float):
    if not rivals:
      raise ConfigError("--only: no rival of this suite has such a name; leave it out to see them all")
    self.rivals, self.programs, self.rows = rivals, {}, []
    self._params = {}
    for rival in rivals:
      program, arguments, row = self._compile(rival)
      needed = (row["temp_mb"] + row["result_mb"]) / 1e3
      if needed > limit_gb:
        row["note"] = f"compiled and not run: it needs {needed:.1f} GB, {limit_gb:.1f} GB are allowed"
      else:
        self.programs[rival.name] = functools.partial(program, *arguments)
      self.rows.append(row)

  def _compile(self, rival):
    config, task = rival.task.config, rival.task
    arguments = (self.params_of(rival), random_batch(task), jax.random.key(1))

    def total(params, batch, key):
      mean, output = task.loss(params, batch, key, **dict(rival.options))
      return mean.total, output

    ours = registry.make(config)
    step = jax.value_and_grad(total, has_aux=True)
    program, seconds = timing.compiled(step, *arguments)
    print(f"  compiled in {seconds:6.1f} s: {rival.name}", file=sys.stderr, flush=True)
    row = {
      "name": rival.name,
      "family": rival.family,
      "steps": rival.steps,
      "flops": counted(rival),
      "progress_flops": config.train.batch_size
      * ours.flops().row["total"],  # what the method needs, the same for all implementations
      "temp_mb": timing.memory_mb(program),
      "result_mb": program.memory_analysis().output_size_in_bytes / 1e6,
      "compile_s": seconds,
    }
    return program, arguments, row

  def params_of(self, rival):
    """Fresh parameters, the same for all rivals whose models are alike."""
    m, thinking = rival.task.config.model, rival.task.config.thinking
    like = (m.kind, m.cell, m.variant, m.residual, m.layers, m.heads, m.width, m.vocab_size, thinking.landscapes)
    if like not in self._params:
      self._params[like] = rival.task.init(jax.random.key(0))
    return self._params[like]

  def run(self, rounds: int, warm_up: int = 1, also=None):
    """Adds times to the rows, and a row for each call of `also`, which takes its turn with the programs."""
    calls = {n: (lambda call=call: jax.block_until_ready(call())) for n, call in self.programs.items()}
    self.rows += [{"name": name, "family": name} for name in also or {}]
    times = timing.interleaved({**calls, **(also or {})}, rounds, warm_up)
    for row in self.rows:
      if row["name"] in times:
        row.update(timing.summary(times[row["name"]]), rounds=rounds)

  def compare(self, base: str = BASE):
    """Adds ratios of time and FLOPs to those of the row `base`, and the share of the device's peak if it is known."""
    first = next((r for r in self.rows if r["name"] == base), {})
    peak = flops.peak(jax.devices()[0].device_kind)
    for row in self.rows:
      if first and "flops" in row:
        row["flops_ratio"] = row["flops"] / first["flops"]
      if "seconds" in row and "seconds" in first:
        row["ratio"] = row["seconds"] / first["seconds"]
      if peak and "seconds" in row and "progress_flops" in row:
        row["utilisation"] = row["progress_flops"] / row["seconds"] / peak


STEP = (*timing.TIMES, ("ratio", "ratio", ".2f"), ("FLOPs", "flops_ratio", ".2f"), ("of peak", "utilisation", ".1%"))
COST = (("temp MB", "temp_mb", ",.0f"), ("compile s", "compile_s", ".1f"))


def shaped(args, **defaults):
  """Shape of a suite: its defaults, changed by flags."""
  shape = {**defaults, **{k: getattr(args, k) for k in SHAPE if getattr(args, k)}, "dtype": args.dtype}
  if args.size:
    shape |= dict(zip(("layers", "heads", "width"), SIZES[args.size]))
  return shape


def described(shape):
  return ", ".join(f"{k} {shape[k]}" for k in (*SHAPE, "dtype") if k in shape)


def chosen(args, rivals):
  return [r for r in rivals if not args.only or any(part in r.name for part in args.only.split(";"))]
