"""Shows the progress of a pool of runs."""

import collections
from collections.abc import Sequence
import sys

from ebt_jax import terminal
from ebt_jax.clock import duration
from experiments.runner.pool import Progress, eta


def progress_table(all_: Sequence[Progress], now: float, jobs: int) -> str:
  """One line for each run that trains or failed, and a line of counts with the estimated time to go."""
  count = collections.Counter(p.state for p in all_)
  lines = []
  for p in all_:
    if p.state in ("running", "elsewhere"):
      number = "" if p.number is None else f"{p.number[0]} {p.number[1]:.4f}"
      where = duration(now - p.started) if p.state == "running" else "by another process"
      lines.append(f"  {p.task.run.name:<52} step {p.step:>6}/{p.steps:<6} {number:<20} {where}")
    elif p.state == "failed":
      lines.append(f"  {p.task.run.name:<52} FAILED: {p.failure[:90]}")
  counts = ", ".join(f"{count[s]} {s}" for s in ("done", "running", "elsewhere", "waiting", "failed") if count[s])
  return "\n".join([*lines, f"{counts}; ETA {duration(eta(all_, now, jobs))}"])


class Screen:
  """Redraws the table in place on a terminal. Elsewhere it prints the table when a run starts or ends, and regularly.

  Args:
    out: where to write.
    every: seconds between two tables where `out` is no terminal.
  """

  def __init__(self, out=sys.stdout, every: float = 60.0):
    self._out, self._every, self._height, self._last, self._states = out, every, 0, 0.0, None

  def show(self, all_: Sequence[Progress], now: float, jobs: int) -> None:
    """Shows the table of these runs at the time `now` (seconds), with `jobs` of them at once."""
    text, states = progress_table(all_, now, jobs), [p.state for p in all_]
    if self._out.isatty():
      text = "\n".join(terminal.cut(line) for line in text.split("\n"))  # a line that wraps would be two
      self._out.write((f"\x1b[{self._height}F\x1b[J" if self._height else "") + text + "\n")
      self._height = text.count("\n") + 1
    elif states != self._states or now - self._last >= self._every:
      self._out.write(text + "\n")
      self._last, self._states = now, states
    self._out.flush()
