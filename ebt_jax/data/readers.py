"""The documents of one file: plain text, JSON lines, JSON and Parquet, compressed or not."""

import bz2
from collections.abc import Iterator
import contextlib
import gzip
import io
import lzma
import os
from typing import IO, Any, NamedTuple
import zlib

from ebt_jax.config import ConfigError
from ebt_jax.data import answers
from ebt_jax.data.answers import Fields, Marked
from ebt_jax.data.find import KEY, File
from ebt_jax.files import parse_json

_TEXT_KEY, _PROMPT_KEY = "config.data.text_key", "config.data.prompt_key"
_POINTER = b"version https://git-lfs.github.com/spec/"
_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class NoDocument(ConfigError):
  """A file without documents. Where it was found in a folder, it is left out for the `reason`."""

  def __init__(self, message: str, reason: str):
    super().__init__(message)
    self.reason = reason


class Part(NamedTuple):
  """One document of a file: what follows the file's id, its text (empty: none), part of the file read."""

  suffix: str
  content: Marked
  read: float


def read(file: File, fields: Fields) -> Iterator[Part]:
  """The documents of a file.

  Args:
    file: what to read.
    fields: which fields or columns hold the text.

  Raises:
    NoDocument: the file is empty, holds only white space, or no row.
    ConfigError: the file is damaged, is not what its name says, or lacks a field.
  """
  try:
    if not os.path.getsize(file.path):
      raise NoDocument(f"{KEY}: {file.path} is empty; remove it or leave it out of data.source", "empty files")
    yield from _READERS[file.format](file, fields)
  except (EOFError, OSError, lzma.LZMAError, zlib.error) as e:
    if isinstance(e, PermissionError | FileNotFoundError):
      raise ConfigError(f"{KEY}: {file.path}: {e.strerror}; give a file that can be read") from e
    raise ConfigError(f"{KEY}: {file.path}: broken ({e}); copy or pack the file again") from e


@contextlib.contextmanager
def _opened(file: File) -> Iterator[tuple[IO[bytes], IO[bytes]]]:
  """The file as it is stored, and its content."""
  with open(file.path, "rb") as raw:
    if raw.read(len(_POINTER)) == _POINTER:
      raise ConfigError(f"{KEY}: {file.path} is a Git LFS pointer, not the text; fetch it with `git lfs pull`")
    raw.seek(0)
    match file.packing:
      case ".gz":
        yield raw, gzip.open(raw, "rb")
      case ".bz2":
        yield raw, bz2.open(raw, "rb")
      case ".xz":
        yield raw, lzma.open(raw, "rb")
      case ".zst":
        pa = _pyarrow(file)
        yield raw, io.BufferedReader(pa.CompressedInputStream(raw, "zstd"))
      case _:
        yield raw, raw


def _read_txt(file: File, fields: Fields) -> Iterator[Part]:
  if fields.prompt:
    raise ConfigError(
      f"{_PROMPT_KEY}: {file.path} is plain text, which has no field {fields.prompt!r}; leave data.prompt_key out, or "
      "give .jsonl, .json or .parquet"
    )
  with _opened(file) as (_, content):
    text = _utf8(content.read(), file.path, 0).removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
  if not text.strip():
    message = f"{KEY}: {file.path} holds only white space; remove it or leave it out of data.source"
    raise NoDocument(message, "files of white space")
  yield Part("", Marked(text), 1.0)


def _read_jsonl(file: File, fields: Fields) -> Iterator[Part]:
  found, n, offset, size = 0, 0, 0, os.path.getsize(file.path)
  with _opened(file) as (raw, content):
    try:
      for n, line in enumerate(content, 1):  # rows end at \n alone, not at U+2028 and the like
        where = f"{file.path}:{n}"
        text_line = _utf8(line, where, offset).removeprefix("\ufeff")
        offset += len(line)
        if not text_line.strip():
          continue
        found += 1
        row = _json(text_line, where, "one JSON object a line")
        # the position in the file as stored, because that is what the time left depends on
        yield Part(f":{n}", marked(row, fields, where), min(raw.tell() / size, 1.0))
    except (EOFError, OSError, lzma.LZMAError, zlib.error) as e:
      raise ConfigError(f"{KEY}: {file.path}: broken after line {n} ({e}); copy or pack the file again") from e
  if not found:
    message = f"{KEY}: {file.path} holds no line; remove it or leave it out of data.source"
    raise NoDocument(message, "files without a row")


def _read_json(file: File, fields: Fields) -> Iterator[Part]:
  """JSON lines under another name, an array of objects, or one object, which may be no document but about others."""
  with _opened(file) as (_, content):
    lines = (line for line in content if line.strip())
    first, second = next(lines, b""), next(lines, b"")
    if second and _is_object(first):
      yield from _read_jsonl(file, fields)
      return
  with _opened(file) as (_, content):
    rows = _json(_utf8(content.read(), file.path, 0).removeprefix("\ufeff"), file.path, "JSON")
  if isinstance(rows, dict):
    if fields.text not in rows and not file.named and not file.packing:
      raise NoDocument(f"{KEY}: {file.path} has no {fields.text!r}", f"JSON files without {fields.text!r}")
    rows = [rows]
  if not isinstance(rows, list) or not rows:
    message = f"{KEY}: {file.path}: expected JSON objects with a text each, found {str(rows)[:40]}"
    raise NoDocument(message, "files without a row")
  for n, row in enumerate(rows, 1):
    yield Part(f":{n}", marked(row, fields, f"{file.path}:{n}"), n / len(rows))


def _read_parquet(file: File, fields: Fields) -> Iterator[Part]:
  pa = _pyarrow(file)
  import pyarrow.parquet as pq

  path = file.path
  with _opened(file) as (raw, _):
    try:
      table = pq.ParquetFile(raw)
    except (pa.ArrowException, OSError) as e:
      raise ConfigError(f"{KEY}: {path} is not a Parquet file ({str(e)[:200]}); copy or write the file again") from e
    columns = table.schema_arrow.names
    wanted = {_TEXT_KEY: fields.text, **({_PROMPT_KEY: fields.prompt} if fields.prompt else {})}
    for name, key in wanted.items():
      if columns.count(key) != 1:
        what = f"has {columns.count(key)} columns" if key in columns else "has no column"
        raise ConfigError(f"{name}: {path} {what} {key!r}; found {', '.join(columns)}")
      kind = table.schema_arrow.field(key).type
      if not _holds_text(kind):
        raise ConfigError(f"{name}: {path}: column {key!r} holds {kind}, expected string")
    rows = table.metadata.num_rows
    if not rows:
      message = f"{KEY}: {path} holds no row; remove it or leave it out of data.source"
      raise NoDocument(message, "files without a row")
    n = 0
    try:
      keys = list(wanted.values())
      for batch in table.iter_batches(batch_size=1024, columns=keys):
        for values in zip(*(batch.column(batch.schema.get_field_index(key)) for key in keys)):
          n += 1
          row = {key: _bytes(value) for key, value in zip(keys, values)}
          yield Part(f":{n}", marked(row, fields, f"{path}:{n}"), n / rows)
    except (pa.ArrowException, OSError) as e:
      raise ConfigError(f"{KEY}: {path}: broken after row {n} ({str(e)[:200]}); copy or write the file again") from e


_READERS = {
  ".txt": _read_txt,
  ".jsonl": _read_jsonl,
  ".ndjson": _read_jsonl,
  ".json": _read_json,
  ".parquet": _read_parquet,
}


def _pyarrow(file: File) -> Any:
  try:
    import pyarrow
  except ImportError as e:
    raise ConfigError(f"{KEY}: {file.path} needs the package `pyarrow`; run `pip install pyarrow`") from e
  return pyarrow


def _holds_text(kind: Any) -> bool:
  """Whether an Arrow type is one of strings, or of bytes, which may be UTF-8."""
  import pyarrow as pa

  if isinstance(kind, pa.BaseExtensionType):
    kind = kind.storage_type
  if pa.types.is_dictionary(kind):
    kind = kind.value_type
  names = ("string", "large_string", "string_view", "binary", "large_binary", "binary_view", "fixed_size_binary")
  checks = [getattr(pa.types, f"is_{name}", None) for name in names]  # older versions lack the views
  return any(check(kind) for check in checks if check)


def _bytes(value: Any) -> bytes | None:
  """The bytes of an Arrow scalar, before they are known to be UTF-8."""
  if hasattr(value, "value") and not hasattr(value, "as_buffer"):  # of a dictionary, of an extension type
    value = value.value
  return value.as_buffer().to_pybytes() if value is not None and value.is_valid else None


def _is_object(line: bytes) -> bool:
  try:
    return isinstance(loads(line.decode("utf-8-sig")), dict)
  except ValueError:
    return False


def _json(text: str, where: str, expected: str) -> Any:
  try:
    return loads(text)
  except ValueError as e:
    raise ConfigError(f"{KEY}: {where}: not JSON ({e}); expected {expected}") from e


def loads(text: str) -> Any:
  """`files.parse_json` that reads integers of any length: those that Python refuses become floats."""
  return parse_json(text, _integer)


def _integer(digits: str) -> int | float:
  try:
    return int(digits)
  except ValueError:  # more digits than `sys.get_int_max_str_digits()`
    return float(digits)


def marked(row: Any, fields: Fields, where: str) -> Marked:
  """The text of a row: of one field, of a prompt and its answer, or of a chat. A null is no text.

  Raises:
    ConfigError: there is no such field, which names those there are, or it holds something else.
  """
  if not isinstance(row, dict):
    raise ConfigError(f"{KEY}: {where}: expected a JSON object, found {type(row).__name__}")
  text = _field(row, fields.text, where, _TEXT_KEY)
  if isinstance(text, list) and not fields.prompt:
    return answers.chat(text, where)
  text = _checked(text, fields.text, where, _TEXT_KEY)
  if not fields.prompt:
    return Marked(text)
  prompt = _checked(_field(row, fields.prompt, where, _PROMPT_KEY), fields.prompt, where, _PROMPT_KEY)
  return answers.answered(prompt, text)


def _field(row: dict, key: str, where: str, name: str) -> Any:
  if key not in row:
    raise ConfigError(f"{name}: {where}: no key {key!r}; found {', '.join(map(str, row)) or 'none'}")
  return row[key]


def _checked(text: Any, key: str, where: str, name: str) -> str:
  """A field's value, decoded if it is bytes; empty if it is null."""
  if isinstance(text, bytes):
    text = decoded(text, where)
  if text is not None and not isinstance(text, str):
    raise ConfigError(f"{name}: {where}: {key!r} holds {type(text).__name__}, expected text")
  return text or ""


def _utf8(content: bytes, where: str, offset: int) -> str:
  """Decodes bytes that start at byte `offset` of a text file."""
  mark = next((m for m in _MARKS if offset == 0 and content.startswith(m)), None)
  if mark:
    raise ConfigError(
      f"{KEY}: {where}: {_MARKS[mark]} text (it starts with a byte-order mark); expected UTF-8; "
      f"convert it with `iconv -f {_MARKS[mark]} -t UTF-8`"
    )
  if b"\0" in content:
    raise ConfigError(
      f"{KEY}: {where}: binary content (a NUL at byte {offset + content.index(0)}); expected UTF-8 text; "
      "convert UTF-16 with `iconv -f UTF-16 -t UTF-8`"
    )
  return decoded(content, where, offset)


def decoded(content: bytes, where: str, offset: int = 0) -> str:
  """UTF-8 as text. Raises ConfigError, which names the byte."""
  try:
    return content.decode("utf-8")
  except UnicodeDecodeError as e:
    raise ConfigError(
      f"{KEY}: {where}: not UTF-8 at byte {offset + e.start} (0x{content[e.start]:02x}); "
      "convert the file, for example with `iconv -f LATIN1 -t UTF-8`"
    ) from e
