"""A progress line on standard error."""

import sys
import time
from typing import TextIO

from ebt_jax import terminal
from ebt_jax.clock import duration


class Progress:
  """What is done, its speed and time left while text is tokenised or pictures are decoded.

  A terminal shows one line that is updated in place; a file gets a new line every ten seconds.

  Args:
    label: what the line begins with.
    quiet_s: seconds at the start in which nothing is shown.
    stream: where the line goes; None: standard error.
    unit: what is counted.
  """

  def __init__(self, label: str, quiet_s: float = 0.0, stream: TextIO | None = None, unit: str = "documents"):
    self._label, self._unit = label, unit
    self._stream = stream or sys.stderr
    self._tty = self._stream.isatty()
    self._start = time.monotonic()
    self._next = self._start + quiet_s
    self._first: float | None = None
    self._shown = False

  def update(self, documents: int, tokens: int, megabytes: float, fraction: float) -> None:
    """Shows the state, if the last line is old enough.

    Args:
      documents: documents done, or whatever the unit is.
      tokens: tokens done; 0 where there are none.
      megabytes: text done since this object was made, in units of 1e6 bytes.
      fraction: part of the input that is done, 0 to 1; 0 if unknown.
    """
    now = time.monotonic()
    if self._first is None:
      self._first = fraction  # a resumed job starts in the middle
    if now < self._next:
      return
    self._next = now + (0.5 if self._tty else 10.0)
    elapsed = max(now - self._start, 1e-9)
    text = f"{self._label}: {documents:,} {self._unit}"
    if tokens:
      text += f", {tokens:,} tokens, {megabytes / elapsed:.1f} MB/s"
    if fraction > self._first:
      left = elapsed * (1 - fraction) / (fraction - self._first)
      text += f", {fraction:.0%}, {duration(left)} left"
    self._stream.write(f"\r\x1b[K{terminal.cut(text)}" if self._tty else text + "\n")
    self._stream.flush()
    self._shown = True

  def close(self) -> None:
    """Ends the line."""
    if self._shown and self._tty:
      self._stream.write("\n")
      self._stream.flush()
