"""Frames one after the other: each is a thought, or a pass, over a cache of those before it, and then joins the cache.

A film that fills the window goes on from its last half, as texts do, so that a frame costs the same after any number.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ebt_jax import streams
from ebt_jax.tasks import decoding
from ebt_jax.tasks.base import Decoding, Params, Proposal, Task


class Rolled(NamedTuple):
  """Frames that were added to each row, the energies of the thoughts that they are, and the steps those took."""

  frames: Float[Array, "b n ..."]
  energies: Float[Array, "b n"]  # 0 of models that have none
  steps: Int[Array, "b n"]


def rollout(task: Task, params: Params, given: Float[Array, "b s ..."], count: int, keys: Array) -> Rolled:
  """`count` frames after those that are given; `keys` `[b]`, one for each row."""
  write, capacity = decoding.writer(task), task.config.data.context_length
  half, given = max(1, capacity // 2), given[:, -capacity:]
  params, (rows, first), shape = write.prepare(params), given.shape[:2], given.shape[2:]

  def filled(frames):
    lengths = jnp.full(rows, frames.shape[1], jnp.int32)
    return write.prefill(params, frames, lengths, capacity)

  def one(carry, i):
    state, recent, n = carry
    last = jax.lax.dynamic_index_in_dim(recent, n - 1, 1, keepdims=False)
    found = _proposed(write, params, state, last, streams.fold(keys, i))
    frame = found.logits

    def append(state, recent, n):
      return write.append(params, state, frame), jax.lax.dynamic_update_index_in_dim(recent, frame, n, 1), n + 1

    def begin_again(state, recent, n):
      kept = jnp.concatenate([recent[:, capacity - half + 1 :], frame[:, None]], 1)
      return filled(kept), jnp.zeros_like(recent).at[:, :half].set(kept), jnp.int32(half)

    return jax.lax.cond(n < capacity, append, begin_again, state, recent, n), found

  recent = jnp.zeros((rows, capacity, *shape), given.dtype).at[:, :first].set(given)
  _, found = jax.lax.scan(one, (filled(given), recent, jnp.int32(first)), jnp.arange(count))
  return Rolled(*jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1), found))


def _proposed(write: Any, params: Params, state: Decoding, last: Array, keys: Array) -> Proposal:
  """The next frame of each row; in a direct model the pass over the last one has found it already."""
  if isinstance(write, decoding.DirectWriter):
    rows = len(last)
    return Proposal(state.logits, jnp.zeros(rows), jnp.ones(rows, jnp.int32))
  found = write.think(params, state, keys, rows={"frames": jnp.stack([last, last], 1)})
  return Proposal(*(found.best(a)[:, 0] for a in (found.candidates, found.final, found.steps_used)))
