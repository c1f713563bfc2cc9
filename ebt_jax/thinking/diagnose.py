"""Whether thinking is healthy: energies and gradients on the way, curvature and stability at the end."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ebt_jax import streams
from ebt_jax.config import ThinkingConfig
from ebt_jax.thinking import descent
from ebt_jax.thinking.shapes import check_prefix, expand
from ebt_jax.thinking.spaces import ArraySpace, Space, draw_like
from ebt_jax.thinking.think import (
  Process,
  Randomness,
  at_landscape,
  check_context,
  gradient_bound,
  make_step,
  step_plan,
  step_size_of,
  with_thinking,
)


def diagnose(
  energy: Callable[..., jax.Array],
  space: Space,
  params: Any,
  context: Any,
  candidate0: Any,
  weights: Float[Array, "*e"],
  key: Key[Array, "*k"],
  config: ThinkingConfig,
  *,
  signals: Callable[[Any], dict[str, jax.Array]] | None = None,
  iterations: int = 8,
) -> dict[str, jax.Array]:
  """Thinks as in training, with all of `config.steps`, and looks at every step.

  Args:
    energy, space, params, context, candidate0, key, config: as for `think`; the space must hold candidates as arrays.
    weights: of the energies in the means.
    signals: of a candidate, what else to report: name -> `[*e, ...]`, averaged over the axes beyond `*e`; None:
      `space.signals`.
    iterations: of the power method that finds the largest eigenvalues.

  Returns:
    Weighted means, by name: `energy_i`, `gradient_norm_i` (of dE/dp) and those of `signals` before step i = 1, 2, ...
    (`steps` + 1 for the end); `curvature`, step size times the largest curvature |d2E/dp2| at the end; `growth`, the
    factor by which one more step magnifies a small change of the candidate (the spectral radius of the Jacobian of a
    step, reading and projection included); and `unsettled`, the share of candidates where that factor is above 1.

  Raises:
    TypeError: the space does not hold candidates as arrays.
    ValueError: `weights` are not of the shape of the energies, or as `think`.
  """
  if not isinstance(space, ArraySpace):
    raise TypeError(f"diagnose: {type(space).__name__} does not hold candidates as arrays; use Simplex")
  check_context(context, config)
  energy, params = descent.with_landscape(energy), with_thinking(params, config)
  candidate0 = jax.tree.map(jnp.asarray, candidate0)
  plan, model, signals = step_plan(config), params["model"], signals or space.signals
  step_key, curvature_key, growth_key = streams.split(key, 3)
  process = Process(plan, step_key, Randomness())
  slope = descent.double_reverse(energy)
  step = make_step(energy, space, config, descent.double_reverse, training=True)
  last = config.landscapes - 1
  landscapes = jnp.asarray(plan.landscapes)
  _check_weights(jax.eval_shape(lambda x: step(params, context, x, 0, process)[1], candidate0), weights)
  check_prefix(weights, candidate0)

  def mean(values):
    values = jnp.mean(values, tuple(range(weights.ndim, values.ndim)))
    return jnp.sum(values * weights) / jnp.sum(weights)

  def norm(tree):
    """Of each candidate, `[*e]`."""
    squares = [jnp.sum(a * a, tuple(range(weights.ndim, a.ndim))) for a in jax.tree.leaves(tree)]
    return jnp.sqrt(sum(squares))

  def gradient(p, landscape):
    """dE/dp and the energies."""
    y = space.embed(model, p)
    energies, dy = slope(model, at_landscape(context, landscape), y, landscape)
    return space.embed_vjp(model, p, dy), energies

  def seen(x, landscape):
    dp, energies = gradient(space.read(x, landscape), landscape)
    return jax.tree.map(mean, {"energy": energies, "gradient_norm": norm(dp), **signals(x)})

  def body(x, i):
    return step(params, context, x, i, process)[0], seen(x, landscapes[i])

  x, on_the_way = jax.lax.scan(body, candidate0, jnp.arange(len(landscapes)))
  by_step = jax.tree.map(jnp.append, on_the_way, seen(x, last))
  size = step_size_of(params["thinking"], config)

  def another_step(x):
    here, bound = at_landscape(context, last), gradient_bound(size, config)
    return descent.step(slope, space, model, here, x, last, lambda energies: size, bound)[0]

  def largest(f, at, key):
    """Magnitude `[*e]` of the largest eigenvalue of the derivative of `f` for each candidate, by the power method."""

    def unit(v, length):
      return jax.tree.map(lambda a: a / expand(jnp.maximum(length, 1e-30), a), v)

    def power(_, found):
      moved = jax.jvp(f, (at,), (found[0],))[1]
      grown = norm(moved)
      return unit(moved, grown), grown

    v = draw_like(jax.random.normal, key, at)
    return jax.lax.fori_loop(0, iterations, power, (unit(v, norm(v)), norm(v)))[1]

  growth = largest(another_step, x, growth_key)
  curvature = size * largest(lambda p: gradient(p, last)[0], space.read(x, last), curvature_key)
  out = {f"{name}_{i + 1}": values[i] for name, values in by_step.items() for i in range(values.shape[0])}
  return {
    **out,
    "curvature": mean(curvature),
    "growth": mean(growth),
    "unsettled": mean((growth > 1).astype(weights.dtype)),
  }


def warnings_for(values: dict[str, float], steps: int) -> list[tuple[str, str]]:
  """What is wrong in what `diagnose` found, as (kind, text with the remedy); the texts name config keys.

  Args:
    values: of `diagnose`, as floats.
    steps: of thinking, `config.thinking.steps`.
  """
  out = []
  first, last = values["energy_1"], values[f"energy_{steps + 1}"]
  if not last < first:
    text = (
      f"thinking raises the energy ({first:.3g} before, {last:.3g} after {steps} steps); lower "
      "config.thinking.step_size, or config.thinking.noise if there is noise"
    )
    out.append(("energy rises", text))
  if values["unsettled"] > 0.5:
    text = (
      f"thinking does not settle (one more step magnifies a change of the candidate {values['growth']:.3g} times, "
      f"above 1 for {values['unsettled']:.0%} of candidates); lower config.thinking.step_size, or train with "
      "config.thinking.random_step_size=2 and random_steps_min"
    )
    out.append(("unsettled", text))
  return out


def _check_weights(energies, weights) -> None:
  if weights.shape != energies.shape:
    raise ValueError(
      f"weights: expected one for each energy, {list(energies.shape)}, found {list(weights.shape)}; average the "
      "weights of a candidate's parts where they share an energy"
    )
