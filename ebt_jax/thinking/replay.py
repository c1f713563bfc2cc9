"""The replay buffer: a ring of finished thoughts on the device, on which training thinks further (facts 2.5).

Rows are any pytree; the oldest are overwritten. Everything runs under jit and is part of the training state.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray


class Replay(NamedTuple):
  """`rows` has leaves `[capacity, ...]`; `added` counts every row that ever came in."""

  rows: Any
  added: Int[Array, ""]


def capacity(wanted: int, row: Any, gigabytes: float) -> int:
  """Rows that fit: `wanted` at most, fewer where they would take more than `gigabytes` (1e9 bytes).

  Args:
    row: pytree of `jax.ShapeDtypeStruct`, one row.
  """
  row_bytes = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(row))
  return min(wanted, int(gigabytes * 1e9) // row_bytes)


def empty(rows: int, row: Any) -> Replay:
  """A buffer with room for `rows`."""
  return Replay(jax.tree.map(lambda a: jnp.zeros((rows, *a.shape), a.dtype), row), jnp.zeros((), jnp.int32))


def add(replay: Replay, rows: Any, wanted: Bool[Array, ""] | bool = True) -> Replay:
  """Writes `rows` `[n, ...]` over the oldest, in place where the buffer is donated; not `wanted`: changes nothing."""
  size, n = _length(replay.rows), _length(rows)
  kept = min(n, size)
  index = (replay.added + n - kept + jnp.arange(kept)) % size
  index = jnp.where(wanted, index, size)  # out of range: dropped

  def put(old, new):
    return old.at[index].set(new[n - kept :].astype(old.dtype), mode="drop")

  return Replay(jax.tree.map(put, replay.rows, rows), replay.added + n * jnp.asarray(wanted, jnp.int32))


def draw(replay: Replay, key: PRNGKeyArray, count: int) -> tuple[Any, Bool[Array, " count"]]:
  """`count` rows without replacement, and which of them are there: fewer than asked may have come in so far."""
  size = _length(replay.rows)
  lots = jnp.where(jnp.arange(size) < replay.added, jax.random.uniform(key, (size,)), -1.0)
  best, index = jax.lax.top_k(lots, count)
  return jax.tree.map(lambda a: a[index], replay.rows), best >= 0


def _length(rows: Any) -> int:
  return jax.tree.leaves(rows)[0].shape[0]
