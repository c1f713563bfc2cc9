"""Writes a file as a whole: a reader, and a process that is killed, sees the old content or the new, never a part."""

import itertools
import json
import math
import os
import pathlib
from typing import Any
import uuid


def replace_bytes(path: str | os.PathLike, data: bytes) -> None:
  """Replaces a file by `data`, or makes it, in one step.

  The data go to a part file beside it, whose name no other process shares, then to the disk, and only then does
  the part file take the name `path`. An error removes the part file.

  Raises:
    OSError: the folder does not exist or is not writable, or the disk is full; the old file is as it was.
  """
  path = pathlib.Path(path)
  part = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.part")
  try:
    with open(part, "xb") as f:
      f.write(data)
      f.flush()
      os.fsync(f.fileno())
    os.replace(part, path)
  except BaseException:
    part.unlink(missing_ok=True)
    raise


def replace_text(path: str | os.PathLike, text: str) -> None:
  """`replace_bytes` with `text` in UTF-8."""
  replace_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike, value: Any) -> None:
  """`replace_text` with `value` as indented JSON; see `valid_json` for numbers that JSON does not have."""
  replace_text(path, json.dumps(valid_json(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def unused(path: str | os.PathLike) -> pathlib.Path:
  """`path`, with a number before its suffix if that name is taken."""
  path = pathlib.Path(path)
  names = (path.with_name(f"{path.stem}-{i}{path.suffix}") if i else path for i in itertools.count())
  return next(p for p in names if not os.path.lexists(p))


def set_aside(path: str | os.PathLike, mark: str) -> pathlib.Path | None:
  """Gives a file or folder an unused name with `mark` before its suffix; returns it, None if there was nothing."""
  path = pathlib.Path(path)
  if not os.path.lexists(path):
    return None
  return path.rename(unused(path.with_name(f"{path.stem}{mark}{path.suffix}")))


def keep_others(path: str | os.PathLike, settings: dict[str, Any]) -> pathlib.Path | None:
  """Sets a JSON file of results aside whose `settings` are others, or not known; returns its new name."""
  path = pathlib.Path(path)
  try:
    if path.exists() and json.loads(path.read_text(encoding="utf-8"))["settings"] == valid_json(settings):
      return None  # it may be replaced: these are the same results
  except (ValueError, KeyError, TypeError):
    pass
  return set_aside(path, ".old")


def pattern_in(path: str | os.PathLike) -> str:
  """The first character of an absolute path that orbax takes for a pattern (it would miss its own files); or empty."""
  return next((c for c in pathlib.Path(path).absolute().as_posix() if c in "*?[\\"), "")


def valid_json(value: Any) -> Any:
  """`value` in types that JSON has: array scalars become numbers, NaN and infinities "nan", "inf" and "-inf"."""
  if isinstance(value, dict):
    return {str(k): valid_json(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [valid_json(v) for v in value]
  if hasattr(value, "item"):
    value = value.item()
  if isinstance(value, float) and not math.isfinite(value):
    return str(value)
  return value
