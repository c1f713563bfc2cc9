"""Training without thinking: the gradient of an energy is the noise of a noised truth (after IRED, arXiv 2406.11179).

Landscape k of K sees the truth through noise of standard deviation 1 - k / K, so that landscapes go from smooth to
sharp. Unlike IRED, the truth is not scaled and slopes are as large as the noise: then a thinking step of size 1 leads
from any view to the truth, and plain descent needs no rescaling between landscapes.
"""

from collections.abc import Callable
from typing import Any

import jax
from jaxtyping import Array, Float

from ebt_jax.config import ThinkingConfig
from ebt_jax.thinking import descent
from ebt_jax.thinking.spaces import ArraySpace
from ebt_jax.thinking.think import at_landscape


def noised(answer: Any, noise: Any, landscape: Any, config: ThinkingConfig) -> Any:
  """A candidate as a landscape sees it through standard normal noise."""
  scale = noise_of(landscape, config)
  return jax.tree.map(lambda a, n: a + scale * n, answer, noise)


def noise_of(landscape: Any, config: ThinkingConfig) -> Any:
  """The standard deviation of a landscape's noise."""
  return 1 - landscape / config.landscapes


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
    The squared differences of dE/dp and the scaled noise in units of its variance, like the answer, and the energies.
  """
  p = space.read(noised(answer, noise, landscape, config), landscape)
  y, context = space.embed(params["model"], p), at_landscape(context, landscape)
  slope = (rule or descent.second_order())(descent.with_landscape(energy))
  energies, dy = slope(params["model"], context, y, landscape)
  scale, slopes = noise_of(landscape, config), space.embed_vjp(params["model"], p, dy)
  return jax.tree.map(lambda g, n: (g / scale - n) ** 2, slopes, noise), energies
