"""Files and their paths. A file is written whole: a reader, and a process that is killed, sees old content or new."""

import json
import math
import os
import pathlib
from typing import Any
import uuid

from ebt_jax.errors import UserError


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


def parse_json(text: str | bytes) -> Any:
  """What a JSON text holds. Raises ValueError where it is broken, holds a huge integer, or is nested too deeply."""
  try:
    return json.loads(text)
  except RecursionError:
    raise ValueError("nested too deeply") from None
  except (json.JSONDecodeError, UnicodeDecodeError):
    raise
  except ValueError:  # Python's limit of digits
    raise ValueError("an integer of more than 4300 digits; shorten it, or write it as a string") from None


def read_json(path: str | os.PathLike, what: str, fix: str) -> dict[str, Any]:
  """The object that a JSON file holds.

  Args:
    path: the file.
    what: it is read as.
    fix: what to do where it cannot be read, as the end of a message.

  Raises:
    UserError: the file is not there, cannot be read, or is not a JSON object.
  """
  try:
    found = parse_json(pathlib.Path(path).read_bytes())
  except (OSError, ValueError) as e:
    said = e.strerror if isinstance(e, OSError) else str(e)
    raise UserError(f"{path}: cannot be read as {what} ({said}); {fix}") from e
  if not isinstance(found, dict):
    raise UserError(f"{path}: cannot be read as {what} (expected a JSON object, found {type(found).__name__}); {fix}")
  return found


def local(path: str, name: str = "") -> str:
  """A path of this machine as a user has written it, with the home folder in place of `~`.

  Raises:
    UserError: it is a remote path, such as `gs://...`; `name` is the flag or key that holds it.
  """
  where = f"{name}: " if name else ""
  scheme, remote, _ = path.partition("://")
  if remote and scheme.isalnum():
    raise UserError(
      f"{where}{path} is a remote path, expected one of this machine; copy the files, or mount the {scheme} storage"
    )
  found = os.path.expanduser(path)
  if found.startswith("~"):
    raise UserError(f"{where}{path}: there is no home folder of {found.partition(os.sep)[0]}")
  return found


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
