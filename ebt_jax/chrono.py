"""The clock of a run: time spent, tokens per second, time to go; it goes on across restarts."""

import collections
from collections.abc import Callable
import contextlib
import math
import time
from typing import Any


class Chrono:
  """Measures training between ticks.

  What passes up to the first tick (start-up and compilation) and inside `pause` counts
  as wall time, but neither in the throughput nor in the time to go.

  Args:
    clock: seconds from any start.
    window: recent ticks that `tokens_per_second` and `eta_seconds` look at.
  """

  def __init__(self, clock: Callable[[], float] = time.monotonic, window: int = 20):
    self._clock = clock
    self._start = clock()
    self._before = 0.0  # wall seconds of the runs before a restart
    self._paused = 0.0  # seconds of all pauses since the last tick
    self._last: tuple[float, int] | None = None  # clock and step of the last tick
    self._recent: collections.deque = collections.deque(maxlen=window)  # (seconds, steps, tokens) of each tick
    self.train_seconds = 0.0
    self.train_steps = 0
    self.train_tokens = 0

  @property
  def wall_seconds(self) -> float:
    """Seconds since the run first began, without the time between a kill and its restart."""
    return self._before + self._clock() - self._start

  def tick(self, step: int, tokens: int) -> None:
    """Notes that `step` is done; call it when the step's results are there, not when it is dispatched.

    Args:
      step: training steps done.
      tokens: tokens trained on since the last tick.
    """
    now = self._clock()
    if self._last is not None:
      seconds, steps = max(0.0, now - self._last[0] - self._paused), step - self._last[1]
      self._recent.append((seconds, steps, tokens))
      self.train_seconds += seconds
      self.train_steps += steps
      self.train_tokens += tokens
    self._last, self._paused = (now, step), 0.0

  @contextlib.contextmanager
  def pause(self):
    """Leaves what happens inside (an evaluation, a restore) out of the throughput. Not to be nested."""
    start = self._clock()
    try:
      yield
    finally:
      self._paused += self._clock() - start

  @property
  def tokens_per_second(self) -> float:
    """Over the recent ticks; NaN before the second tick."""
    seconds = sum(s for s, _, _ in self._recent)
    return sum(t for _, _, t in self._recent) / seconds if seconds else math.nan

  def eta_seconds(self, total_steps: int) -> float:
    """Seconds of training to go until `total_steps`; NaN before the second tick."""
    seconds, steps = sum(s for s, _, _ in self._recent), sum(n for _, n, _ in self._recent)
    return max(0, total_steps - self._last[1]) * seconds / steps if steps else math.nan

  def eta(self, total_steps: int) -> str:
    """Time to go, as `2m05s`; `?` before the second tick."""
    return duration(self.eta_seconds(total_steps))

  def state_dict(self) -> dict[str, Any]:
    """What a checkpoint keeps, as JSON can hold it."""
    return {
      "wall_seconds": self.wall_seconds,
      "train_seconds": self.train_seconds,
      "train_steps": self.train_steps,
      "train_tokens": self.train_tokens,
    }

  def load_state_dict(self, state: dict[str, Any]) -> None:
    """Goes on counting from `state_dict` of the run before; its speed is not taken over."""
    self._before = state["wall_seconds"]
    self.train_seconds = state["train_seconds"]
    self.train_steps = state["train_steps"]
    self.train_tokens = state["train_tokens"]


def duration(seconds: float) -> str:
  """45s, 2m05s, 3h07m or 2d04h; `?` for NaN."""
  if not math.isfinite(seconds):
    return "?"
  minutes, s = divmod(round(seconds), 60)
  hours, m = divmod(minutes, 60)
  days, h = divmod(hours, 24)
  if days:
    return f"{days}d{h:02}h"
  if hours:
    return f"{hours}h{m:02}m"
  return f"{minutes}m{s:02}s" if minutes else f"{s}s"
