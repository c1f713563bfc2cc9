"""Signals that tell whether thinking is healthy: energies and slopes on the way, and the curvature at its end."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ebt_jax.config import ThinkingConfig
from ebt_jax.thinking import descent
from ebt_jax.thinking.think import Draws, at_landscape, schedule, stepper


def look(
  energy: descent.Energy,
  space: Any,
  params: Any,
  contexts: Any,
  candidate0: jax.Array,
  weights: Float[Array, "*p"],
  key: PRNGKeyArray,
  config: ThinkingConfig,
  observe: Callable[[jax.Array], dict[str, jax.Array]] = lambda x: {},
  iterations: int = 8,
) -> dict[str, jax.Array]:
  """Thinks as in training, with all of `config.steps`, and looks at every step.

  Args:
    weights: of each independent candidate in the means.
    observe: of a candidate before a step, more to report: name -> `[*p]`.
    iterations: of the power method.

  Returns:
    Weighted means, by name: `energy_i`, `gradient_norm_i` (of dE/dp) and those of `observe` before step i = 1, 2, ...
    (`steps` + 1 for the end); `curvature`, step size times the largest curvature |d2E/dp2| at the end; `growth`, by how
    much one more step magnifies a small change of the candidate (the spectral radius of a step's Jacobian, which holds
    what a space does between steps, such as softmax), and `unsettled`, the share of candidates where it is above 1.
  """
  plan = schedule(config)
  step = stepper(energy, space, config, True, descent.double_reverse)
  model, landscapes = params["model"], jnp.asarray(plan.landscapes)

  def mean(a):
    return jnp.sum(a * weights) / jnp.sum(weights)

  inner = tuple(range(weights.ndim, candidate0.ndim))  # axes of one candidate

  def norm(g):
    return jnp.sqrt(jnp.sum(g * g, inner, keepdims=True))

  def total(p, landscape):
    energies = energy(model, at_landscape(contexts, landscape), space.embed(model, p), landscape)
    return jnp.sum(energies), energies

  def seen(x, landscape):
    gradient, energies = jax.grad(total, has_aux=True)(space.perceive(x, landscape), landscape)
    found = {"energy": energies, "gradient_norm": norm(gradient).reshape(weights.shape), **observe(x)}
    return jax.tree.map(mean, found)

  def body(x, i):
    before = seen(x, landscapes[i])
    return step(params, contexts, x, i, (plan, key, Draws()))[0], before

  x, on_the_way = jax.lax.scan(body, candidate0, jnp.arange(plan.longest))
  last = config.landscapes - 1
  by_step = jax.tree.map(lambda a, end: jnp.append(a, end), on_the_way, seen(x, last))

  size = params["thinking"]["step_size"]

  def slope(p):
    return jax.grad(total, has_aux=True)(p, last)[0]

  def another_step(x):
    p = space.perceive(x, last)
    return space.settle(p - size * slope(p))

  def largest(f, at):
    """Magnitude of the largest eigenvalue of the derivative of `f` for each candidate, by the power method."""

    def power(_, found):
      moved = jax.jvp(f, (at,), (found[0],))[1]
      grown = norm(moved)
      return moved / jnp.maximum(grown, 1e-30), grown

    v = jax.random.normal(jax.random.fold_in(key, 1), at.shape, at.dtype)
    return jax.lax.fori_loop(0, iterations, power, (v / norm(v), norm(v)))[1].reshape(weights.shape)

  growth = largest(another_step, x)
  out = {f"{name}_{i + 1}": values[i] for name, values in by_step.items() for i in range(values.shape[0])}
  return {
    **out,
    "curvature": mean(size * largest(slope, space.perceive(x, last))),
    "growth": mean(growth),
    "unsettled": mean((growth > 1).astype(weights.dtype)),
  }


def advice(values: dict[str, float], steps: int) -> list[str]:
  """What is wrong in what `look` found, and the remedy; names are config keys."""
  out = []
  first, last = values["energy_1"], values[f"energy_{steps + 1}"]
  if not last < first:
    out.append(
      f"thinking raises the energy ({first:.3g} before, {last:.3g} after {steps} steps): it climbs instead of "
      "descending; lower config.thinking.step_size, or config.thinking.noise where there is some"
    )
  if values["unsettled"] > 0.5:
    out.append(
      f"thinking does not settle (one more step magnifies a change of the candidate {values['growth']:.3g} times, above "
      f"1 for {values['unsettled']:.0%} of candidates): lower config.thinking.step_size, or train with "
      "config.thinking.random_step_size=2 and random_steps_min"
    )
  return out
