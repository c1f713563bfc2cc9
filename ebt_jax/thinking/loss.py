"""The loss of a thought process, in three gradient modes (`config.gradient`, paper section 3 and appendix C).

  each      System 1: a loss at every step, no gradient path between steps
  last      System 2: the loss of the last step, which alone is differentiated; the number of steps may be traced
  unrolled  a loss at every step, differentiated through all of them

The first two need the memory of one step whatever the number of steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from ebt_jax import streams, trees
from ebt_jax.config import ThinkingConfig
from ebt_jax.thinking import descent
from ebt_jax.thinking.momentum import moving
from ebt_jax.thinking.shapes import check_prefix
from ebt_jax.thinking.spaces import Space
from ebt_jax.thinking.think import Process, Randomness, check_context, make_step, step_plan, with_thinking

# (params, context, x, energies, i, count) -> (loss, seen): see `thinking_loss`
Measure = Callable[..., tuple[jax.Array, Any]]


class ThinkingAux(NamedTuple):
  """What a thought process was like; nothing of it carries a gradient."""

  seen: Any  # what `measure` gave to log, stacked over steps; in mode `last` the last step alone, [1, ...]
  steps: Any  # how many there were
  candidate: Any  # after the last step
  first_energies: Float[Array, "*e"]  # before the first step


class _Parts(NamedTuple):
  """The outcome of one measured step."""

  x: Any
  energies: jax.Array
  seen: Any


def thinking_loss(
  energy: Callable[..., jax.Array],
  space: Space,
  measure: Measure,
  params: Any,
  context: Any,
  candidate0: Any,
  key: Key[Array, "*k"],
  config: ThinkingConfig = ThinkingConfig(),
  *,
  training: bool = True,
  randomness: Randomness = Randomness(),
  rule: Callable[[descent.Energy], descent.Slope] | None = None,
) -> tuple[jax.Array, ThinkingAux]:
  """The loss of thinking, differentiable in `params` and `context` as `config.gradient` says.

  Args:
    energy, space, params, context, candidate0, key, config, randomness: as for `think`.
    measure: `(params, context, x, energies, i, count) -> (loss, seen)`: what step i of `count` adds to the loss, and a
      pytree to log. x is the candidate after the step, `energies` are those before it. Targets and weights come in by
      closure; what depends on differentiated values must come from `params` and `context`.
    training: whether the random step sizes, numbers of steps and Langevin noise of training are used.
    rule: how slopes are differentiated, `descent.reverse_over_forward` or `descent.double_reverse`; None:
      `descent.second_order()`.

  Returns:
    The loss, and `ThinkingAux`.

  Raises:
    ValueError, TypeError: as `think`.
  """
  check_context(context, config)
  energy, params = descent.with_landscape(energy), with_thinking(params, config)
  plan_key, step_key = streams.split(key, 2)
  process = Process(step_plan(config, training, plan_key, randomness.repeats), step_key, randomness)
  candidate0, space = jax.tree.map(jnp.asarray, candidate0), moving(space, config)
  start = space.prepare(params["model"], candidate0, len(process.plan.landscapes))
  step = make_step(energy, space, config, rule or descent.second_order(), training)

  def measured(params, context, x, i, process):
    x, energies = step(params, context, x, i, process)
    loss, seen = measure(params, context, space.candidate(x), energies, i, process.plan.count)
    return loss, _Parts(x, energies, seen)

  shapes = jax.eval_shape(measured, params, context, start, 0, process)
  check_prefix(shapes[1].energies, candidate0)
  if config.gradient == "each":
    loss, aux = _each(measured, shapes, params, context, start, process)
  elif config.gradient == "last":
    free_step = make_step(energy, space, config, descent.constant, training)
    loss, aux = _last(measured, shapes, free_step, config, params, context, start, process)
  else:
    loss, aux = _unrolled(measured, shapes, params, context, start, process)
  return loss, jax.lax.stop_gradient(aux._replace(candidate=space.candidate(aux.candidate)))


def _each(measured, shapes, params, context, x0, process):
  """No path between steps, so the gradient of each step is added up inside the loop: the memory of one step."""
  floats, others, join = trees.split_floats(context)
  loss_shape, (_, energies_shape, seen_shape) = shapes
  longest = len(process.plan.landscapes)

  def run(differentiate, params, floats, others, x0, process):
    theta = (params, floats)
    count = process.plan.count

    def at(theta, x, i):
      return measured(theta[0], join(theta[1], others), x, i, process)

    def body(i, carry):
      x, first, loss, seen, gradient = carry
      if differentiate:
        (part, (x, energies, seen_now)), g = jax.value_and_grad(at, has_aux=True)(theta, x, i)
        gradient = jax.tree.map(jnp.add, gradient, g)
      else:
        part, (x, energies, seen_now) = at(theta, x, i)
      seen = jax.tree.map(lambda a, now: a.at[i].set(now), seen, seen_now)
      return x, jnp.where(i == 0, energies, first), loss + part, seen, gradient

    gradient = jax.tree.map(jnp.zeros_like, theta) if differentiate else ()
    seen = jax.tree.map(lambda s: jnp.zeros((longest, *s.shape), s.dtype), seen_shape)
    carry = (x0, _zeros(energies_shape), _zeros(loss_shape), seen, gradient)
    x, first, loss, seen, gradient = jax.lax.fori_loop(0, count, body, carry)
    return (loss, ThinkingAux(seen, count, x, first)), gradient

  @jax.custom_vjp
  def each(*args):
    return run(False, *args)[0]

  def forward(*args):
    return run(True, *args)

  def backward(gradient, cotangents):
    d_params, d_floats = jax.tree.map(lambda g: cotangents[0] * g, gradient)
    return d_params, d_floats, None, None, None

  each.defvjp(forward, backward)
  return each(params, floats, others, x0, process)


def _last(measured, shapes, free_step, config, params, context, x0, process):
  """All steps but the last run without a graph; what the step size and noise did to them enters as a tangent."""
  count = process.plan.count
  frozen, frozen_context = jax.lax.stop_gradient((params, context))
  learnt = [n for n, on in (("step_size", config.learn_step_size), ("noise", config.learn_noise)) if on]
  values = {n: frozen["thinking"][n] for n in learnt} if config.step_size_path else {}

  def unit(name):
    return {n: jnp.ones_like(v) if n == name else jnp.zeros_like(v) for n, v in values.items()}

  floats, others, join = trees.split_floats(x0)  # of the candidate: only floats move with the step size

  def walk(values, floats, others, i):
    thinking = {**frozen["thinking"], **values}
    x, energies = free_step({**frozen, "thinking": thinking}, frozen_context, join(floats, others), i, process)
    floats, others, _ = trees.split_floats(x)
    return floats, (others, energies)

  def body(i, carry):
    floats, others, tangents, first = carry
    floats, linear, (others, energies) = jax.linearize(
      lambda v, floats: walk(v, floats, others, i), values, floats, has_aux=True
    )
    tangents = {n: linear(unit(n), t) for n, t in tangents.items()}
    return floats, others, tangents, jnp.where(i == 0, energies, first)

  still = {n: jax.tree.map(jnp.zeros_like, floats) for n in values}
  carry = (floats, others, still, _zeros(shapes[1].energies))
  floats, others, tangents, first = jax.lax.stop_gradient(jax.lax.fori_loop(0, count - 1, body, carry))
  for name, tangent in tangents.items():
    value = params["thinking"][name]
    change = value - jax.lax.stop_gradient(value)  # zero, with a derivative
    floats = jax.tree.map(lambda x, t: x + t * change, floats, tangent)
  loss, (x, energies, seen) = measured(params, context, join(floats, others), count - 1, process)
  first = jnp.where(count == 1, energies, first)
  return loss, ThinkingAux(jax.tree.map(lambda s: s[None], seen), count, x, first)


def _unrolled(measured, shapes, params, context, x0, process):
  def body(carry, i):
    x, first, loss = carry
    part, (stepped, energies, seen) = measured(params, context, x, i, process)
    on = i < process.plan.count
    seen = jax.tree.map(lambda s: jnp.where(on, s, 0), seen)
    x = jax.tree.map(lambda new, old: jnp.where(on, new, old), stepped, x)
    return (x, jnp.where(i == 0, energies, first), loss + jnp.where(on, part, 0)), seen

  carry = (x0, _zeros(shapes[1].energies), _zeros(shapes[0]))
  (x, first, loss), seen = jax.lax.scan(body, carry, jnp.arange(len(process.plan.landscapes)))
  return loss, ThinkingAux(seen, process.plan.count, x, first)


def _zeros(shape: jax.ShapeDtypeStruct) -> jax.Array:
  return jnp.zeros(shape.shape, shape.dtype)
