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
    m, shape = config.model, (config.train.batch_size, config.data.context_length)
    like = (m.kind, m.cell, m.variant, m.residual, m.layers, m.heads, m.width, m.vocab_size, config.thinking.landscapes)
    if like not in self._params:
      self._params[like] = task.init(jax.random.key(0))
    tokens = np.random.default_rng(0).integers(0, m.vocab_size, (shape[0], shape[1] + 1)).astype(np.int32)
    batch = {"tokens": jnp.asarray(tokens), "weights": jnp.ones(shape)}
    arguments = (self._params[like], batch, jax.random.key(1))

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

  def run(self, rounds: int, warm_up: int = 1):
    """Adds times to the rows."""
    calls = {n: (lambda call=call: jax.block_until_ready(call())) for n, call in self.programs.items()}
    times = timing.interleaved(calls, rounds, warm_up)
    for row in self.rows:
      if row["name"] in times:
        row.update(timing.summary(times[row["name"]]), rounds=rounds)

  def compare(self, base: str = BASE):
    """Adds ratios of time and FLOPs to those of the row `base`, and the share of the device's peak if it is known."""
    first = next((r for r in self.rows if r["name"] == base), {})
    peak = flops.peak(jax.devices()[0].device_kind)
    for row in self.rows:
      if first:
        row["flops_ratio"] = row["flops"] / first["flops"]
      if "seconds" in row and "seconds" in first:
        row["ratio"] = row["seconds"] / first["seconds"]
      if peak and "seconds" in row:
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
