"""What a run writes down: `metrics.jsonl`, TensorBoard events, and small JSON files.

A row of `metrics.jsonl` is `{"step": n, "name": value, ...}`. It is always valid JSON:
a value that is not finite stands as "nan", "inf" or "-inf", and `read_rows` gives it back
as a float. Names that start with `time/` hold measured times and rates; all other values
of two runs of one config are equal to the last bit.
"""

import json
import logging
import math
import os
import pathlib
from typing import Any

log = logging.getLogger(__name__)

FILE = "metrics.jsonl"
_NOT_FINITE = ("nan", "inf", "-inf")


class MetricsWriter:
  """Appends rows to `<workdir>/metrics.jsonl` and, if asked, TensorBoard events to `<workdir>/tensorboard`.

  In a multi-process run only process 0 makes one.

  Args:
    workdir: folder of the run on a local disk, made if it is not there.
    tensorboard: also write events, if tensorboardX is installed.
  """

  def __init__(self, workdir, tensorboard: bool = True):
    self._workdir = pathlib.Path(workdir)
    self._workdir.mkdir(parents=True, exist_ok=True)
    self.path = self._workdir / FILE
    self._tensorboard = _tensorboard() if tensorboard else None
    self._events = None
    self._first_step = None  # TensorBoard forgets events from here on, which a resumed run writes anew
    self._file = None
    self._open(math.inf)  # drops a torn last line, which would swallow the next row

  def __enter__(self) -> "MetricsWriter":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def write(self, step: int, values: dict[str, float]) -> None:
    """Appends one row and hands it to the operating system before it returns.

    Args:
      step: training steps done.
      values: numbers or scalar arrays by name.
    """
    values = {name: float(value) for name, value in values.items()}
    self._file.write(json.dumps(_valid({"step": int(step), **values}), allow_nan=False) + "\n")
    self._file.flush()
    if self._tensorboard:
      if self._events is None:
        self._events = self._tensorboard.SummaryWriter(self._workdir / "tensorboard", purge_step=self._first_step)
      for name, value in values.items():
        self._events.add_scalar(name, value, int(step))

  def truncate_after(self, step: int) -> None:
    """Drops the rows of later steps, as if the run had never gone beyond `step`; TensorBoard forgets them too.

    Args:
      step: the step that a run resumes from.
    """
    self.close()
    self._open(step)
    self._first_step = int(step) + 1

  def close(self) -> None:
    """Closes the files; `truncate_after` opens them again."""
    if self._file:
      self._file.close()
    if self._events:
      self._events.close()
    self._file = self._events = None

  def _open(self, last_step: float) -> None:
    kept = "".join(line + "\n" for line, row in _rows(self.path) if row["step"] <= last_step)
    if self.path.exists() and kept != self.path.read_text(encoding="utf-8", errors="replace"):
      _replace(self.path, kept)
    self._file = open(self.path, "a", encoding="utf-8")


def _tensorboard():
  """The module that writes events, or None with a warning."""
  try:
    import tensorboardX  # only runs that want plots need it
  except ImportError:
    log.warning("no TensorBoard events: tensorboardX is not installed (pip install tensorboardX)")
    return None
  return tensorboardX


def read_rows(path) -> list[dict[str, Any]]:
  """Rows of a `metrics.jsonl`, in order; a torn last line is left out.

  Raises:
    ValueError: another line is no JSON object with a `step`.
  """
  return [{name: float(x) if x in _NOT_FINITE else x for name, x in row.items()} for _, row in _rows(path)]


def write_json(path, value: Any) -> None:
  """Writes a JSON file whole or not at all; numbers that are not finite as in `metrics.jsonl`."""
  _replace(pathlib.Path(path), json.dumps(_valid(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def si(x: float) -> str:
  """Three figures and a unit: 950, 12.3k, 4.5M."""
  if not math.isfinite(x):
    return str(x)
  for unit in ("", "k", "M", "G", "T"):
    if abs(x) < 999.5:
      return f"{x:.3g}{unit}"
    x /= 1000
  return f"{x:.3g}P"


def _rows(path):
  """(line without its end, row) for each row; a last line that a kill has cut short is left out."""
  path = pathlib.Path(path)
  lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []
  for i, line in enumerate(lines):
    try:
      row = json.loads(line)
      if not isinstance(row, dict) or "step" not in row:
        raise ValueError("expected an object with a step")
    except ValueError as e:
      if i == len(lines) - 1:
        return
      raise ValueError(f"{path}, line {i + 1}: found {line[:80]!r}: {e}; delete that line") from e
    yield line, row


def _valid(value: Any) -> Any:
  """`value` with what JSON cannot hold replaced: non-finite numbers by their names, array scalars by numbers."""
  if isinstance(value, dict):
    return {str(k): _valid(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_valid(v) for v in value]
  if hasattr(value, "item"):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value


def _replace(path: pathlib.Path, text: str) -> None:
  part = path.with_name(path.name + ".part")
  with open(part, "w", encoding="utf-8") as f:
    f.write(text)
    f.flush()
    os.fsync(f.fileno())
  os.replace(part, path)
