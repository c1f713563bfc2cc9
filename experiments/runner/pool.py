"""A pool of training runs that may be killed at any moment. It trains missing runs and continues interrupted ones.

A run that is done is left alone. A run that fails is reported and does not stop the others.
"""

import collections
from collections.abc import Callable, Sequence
import dataclasses
import json
import math
import os
import signal
import subprocess
import time

from ebt_jax import files, metrics
from ebt_jax.errors import UserError
from ebt_jax.training import signals
from experiments.runner.cost import costs
from experiments.runner.launch import Slot, Task

_TICK = 0.5  # seconds between two looks at the processes
_GRACE = 120  # seconds that runs have to save when the pool is asked to end
_TAIL = 8192  # bytes at the end of metrics.jsonl that are read for the screen


class Stopped(Exception):
  """The pool has been asked to end by a signal, its `number`, and its runs have saved."""

  def __init__(self, number: int):
    super().__init__(signal.Signals(number).name)
    self.number = number


@dataclasses.dataclass
class Progress:
  """The state of one run.

  Attributes:
    task: the run and how it is started.
    cost: FLOPs of the whole run.
    steps: training steps of the whole run.
    headline: name of the `eval/` number to show; before the first evaluation it is `train/final_loss`.
    state: "waiting", "running", "elsewhere" (another process trains it), "done" or "failed".
    step: training steps done.
    number: what to show, as (name, value).
    failure: why it failed.
  """

  task: Task
  cost: float
  steps: int
  headline: str = "loss"
  state: str = "waiting"
  slot: Slot | None = None
  process: subprocess.Popen | None = None
  started: float = 0.0
  step: int = 0
  number: tuple[str, float] | None = None
  failure: str = ""

  def look(self) -> None:
    """Reads step and number from the end of the run's metrics."""
    path = self.task.workdir / metrics.FILE
    try:
      with open(path, "rb") as f:
        f.seek(max(0, os.path.getsize(path) - _TAIL))
        lines = f.read().splitlines()[1:]  # the first line may be cut
    except OSError:
      return
    for line in lines:
      try:
        row = json.loads(line)
        self.step = row["step"]
        if f"eval/{self.headline}" in row:
          self.number = self.headline, float(row[f"eval/{self.headline}"])
        elif "train/final_loss" in row and (self.number is None or self.number[0] != self.headline):
          self.number = "train loss", float(row["train/final_loss"])
      except (ValueError, KeyError):  # a line that is being written
        continue


def progress(tasks: Sequence[Task]) -> list[Progress]:
  """Runs that wait. Raises ConfigError where the config of one of them is wrong."""
  found = costs([task.run for task in tasks]) if tasks else []
  return [Progress(task, cost.flops, cost.steps, cost.headline) for task, cost in zip(tasks, found)]


def train(
  all_: Sequence[Progress], slots: Sequence[Slot], show: Callable[[Sequence[Progress], float, int], None]
) -> None:
  """Trains the missing runs, in the given order, one in each slot.

  Args:
    all_: the runs.
    slots: where runs are started.
    show: called now and then with the runs, the time and the number of slots, such as `screen.Screen().show`.

  Raises:
    Stopped: at a signal that asks to end (see `ebt_jax.training.signals`), after the runs have saved.
  """
  free = list(slots)
  with signals.StopSignal() as stop:
    while True:
      for p in all_:
        if not stop.asked:
          advance(p, free)
      show(all_, time.time(), len(slots))
      if stop.asked:
        _end(all_)
        raise Stopped(stop.asked)
      if all(p.state in ("done", "failed") for p in all_):
        return
      time.sleep(_TICK)


def advance(p: Progress, free: list[Slot]) -> None:
  """Looks once at one run: notes that it has ended, or starts it where a slot is free."""
  if p.state in ("done", "failed"):
    return
  if p.process is not None:
    code = p.process.poll()
    p.look()
    if code is None:
      return
    free.append(p.slot)
    p.process = None
    if not p.task.done:
      p.state, p.failure = "failed", f"exit code {code}: {p.task.last_words()}"
      return
  if p.task.done:
    p.state, p.step = "done", p.steps
  elif free or p.state == "elsewhere":
    lock = p.task.lock()
    if lock is None:
      p.state = "elsewhere"
      p.look()
    elif free:
      p.slot = free.pop(0)
      p.process, p.state, p.started = p.task.start(p.slot, lock), "running", time.time()
    else:
      lock.close()
      p.state = "waiting"


def eta(all_: Sequence[Progress], now: float, jobs: int) -> float:
  """Estimated seconds until all runs are done; NaN before anything is known.

  The FLOPs that are left, divided by the speed so far: that of the runs with the same config file where one of them has
  been timed, else that of all runs.
  """
  spent: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])  # config file -> [seconds, FLOPs]
  for p in all_:
    part = 1.0 if p.state == "done" else p.step / p.steps
    seconds = _wall_seconds(p.task) if p.state == "done" else now - p.started if p.state == "running" else 0.0
    if part and seconds:
      for name in ("", p.task.run.config):
        spent[name][0] += seconds
        spent[name][1] += part * p.cost
  if not spent[""][1]:
    return math.nan
  left = 0.0
  for p in all_:
    if p.state in ("waiting", "running"):
      seconds, done = spent[p.task.run.config] if spent[p.task.run.config][1] else spent[""]
      left += (1 - p.step / p.steps) * p.cost * seconds / done
  return left / jobs


def _wall_seconds(task: Task) -> float:
  try:
    return files.read_json(task.workdir / "final_result.json", "a final result", "see its points")["wall_seconds"]
  except (UserError, KeyError):  # damaged: collecting its points says so
    return 0.0


def _end(all_: Sequence[Progress]) -> None:
  """Asks running processes to save and end, and waits for them."""
  going = [p for p in all_ if p.process is not None]
  print(f"\nending: {len(going)} runs save their state", flush=True)
  for p in going:
    p.process.terminate()
  deadline = time.time() + _GRACE
  for p in going:
    try:
      p.process.wait(max(0.1, deadline - time.time()))
    except subprocess.TimeoutExpired:
      p.process.kill()
