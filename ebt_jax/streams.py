"""Random streams: one key for each purpose of a run, so that no stream of one seed is another stream of the next."""

import jax
from jaxtyping import Array, Int, Key, PRNGKeyArray
import numpy as np

INIT, TRAIN, DIAGNOSE, EVALUATE, GENERATE = range(5)  # what a key is for
# what is folded into the key of a step or of a row, beside start and thinking: `split` gives those the numbers 0 and 1
WRONG, SAMPLE, CORRUPT = 2, 2**20, 2**21


def key_for(seed: int, purpose: int) -> PRNGKeyArray:
  """The key of a seed for one of the purposes above."""
  return jax.random.fold_in(jax.random.key(seed), purpose)


def fold(keys: Key[Array, "*k"], number: Int[Array, ""] | int) -> Key[Array, "*k"]:
  """`jax.random.fold_in` for a key, or for each key of an array."""
  if not keys.ndim:
    return jax.random.fold_in(keys, number)
  return jax.vmap(lambda key: jax.random.fold_in(key, number))(keys.reshape(-1)).reshape(keys.shape)


def each(key: PRNGKeyArray, numbers: Int[Array | np.ndarray, " n"]) -> Key[Array, " n"]:
  """A key for each number, that of a number whatever the others are."""
  return jax.vmap(lambda number: jax.random.fold_in(key, number))(numbers)


def split(keys: Key[Array, "*k"], count: int) -> Key[Array, "..."]:
  """`count` keys, `[count]`, or from each key of an array, `[count, *keys]`."""
  if not keys.ndim:
    return jax.random.split(keys, count)
  return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys.reshape(-1)).reshape(count, *keys.shape)
