"""Files and their paths. A file is written whole: a reader, and a process that is killed, sees old content or new."""

from collections.abc import Callable
import itertools
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


def parse_json(text: str | bytes, integer: Callable[[str], Any] = int) -> Any:
  """What a JSON text holds; `integer` makes the value of digits.

  Raises:
    ValueError: the text is broken, holds an integer that `integer` refuses, or is nested too deeply.
  """
  try:
    return json.loads(text, parse_int=integer)
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


STORES = {"gs": "gcsfs", "s3": "s3fs", "az": "adlfs", "hf": "huggingface_hub"}  # scheme: the package that reaches it


def is_remote(path: str | os.PathLike) -> bool:
  """Whether a path is the address of an object store; see `remote`."""
  scheme, slashes, _ = str(path).partition("://")
  return bool(slashes) and scheme in STORES


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
    if path.exists() and parse_json(path.read_bytes())["settings"] == valid_json(settings):
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
