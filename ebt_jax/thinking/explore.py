"""Several starts for each answer in training, of which the best one is learnt from (`config.explore`).

Where several answers fit one context, the loss of a single start pulls the candidate to whichever answer the data hold,
wherever it started. With several starts, the one that already thinks its way nearest to that answer is the one that is
taught it (winner takes all), and the others keep their own.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ebt_jax.config import ThinkingConfig
from ebt_jax.thinking.spaces import ArraySpace, Space
from ebt_jax.thinking.think import think


def best_start(
  several: Callable[..., jax.Array],
  space: Space,
  params: Any,
  context: Any,
  starts: Any,
  key: Key[Array, ""],
  error: Callable[[Any], Float[Array, " n *p"]],
  config: ThinkingConfig = ThinkingConfig(),
) -> Any:
  """Of n starts of each energy, the one from which thinking ends with the least error; nothing has a derivative.

  They think as in evaluation, without the random numbers of training. The first of equal ones is taken.

  Args:
    several: energies `[n, *e]` of n candidates over one context, as for `think_and_verify`.
    space: one whose candidates are held as arrays.
    params, context, key, config: as for `think`.
    starts: leaves `[n, *e, ...]`.
    error: of candidates with a leading axis n; summed over the axes that an energy does not have.

  Returns:
    The starts, leaves `[*e, ...]`.

  Raises:
    TypeError: `space` does not hold candidates as arrays.
  """
  if not isinstance(space, ArraySpace):
    raise TypeError(f"best_start: {type(space).__name__} does not hold candidates as arrays; use Simplex")
  params, context, starts = jax.lax.stop_gradient((params, context, starts))
  found = think(several, space, params, context, starts, key, config)
  errors, ndim = error(found.candidate), found.energies.ndim - 1
  best = jnp.argmin(jnp.sum(errors, axis=tuple(range(ndim, errors.ndim))), 0)

  def take(leaf):
    index = best.reshape(1, *best.shape, *[1] * (leaf.ndim - 1 - best.ndim))
    return jnp.take_along_axis(leaf, index, axis=0)[0]

  return jax.tree.map(take, starts)
