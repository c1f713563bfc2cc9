"""The folder of tokens that `tools/tokenize_text.py` writes and `ebt_jax.data.text.build` reads.

`{train,held_out}.tokens` are flat arrays of uint16 or int32 and `{train,held_out}.lengths` of int32, little-endian (see
`Assembler`). While the job runs, `manifest.json` says how much of each is finished; at the end `windows.json` replaces
it.
"""

import collections
from collections.abc import Callable, Iterator
import contextlib
import errno
import hashlib
import itertools
import json
import os
from typing import Any
import zlib

import numpy as np

from ebt_jax import files
from ebt_jax.config import ConfigError, DataConfig
from ebt_jax.data.coverage import Coverage
from ebt_jax.data.sources import Document
from ebt_jax.data.tokenizers import Tokenizer
from ebt_jax.data.windows import Assembler, TextData, check, finish, from_flat, summarize, token_dtype
from ebt_jax.errors import UserError
from ebt_jax.owner import Owner

MANIFEST = "manifest.json"
WINDOWS = "windows.json"
_SPLITS = ("train", "held_out")
_SIZE = "input bytes"  # an argument of a folder
_KINDS = {"tokens": "stored", "lengths": "rows"}  # suffix of a file -> the count of its entries
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def is_folder(source: str) -> bool:
  """Whether a source is a folder of tokens, finished or not."""
  return any(os.path.isfile(os.path.join(os.path.expanduser(source), name)) for name in (WINDOWS, MANIFEST))


def open_folder(config: DataConfig, tokenizer: Tokenizer) -> TextData:
  """Memory-maps the windows of a folder.

  Raises:
    ConfigError: the folder is unfinished or damaged, or was made with another tokenizer, context length, layout,
      held-out fraction or document limit than `config` asks for.
  """
  folder = os.path.expanduser(config.source)
  if not os.path.isfile(os.path.join(folder, WINDOWS)):
    raise ConfigError(f"config.data.source: {config.source} is unfinished; run tools/tokenize_text.py again")
  meta = _read(folder, WINDOWS)
  _check_settings(config, tokenizer, meta)
  windows = []
  for split in _SPLITS:
    counts = meta["counts"][split]
    tokens = _map(folder, f"{split}.tokens", token_dtype(meta["vocab_size"]), counts["stored"])
    lengths = _map(folder, f"{split}.lengths", np.dtype("<i4"), counts["rows"])
    windows.append(from_flat(tokens, lengths, config.layout, config.context_length))
  if config.max_tokens:
    return finish(config, tokenizer, *windows, meta["counts"], meta["summary"].get("left_out", {}))
  return TextData(*windows, meta["summary"], meta["counts"])


def _check_settings(config: DataConfig, tokenizer: Tokenizer, meta: dict[str, Any]) -> None:
  """Raises ConfigError that names all settings in which a folder differs from a config, and what to set."""
  made = meta["arguments"]
  wanted = {"context_length": config.context_length, "layout": config.layout, "held_out": config.held_out}
  if config.max_documents:
    wanted["max_documents"] = config.max_documents
  found, fix = [], []
  if made["tokenizer"] != tokenizer.fingerprint:
    theirs, ours = (f"{n} ({f[:12]})" for n, f in (
        (meta["tokenizer_name"], made["tokenizer"]), (tokenizer.name, tokenizer.fingerprint)))  # fmt: skip
    found.append(f"config.data.tokenizer: made with {theirs}, found {ours}")
    fix.append(f"data.tokenizer={meta['tokenizer_name']}")
  for name, value in wanted.items():
    if made[name] != value:
      found.append(f"config.data.{name}: made with {made[name]!r}, found {value!r}")
      fix.append(f"data.{name}={made[name]}")
  if found:
    raise ConfigError(
      f"config.data.source: {config.source} was made with other settings; add --set {' '.join(fix)}, or make another "
      "folder with tools/tokenize_text.py:\n  " + "\n  ".join(found)
    )


class Writer:
  """Writes a folder of tokens; a killed job loses only what it added since the last `commit`. A context manager.

  Attributes:
    finished: whether the folder is complete.
    documents: number of documents that are finished; a job that continues skips them.
  """

  def __init__(self, folder: str, arguments: dict[str, Any], tokenizer: Tokenizer):
    """Opens a folder, or continues one.

    Args:
      folder: it is made if it does not exist.
      arguments: everything that the content depends on: `tokenizer`, `layout`, `context_length`, `held_out`, ...
      tokenizer: the one that makes the documents' ids.

    Raises:
      ConfigError: the folder was made with other arguments, another process writes it, or it cannot be written.
    """
    self._folder = folder
    self._arguments = arguments
    self._tokenizer = tokenizer
    self.documents = 0
    self._digest = ""  # of all documents that were added, one after the other
    self._read: collections.deque[bytes] = collections.deque()  # digests of documents that `follow` is ahead
    self._owner = Owner(folder, "--out")
    try:
      self._open(folder, arguments, tokenizer)
    except BaseException:
      self._owner.close()
      raise

  def _open(self, folder: str, arguments: dict[str, Any], tokenizer: Tokenizer) -> None:
    self._checksums: dict[str, int] = {}
    self.finished = os.path.isfile(os.path.join(folder, WINDOWS))
    counts: dict[str, dict[str, Any]] = {split: {} for split in _SPLITS}
    if self.finished or os.path.isfile(os.path.join(folder, MANIFEST)):
      meta = _read(folder, WINDOWS if self.finished else MANIFEST)
      counts, self._digest = meta["counts"], meta.get("documents", "")
      # before the end the source may change beyond what is finished, such as a bad file that is mended
      open_end = not self.finished and (self._digest or not any(c.get("documents") for c in counts.values()))
      for name, value in arguments.items():
        before = meta["arguments"].get(name)
        if before != value and name == _SIZE and not open_end:
          raise ConfigError(
            f"--out: {folder} was made of {before} bytes of input, found {value}: the source has changed since; delete "
            "the folder to make it again, or choose another folder"
          )
        if before != value and name != _SIZE:
          raise ConfigError(
            f"--out: {folder} was begun with {name} {before!r}, found {value!r}; give the same value, or choose "
            "another folder"
          )
      self._checksums = meta.get("checksums", {})  # older folders have none
    shape = (arguments["layout"], arguments["context_length"], tokenizer.end_of_text)
    dtype = token_dtype(tokenizer.vocab_size)
    self._splits = {split: Assembler(*shape, dtype, **counts[split]) for split in _SPLITS}
    self._saved = {split: a.state() for split, a in self._splits.items()}
    self.documents = sum(s["documents"] for s in self._saved.values())
    self._verify()
    if self.finished:
      with contextlib.suppress(FileNotFoundError):
        os.unlink(os.path.join(folder, MANIFEST))  # killed just before its end
    else:
      self.commit()

  def __enter__(self) -> "Writer":
    return self

  def __exit__(self, *_) -> None:
    self._owner.close()

  @property
  def pending(self) -> int:
    """Number of tokens added since the last `commit`."""
    return sum(a.stored - self._saved[split]["stored"] for split, a in self._splits.items())

  def follow(self, documents: Iterator[Document]) -> Iterator[Document]:
    """The documents that are not finished yet; `add` is to be called for each of them, in this order.

    Raises:
      ConfigError: those that are finished are not the ones that the folder was begun with.
    """
    digest = ""
    for document in itertools.islice(documents, self.documents):
      digest = _chained(digest, _digest_of(document))
    if self._digest not in ("", digest):
      raise ConfigError(
        f"--out: the first {self.documents} documents of the source are not those that {self._folder} was begun with; "
        "delete the folder to begin again, or choose another folder"
      )
    self._digest = digest
    for document in documents:
      self._read.append(_digest_of(document))
      yield document

  def add(self, split: str, ids: np.ndarray, covered: Coverage | None = None) -> None:
    """Adds a document, int [tokens], to `train` or `held_out`, and what its tokens keep of its text."""
    if self._read:
      self._digest = _chained(self._digest, self._read.popleft())
    self._splits[split].add(ids, covered)

  def commit(self) -> None:
    """Puts all that was added on the disk, where no later interruption can harm it.

    Raises:
      ConfigError: the disk is full; earlier commits are kept.
    """
    self._append()
    self._saved = {split: a.state() for split, a in self._splits.items()}
    done = {"counts": self._saved, "checksums": self._checksums, "documents": self._digest}
    self._write(MANIFEST, {"arguments": self._arguments, **done})
    self.documents = sum(s["documents"] for s in self._saved.values())

  def finish(self, left_out: dict[str, Any]) -> dict[str, Any]:
    """Pads the last windows, writes `windows.json` and returns the summary.

    Args:
      left_out: of the source, as `find.LeftOut.as_dict` says.

    Raises:
      ConfigError: a split is empty, the text is shorter than one window, the disk is full, or what was written is not
        what the files hold.
    """
    config = DataConfig(**{k: self._arguments[k] for k in ("layout", "context_length", "held_out")})
    for assembler in self._splits.values():
      assembler.finish()
    counts = {split: a.state() for split, a in self._splits.items()}
    check(config, counts)
    self._append()
    self._saved = counts
    self._verify()
    dtype = token_dtype(self._tokenizer.vocab_size)
    windows = []
    for split in _SPLITS:
      tokens = _map(self._folder, f"{split}.tokens", dtype, counts[split]["stored"])
      lengths = _map(self._folder, f"{split}.lengths", np.dtype("<i4"), counts[split]["rows"])
      windows.append(from_flat(tokens, lengths, config.layout, config.context_length))
    summary = summarize(*windows, config.layout, self._tokenizer, counts, left_out)
    self._write(
      WINDOWS,
      {
        "arguments": self._arguments,
        "tokenizer_name": self._tokenizer.name,
        "vocab_size": self._tokenizer.vocab_size,
        "counts": counts,
        "checksums": self._checksums,
        "summary": summary,
      },
    )
    os.unlink(os.path.join(self._folder, MANIFEST))
    self.finished = True
    return summary

  def _append(self) -> None:
    """Writes the drained arrays after the part that the manifest calls finished, over anything else that is there."""
    for split, assembler in self._splits.items():
      for kind, array in zip(_KINDS, assembler.drain()):
        name, content = f"{split}.{kind}", array.tobytes()
        offset = self._saved[split][_KINDS[kind]] * array.itemsize
        self._guard(_append, os.path.join(self._folder, name), offset, content)
        if name in self._checksums or not offset:
          self._checksums[name] = zlib.crc32(content, self._checksums.get(name, 0))

  def _verify(self) -> None:
    """Reads back what is said to be finished. Raises ConfigError where the files hold less, or something else."""
    sizes = {"tokens": token_dtype(self._tokenizer.vocab_size).itemsize, "lengths": 4}
    for split, counts in self._saved.items():
      for kind, count in _KINDS.items():
        path, size = os.path.join(self._folder, f"{split}.{kind}"), counts[count] * sizes[kind]
        found, checksum = _read_back(path, size)
        if found != size or checksum != self._checksums.get(f"{split}.{kind}", checksum):
          why = "its content has changed" if found == size else f"expected {size} bytes, found {found}"
          raise ConfigError(
            f"--out: {path} is not as it was written ({why}); delete {self._folder}, or choose another folder, and run "
            "the same command again"
          )

  def _write(self, name: str, content: dict[str, Any]) -> None:
    """Replaces a JSON file in one step. The part file has one name, as one process alone writes this folder."""
    path = os.path.join(self._folder, name)
    self._guard(_append, path + ".tmp", 0, (json.dumps(content, indent=1) + "\n").encode())
    os.replace(path + ".tmp", path)
    entry = os.open(self._folder, os.O_RDONLY)
    os.fsync(entry)
    os.close(entry)

  def _guard(self, function: Callable[..., None], *arguments: Any) -> None:
    """Calls a function that writes, and turns an OSError into a ConfigError that says what is kept."""
    try:
      function(*arguments)
    except OSError as e:
      reason = "no space left" if e.errno in _NO_SPACE else f"cannot be written: {e.strerror}"
      raise ConfigError(
        f"--out: {self._folder}: {reason}; the first {self.documents} documents are finished and kept; "
        "free some space and run the same command again to go on"
      ) from e


def _append(path: str, offset: int, content: bytes) -> None:
  """Cuts a file at `offset` bytes and writes `content` there, down to the disk."""
  # unbuffered, so that a full disk raises here and not when the file is closed
  with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b", buffering=0) as f:
    f.truncate(offset)
    f.seek(offset)
    view = memoryview(content)
    while view:
      view = view[f.write(view) :]
    os.fsync(f.fileno())


def _digest_of(document: Document) -> bytes:
  return hashlib.sha256(f"{document.id}\0{document.text}".encode("utf-8", "surrogatepass")).digest()


def _chained(digest: str, more: bytes) -> str:
  return hashlib.sha256(digest.encode() + more).hexdigest()


def _read_back(path: str, size: int) -> tuple[int, int]:
  """(bytes, CRC-32) of the first `size` bytes of a file, or of all that it has; of a missing file (0, 0)."""
  found = checksum = 0
  if os.path.isfile(path):
    with open(path, "rb") as f:
      while block := f.read(min(1 << 22, size - found)):
        found, checksum = found + len(block), zlib.crc32(block, checksum)
  return found, checksum


def _read(folder: str, name: str) -> dict[str, Any]:
  path, fix = os.path.join(folder, name), f"delete {folder}, and make it again with tools/tokenize_text.py"
  try:
    found = files.read_json(path, "a description of tokens", fix)
  except UserError as e:
    raise ConfigError(str(e)) from e
  missing = [key for key in ("arguments", "counts") if key not in found]
  if missing:
    raise ConfigError(f"{path}: no key {', '.join(missing)}; {fix}")
  return found


def _map(folder: str, name: str, dtype: np.dtype, count: int) -> np.ndarray:
  """A file of `count` entries, memory-mapped."""
  path = os.path.join(folder, name)
  size = os.path.getsize(path) if os.path.isfile(path) else -1
  if size != count * dtype.itemsize:
    raise ConfigError(
      f"{path}: expected {count * dtype.itemsize} bytes, found {'no file' if size < 0 else size}; "
      f"copy the folder again, or delete {folder} and make it again with tools/tokenize_text.py"
    )
  return np.memmap(path, dtype, "r") if count else np.empty(0, dtype)
