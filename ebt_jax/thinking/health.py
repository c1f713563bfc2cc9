"""Signals that tell whether thinking is healthy: energies and slopes on the way, and the curvature at its end."""

from typing import Any, Callable

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
    (`steps` + 1 for the end); `stability`, step size times the largest curvature at the end, and `unstable`, the share
    of candidates where it is above 2, at which descent of a quadratic starts to diverge.
  """
  plan = schedule(config)
  step = stepper(energy, space, config, True, descent.double_reverse)
  model, landscapes = params["model"], jnp.asarray(plan.landscapes)
  mean = lambda a: jnp.sum(a * weights) / jnp.sum(weights)
  inner = tuple(range(weights.ndim, candidate0.ndim))  # axes of one candidate
  norm = lambda g: jnp.sqrt(jnp.sum(g * g, inner, keepdims=True))

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

  p = space.perceive(x, last)
  slope = lambda p: jax.grad(total, has_aux=True)(p, last)[0]

  def power(_, found):
    v = found[0]
    hv = jax.jvp(slope, (p,), (v,))[1]
    size = norm(hv)
    return hv / jnp.maximum(size, 1e-30), size

  v = jax.random.normal(jax.random.fold_in(key, 1), p.shape, p.dtype)
  _, curvature = jax.lax.fori_loop(0, iterations, power, (v / norm(v), norm(v)))
  stability = params["thinking"]["step_size"] * curvature.reshape(weights.shape)
  out = {f"{name}_{i + 1}": values[i] for name, values in by_step.items() for i in range(values.shape[0])}
  return {**out, "stability": mean(stability), "unstable": mean((stability > 2).astype(weights.dtype))}


def advice(values: dict[str, float], steps: int) -> list[str]:
  """What is wrong in what `look` found, and the remedy; names are config keys."""
  out = []
  first, last = values["energy_1"], values[f"energy_{steps + 1}"]
  if not last < first:
    out.append(
        f"thinking raises the energy ({first:.3g} before, {last:.3g} after {steps} steps): it climbs instead of "
        "descending; lower config.thinking.step_size, or config.thinking.noise where there is some"
    )
  if values["unstable"] > 0.5:
    out.append(
        f"step size times curvature is {values['stability']:.3g}, above 2 for {values['unstable']:.0%} of candidates: "
        "steps overshoot the minimum, so longer thinking diverges; lower config.thinking.step_size, or train with "
        "config.thinking.random_step_size=2 and random_steps_min"
    )
  return out
