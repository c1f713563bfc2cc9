"""Batches of windows: shuffled for training as a pure function of the step, in order for evaluation."""

from collections.abc import Iterator

import numpy as np

from ebt_jax.config import ConfigError
from ebt_jax.data.windows import Windows


class TextLoader:
  """Training batches with random access: the same (seed, step) gives the same batch on any number of hosts.

  Row r of step s is entry `s * batch_size + r` of an endless sequence in which each epoch holds every
  window exactly once, freshly shuffled. There is no state to save but the step.
  """

  def __init__(self, windows: Windows, batch_size: int, seed: int, vocab_size: int):
    """Args:
      windows: what to draw from.
      batch_size: rows of a global batch.
      seed: any integer.
      vocab_size: token ids must be below it.

    Raises:
      ConfigError: there is no window, or grain is not installed.
    """
    try:
      import grain
    except ImportError as e:
      raise ConfigError("config.data: shuffling needs the package `grain`; run `pip install grain`") from e
    if not len(windows):
      raise ConfigError("config.data.source: the training split has no window; give more text")
    self._windows = windows
    self._batch_size = batch_size
    self._vocab_size = vocab_size
    # index-based and lazy: entry i of epoch e costs the same wherever it is, and repeat() reseeds each epoch
    self._order = grain.MapDataset.range(len(windows)).seed(seed % 2**31).shuffle().repeat()

  def __len__(self) -> int:
    """Windows in an epoch."""
    return len(self._windows)

  def epoch(self, step: int) -> float:
    """Epochs finished before a step, as a fraction."""
    return step * self._batch_size / len(self)

  def batch(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
    """The batch of a step, or the rows of it that one host holds.

    Args:
      step: 0 or more.
      rows: part of 0..batch_size; None: all.

    Returns:
      `tokens` int32 [b, context_length + 1] and `weights` float32 [b, context_length], 1 for valid targets.

    Raises:
      ConfigError: a token id is not below the vocabulary size.
    """
    positions = range(self._batch_size)[rows or slice(None)]
    index = np.array([self._order[step * self._batch_size + r] for r in positions], np.int64)
    batch = _rows(self._windows, index)
    top = batch["tokens"].max(initial=0)
    if top >= self._vocab_size:
      raise ConfigError(
        f"config.model.vocab_size: the data holds token id {top}, expected ids below {self._vocab_size}; "
        "set model.vocab_size to 0 or to the tokenizer's size"
      )
    return batch


def eval_batches(windows: Windows, batch_size: int, max_windows: int = 0) -> Iterator[dict[str, np.ndarray]]:
  """Every window once, in order.

  Args:
    windows: what to evaluate on.
    batch_size: rows of each batch; the last one is filled up with rows of weight 0.
    max_windows: only the first so many; 0: all.

  Yields:
    Batches as `TextLoader.batch` gives them.
  """
  n = min(len(windows), max_windows or len(windows))
  for start in range(0, n, batch_size):
    batch = _rows(windows, np.arange(start, min(start + batch_size, n)))
    missing = batch_size - len(batch["tokens"])
    yield {k: np.pad(v, ((0, missing), (0, 0))) for k, v in batch.items()}


def _rows(windows: Windows, index: np.ndarray) -> dict[str, np.ndarray]:
  valid = np.arange(windows.context_length) < windows.lengths[index, None]
  return {"tokens": windows.tokens[index].astype(np.int32), "weights": valid.astype(np.float32)}
