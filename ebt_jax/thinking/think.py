"""Thinking: several steps of descent over one or more landscapes, and the loss of a thought process.

Gradient modes of `thinking_loss` (facts 2.1):
  each      System 1: a loss at every step, no path between steps
  last      System 2: the loss of the last step, which alone is differentiated; their number may be traced
  unrolled  a loss at every step, differentiated through all of them
The first two need the memory of one step whatever the number of steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray
import numpy as np

from ebt_jax import chunks, streams
from ebt_jax.config import EvalConfig, ThinkingConfig
from ebt_jax.thinking import descent

NOISE_MIN = 1e-6  # floor of a Langevin scale that is learnt


class Draws(NamedTuple):
  """The randomness of one thought, for callers that bring their own; None is drawn from the key."""

  step_size: Float[Array, "*p 1"] | None = None  # uniform in [0, 1)
  noise: Float[Array, " n *x"] | None = None  # standard normal, one for each step
  repeats: Int[Array, " m"] | None = None  # how often each landscape is descended


class Schedule(NamedTuple):
  """Which landscape each step descends. `count` may be traced; `landscapes` has `longest` entries."""

  landscapes: Any
  count: Any
  longest: int


class Thoughts(NamedTuple):
  """Outcome of thinking; per-step values are those of `steps_used` steps, what follows repeats nothing (zeros)."""

  candidate: jax.Array
  energies: Float[Array, " n *p"]  # before each step
  observed: Any  # what `observe` saw after each step, stacked
  steps_used: Any


def schedule(config: ThinkingConfig, training: bool = False, key: PRNGKeyArray | None = None, repeats=None) -> Schedule:
  """The landscapes to descend; random repetitions only in training (facts 2.2).

  Args:
    key: draws the repetitions where they are random and `repeats` is None.
    repeats: `[landscapes]`, how often each landscape is descended.
  """
  last = config.landscapes - 1
  if repeats is None and not (training and config.random_steps_min):
    return Schedule(np.minimum(np.arange(config.steps), last), config.steps, config.steps)
  most = config.steps - last
  if repeats is None:
    repeats = jax.random.randint(key, (config.landscapes,), config.random_steps_min, most + 1)
    if config.random_steps_of == "final":
      repeats = jnp.where(jnp.arange(config.landscapes) == last, repeats, 1)
  longest = config.steps if config.random_steps_of == "final" else most * config.landscapes
  ends = jnp.cumsum(jnp.asarray(repeats))
  landscapes = jnp.minimum(jnp.searchsorted(ends, jnp.arange(longest), side="right"), last)
  return Schedule(landscapes, ends[-1], longest)


def at_landscape(contexts: Any, landscape: Any) -> Any:
  """The context of one landscape, from contexts stacked along their first axis (one entry: it serves all)."""
  return jax.tree.map(lambda a: a[0] if a.shape[0] == 1 else a[landscape], contexts)


def stepper(energy, space, config: ThinkingConfig, training: bool, slope, how: EvalConfig = EvalConfig()):
  """`step(params, contexts, x, i, randomness) -> (x_new, energies)` for step i; randomness is (schedule, key, draws).

  `how` adjusts step size and noise outside training.
  """
  slope = slope(energy)
  how = EvalConfig() if training else how
  trained_noise = config.noise > 0 and (training or config.authors.eval_noise)

  def adjusted(landscape, new, old):
    return jnp.where(landscape == config.landscapes - 1, new, old) if how.adjust == "final" else new

  def sigma(thinking, landscape):
    trained = jnp.maximum(thinking["noise"], NOISE_MIN) if trained_noise else 0.0
    return adjusted(landscape, how.noise, trained) if how.noise else trained

  def step(params, contexts, x, i, randomness):
    plan, key, draws = randomness
    thinking = params["thinking"]
    landscape = jnp.asarray(plan.landscapes)[i]
    base = jnp.maximum(thinking["step_size"], config.step_size_min)
    if how.step_size_factor != 1:
      base = base * adjusted(landscape, how.step_size_factor, 1.0)
    bound = config.authors.clip_gradient / base if config.authors.clip_gradient else None

    def size(y):
      if not (training and config.random_step_size > 1):
        return base
      # one draw for each independent candidate, kept for all its steps
      u = draws.step_size
      if u is None:
        u = jax.random.uniform(jax.random.fold_in(key, 0), (*y.shape[:-1], 1), y.dtype)
      low, high = base / config.random_step_size, base * config.random_step_size
      return low + u * (high - low)

    if trained_noise or how.noise:
      noise = None if draws.noise is None else jnp.asarray(draws.noise)[i]
      x = space.disturb(x, streams.fold(key, 1 + i), sigma(thinking, landscape), noise)
    context = at_landscape(contexts, landscape)
    return descent.step(slope, space, params["model"], context, x, landscape, size, bound)

  return step


def think(
  energy: descent.Energy,
  space: Any,
  params: Any,
  contexts: Any,
  candidate0: Any,
  key: PRNGKeyArray,
  config: ThinkingConfig,
  *,
  training: bool = False,
  plan: Schedule | None = None,
  draws: Draws = Draws(),
  observe: Callable[[jax.Array], Any] | None = None,
) -> Thoughts:
  """Descends the energy from `candidate0`. Works for any energy and space; first order, not for training.

  Args:
    energy: `(model_params, context, y, landscape) -> [*p]`, one energy for each independent candidate.
    space: see `spaces`.
    params: `{"model": ..., "thinking": {"step_size": scalar, "noise": scalar}}`.
    contexts: context stacked along a first axis of one entry, or of one for each landscape.
    candidate0: start, e.g. `space.start(key, shape)`.
    key: for what `draws` leaves open.
    config: number of steps, landscapes, step size rules.
    training: whether the random step sizes, numbers of steps and Langevin noise of training are used.
    plan: overrides the schedule that `config` implies.
    draws: randomness from outside.
    observe: called on the candidate after each step; its results are stacked.

  Returns:
    `Thoughts`; the number of steps may be traced.
  """
  schedule_key, step_key = jax.random.split(key)
  plan = schedule(config, training, schedule_key, draws.repeats) if plan is None else plan
  step = stepper(energy, space, config, training, descent.double_reverse)
  candidate0 = space.prepare(params["model"], candidate0, plan.longest)
  randomness = (plan, step_key, draws)
  see = observe or (lambda x: ())

  def body(i, carry):
    x, energies, observed = carry
    x, energy_now = step(params, contexts, x, i, randomness)

    def put(whole, part):
      return whole.at[i].set(part)

    return x, put(energies, energy_now), jax.tree.map(put, observed, see(x))

  shapes = jax.eval_shape(lambda x: (step(params, contexts, x, 0, randomness)[1], see(x)), candidate0)
  energies, observed = jax.tree.map(lambda s: jnp.zeros((plan.longest, *s.shape), s.dtype), shapes)
  candidate, energies, observed = jax.lax.fori_loop(0, plan.count, body, (candidate0, energies, observed))
  return Thoughts(candidate, energies, observed, plan.count)


def thinking_loss(
  energy: descent.Energy,
  space: Any,
  measure: Callable,
  params: Any,
  contexts: Any,
  batch: Any,
  candidate0: Any,
  key: PRNGKeyArray,
  config: ThinkingConfig,
  *,
  training: bool = True,
  draws: Draws = Draws(),
  slope: Callable | None = None,
) -> tuple[jax.Array, Any]:
  """The loss of thinking, differentiable in `params` and `contexts` as `config.gradient` says.

  Args:
    measure: `(params, contexts, batch, x, energies, i, count) -> (loss, seen)`: what step i of `count` adds to the
      loss, and a pytree of scalars to log. `x` is the candidate after the step, `energies` are those before it.
    batch: targets and weights, handed to `measure`.
    slope: second-order rule, `descent.reverse_over_forward` or `descent.double_reverse`; None: `descent.second_order`.

  Returns:
    The loss and `{"seen": measure's scalars for each step, "steps": their number, "candidate": the last one}`,
    which carry no gradient. In mode `last` only the last step is measured; `seen` then has one entry.
  """
  schedule_key, step_key = jax.random.split(key)
  plan = schedule(config, training, schedule_key, draws.repeats)
  step = stepper(energy, space, config, training, slope or descent.second_order())
  candidate0 = space.prepare(params["model"], candidate0, plan.longest)
  args = (params, contexts, batch, candidate0, (plan, step_key, draws))
  if config.gradient == "each":
    loss, aux = _each(step, measure, config, *args)
  elif config.gradient == "last":
    free_step = stepper(energy, space, config, training, descent.constant)
    loss, aux = _last(step, measure, config, *args, free_step)
  else:
    loss, aux = _unrolled(step, measure, config, *args)
  return loss, jax.lax.stop_gradient(aux)


def _measured(step, measure, params, contexts, batch, x, i, randomness):
  x, energies = step(params, contexts, x, i, randomness)
  loss, seen = measure(params, contexts, batch, x, energies, i, randomness[0].count)
  return loss, (x, energies, seen)


def _each(step, measure, config, params, contexts, batch, x0, randomness):
  """No path between steps, so each step's gradient is added up inside the loop: memory of one step."""
  plan = randomness[0]
  randomness = (plan._replace(longest=None), *randomness[1:])  # a static number, not an argument
  floats, integers, join = chunks.split(contexts)

  def run(differentiate, params, floats, integers, batch, x0, randomness):
    theta = (params, floats)
    count = randomness[0].count

    def at(theta, x, i):
      return _measured(step, measure, theta[0], join(theta[1], integers), batch, x, i, randomness)

    def body(i, carry):
      x, loss, seen, gradient = carry
      if differentiate:
        (part, (x, _, seen_now)), g = jax.value_and_grad(at, has_aux=True)(theta, x, i)
        gradient = jax.tree.map(jnp.add, gradient, g)
      else:
        part, (x, _, seen_now) = at(theta, x, i)
      return x, loss + part, jax.tree.map(lambda whole, now: whole.at[i].set(now), seen, seen_now), gradient

    part, (_, _, seen) = jax.eval_shape(at, theta, x0, 0)
    seen = jax.tree.map(lambda s: jnp.zeros((plan.longest, *s.shape), s.dtype), seen)
    gradient = jax.tree.map(jnp.zeros_like, theta) if differentiate else ()
    carry = (x0, jnp.zeros(part.shape, part.dtype), seen, gradient)
    x, loss, seen, gradient = jax.lax.fori_loop(0, count, body, carry)
    return (loss, {"seen": seen, "steps": count, "candidate": x}), gradient

  @jax.custom_vjp
  def each(*args):
    return run(False, *args)[0]

  def forward(*args):
    return run(True, *args)

  def backward(gradient, cotangents):
    d_params, d_floats = jax.tree.map(lambda g: cotangents[0] * g, gradient)
    return d_params, d_floats, None, None, None, None

  each.defvjp(forward, backward)
  return each(params, floats, integers, batch, x0, randomness)


def _last(step, measure, config, params, contexts, batch, x0, randomness, free_step):
  """All steps but the last run without a graph; what the step size and noise did to them enters as a tangent."""
  plan = randomness[0]
  frozen, frozen_contexts = jax.lax.stop_gradient((params, contexts))
  learnt = [n for n, on in (("step_size", config.learn_step_size), ("noise", config.learn_noise)) if on]
  values = {n: frozen["thinking"][n] for n in learnt} if config.step_size_path else {}

  def unit(name):
    return {n: jnp.ones_like(v) if n == name else jnp.zeros_like(v) for n, v in values.items()}

  floats, others, join = chunks.split(x0)  # of the candidate; a change of the step size moves its floats

  def walk(values, floats, others, i):
    thinking = {**frozen["thinking"], **values}
    x = join(floats, others)
    x, energies = free_step({**frozen, "thinking": thinking}, frozen_contexts, x, i, randomness)
    floats, others, _ = chunks.split(x)
    return floats, (others, energies)

  def body(i, carry):
    floats, others, tangents, first = carry
    floats, linear, (others, energies) = jax.linearize(
      lambda v, floats: walk(v, floats, others, i), values, floats, has_aux=True
    )
    tangents = {n: linear(unit(n), t) for n, t in tangents.items()}
    return floats, others, tangents, jnp.where(i == 0, energies, first)

  energies = jax.eval_shape(lambda: walk(values, floats, others, 0)[1][1])
  still = {n: jax.tree.map(jnp.zeros_like, floats) for n in values}
  carry = (floats, others, still, jnp.zeros(energies.shape, energies.dtype))
  floats, others, tangents, first = jax.lax.stop_gradient(jax.lax.fori_loop(0, plan.count - 1, body, carry))
  for name, tangent in tangents.items():
    value = params["thinking"][name]
    change = value - jax.lax.stop_gradient(value)  # zero, with a derivative
    floats = jax.tree.map(lambda x, t: x + t * change, floats, tangent)
  x = join(floats, others)
  loss, (x, energies, seen) = _measured(step, measure, params, contexts, batch, x, plan.count - 1, randomness)
  first = jnp.where(plan.count == 1, energies, first)
  aux = {"seen": jax.tree.map(lambda s: s[None], seen), "steps": plan.count, "candidate": x, "first_energies": first}
  return loss, aux


def _unrolled(step, measure, config, params, contexts, batch, x0, randomness):
  plan = randomness[0]

  def body(carry, i):
    x, loss = carry
    part, (stepped, _, seen) = _measured(step, measure, params, contexts, batch, x, i, randomness)
    on = i < plan.count
    seen = jax.tree.map(lambda s: jnp.where(on, s, 0), seen)
    x = jax.tree.map(lambda new, old: jnp.where(on, new, old), stepped, x)
    return (x, loss + jnp.where(on, part, 0)), seen

  part = jax.eval_shape(lambda: _measured(step, measure, params, contexts, batch, x0, 0, randomness)[0])
  (x, loss), seen = jax.lax.scan(body, (x0, jnp.zeros(part.shape, part.dtype)), jnp.arange(plan.longest))
  return loss, {"seen": seen, "steps": plan.count, "candidate": x}
