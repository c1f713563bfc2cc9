"""The clock of a run: time spent, items per second, time left. It continues after a restart."""

import collections
from collections.abc import Callable, Iterator
import contextlib
import math
import time
from typing import Any


class Clock:
  """Measures training between ticks.

  An item is what training counts: a token, an image, a frame. Time before the first tick (start-up, compilation) and
  time inside `pause` count as wall time only, not towards `train_seconds`, `items_per_second` and `eta_seconds`.

  Args:
    now: returns the present time in seconds, counted from any moment.
    window: number of recent ticks over which `items_per_second` and `eta_seconds` average.

  Attributes:
    train_seconds: seconds of training, all parts of the run together.
    train_steps: steps within `train_seconds`.
    train_items: items within `train_seconds`.
  """

  def __init__(self, now: Callable[[], float] = time.monotonic, window: int = 20):
    self._now = now
    self._start = now()
    self._before = 0.0  # wall seconds of the parts of the run before a restart
    self._paused = 0.0  # seconds of all pauses since the last tick
    self._last: tuple[float, int] | None = None  # time and step of the last tick
    self._recent: collections.deque = collections.deque(maxlen=window)  # (seconds, steps, items) of each tick
    self.train_seconds = 0.0
    self.train_steps = 0
    self.train_items = 0

  @property
  def wall_seconds(self) -> float:
    """Seconds since the run first began, without the time between a stop and the restart."""
    return self._before + self._now() - self._start

  def tick(self, step: int, items: int) -> None:
    """Records that a step is finished. Call it when the step's results have arrived, not when it is dispatched.

    Args:
      step: training steps done.
      items: items trained on since the last tick.
    """
    now = self._now()
    if self._last is not None:
      seconds, steps = max(0.0, now - self._last[0] - self._paused), step - self._last[1]
      self._recent.append((seconds, steps, items))
      self.train_seconds += seconds
      self.train_steps += steps
      self.train_items += items
    self._last, self._paused = (now, step), 0.0

  @contextlib.contextmanager
  def pause(self) -> Iterator[None]:
    """Leaves the time inside (an evaluation, a restore) out of the throughput. Pauses must not be nested."""
    start = self._now()
    try:
      yield
    finally:
      self._paused += self._now() - start

  @property
  def items_per_second(self) -> float:
    """Throughput over the recent ticks; NaN before the second tick."""
    seconds = sum(s for s, _, _ in self._recent)
    return sum(n for _, _, n in self._recent) / seconds if seconds else math.nan

  @property
  def steps_per_second(self) -> float:
    """Over the recent ticks; NaN before the second tick."""
    seconds = sum(s for s, _, _ in self._recent)
    return sum(n for _, n, _ in self._recent) / seconds if seconds else math.nan

  def eta_seconds(self, total_steps: int) -> float:
    """Seconds of training left until `total_steps`; NaN before the second tick."""
    seconds, steps = sum(s for s, _, _ in self._recent), sum(n for _, n, _ in self._recent)
    return max(0, total_steps - self._last[1]) * seconds / steps if steps else math.nan

  def eta(self, total_steps: int) -> str:
    """Time left, as `2m05s`; `?` before the second tick."""
    return duration(self.eta_seconds(total_steps))

  def state_dict(self) -> dict[str, Any]:
    """What a checkpoint keeps of the clock, in types that JSON has."""
    return {
      "wall_seconds": self.wall_seconds,
      "train_seconds": self.train_seconds,
      "train_steps": self.train_steps,
      "train_items": self.train_items,
    }

  def load_state_dict(self, state: dict[str, Any]) -> None:
    """Continues from the `state_dict` of the run before a restart; the throughput is measured from now on."""
    self._before = state["wall_seconds"]
    self.train_seconds = state["train_seconds"]
    self.train_steps = state["train_steps"]
    # older checkpoints count tokens
    self.train_items = state["train_items"] if "train_items" in state else state["train_tokens"]


def duration(seconds: float) -> str:
  """45s, 2m05s, 3h07m or 2d04h; `?` for NaN and infinities."""
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
