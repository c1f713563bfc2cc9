"""Thinking at inference: as long as it helps, over several candidates, keeping the one that verifies best (facts 3.2).

Every position decides for itself how long it thinks, which steps it keeps and which candidate it trusts.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from ebt_jax.config import EvalConfig, ThinkingConfig
from ebt_jax.thinking import descent
from ebt_jax.thinking.think import Draws, Schedule, at_landscape, schedule, stepper


class Verified(NamedTuple):
  """What came of `n` candidates for each position `*p`. `best` of every array is the kept candidate's."""

  candidates: Float[Array, " n *p v"]
  energies: Float[Array, " t n *p"]  # before each step of the budget; a finished candidate repeats its last
  final: Float[Array, " n *p"]  # energy of the finished candidates at the last landscape, free of noise
  observed: Any  # what `observe` saw after each step, stacked; a finished candidate repeats its last
  steps_used: Int[Array, " n *p"]
  kept: Int[Array, "*p"]  # which candidate each position keeps

  def best(self, array: jax.Array, axis: int = 0) -> jax.Array:
    """`array` with its candidate axis reduced to the candidate that each position keeps."""
    moved = jnp.moveaxis(array, axis, 0)
    after = moved.ndim - 1 - axis - self.kept.ndim
    index = self.kept.reshape(*[1] * (1 + axis), *self.kept.shape, *[1] * after)
    return jnp.take_along_axis(moved, index, axis=0)[0]


def plan_for(config: ThinkingConfig, how: EvalConfig) -> Schedule:
  """The landscapes that a budget of `how.steps` descends: extra steps go to the last one, or are shared by all."""
  steps = how.steps or config.steps
  if how.steps_of == "final":
    return Schedule(jnp.minimum(jnp.arange(steps), config.landscapes - 1), steps, steps)
  return Schedule(jnp.arange(steps) * config.landscapes // steps, steps, steps)


def think_and_verify(
  energy: descent.Energy,
  space: Any,
  params: Any,
  contexts: Any,
  candidates0: Float[Array, " n *p v"],
  key: PRNGKeyArray,
  config: ThinkingConfig,
  how: EvalConfig = EvalConfig(),
  *,
  draws: Draws = Draws(),
  observe: Callable[[jax.Array], Any] | None = None,
  several: descent.Energy | None = None,
) -> Verified:
  """Thinks with several candidates over one context, and verifies them by their energy.

  A position's candidate is finished when a step on one landscape has changed its energy by less than `how.tolerance`;
  a larger rise is an overshoot, which later steps mend. The loop ends when all are, or the budget is used up.

  Args:
    energy: `(model_params, context, y, landscape) -> [*p]`, as in `think`.
    candidates0: starts, e.g. `space.start(key, (n, *shape))`.
    config: how the model was trained to think.
    how: steps and their landscapes, tolerance, choice, acceptance, overrides of step size and noise.
    draws: randomness from outside; `noise` is `[t, n, *x]`.
    observe: called on all candidates after each step.
    several: `energy` of `y` with a leading candidate axis, `[n, *p]`, over one context; None maps `energy`.
  """
  last = config.landscapes - 1
  plan = plan_for(config, how)
  if draws.repeats is not None:
    plan = schedule(config, repeats=draws.repeats)._replace(longest=int(sum(draws.repeats)))
  several = several or (
    lambda params, context, y, landscape: jax.vmap(lambda y: energy(params, context, y, landscape))(y)
  )
  step = stepper(several, space, config, False, descent.double_reverse, how)
  see = observe or (lambda x: ())
  landscapes = jnp.asarray(plan.landscapes)
  model = params["model"]

  def wide(mask):
    return mask.reshape(*mask.shape, *[1] * (candidates0.ndim - mask.ndim))

  def verdict(x, landscape):
    return several(model, at_landscape(contexts, landscape), space.read(model, x, landscape), landscape)

  def body(carry):
    i, x, before, finished, used, energies, observed = carry
    stepped, now = step(params, contexts, x, i, (plan, key, draws))
    if how.tolerance:
      same = (i > 0) & (landscapes[i] == landscapes[i - 1])
      finished = finished | (same & (jnp.abs(before - now) < how.tolerance))
    if how.accept != "all":
      # the authors leave a rejected candidate as it was read, so that the next step reads it twice
      rejected = space.perceive(x, landscapes[i]) if how.accept == "lower_authors" else x
      lower = verdict(stepped, landscapes[i]) < now
      stepped = jnp.where(wide(lower), stepped, rejected)
    x = jnp.where(wide(finished), x, stepped) if how.tolerance else stepped

    def put(whole, part):
      return whole.at[i].set(part)

    return i + 1, x, now, finished, used + ~finished, put(energies, now), jax.tree.map(put, observed, see(x))

  def going(carry):
    i, finished = carry[0], carry[3]
    return (i < plan.count) & ~jnp.all(finished)

  def room(x):
    shapes = jax.eval_shape(lambda x: (step(params, contexts, x, 0, (plan, key, draws))[1], see(x)), x)
    return jax.tree.map(lambda s: jnp.zeros((plan.longest, *s.shape), s.dtype), shapes)

  energies, observed = room(candidates0)
  finished: Bool[Array, " n *p"] = jnp.zeros(energies.shape[1:], bool)
  carry = (jnp.int32(0), candidates0, energies[0], finished, jnp.zeros(finished.shape, jnp.int32), energies, observed)
  if how.tolerance:
    carry = jax.lax.while_loop(going, body, carry)
  else:  # a loop of known length, which compilers like better
    carry = jax.lax.fori_loop(0, plan.count, lambda _, carry: body(carry), carry)
  count, x, _, _, used, energies, observed = carry
  rest = jnp.arange(plan.longest) >= count

  def fill(a):
    return jnp.where(rest.reshape(-1, *[1] * (a.ndim - 1)), a[count - 1], a)

  energies, observed = jax.tree.map(fill, (energies, observed))
  final = verdict(x, last)
  kept = jnp.argmin(final, 0) if how.choose == "energy" else jnp.argmax(energies[0] - final, 0)
  return Verified(x, energies, final, observed, used, kept)
