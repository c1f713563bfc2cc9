"""Cuts the documents of a split into windows: rows of `context_length` + 1 tokens."""

from collections.abc import Iterator
import dataclasses
import hashlib
from typing import Any

import numpy as np

from ebt_jax.config import ConfigError, DataConfig
from ebt_jax.data import coverage
from ebt_jax.data.coverage import Coverage
from ebt_jax.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Windows:
  """Rows of tokens, and how many of their targets are valid.

  Attributes:
    tokens: uint16 or int32 [n, context_length + 1], possibly a view of a memory-mapped file.
    lengths: int32 [n], the number of valid targets of each row: the first ones of `tokens[i, 1:]`. The rest is padding.
    counted: bool [n, context_length], which of those are targets, where prompts are none; None: all.
  """

  tokens: np.ndarray
  lengths: np.ndarray
  counted: np.ndarray | None = None

  def __len__(self) -> int:
    return len(self.lengths)

  @property
  def context_length(self) -> int:
    return self.tokens.shape[1] - 1

  def valid(self, rows: slice | np.ndarray) -> np.ndarray:
    """Which places of some rows hold valid targets, bool [rows, context_length]."""
    found = np.arange(self.context_length) < self.lengths[rows, None]
    return found if self.counted is None else found & self.counted[rows]

  def targets(self) -> Iterator[np.ndarray]:
    """All valid targets in order, as flat arrays, one for every 4096 windows."""
    for i in range(0, len(self), 4096):
      rows = slice(i, i + 4096)
      yield self.tokens[rows, 1:][self.valid(rows)]


@dataclasses.dataclass(frozen=True)
class TextData:
  """Both splits of a source, and numbers that describe them (see `summarize`)."""

  train: Windows
  held_out: Windows
  summary: dict[str, Any]
  counts: dict[str, dict[str, Any]]  # `Assembler.state()` of each split


def token_dtype(vocab_size: int) -> np.dtype:
  """Type in which tokens are stored: the smaller of uint16 and int32 that holds every id, little-endian."""
  return np.dtype("<u2" if vocab_size < 65536 else "<i4")


class Assembler:
  """Builds the flat arrays behind `Windows` from the documents of one split, one document at a time.

  With layout `packed`, the stream is end-of-text followed by all documents, each with end-of-text after it. Window i
  holds the tokens i * C to i * C + C inclusive (C is the context length), so that every token but the first is a target
  exactly once. The last window is padded with end-of-text.
  With layout `document`, each document is a row, cut at C + 1 tokens or padded with end-of-text; documents with fewer
  than two tokens have no target and are dropped. Where only parts of a document are targets, such as the answer to a
  prompt, end-of-text follows it and counts as what is before it does, and a document that is too long loses its
  beginning.

  The flat arrays do not depend on when they are drained, so a job can be interrupted between documents.

  Args:
    layout: `packed` or `document`.
    context_length: targets in a full window.
    end_of_text: id of the token that ends a document.
    dtype: type of the stored tokens.
    **state: `state()` of an earlier Assembler, from which this one continues.

  Attributes:
    documents: number of documents added.
    stored: number of tokens in the flat array so far, drained ones included.
    rows: number of entries of `lengths` so far.
    longest: number of targets in the longest possible window: the whole stream, or the longest document.
    shortened: number of documents that have lost their beginning.
    text_bytes, token_bytes, lost_bytes, lost: sums of `Coverage` over the documents.
    digest: SHA-256 of all documents' tokens, in hex; each one's is of its tokens and the digest before it.
  """

  STATE = (
    *("documents", "stored", "rows", "longest", "shortened"),
    *("text_bytes", "token_bytes", "lost_bytes", "lost", "digest"),
  )

  def __init__(self, layout: str, context_length: int, end_of_text: int, dtype: np.dtype, **state: Any):
    self._layout, self._packed = layout, layout == "packed"
    self._context = context_length
    self._end = end_of_text
    self._closing = np.array([end_of_text])
    self._dtype = dtype
    self._tokens: list[np.ndarray] = []
    self._lengths: list[np.ndarray] = []
    self._counted: list[np.ndarray] = []
    self.documents = self.stored = self.rows = self.longest = self.shortened = 0
    self.text_bytes = self.token_bytes = self.lost_bytes = 0
    self.lost: dict[str, int] = {}
    self.digest = ""
    for name, value in state.items():
      setattr(self, name, value)

  def state(self) -> dict[str, Any]:
    """What a new Assembler needs to continue after the last drain."""
    return {name: getattr(self, name) for name in self.STATE} | {"lost": dict(sorted(self.lost.items()))}

  def add(self, ids: np.ndarray, covered: Coverage | None = None, counted: np.ndarray | None = None) -> None:
    """Adds a document, int [tokens], what its tokens keep of its text, and which are targets, bool [tokens].

    Raises:
      ConfigError: only parts of it are targets, and the layout is `packed`.
    """
    self.documents += 1
    self.digest = hashlib.sha256(bytes.fromhex(self.digest) + ids.astype("<i4").tobytes()).hexdigest()
    if covered:
      self.text_bytes += covered.text_bytes
      self.token_bytes += covered.token_bytes
      self.lost_bytes += coverage.size_of(covered.lost)
      for character, n in covered.lost.items():
        self.lost[character] = self.lost.get(character, 0) + n
    if self._packed:
      if counted is not None:
        raise ConfigError(
          "config.data.layout: packed has no place for prompts that are not learnt; set data.layout=document"
        )
      if not self.stored:
        self._store(self._closing)
      self._store(ids)
      self._store(self._closing)
      self.longest = self.stored - 1
      return
    size, targets = self._context + 1, None
    if counted is not None:
      ids, targets = np.append(ids, self._closing), np.append(counted, counted[-1])
      self.shortened += len(ids) > size
      ids, targets = ids[-size:], targets[-size:]
    self.longest = max(self.longest, len(ids) - 1)
    if len(ids) < 2:
      return
    row = np.full(size, self._end)
    n = min(len(ids), size)
    row[:n] = ids[:n]
    self._store(row)
    self._measure(np.array([n - 1]))
    if targets is not None:
      self._counted.append(np.pad(targets[1:], (0, size - n)))

  def finish(self) -> None:
    """Pads the last window; no document may be added afterwards."""
    targets = self.stored - 1
    if self._packed and targets > 0:
      lengths = np.full(-(-targets // self._context), self._context)
      lengths[-1] = targets - (len(lengths) - 1) * self._context
      self._measure(lengths)
      self._store(np.full(self._context - lengths[-1], self._end))

  def drain(self) -> tuple[np.ndarray, np.ndarray]:
    """The flat tokens and int32 lengths that were added since the last drain."""
    tokens = np.concatenate([np.empty(0, self._dtype), *self._tokens])
    lengths = np.concatenate([np.empty(0, "<i4"), *self._lengths])
    self._tokens, self._lengths = [], []
    return tokens, lengths

  def windows(self) -> Windows:
    """All that was added since the last drain, as windows."""
    counted = np.stack(self._counted) if self._counted else None
    self._counted = []
    return dataclasses.replace(from_flat(*self.drain(), self._layout, self._context), counted=counted)

  def _store(self, tokens: np.ndarray) -> None:
    self._tokens.append(tokens.astype(self._dtype))
    self.stored += len(tokens)

  def _measure(self, lengths: np.ndarray) -> None:
    self._lengths.append(lengths.astype("<i4"))
    self.rows += len(lengths)


def from_flat(tokens: np.ndarray, lengths: np.ndarray, layout: str, context_length: int) -> Windows:
  """Windows as a view of the complete flat arrays of an Assembler."""
  if not len(lengths):
    return Windows(np.empty((0, context_length + 1), tokens.dtype), lengths)
  if layout == "packed":  # neighbours share one token
    rows = np.lib.stride_tricks.sliding_window_view(tokens, context_length + 1)[::context_length]
  else:
    rows = tokens.reshape(-1, context_length + 1)
  return Windows(rows, lengths)


def finish(
  config: DataConfig,
  tokenizer: Tokenizer,
  train: Windows,
  held_out: Windows,
  counts: dict[str, dict[str, Any]],
  left_out: dict[str, Any],
) -> TextData:
  """Checks both splits, limits the training tokens and computes the summary.

  Args:
    config: layout, context_length, held_out and max_tokens are used.
    tokenizer: the one that made the windows' ids.
    train: all training windows.
    held_out: all held-out windows.
    counts: `Assembler.state()` of each split, `train` and `held_out`.
    left_out: of the source, as `find.LeftOut.as_dict` says.

  Raises:
    ConfigError: a split is empty, or the text is shorter than one window.
  """
  check(config, counts)
  if config.max_tokens:
    train = limit(train, config.max_tokens)
  summary = summarize(train, held_out, config.layout, tokenizer, counts, left_out)
  return TextData(train, held_out, summary, counts)


def check(config: DataConfig, counts: dict[str, dict[str, Any]]) -> None:
  """Raises ConfigError unless each split has a window and the text fills at least one window."""
  n_train, n_held = counts["train"]["documents"], counts["held_out"]["documents"]
  if not counts["train"]["rows"] or not counts["held_out"]["rows"]:
    raise ConfigError(
      f"config.data.held_out: {config.held_out} of {n_train + n_held} documents leaves {n_train} for training and "
      f"{n_held} for evaluation, of which {counts['train']['rows']} and {counts['held_out']['rows']} windows; "
      "expected at least one each; change data.held_out, or give more documents (data.source, data.max_documents)"
    )
  packed = config.layout == "packed"
  longest = counts["train"]["longest"] if packed else max(c["longest"] for c in counts.values())
  if longest < config.context_length:
    what = "the training text has" if packed else "the longest document has"
    raise ConfigError(
      f"config.data.context_length: {config.context_length} is more than {what} ({longest} targets); "
      f"set data.context_length to {longest} or less, or give more text"
    )


def limit(windows: Windows, max_tokens: int) -> Windows:
  """The first windows, with at most `max_tokens` targets in all; the last one may be cut, unless it has a prompt."""
  if windows.counted is not None:
    size = np.cumsum(windows.valid(slice(None)).sum(1, dtype=np.int64))
    n = max(1, int(np.searchsorted(size, max_tokens, side="right")))
    return Windows(windows.tokens[:n], windows.lengths[:n], windows.counted[:n])
  before = np.cumsum(windows.lengths, dtype=np.int64) - windows.lengths
  n = int(np.searchsorted(before, max_tokens))
  lengths = np.minimum(windows.lengths[:n], max_tokens - before[:n]).astype(np.int32)
  return Windows(windows.tokens[:n], lengths)


def fingerprint(windows: Windows, counts: dict[str, Any]) -> dict[str, Any]:
  """What tells one split from another: sizes, the digest of all tokens, and one of at most 64 windows.

  The digest of all is empty for folders of older versions. That of some windows is of what the files hold now.
  """
  some = np.unique(np.linspace(0, len(windows) - 1, 64).astype(int)) if len(windows) else np.empty(0, int)
  content = windows.tokens[some].astype("<i4").tobytes() + windows.lengths[some].astype("<i4").tobytes()
  if windows.counted is not None:
    content += np.packbits(windows.counted[some]).tobytes()
  return {
    "documents": counts["documents"],
    "windows": len(windows),
    "sha256": counts.get("digest", ""),
    "sha256 of some windows": hashlib.sha256(content).hexdigest(),
  }


def summarize(
  train: Windows,
  held_out: Windows,
  layout: str,
  tokenizer: Tokenizer,
  counts: dict[str, dict[str, Any]],
  left_out: dict[str, Any],
) -> dict[str, Any]:
  """Sizes of both splits, what their tokens keep of the text, and the loss of a unigram model.

  Returns:
    `{train,held_out}_{documents,windows,tokens,bytes}`, where tokens are valid targets and bytes are those of the text
    that they were made of, lost ones included; what `coverage.summary` returns; `left_out`;
    `unigram_nats_per_token` and `unigram_bits_per_byte`: the cross-entropy of the held-out targets under the token
    frequencies of the training targets, with add-one smoothing over the vocabulary. Every model should be below it.
  """
  out: dict[str, Any] = {"tokenizer": tokenizer.name, "vocab_size": tokenizer.vocab_size}
  found = {}
  for split, windows in (("train", train), ("held_out", held_out)):
    count = np.zeros(tokenizer.vocab_size, np.int64)
    for targets in windows.targets():
      count += np.bincount(targets, minlength=tokenizer.vocab_size)
    found[split] = count
    # packed ends each document with end-of-text; the other layout has one document in each row
    out[f"{split}_documents"] = int(count[tokenizer.end_of_text]) if layout == "packed" else len(windows)
    out[f"{split}_windows"] = len(windows)
    out[f"{split}_tokens"] = int(count.sum())
    size = int(count @ tokenizer.token_bytes.astype(np.int64))
    out[f"{split}_bytes"] = round(size * coverage.scale(counts[split]))
  out |= coverage.summary(counts) | {"left_out": left_out}
  log_p = np.log((found["train"] + 1) / (found["train"].sum() + tokenizer.vocab_size))
  nats = -float(found["held_out"] @ log_p)
  out["unigram_nats_per_token"] = nats / max(1, out["held_out_tokens"])
  out["unigram_bits_per_byte"] = nats / np.log(2).item() / max(1, out["held_out_bytes"])
  return out
