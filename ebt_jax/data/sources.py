"""Text sources (embedded text, local files, prepared TFDS data sets) as a stream of documents."""

from collections.abc import Callable, Iterator
import dataclasses
import glob
import gzip
import importlib.resources
import itertools
import json
import lzma
import os
import re
from typing import IO, Any
import zlib

from ebt_jax.config import ConfigError, near
from ebt_jax.files import local, parse_json

EXTENSIONS = (".txt", ".jsonl", ".jsonl.gz", ".jsonl.xz", ".parquet")
_KEY = "config.data.source"
_OPENERS = {"gz": gzip.open, "xz": lzma.open}
_EMBEDDED = "sotu.jsonl.xz"


@dataclasses.dataclass(frozen=True)
class Document:
  """A text, and an id that does not depend on where the source is stored."""

  id: str
  text: str


def documents(source: str, text_key: str = "text", max_documents: int = 0) -> Iterator[Document]:
  """The documents of a source, in a fixed order; see `Source`.

  Args:
    source: `config.data.source`.
    text_key: field or column that holds the text (jsonl, parquet, tfds).
    max_documents: stop after this number of documents; 0: read all.
  """
  return iter(Source(source, text_key, max_documents))


class Source:
  """The documents of a source, and how much of it has been read.

  A source is one of:
  * `embedded`: State of the Union addresses, with ids such as `1790-Washington-1`.
  * Local files, globs and folders (searched recursively), separated by commas. The id is the name of the file, or its
    path below the folder, or its path below the part of the glob before the first wildcard; `.jsonl` adds the line
    number, `.parquet` the row number, counted from 1. A `.txt` file is one document.
  * `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`, prepared as array_record, with ids `NAME:SPLIT:row`.

  Empty texts are skipped.

  Attributes:
    size: bytes of the input files as stored; 0 for `embedded` and tfds.
    fraction: part of the input that has been read, 0 to 1; updated before each document.

  Raises:
    ConfigError: at construction if the source does not exist, while reading if its content is bad.
  """

  def __init__(self, source: str, text_key: str = "text", max_documents: int = 0):
    self.fraction = 0.0
    self.size = 0
    self._key = text_key
    self._limit = max_documents
    self._tfds = None
    self._files: list[tuple[str, str]] = []  # (path, id)
    self._embedded = source == "embedded"
    if source.startswith("tfds:"):
      self._tfds = _open_tfds(source)
    elif not self._embedded:
      self._files = find_files(source)
      self.size = sum(os.path.getsize(p) for p, _ in self._files)

  def __iter__(self) -> Iterator[Document]:
    self.fraction = 0.0
    if self._embedded:
      found = self._read_embedded()
    elif self._tfds is not None:
      found = self._read_tfds()
    else:
      found = self._read_files()
    for n, document in enumerate(itertools.islice(found, self._limit or None), 1):
      if self._limit:
        self.fraction = max(self.fraction, n / self._limit)
      yield document

  def _read_embedded(self) -> Iterator[Document]:
    resource = importlib.resources.files("ebt_jax.data") / "embedded" / _EMBEDDED
    with resource.open("rb") as raw, lzma.open(raw) as lines:
      size = raw.seek(0, os.SEEK_END)
      raw.seek(0)
      for line in lines:
        self.fraction = raw.tell() / size
        row = json.loads(line)
        yield Document(row["id"], row["text"])

  def _read_tfds(self) -> Iterator[Document]:
    name, data = self._tfds
    for i in range(len(data)):
      row = data[i]
      self.fraction = (i + 1) / len(data)
      where = f"{name}:{i + 1}"
      text = _field(row, self._key, where)
      if isinstance(text, bytes):
        text = _utf8(text, where, 0)
      if not isinstance(text, str):
        raise ConfigError(f"config.data.text_key: {where}: {self._key!r} holds {type(text).__name__}, expected text")
      if text:
        yield Document(where, text)

  def _read_files(self) -> Iterator[Document]:
    done = 0
    for path, name in self._files:
      size = os.path.getsize(path)
      if not size:
        raise ConfigError(f"{_KEY}: {path} is empty; remove it or leave it out of data.source")
      with open(path, "rb") as raw:
        for document, read in _reader(path)(raw, path, name, self._key):
          self.fraction = (done + read * size) / self.size
          yield document
      done += size


def find_files(source: str) -> list[tuple[str, str]]:
  """Files of a comma-separated list of files, globs and folders.

  Returns:
    (path, id) of each file, once; items in the order given, the files of an item in the order of their ids.

  Raises:
    ConfigError: an item does not exist or matches nothing, or a file's extension is unknown.
  """
  items = [s.strip() for s in source.split(",") if s.strip()]
  if not items:
    raise ConfigError(f"{_KEY}: expected `embedded`, files, globs, folders or tfds:NAME, found {source!r}")
  found: dict[str, str] = {}
  for item in items:
    path = local(item, _KEY)
    if os.path.isdir(path):
      if os.path.exists(os.path.join(path, "windows.json")):
        raise ConfigError(f"{_KEY}: {item} holds tokens, not text; it can only be the whole data.source")
      names = [n for n in _walk(path) if _extension(n)]
      if not names:
        raise ConfigError(f"{_KEY}: folder {item} holds no file ending in {', '.join(EXTENSIONS)}")
      matches = [(os.path.join(path, n), n) for n in names]
    elif os.path.isfile(path):
      matches = [(path, os.path.basename(path))]
    elif glob.has_magic(path):
      root = path[: re.search(r"[*?\[]", path).start()].rpartition(os.sep)[0] or os.sep * os.path.isabs(path) or "."
      paths = [p for p in glob.glob(path, recursive=True) if os.path.isfile(p)]
      if not paths:
        raise ConfigError(f"{_KEY}: nothing matches {item!r}; {_nearby(path)}")
      matches = [(p, os.path.relpath(p, root)) for p in paths]
    else:
      raise ConfigError(f"{_KEY}: no file or folder {item!r}; {_nearby(path)}")
    for p, name in sorted(matches, key=lambda m: m[1]):
      if not _extension(p):
        raise ConfigError(f"{_KEY}: {p} has an unknown extension; expected {', '.join(EXTENSIONS)}")
      found.setdefault(p, name.replace(os.sep, "/"))
  return list(found.items())


def _walk(folder: str) -> Iterator[str]:
  for parent, folders, files in os.walk(folder):
    folders[:] = sorted(d for d in folders if not d.startswith("."))
    for name in files:
      if not name.startswith("."):
        yield os.path.relpath(os.path.join(parent, name), folder)


def _extension(path: str) -> str:
  return next((e for e in EXTENSIONS if path.lower().endswith(e)), "")


def _nearby(path: str) -> str:
  """A hint for a path that does not exist: similar names in its folder, or what the folder holds."""
  folder, _, name = path.rpartition(os.sep)
  folder = folder or ("." if not path.startswith(os.sep) else os.sep)
  if glob.has_magic(folder):
    return "check the folder's name"
  if not os.path.isdir(folder):
    return f"its folder {folder} does not exist"
  names = os.listdir(folder)
  return f"in {folder}: {near(name, names)}" if names else f"{folder} is empty"


def _reader(path: str) -> Callable[[IO[bytes], str, str, str], Iterator[tuple[Document, float]]]:
  extension = _extension(path)
  if extension == ".txt":
    return _read_txt
  return _read_parquet if extension == ".parquet" else _read_jsonl


# Each reader takes (open file, its path, its id, text key) and yields (document, part of the file that has been read).


def _read_txt(raw: IO[bytes], path: str, name: str, key: str) -> Iterator[tuple[Document, float]]:
  text = _utf8(raw.read(), path, 0).removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
  if not text.strip():
    raise ConfigError(f"{_KEY}: {path} holds only white space; remove it or leave it out of data.source")
  yield Document(name, text), 1.0


def _read_jsonl(raw: IO[bytes], path: str, name: str, key: str) -> Iterator[tuple[Document, float]]:
  size = os.path.getsize(path)
  opener = _OPENERS.get(path.lower().rpartition(".")[2])
  stream = opener(raw, "rb") if opener else raw
  offset = found = n = 0
  try:
    for n, line in enumerate(stream, 1):
      where = f"{path}:{n}"
      text_line = _utf8(line, where, offset).removeprefix("\ufeff")
      offset += len(line)
      if not text_line.strip():
        continue
      try:
        row = parse_json(text_line)
      except ValueError as e:
        raise ConfigError(f"{_KEY}: {where}: not JSON ({e}); expected one JSON object a line") from e
      if not isinstance(row, dict):
        raise ConfigError(f"{_KEY}: {where}: expected a JSON object, found {type(row).__name__}")
      text = _field(row, key, where)
      if text is not None and not isinstance(text, str):
        raise ConfigError(f"config.data.text_key: {where}: {key!r} holds {type(text).__name__}, expected text")
      found += 1
      if text:
        # the position in the file as stored, because that is what the time left depends on
        yield Document(f"{name}:{n}", text), min(raw.tell() / size, 1.0)
  except (EOFError, OSError, lzma.LZMAError, zlib.error) as e:
    raise ConfigError(f"{_KEY}: {path}: broken after line {n} ({e}); copy or pack the file again") from e
  if not found:
    raise ConfigError(f"{_KEY}: {path} holds no line; remove it or leave it out of data.source")


def _read_parquet(raw: IO[bytes], path: str, name: str, key: str) -> Iterator[tuple[Document, float]]:
  try:
    import pyarrow as pa
    import pyarrow.parquet as pq
  except ImportError as e:
    raise ConfigError(f"{_KEY}: {path} needs the package `pyarrow`; run `pip install pyarrow`") from e
  try:
    table = pq.ParquetFile(raw)
  except (pa.ArrowException, OSError) as e:
    raise ConfigError(f"{_KEY}: {path} is not a Parquet file ({str(e)[:200]}); copy or write the file again") from e
  columns = table.schema_arrow.names
  if key not in columns:
    raise ConfigError(f"config.data.text_key: {path} has no column {key!r}; found {', '.join(columns)}")
  kind = table.schema_arrow.field(key).type
  if not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
    raise ConfigError(f"config.data.text_key: {path}: column {key!r} holds {kind}, expected string")
  rows = table.metadata.num_rows
  if not rows:
    raise ConfigError(f"{_KEY}: {path} holds no row; remove it or leave it out of data.source")
  n = 0
  for batch in table.iter_batches(batch_size=1024, columns=[key]):
    for text in batch.column(0).to_pylist():
      n += 1
      if text:
        yield Document(f"{name}:{n}", text), n / rows


def _field(row: dict, key: str, where: str) -> Any:
  if key not in row:
    raise ConfigError(f"config.data.text_key: {where}: no key {key!r}; found {', '.join(map(str, row)) or 'none'}")
  return row[key]


def _utf8(content: bytes, where: str, offset: int) -> str:
  """Decodes bytes that start at byte `offset` of a file."""
  if b"\0" in content:
    raise ConfigError(
      f"{_KEY}: {where}: binary content (a NUL at byte {offset + content.index(0)}); expected UTF-8 text; "
      "convert UTF-16 with `iconv -f UTF-16 -t UTF-8`"
    )
  try:
    return content.decode("utf-8")
  except UnicodeDecodeError as e:
    raise ConfigError(
      f"{_KEY}: {where}: not UTF-8 at byte {offset + e.start} (0x{content[e.start]:02x}); "
      "convert the file, for example with `iconv -f LATIN1 -t UTF-8`"
    ) from e


def _open_tfds(source: str) -> tuple[str, Any]:
  """(`NAME:SPLIT`, a data source with random access) for `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`."""
  try:
    import tensorflow_datasets as tfds
  except ImportError as e:
    raise ConfigError(
      f"{_KEY}: {source} needs the package `tensorflow-datasets`; run `pip install tensorflow-datasets`"
    ) from e
  match = re.fullmatch(r"tfds:([^:]+(?::\d+\.\d+\.\d+)?)(?::(.+))?", source)
  if not match:
    raise ConfigError(f"{_KEY}: expected tfds:NAME[/CONFIG][:SPLIT], found {source!r}")
  name, split = match[1], match[2] or "train"
  try:
    builder = tfds.builder(name)
  except tfds.core.DatasetNotFoundError as e:
    known = tfds.list_builders(with_community_datasets=False)  # community data sets need the network and TensorFlow
    raise ConfigError(
      f"{_KEY}: no TFDS data set {name!r} is known or prepared in {tfds.core.constants.DATA_DIR}; set TFDS_DATA_DIR to "
      f"the folder it was prepared in; {near(name.partition('/')[0], known)}"
    ) from e
  except Exception as e:  # builders raise errors of many types: bad configs, versions, imports
    raise ConfigError(f"{_KEY}: {source} cannot be opened ({str(e)[:300]})") from e
  if not builder.info.splits:
    raise ConfigError(
      f"{_KEY}: {name} is not prepared in {builder.data_dir}; prepare it once with "
      f"`tfds build {name.partition(':')[0]} --file_format=array_record`, or set TFDS_DATA_DIR"
    )
  if re.match(r"\w+", split)[0] not in builder.info.splits:
    raise ConfigError(f"{_KEY}: {name} has no split {split!r}; found {', '.join(sorted(builder.info.splits))}")
  try:
    data = builder.as_data_source(split=split)
  except NotImplementedError as e:
    raise ConfigError(
      f"{_KEY}: {name} is prepared as {builder.info.file_format}, which has no random access without TensorFlow; "
      "prepare it again with file_format=array_record"
    ) from e
  return f"{match[1]}:{split}", data
