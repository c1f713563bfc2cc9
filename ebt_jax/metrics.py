"""The numbers that a run logs: `metrics.jsonl`, TensorBoard events, and a tracker of experiments.

A row of `metrics.jsonl` is `{"step": n, "name": value, ...}`. It is always valid JSON: values that are not finite are
written as "nan", "inf" and "-inf", and `read_rows` returns them as floats. Names that start with `time/` hold measured
times and rates; all other values are bitwise equal in two runs of one config.
"""

from collections.abc import Iterator
import json
import logging
import math
import os
import pathlib
import time
from typing import Any, SupportsFloat, SupportsInt

from ebt_jax import files
from ebt_jax.errors import UserError
from ebt_jax.trackers import Tracker

log = logging.getLogger(__name__)

FILE = "metrics.jsonl"
_FLUSH_SECONDS = 120  # after which TensorBoard's events are on the disk
_NOT_FINITE = ("nan", "inf", "-inf")


class MetricsError(UserError, ValueError):
  """A line of `metrics.jsonl` is not what a run writes; the text names it."""


class MetricsWriter:
  """Appends rows to `<workdir>/metrics.jsonl` and, if asked, TensorBoard events to `<workdir>/tensorboard`.

  In a multi-process run only process 0 makes one.

  Attributes:
    rows: number of rows in the file.

  Args:
    workdir: folder of the run; it is made if it does not exist.
    tensorboard: also write events, if tensorboardX is installed.
    tracker: one of `trackers.TRACKERS`, which gets the rows too; empty: none.
    config: of the run, as nested dicts, for the tracker.

  Raises:
    UserError: the tracker is not installed.
    MetricsError: a line of `metrics.jsonl` other than the last is not a JSON object with a `step`.
  """

  def __init__(
    self,
    workdir: str | os.PathLike,
    tensorboard: bool = True,
    tracker: str = "",
    config: dict[str, Any] | None = None,
  ):
    self._workdir = pathlib.Path(workdir)
    self._workdir.mkdir(parents=True, exist_ok=True)
    self.path = self._workdir / FILE
    self._tensorboard = tensorboard and _has_tensorboard()
    self._events: _Events | None = None
    self._first_step = None  # TensorBoard drops older events from this step on: a resumed run writes them again
    self._file = None
    self._tracker = Tracker(tracker, self._workdir, config or {}, read_rows(self.path)) if tracker else None
    self._open(math.inf)  # drops a torn last line, to which the next row would be appended

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *_) -> None:
    self.finish()

  def write(self, step: SupportsInt, values: dict[str, SupportsFloat]) -> None:
    """Appends one row; the operating system has it when this returns.

    Args:
      step: training steps done.
      values: numbers or scalar arrays by name.
    """
    values = {name: float(value) for name, value in values.items()}
    self._file.write(json.dumps(files.valid_json({"step": int(step), **values}), allow_nan=False) + "\n")
    self._file.flush()
    self.rows += 1
    if self._tensorboard:
      try:
        self._events = self._events or _Events(self._workdir / "tensorboard", self._first_step)
        self._events.write(int(step), values)
      except OSError as e:  # such as a full disk
        log.warning("step %d: no more TensorBoard events (%s); %s has all numbers", step, e, self.path)
        self._tensorboard = False
    if self._tracker:
      self._tracker.write({"step": int(step), **values})

  def truncate_after(self, step: SupportsInt) -> None:
    """Drops the rows of later steps, in TensorBoard too, as if the run had never gone beyond `step`.

    Args:
      step: the step that a run resumes from.
    """
    self.close()
    self._open(step)
    self._first_step = int(step) + 1

  def finish(self) -> None:
    """Closes the files, and waits until the tracker has all rows."""
    self.close()
    if self._tracker:
      self._tracker.close()

  def close(self) -> None:
    """Closes the files; `truncate_after` opens them again."""
    if self._file:
      self._file.close()
    if self._events:
      try:
        self._events.close()
      except OSError as e:
        if self._tensorboard:
          log.warning("the last TensorBoard events are lost (%s); %s has all numbers", e, self.path)
    self._file = self._events = None

  def _open(self, last_step: float) -> None:
    lines = [line + "\n" for line, row in _rows(self.path) if row["step"] <= last_step]
    kept, self.rows = "".join(lines), len(lines)
    if self.path.exists() and kept != self.path.read_text(encoding="utf-8", errors="replace"):
      files.replace_text(self.path, kept)
    self._file = open(self.path, "a", encoding="utf-8")


class _Events:
  """A file of TensorBoard events, written by the caller: the thread of `SummaryWriter` ends in silence on a full disk,
  its queue fills, and the run would wait for ever."""

  def __init__(self, folder: pathlib.Path, first_step: int | None):
    from tensorboardX import event_file_writer, proto, summary

    self._scalar, self._event, self._summary = summary.scalar, proto.event_pb2.Event, proto.summary_pb2.Summary
    folder.mkdir(exist_ok=True)
    resumed = "" if first_step is None else f".{first_step}"
    self._writer, self._flushed = event_file_writer.EventsWriter(str(folder / "events"), resumed), 0.0
    if first_step is not None:
      start = proto.event_pb2.SessionLog(status=proto.event_pb2.SessionLog.START)
      self._writer.write_event(self._event(step=first_step, wall_time=time.time(), session_log=start))

  def write(self, step: int, values: dict[str, float]) -> None:
    found = [value for name, x in values.items() for value in self._scalar(name, x).value]
    self._writer.write_event(self._event(step=step, wall_time=time.time(), summary=self._summary(value=found)))
    if time.monotonic() - self._flushed > _FLUSH_SECONDS:
      self._writer.flush()
      self._flushed = time.monotonic()

  def close(self) -> None:
    self._writer.close()


def _has_tensorboard() -> bool:
  """Whether the module that writes events is installed; warns if it is not."""
  try:
    import tensorboardX  # noqa: F401  (only runs that want plots need it)
  except ImportError:
    log.warning("no TensorBoard events: tensorboardX is not installed (pip install tensorboardX)")
    return False
  return True


def read_rows(path: str | os.PathLike) -> list[dict[str, Any]]:
  """Rows of a `metrics.jsonl`, in order; a torn last line is left out, and a file that does not exist has no rows.

  Raises:
    MetricsError: a line other than the last is not a JSON object with a `step`; the text names the line.
  """
  return [{name: float(x) if x in _NOT_FINITE else x for name, x in row.items()} for _, row in _rows(path)]


def si(x: float) -> str:
  """A number with three digits and an SI prefix: 950, 12.3k, 4.5M."""
  if not math.isfinite(x):
    return str(x)
  for unit in ("", "k", "M", "G", "T"):
    if abs(x) < 999.5:
      return f"{x:.3g}{unit}"
    x /= 1000
  return f"{x:.3g}P"


def _rows(path: str | os.PathLike) -> Iterator[tuple[str, dict[str, Any]]]:
  """(line without its line end, row) of each row; a torn last line is left out."""
  path = pathlib.Path(path)
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
  for i, line in enumerate(lines):
    try:
      row = files.parse_json(line)
      if not isinstance(row, dict) or "step" not in row:
        raise ValueError("expected an object with a step")
    except ValueError as e:
      if i == len(lines) - 1:
        return
      raise MetricsError(f"{path}, line {i + 1}: found {line[:80]!r}: {e}; delete that line") from e
    yield line, row
