"""Exact means over a held-out set, and the numbers that people read."""

from collections.abc import Callable
import math
from typing import Any

import jax
import numpy as np

from ebt_jax import parallel, streams
from ebt_jax.data.loader import in_order
from ebt_jax.tasks.base import Examples, Task


class Evaluator:
  """Evaluates parameters on held-out sets; the result does not depend on batch size, devices or memory."""

  def __init__(self, task: Task, mesh: jax.sharding.Mesh):
    self._task, self._mesh = task, mesh
    config = task.config
    self._step = jax.jit(self._evaluate, out_shardings=parallel.replicated(mesh))
    parts = mesh.shape["replica"] * mesh.shape["data"]
    wanted = config.eval.batch_size or config.train.batch_size
    self._rows = math.ceil(wanted / parts) * parts  # rows of zeros weigh nothing, so any multiple will do

  def _evaluate(self, params, batch, numbers):
    """Each example draws by its own number, so that no result depends on how examples are batched."""
    key = streams.key_for(self._task.config.eval.seed, streams.EVALUATE)
    return self._task.evaluate(params, batch, streams.each(key, numbers))

  def __call__(
    self, params: Any, examples: Examples, progress: Callable[[int, int], None] | None = None
  ) -> dict[str, Any]:
    """Evaluates on all examples, or on the first `eval.max_windows`.

    Args:
      progress: called with the number of examples done and of all.

    Returns:
      `loss` (mean error after the last step), the problem's numbers, `loss_by_step` and `HEADLINE_by_step`, where there
      are energies `energy_by_step` (before each step and at the end) and `steps_used` (mean), `items` (what weights
      count) and `examples`.
    """
    limit = self._task.config.eval.max_windows
    count = min(len(examples), limit or len(examples))
    rows = parallel.process_rows(self._rows, self._mesh)
    sums: dict[str, tuple[np.ndarray, float]] = {}
    for i, (numbers, batch) in enumerate(in_order(examples, self._rows, limit)):
      mine = {name: a[rows] for name, a in batch.items()}
      placed = parallel.global_batch({"batch": mine, "numbers": numbers[rows]}, self._mesh)
      for name, mean in jax.device_get(self._step(params, **placed)).items():
        total, weight = sums.get(name, (0.0, 0.0))
        sums[name] = total + np.asarray(mean.total, np.float64), weight + float(mean.weight)
      if progress:
        progress(min((i + 1) * self._rows, count), count)
    return self._summarized(sums, count)

  def _summarized(self, sums, count):
    means = {name: total / max(weight, 1e-300) for name, (total, weight) in sums.items()}
    problem, steps = self._task.problem, len(means["loss"])

    def numbers_after(step):
      """The problem's numbers after one of the steps, and the loss itself."""
      values = {n: float(v[step] if np.ndim(v) else v) for n, v in means.items() if n not in ("energy", "steps")}
      return {"loss": values["loss"], **problem.numbers(values)}

    out = numbers_after(steps - 1)
    out["loss_by_step"] = [float(x) for x in means["loss"]]
    if problem.headline not in ("loss", ""):
      out[f"{problem.headline}_by_step"] = [numbers_after(i)[problem.headline] for i in range(steps)]
    if "energy" in means:
      out["energy_by_step"] = [float(x) for x in means["energy"]]
    if "steps" in means:
      out["steps_used"] = float(means["steps"])
    return {**out, "items": round(sums["loss"][1]), "examples": count}


def pretty(name: str) -> str:
  """`bits/byte` for bits_per_byte."""
  return name.replace("_per_", "/").replace("_", " ")


def results_table(result: dict[str, Any], headline: str = "loss", unit: str = "") -> str:
  """Loss, headline number and energy after each thinking step; step 0 is the start, whose energy alone is known."""
  energies, losses = result.get("energy_by_step"), result["loss_by_step"]
  columns = [("step", range(len(losses) + 1), "{:>6}"), (unit or "loss", [None, *losses], "{:>11.4f}")]
  if headline not in ("loss", ""):
    columns.append((pretty(headline), [None, *result[f"{headline}_by_step"]], "{:>10.4f}"))
  columns.append(("energy", energies or [None] * (len(losses) + 1), "{:>9.4f}"))

  def cell(form, value):
    width = int(form.split(">")[1].split(".")[0].rstrip("}"))
    return f"{'-':>{width}}" if value is None else form.format(value)

  def line(i):
    return " ".join(" " * len(cell(f, None)) if v[i] is None and i == 0 else cell(f, v[i]) for _, v, f in columns)

  lines = [" ".join(f"{name:>{len(cell(form, None))}}" for name, _, form in columns)]
  lines += [line(i) for i in range(0 if energies else 1, len(losses) + 1)]
  if result.get("steps_used", len(losses)) < len(losses):
    lines.append(f"steps used, on average: {result['steps_used']:.2f}")
  return "\n".join(lines)
