"""Splits of a data set with random access, as `tasks.base.Examples` says."""

import dataclasses

import numpy as np

from ebt_jax.config import ConfigError
from ebt_jax.data.windows import Windows


class ArrayExamples:
  """Rows of arrays that are held in memory, or memory-mapped.

  Args:
    arrays: each `[n, ...]`; `weights` of 1 are added where there are none.
  """

  def __init__(self, **arrays: np.ndarray):
    lengths = {name: len(a) for name, a in arrays.items()}
    if len(set(lengths.values())) != 1:
      raise ConfigError(f"data: arrays of one split must have the same number of rows, found {lengths}")
    self._arrays = arrays
    if "weights" not in arrays:
      self._arrays = {**arrays, "weights": np.ones(next(iter(lengths.values())), np.float32)}

  def __len__(self) -> int:
    return len(self._arrays["weights"])

  def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
    return {name: a[index] for name, a in self._arrays.items()}


@dataclasses.dataclass(frozen=True)
class WindowExamples:
  """Windows of tokens as batches of text: `tokens`, `weights` (1 for targets that count), `bytes` (of those targets).

  Attributes:
    windows: see `Windows`.
    token_bytes: `[vocabulary]`, UTF-8 bytes of text that each token stands for.
    vocab_size: token ids must be below it.
    by_place: `bytes` are those of each target, not their sum.
  """

  windows: Windows
  token_bytes: np.ndarray
  vocab_size: int
  by_place: bool = False

  def __len__(self) -> int:
    return len(self.windows)

  def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
    """Raises ConfigError: a token id is not below the vocabulary size."""
    windows = self.windows
    tokens = windows.tokens[index].astype(np.int32)
    top = tokens.max(initial=0)
    if top >= self.vocab_size:
      raise ConfigError(
        f"config.model.vocab_size: the data hold token id {top}, expected ids below {self.vocab_size}; "
        "set model.vocab_size to 0 or to the tokenizer's size"
      )
    weights = windows.valid(index).astype(np.float32)
    size = self.token_bytes[tokens[:, 1:]] * weights
    size = size.astype(np.float32) if self.by_place else size.sum(1, dtype=np.float32)
    return {"tokens": tokens, "weights": weights, "bytes": size}
