"""What a person reads while a run trains."""

import math
import re
from typing import Any

import jax

from ebt_jax import metrics, parallel, runs
from ebt_jax.clock import Clock
from ebt_jax.config import DataConfig
from ebt_jax.evaluation import evaluator, samples
from ebt_jax.evaluation.evaluator import pretty
from ebt_jax.tasks.base import Data, Task, Thinks
from ebt_jax.training.state import TrainState


def announce(task: Task, data: Data, abstract: TrainState, mesh: jax.sharding.Mesh) -> None:
  """Model, data, memory and devices."""
  total, blocks = runs.count_parameters(task, abstract.params)
  m = task.config.model
  name = f"{m.kind} {m.variant}" if isinstance(task, Thinks) else m.kind
  size = f"{metrics.si(total)} parameters ({metrics.si(blocks)} in blocks)"
  print(f"model: {name}, {m.layers} layers, width {m.width}, {size}")
  for line in (*data.lines, *task.notes()):
    print(line)
  for text in samples_of(task.config.data):
    print(text)
  if text := repeats(task.config.train.steps * task.config.train.batch_size, len(data.train)):
    print(text)
  if abstract.replay:
    print(f"replay buffer: {parallel.describe_rows(abstract.replay.rows, mesh)}")
  shape = ", ".join(f"{k} {v}" for k, v in mesh.shape.items())
  print(f"mesh: {shape} on {jax.device_count()} {jax.devices()[0].platform} device(s)", flush=True)
  if jax.device_count() > 1:
    table, whole = parallel.sharding_report(abstract.params, mesh)
    print(f"{table}\nleft whole on every device: {whole:.2%} of parameter bytes", flush=True)


def repeats(rows: int, examples: int) -> str:
  """How often a run of so many rows sees each of its examples; empty where that is once at most."""
  if rows <= examples:
    return ""
  return f"data: this run sees each of its {examples:,} training examples {rows / examples:.1f} times"


def samples_of(data: DataConfig) -> list[str]:
  """Lines that say that a run does not learn a whole data set: by a limit of the config, or by the name of the set."""
  lines = [f"data: a sample: data.{key}={n} leaves out the rest of the source" for key, n in data.limits.items()]
  if _SAMPLE.search(data.source):
    lines.append(f"data: {data.source} is named as a sample of a larger set; results on it are not those on the whole")
  return lines


_SAMPLE = re.compile(r"(?<![a-z])(sample|subset)(?![a-z])", re.IGNORECASE)  # sample-10BT, sample_350BT
RISE = 0.01  # of a held-out loss above its least, twice in a row: more than its noise from one evaluation to the next


def rising(losses: list[tuple[int, float]]) -> str:
  """A warning where the held-out loss has risen, from all `(step, loss)` of a run; empty where it has not."""
  if len(losses) < 3:
    return ""
  best, least = min(losses, key=lambda pair: pair[1])
  if best >= losses[-2][0] or not all(loss > least * (1 + RISE) for _, loss in losses[-2:]):
    return ""
  return (
    f"the held-out loss rises: {least:.4f} at step {best}, {losses[-2][1]:.4f} and {losses[-1][1]:.4f} since; the "
    "model learns its training data by heart: give more data, fewer steps, or a smaller model"
  )


def line(task: Task, step: int, values: dict[str, float], clock: Clock, used: float | None) -> str:
  """One line of progress."""
  headline, steps = task.problem.headline, task.config.train.steps
  parts = [f"step {step}/{steps}", f"loss {values['loss']:.4f}"]
  if headline in values and headline != "loss":
    parts.append(f"{pretty(headline)} {values[headline]:.4f}")
  if "energy_gap" in values:
    parts.append(f"energy gap {values['energy_gap']:+.4f}")
  speed = clock.items_per_second
  parts.append(f"{metrics.si(speed) if math.isfinite(speed) else '?'} {task.problem.item}s/s")
  if used:
    parts.append(f"{used:.1%} of peak FLOPs")
  parts.append(f"ETA {clock.eta(steps)}")
  if values["skipped"]:
    parts.append(f"{int(values['skipped'])} skipped")
  return "  ".join(parts)


def evaluated(task: Task, step: int, results: dict[str, dict[str, Any]]) -> str:
  """One line for each held-out set."""
  problem, lines = task.problem, []
  for name, result in results.items():
    label = "held-out" if name == next(iter(results)) else name
    shown = [f"{result['loss']:.4f} {problem.unit or 'loss'}"]
    if problem.headline in result and problem.headline != "loss":
      shown.append(f"{result[problem.headline]:.4f} {pretty(problem.headline)}")
    lines.append(f"step {step}  {label} {', '.join(shown)}")
  return "\n".join(lines)


def ending(task: Task, workdir: str, results: dict[str, dict[str, Any]], data: Data, sample: str) -> str:
  """Results of every held-out set, a sample, and how to go on."""
  problem, thinks = task.problem, isinstance(task, Thinks)
  parts = []
  for name, result in results.items():
    what = "held out" if name == next(iter(results)) else name
    count = f"{result['items']} {problem.item}s"
    parts.append(f"\n{what}, {count}, after each {'thinking step' if thinks else 'pass'}:")
    parts.append(evaluator.results_table(result, problem.headline, problem.unit))
    others = {k: v for k, v in result.items() if isinstance(v, float)}
    others = {k: v for k, v in others.items() if k not in ("loss", "steps_used", problem.headline)}
    parts.append("  ".join(f"{pretty(k)} {v:.4f}" for k, v in others.items()))
  parts += [data.baseline] if data.baseline else []
  parts += ["", sample] if sample else []
  return "\n".join([*parts, "\nnext:", *(f"  {command}" for command in samples.next_commands(task, workdir)), ""])
