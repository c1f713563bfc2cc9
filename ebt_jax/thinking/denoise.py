"""Training without thinking: the gradient of an energy is the noise of a noised truth (IRED, arXiv 2406.11179).

Landscape k of K sees the truth x as sqrt(1 - s^2) x + s noise with s = 1 - k / K: landscapes go from smooth to sharp.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebt_jax.config import ThinkingConfig
from ebt_jax.thinking import descent
from ebt_jax.thinking.spaces import ArraySpace
from ebt_jax.thinking.think import at_landscape


def noised(answer: Any, noise: Any, landscape: Any, config: ThinkingConfig) -> Any:
  """A candidate as a landscape sees it through standard normal noise."""
  scale = 1 - landscape / config.landscapes
  return jax.tree.map(lambda a, n: jnp.sqrt(1 - scale**2) * a + scale * n, answer, noise)


def denoise(
  energy: Callable[..., jax.Array],
  space: ArraySpace,
  params: Any,
  context: Any,
  answer: Any,
  noise: Any,
  landscape: Any,
  config: ThinkingConfig,
  rule: Callable[[descent.Energy], descent.Slope] | None = None,
) -> tuple[Any, Float[Array, "*e"]]:
  """How well the slope of a landscape tells the noise of an answer, differentiable in `params` and `context`.

  Args:
    energy, space, params, context, config: as for `think`.
    answer: a candidate x.
    noise: standard normal numbers like it.
    landscape: which one; may be traced.
    rule: how slopes are differentiated; None: `descent.second_order()`.

  Returns:
    The squared differences of dE/dp and the noise, like the answer, and the energies.
  """
  p = space.read(noised(answer, noise, landscape, config), landscape)
  y, context = space.embed(params["model"], p), at_landscape(context, landscape)
  slope = (rule or descent.second_order())(descent.with_landscape(energy))
  energies, dy = slope(params["model"], context, y, landscape)
  return jax.tree.map(lambda g, n: (g - n) ** 2, space.embed_vjp(params["model"], p, dy), noise), energies
