"""Text sources (embedded text, local files, prepared TFDS data sets) as a stream of documents."""

from collections.abc import Iterator
import dataclasses
import importlib.resources
import itertools
import json
import lzma
import os
import re
from typing import Any

from ebt_jax.config import ConfigError, near
from ebt_jax.data import readers
from ebt_jax.data.answers import Fields
from ebt_jax.data.find import KEY, File, LeftOut, find_files

_EMBEDDED = "sotu.jsonl.xz"
_NO_TEXT = "rows without text"


@dataclasses.dataclass(frozen=True)
class Document:
  """A text, an id that does not depend on where the source is stored, and which parts are targets (see `Marked`)."""

  id: str
  text: str
  answers: tuple[tuple[int, int], ...] | None = None


def documents(source: str, fields: Fields = Fields("text"), max_documents: int = 0) -> Iterator[Document]:
  """The documents of a source, in a fixed order; see `Source`.

  Args:
    source: `config.data.source`.
    fields: which fields or columns hold the text (jsonl, parquet, tfds).
    max_documents: stop after this number of documents; 0: read all.
  """
  return iter(Source(source, fields, max_documents))


class Source:
  """The documents of a source, and how much of it has been read.

  A source is one of:
  * `embedded`: State of the Union addresses, with ids such as `1790-Washington-1`.
  * Local files, globs and folders (searched recursively), separated by commas; see `find.find_files`. The id is the
    name of the file, or its path below the folder, or its path below the part of the glob before the first wildcard;
    `.jsonl` adds the line number, `.json` and `.parquet` the row number, counted from 1. A `.txt` file is one
    document. All but `.parquet` may be compressed (`.gz`, `.bz2`, `.xz`, `.zst`).
  * `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`, prepared as array_record, with ids `NAME:SPLIT:row`.

  Rows without text are left out and counted.

  Attributes:
    size: bytes of the input files as stored; 0 for `embedded` and tfds.
    fraction: part of the input that has been read, 0 to 1; updated before each document.
    left_out: what the source holds and does not give, as far as it has been read.

  Raises:
    ConfigError: at construction if the source does not exist, while reading if its content is bad.
  """

  def __init__(self, source: str, fields: Fields = Fields("text"), max_documents: int = 0):
    self.fraction = 0.0
    self.size = 0
    self._name, self._fields = source, fields
    self._limit = max_documents
    self._tfds = None
    self._files: list[File] = []
    self._not_files = LeftOut()
    self._embedded = source == "embedded"
    if source.startswith("tfds:"):
      self._tfds = open_tfds(source)
    elif self._embedded and fields.prompt:
      raise ConfigError("config.data.prompt_key: the embedded text has no prompts; leave it out, or set data.source")
    elif not self._embedded:
      self._files, self._not_files = find_files(source)
      self.size = sum(os.path.getsize(f.path) for f in self._files)
    self.left_out = self._not_files.copy()

  def __iter__(self) -> Iterator[Document]:
    self.fraction = 0.0
    self.left_out = self._not_files.copy()
    if self._embedded:
      found = self._read_embedded()
    elif self._tfds is not None:
      found = self._read_tfds()
    else:
      found = self._read_files()
    n = 0
    for n, document in enumerate(itertools.islice(self._with_text(found), self._limit or None), 1):
      if self._limit:
        self.fraction = max(self.fraction, n / self._limit)
      yield document
    if not n:
      raise ConfigError(
        f"{KEY}: {self._name} holds no text; found {str(self.left_out) or 'no document'}; give files with some (of "
        "prompts: answers; of chats: messages of the assistant), or set data.text_key"
      )

  def _with_text(self, found: Iterator[Document]) -> Iterator[Document]:
    for document in found:
      if document.text:
        yield document
      else:
        self.left_out.add(_NO_TEXT)

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
      yield Document(where, *readers.marked(row, self._fields, where))

  def _read_files(self) -> Iterator[Document]:
    done = 0
    for file in self._files:
      size = os.path.getsize(file.path)
      try:
        for part in readers.read(file, self._fields):
          self.fraction = (done + part.read * size) / self.size
          yield Document(file.id + part.suffix, *part.content)
      except readers.NoDocument as e:
        if file.named:
          raise
        self.left_out.add(e.reason, file.id)
      done += size


def open_tfds(source: str) -> tuple[str, Any]:
  """(`NAME:SPLIT`, a data source with random access) for `tfds:NAME[/CONFIG][:VERSION][:SPLIT]`."""
  try:
    import tensorflow_datasets as tfds
  except ImportError as e:
    raise ConfigError(
      f"{KEY}: {source} needs the package `tensorflow-datasets`; run `pip install tensorflow-datasets`"
    ) from e
  match = re.fullmatch(r"tfds:([^:]+(?::\d+\.\d+\.\d+)?)(?::(.+))?", source)
  if not match:
    raise ConfigError(f"{KEY}: expected tfds:NAME[/CONFIG][:SPLIT], found {source!r}")
  name, split = match[1], match[2] or "train"
  try:
    builder = tfds.builder(name)
  except tfds.core.DatasetNotFoundError as e:
    known = tfds.list_builders(with_community_datasets=False)  # community data sets need the network and TensorFlow
    raise ConfigError(
      f"{KEY}: no TFDS data set {name!r} is known or prepared in {tfds.core.constants.DATA_DIR}; set TFDS_DATA_DIR to "
      f"the folder it was prepared in; {near(name.partition('/')[0], known)}"
    ) from e
  except Exception as e:  # builders raise errors of many types: bad configs, versions, imports
    raise ConfigError(f"{KEY}: {source} cannot be opened ({str(e)[:300]})") from e
  if not builder.info.splits:
    raise ConfigError(
      f"{KEY}: {name} is not prepared in {builder.data_dir}; prepare it once with "
      f"`tfds build {name.partition(':')[0]} --file_format=array_record`, or set TFDS_DATA_DIR"
    )
  if re.match(r"\w+", split)[0] not in builder.info.splits:
    raise ConfigError(f"{KEY}: {name} has no split {split!r}; found {', '.join(sorted(builder.info.splits))}")
  try:
    data = builder.as_data_source(split=split)
  except NotImplementedError as e:
    raise ConfigError(
      f"{KEY}: {name} is prepared as {builder.info.file_format}, which has no random access without TensorFlow; "
      "prepare it again with file_format=array_record"
    ) from e
  return f"{match[1]}:{split}", data
