"""The replay buffer: finished thoughts on the device that later training steps start from (paper section 3).

A ring of rows, which are any pytree; the oldest are overwritten. All of it runs under jit and is part of the training
state.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Int, PRNGKeyArray


class Replay(NamedTuple):
  """`rows` has leaves `[capacity, ...]`; `added` counts every row that was ever added."""

  rows: Any
  added: Int[Array, ""]


def capacity(wanted: int, row: Any, gigabytes: float) -> int:
  """How many rows fit: `wanted`, or fewer where those would take more than `gigabytes` (1e9 bytes).

  Args:
    row: pytree of `jax.ShapeDtypeStruct`, one row.
  """
  row_bytes = sum(math.prod(a.shape) * a.dtype.itemsize for a in jax.tree.leaves(row))
  return min(wanted, int(gigabytes * 1e9) // row_bytes)


def empty(rows: int, row: Any) -> Replay:
  """A buffer with room for `rows` rows like `row`, a pytree of `jax.ShapeDtypeStruct`."""
  return Replay(jax.tree.map(lambda a: jnp.zeros((rows, *a.shape), a.dtype), row), jnp.zeros((), jnp.int32))


def add(replay: Replay, rows: Any, wanted: Bool[Array, ""] | bool = True) -> Replay:
  """Writes `rows` `[n, ...]` over the oldest ones; in place where the buffer is donated.

  Args:
    wanted: False changes nothing, for steps that are skipped.
  """
  size, n = _length(replay.rows), _length(rows)
  kept = min(n, size)
  index = (replay.added + n - kept + jnp.arange(kept)) % size
  index = jnp.where(wanted, index, size)  # out of range: dropped

  def put(old, new):
    return old.at[index].set(new[n - kept :].astype(old.dtype), mode="drop")

  return Replay(jax.tree.map(put, replay.rows, rows), replay.added + n * jnp.asarray(wanted, jnp.int32))


def draw(replay: Replay, key: PRNGKeyArray, count: int) -> tuple[Any, Bool[Array, " count"]]:
  """`count` rows without replacement, and a mask of those that exist: the buffer may hold fewer than `count` so far."""
  size = _length(replay.rows)
  lots = jnp.where(jnp.arange(size) < replay.added, jax.random.uniform(key, (size,)), -1.0)
  best, index = jax.lax.top_k(lots, count)
  return jax.tree.map(lambda a: a[index], replay.rows), best >= 0


def _length(rows: Any) -> int:
  return jax.tree.leaves(rows)[0].shape[0]
