"""Batches of examples: shuffled for training as a pure function of the step, in order for evaluation."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from ebt_jax.config import ConfigError


class Loader:
  """Training batches with random access: the same (seed, step) gives the same batch on any number of hosts.

  Row r of step s is entry `s * batch_size + r` of an endless sequence in which each epoch holds every
  example exactly once, freshly shuffled. There is no state to save but the step.
  """

  def __init__(self, examples: Any, batch_size: int, seed: int):
    """Args:
      examples: what to draw from, a `tasks.base.Examples`.
      batch_size: rows of a global batch.
      seed: any integer.

    Raises:
      ConfigError: there is no example, or grain is not installed.
    """
    try:
      import grain
    except ImportError as e:
      raise ConfigError("config.data: shuffling needs the package `grain`; run `pip install grain`") from e
    if not len(examples):
      raise ConfigError("config.data: the training split has no example; give more data")
    self._examples = examples
    self._batch_size = batch_size
    # index-based and lazy: entry i of epoch e costs the same wherever it is, and repeat() reseeds each epoch
    self._order = grain.MapDataset.range(len(examples)).seed(seed % 2**31).shuffle().repeat()

  def batch(self, step: int, rows: slice | None = None) -> dict[str, np.ndarray]:
    """The batch of a step, or the rows of it that one host holds.

    Args:
      step: 0 or more.
      rows: part of 0..batch_size; None: all.
    """
    positions = range(self._batch_size)[rows or slice(None)]
    index = np.array([self._order[step * self._batch_size + r] for r in positions], np.int64)
    return self._examples.rows(index)


def in_order(examples: Any, batch_size: int, limit: int = 0) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
  """Every example once, in order.

  Args:
    examples: a `tasks.base.Examples`.
    batch_size: rows of each batch; the last one is filled up with rows of zeros, whose weight is 0.
    limit: only this many first examples; 0: all.

  Yields:
    The examples' numbers `[batch_size]`, which go on counting over the rows of zeros, and the batch.
  """
  n = min(len(examples), limit or len(examples))
  for start in range(0, n, batch_size):
    batch = examples.rows(np.arange(start, min(start + batch_size, n)))
    missing = batch_size - (min(start + batch_size, n) - start)
    padded = {k: np.pad(v, ((0, missing), *[(0, 0)] * (v.ndim - 1))) for k, v in batch.items()}
    yield np.arange(start, start + batch_size), padded
