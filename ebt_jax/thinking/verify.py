"""Thinking at inference: for as long as it helps, with several candidates, keeping the one of least energy.

Every energy stands for itself: its candidate decides how long it thinks, which steps it keeps, and whether it is the
best of several (paper section 4.3).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from ebt_jax.config import InferenceConfig, ThinkingConfig
from ebt_jax.thinking import descent
from ebt_jax.thinking.momentum import moving
from ebt_jax.thinking.shapes import check_prefix, select
from ebt_jax.thinking.spaces import ArraySpace, Space
from ebt_jax.thinking.think import (
  Process,
  Randomness,
  StepPlan,
  at_landscape,
  check_context,
  make_step,
  step_plan,
  step_size_of,
  with_thinking,
)


class Verified(NamedTuple):
  """What thinking with n candidates found; `best` of an array takes the kept candidate of each energy `*e`."""

  candidates: Any  # leaves [n, *e, ...]
  energies: Float[Array, " t n *e"]  # before each step of the budget; a finished candidate repeats its last
  final: Float[Array, " n *e"]  # of the finished candidates at the last landscape, without noise
  observed: Any  # what `observe` gave after each step, stacked; a finished candidate repeats its last
  steps_used: Int[Array, " n *e"]
  kept: Int[Array, "*e"]  # the index of the candidate that is kept

  def best(self, tree: Any, axis: int = 0) -> Any:
    """`tree` without its candidate axis, at the kept candidates.

    Args:
      tree: arrays whose axes from `axis` on are `[n, *e, ...]`: `candidates`, `final` and `steps_used`, or with
        `axis=1` `energies` and `observed`.
    """

    def leaf(array):
      moved = jnp.moveaxis(array, axis, 0)
      after = moved.ndim - 1 - axis - self.kept.ndim
      index = self.kept.reshape(*[1] * (1 + axis), *self.kept.shape, *[1] * after)
      return jnp.take_along_axis(moved, index, axis=0)[0]

    return jax.tree.map(leaf, tree)


def plan_for(config: ThinkingConfig, inference: InferenceConfig) -> StepPlan:
  """The landscapes that a budget of `inference.steps` descends: extra steps go to the last, or are shared by all."""
  steps = inference.steps or config.steps
  if inference.steps_of == "final":
    return StepPlan(jnp.minimum(jnp.arange(steps), config.landscapes - 1), steps)
  return StepPlan(jnp.arange(steps) * config.landscapes // steps, steps)


def think_and_verify(
  energy: Callable[..., jax.Array],
  space: Space,
  params: Any,
  context: Any,
  candidates0: Any,
  key: Key[Array, "*k"],
  config: ThinkingConfig = ThinkingConfig(),
  inference: InferenceConfig = InferenceConfig(),
  *,
  randomness: Randomness = Randomness(),
  observe: Callable[[Any], Any] | None = None,
  several: Callable[..., jax.Array] | None = None,
) -> Verified:
  """Thinks with several candidates over one context, and verifies them by their energy.

  A candidate is finished when a step on one landscape has changed its energy by less than `inference.tolerance`, up or
  down. The loop ends when all are finished or the budget of steps is used up.

  Args:
    energy: of one candidate, `(model_params, context, y, landscape) -> [*e]` or without `landscape`, as for `think`.
    space: one whose candidates are held as arrays.
    params, context: as for `think`.
    candidates0: n starts, leaves `[n, *e, ...]`, e.g. `space.start(key, (n, *shape))`.
    key: one key, or an array of keys for the leading axes of `candidates0`.
    config: how the model was trained to think.
    inference: steps and their landscapes, tolerance, choice, acceptance, step size and noise.
    randomness: random numbers in place of those of `key`; leaves of `noise` are `[t, n, *e, ...]`.
    observe: called on all candidates after each step.
    several: `energy` for y with a leading candidate axis, `[n, *e]`, over one context; None: `jax.vmap` of `energy`.

  Raises:
    TypeError: `space` does not hold candidates as arrays, or `energy` takes neither three nor four arguments.
    ValueError: shapes of candidates, energies or `PerLandscape` do not fit; the text says which.
  """
  if not isinstance(space, ArraySpace):
    raise TypeError(f"think_and_verify: {type(space).__name__} does not hold candidates as arrays; use Simplex")
  check_context(context, config)
  energy, params, model = descent.with_landscape(energy), with_thinking(params, config), params["model"]
  candidates0 = jax.tree.map(jnp.asarray, candidates0)
  _check_candidates(candidates0)
  plan = plan_for(config, inference)
  if randomness.repeats is not None:
    plan = step_plan(config, repeats=randomness.repeats)
  process = Process(plan, key, randomness)
  landscapes = jnp.asarray(plan.landscapes)

  def mapped(params, context, y, landscape):
    return jax.vmap(lambda y: energy(params, context, y, landscape))(y)

  several = descent.with_landscape(several) if several else mapped
  within = moving(space, config)
  step = make_step(several, within, config, descent.double_reverse, inference=inference)

  def see(x):
    return observe(within.candidate(x)) if observe else ()

  def energies_of(x, landscape):
    return several(model, at_landscape(context, landscape), within.energy_input(model, x, landscape), landscape)

  def body(carry):
    i, x, before, finished, used, energies, observed = carry
    stepped, now = step(params, context, x, i, process)
    if inference.tolerance:
      same = (i > 0) & (landscapes[i] == landscapes[i - 1])
      finished = finished | (same & (jnp.abs(before - now) < inference.tolerance))
    if inference.accept != "all":
      # the authors leave a rejected candidate as it was read, so that the next step reads it twice
      rejected = space.read(x, landscapes[i]) if inference.accept == "lower_authors" else x
      stepped = select(energies_of(stepped, landscapes[i]) < now, stepped, rejected)
    x = select(finished, x, stepped) if inference.tolerance else stepped
    observed = jax.tree.map(lambda a, now: a.at[i].set(now), observed, see(x))
    return i + 1, x, now, finished, used + ~finished, energies.at[i].set(now), observed

  def going(carry):
    i, finished = carry[0], carry[3]
    return (i < plan.count) & ~jnp.all(finished)

  start = within.prepare(model, candidates0, len(landscapes))
  shapes = jax.eval_shape(lambda x: (step(params, context, x, 0, process)[1], see(x)), start)
  try:
    check_prefix(shapes[0], candidates0)
  except ValueError as error:
    raise ValueError(f"candidates0 needs a leading axis of candidates, also for one: {error}") from None
  energies, observed = jax.tree.map(lambda s: jnp.zeros((len(landscapes), *s.shape), s.dtype), shapes)
  finished: Bool[Array, " n *e"] = jnp.zeros(energies.shape[1:], bool)
  carry = (jnp.int32(0), start, energies[0], finished, jnp.zeros(finished.shape, jnp.int32), energies, observed)
  if inference.tolerance:
    carry = jax.lax.while_loop(going, body, carry)
  else:  # a loop of known length, which compilers like better
    carry = jax.lax.fori_loop(0, plan.count, lambda _, carry: body(carry), carry)
  count, x, _, _, used, energies, observed = carry
  rest = jnp.arange(len(landscapes)) >= count

  def fill(a):
    return jnp.where(rest.reshape(-1, *[1] * (a.ndim - 1)), a[count - 1], a)

  energies, observed = jax.tree.map(fill, (energies, observed))
  final, x = energies_of(x, config.landscapes - 1), within.candidate(x)
  if inference.choose == "free_energy":
    value = step_size_of(params["thinking"], config) * inference.step_size_factor * final + space.potential(x)
  else:
    value = final if inference.choose == "energy" else final - energies[0]
  kept = jnp.argmin(value, 0)
  return Verified(x, energies, final, observed, used, kept)


def _check_candidates(candidates0) -> None:
  """Raises ValueError unless all leaves share a first axis."""
  shapes = [leaf.shape for leaf in jax.tree.leaves(candidates0)]
  if len({shape[:1] for shape in shapes}) != 1 or () in shapes:
    raise ValueError(
      "candidates0: expected a leading axis of the number of candidates in every leaf, found shapes "
      f"{', '.join(str(list(shape)) for shape in shapes)}; for one candidate add an axis of length 1"
    )
