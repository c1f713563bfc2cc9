"""Windows of tokens: how the documents of a split become rows of `context_length` + 1 tokens."""

from collections.abc import Iterator
import dataclasses
from typing import Any

import numpy as np

from ebt_jax.config import ConfigError, DataConfig
from ebt_jax.data.tokenizers import Tokenizer


@dataclasses.dataclass(frozen=True)
class Windows:
  """Rows of tokens with their valid targets.

  Attributes:
    tokens: uint16 or int32 [n, context_length + 1], possibly a view of a memory-mapped file.
    lengths: int32 [n], so many of a row's targets `tokens[i, 1:]` count; what follows is no target.
  """

  tokens: np.ndarray
  lengths: np.ndarray

  def __len__(self) -> int:
    return len(self.lengths)

  @property
  def context_length(self) -> int:
    return self.tokens.shape[1] - 1

  def targets(self) -> Iterator[np.ndarray]:
    """All valid targets in order, as flat arrays of some thousand windows each."""
    position = np.arange(self.context_length)
    for i in range(0, len(self), 4096):
      yield self.tokens[i : i + 4096, 1:][position < self.lengths[i : i + 4096, None]]


@dataclasses.dataclass(frozen=True)
class TextData:
  """Both splits of a source, and the numbers that describe them (see `summarize`)."""

  train: Windows
  held_out: Windows
  summary: dict[str, Any]


def token_dtype(vocab_size: int) -> np.dtype:
  """Type in which tokens are stored, little-endian."""
  return np.dtype("<u2" if vocab_size < 65536 else "<i4")


class Assembler:
  """Turns the documents of one split, one after the other, into the flat arrays behind `Windows`.

  `packed`: the stream is end-of-text, then each document closed by end-of-text; window i covers its tokens
  i * C to i * C + C inclusive (C the context length), so everything but the opening end-of-text is a target
  exactly once. The last window is padded with end-of-text.
  `document`: each document is a row, cut at C + 1 tokens or padded with end-of-text; documents of fewer than
  two tokens have no target and are dropped.

  The flat arrays do not depend on when they are drained, so a job can be interrupted between documents.

  Attributes:
    documents: documents added.
    stored: tokens of the flat array so far, drained ones included.
    rows: entries of `lengths` so far.
    longest: targets in the longest possible window: of the whole stream, or of the longest document.
  """

  STATE = ("documents", "stored", "rows", "longest")

  def __init__(self, layout: str, context_length: int, end_of_text: int, dtype: np.dtype, **state: int):
    self._packed = layout == "packed"
    self._context = context_length
    self._end = end_of_text
    self._closing = np.array([end_of_text])
    self._dtype = dtype
    self._tokens: list[np.ndarray] = []
    self._lengths: list[np.ndarray] = []
    self.documents = self.stored = self.rows = self.longest = 0
    for name, value in state.items():
      setattr(self, name, value)

  def state(self) -> dict[str, int]:
    """What a new Assembler needs to continue after what was drained."""
    return {name: getattr(self, name) for name in self.STATE}

  def add(self, ids: np.ndarray) -> None:
    """Adds a document, int [tokens]."""
    self.documents += 1
    if self._packed:
      if not self.stored:
        self._store(self._closing)
      self._store(ids)
      self._store(self._closing)
      self.longest = self.stored - 1
      return
    self.longest = max(self.longest, len(ids) - 1)
    if len(ids) < 2:
      return
    row = np.full(self._context + 1, self._end)
    n = min(len(ids), len(row))
    row[:n] = ids[:n]
    self._store(row)
    self._measure(np.array([n - 1]))

  def finish(self) -> None:
    """Pads the last window; nothing may be added afterwards."""
    targets = self.stored - 1
    if self._packed and targets > 0:
      lengths = np.full(-(-targets // self._context), self._context)
      lengths[-1] = targets - (len(lengths) - 1) * self._context
      self._measure(lengths)
      self._store(np.full(self._context - lengths[-1], self._end))

  def drain(self) -> tuple[np.ndarray, np.ndarray]:
    """Hands over tokens and int32 lengths that were not drained before."""
    tokens = np.concatenate([np.empty(0, self._dtype), *self._tokens])
    lengths = np.concatenate([np.empty(0, "<i4"), *self._lengths])
    self._tokens, self._lengths = [], []
    return tokens, lengths

  def _store(self, tokens: np.ndarray) -> None:
    self._tokens.append(tokens.astype(self._dtype))
    self.stored += len(tokens)

  def _measure(self, lengths: np.ndarray) -> None:
    self._lengths.append(lengths.astype("<i4"))
    self.rows += len(lengths)


def from_flat(tokens: np.ndarray, lengths: np.ndarray, layout: str, context_length: int) -> Windows:
  """Windows as a view of an Assembler's whole flat output."""
  if not len(lengths):
    return Windows(np.empty((0, context_length + 1), tokens.dtype), lengths)
  if layout == "packed":  # neighbours share one token
    rows = np.lib.stride_tricks.sliding_window_view(tokens, context_length + 1)[::context_length]
  else:
    rows = tokens.reshape(-1, context_length + 1)
  return Windows(rows, lengths)


def finish(
  config: DataConfig, tokenizer: Tokenizer, train: Windows, held_out: Windows, counts: dict[str, dict[str, int]]
) -> TextData:
  """Checks both splits, limits the training tokens and measures what is left.

  Args:
    config: layout, context_length, held_out and max_tokens are used.
    tokenizer: whose ids the windows hold.
    train: all training windows.
    held_out: all held-out windows.
    counts: `Assembler.state()` of `train` and `held_out`.

  Raises:
    ConfigError: a split is empty, or the text is shorter than one window.
  """
  check(config, counts)
  if config.max_tokens:
    train = limit(train, config.max_tokens)
  return TextData(train, held_out, summarize(train, held_out, config.layout, tokenizer))


def check(config: DataConfig, counts: dict[str, dict[str, int]]) -> None:
  """Raises ConfigError unless both splits have a window and the text fills at least one."""
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
  """The first windows, with `max_tokens` targets at most; the last one may be cut."""
  before = np.cumsum(windows.lengths, dtype=np.int64) - windows.lengths
  n = int(np.searchsorted(before, max_tokens))
  lengths = np.minimum(windows.lengths[:n], max_tokens - before[:n]).astype(np.int32)
  return Windows(windows.tokens[:n], lengths)


def summarize(train: Windows, held_out: Windows, layout: str, tokenizer: Tokenizer) -> dict[str, Any]:
  """Numbers of both splits.

  Returns:
    `{train,held_out}_{documents,windows,tokens,bytes}`, where tokens are valid targets and bytes the UTF-8 bytes
    they stand for; `unigram_nats_per_token` and `unigram_bits_per_byte`: what the held-out targets cost under the
    training targets' own frequencies, add-one smoothed over the vocabulary. A model must do better than this.
  """
  out: dict[str, Any] = {"tokenizer": tokenizer.name, "vocab_size": tokenizer.vocab_size}
  counts = {}
  for split, windows in (("train", train), ("held_out", held_out)):
    count = np.zeros(tokenizer.vocab_size, np.int64)
    for targets in windows.targets():
      count += np.bincount(targets, minlength=tokenizer.vocab_size)
    counts[split] = count
    # packed closes each document with end-of-text, the other layout has one a row
    out[f"{split}_documents"] = int(count[tokenizer.end_of_text]) if layout == "packed" else len(windows)
    out[f"{split}_windows"] = len(windows)
    out[f"{split}_tokens"] = int(count.sum())
    out[f"{split}_bytes"] = int(count @ tokenizer.token_bytes.astype(np.int64))
  log_p = np.log((counts["train"] + 1) / (counts["train"].sum() + tokenizer.vocab_size))
  nats = -float(counts["held_out"] @ log_p)
  out["unigram_nats_per_token"] = nats / max(1, out["held_out_tokens"])
  out["unigram_bits_per_byte"] = nats / np.log(2).item() / max(1, out["held_out_bytes"])
  return out
