"""Thinking: several steps of descent on one or more energy landscapes.

`think` is for inference and for any energy. Training differentiates `loss.thinking_loss`, which takes the same steps.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import numpy as np

from ebt_jax import streams
from ebt_jax.config import InferenceConfig, ThinkingConfig
from ebt_jax.thinking import descent
from ebt_jax.thinking.momentum import moving
from ebt_jax.thinking.shapes import check_prefix
from ebt_jax.thinking.spaces import Space, draw

NOISE_MIN = 1e-6  # least Langevin noise where its scale is learnt


class PerLandscape(NamedTuple):
  """Marks a context that differs by landscape: the leaves have a leading axis of `config.landscapes`."""

  contexts: Any


class Randomness(NamedTuple):
  """The random numbers of one thought process, for callers that bring their own; None is drawn from the key."""

  step_size: Float[Array, "*e"] | None = None  # uniform in [0, 1), one for each energy
  noise: Any = None  # standard normal, leaves [n, *x], one for each step
  repeats: Int[Array, " m"] | None = None  # how often each landscape is descended


class StepPlan(NamedTuple):
  """Which landscape each step descends. `count` of the entries are steps; it may be traced."""

  landscapes: Int[Array, " n"]
  count: Any


class Process(NamedTuple):
  """What the steps of one thought process share."""

  plan: StepPlan
  key: Key[Array, "*k"]
  randomness: Randomness


class Thoughts(NamedTuple):
  """What thinking found; entries of `energies` and `observed` beyond `steps_used` are zero."""

  candidate: Any
  energies: Float[Array, " n *e"]  # before each step
  observed: Any  # what `observe` gave after each step, stacked
  steps_used: Any


def step_plan(
  config: ThinkingConfig,
  training: bool = False,
  key: Key[Array, "*k"] | None = None,
  repeats: Any = None,
) -> StepPlan:
  """The landscapes to descend (paper section 3); landscapes are repeated at random in training only.

  Args:
    key: draws the repetitions where they are random and `repeats` is None.
    repeats: `[landscapes]`, how often each landscape is descended; traced ones may not exceed what `config` allows.

  Raises:
    ValueError: `repeats` has another length, or repetitions are random and `key` is not one key.
  """
  last = config.landscapes - 1
  if repeats is None and not (training and config.random_steps_min):
    return StepPlan(np.minimum(np.arange(config.steps), last), config.steps)
  longest = config.steps if config.random_steps_of == "final" else config.repeats_max * config.landscapes
  if repeats is None:
    if key is None or key.ndim:
      found = "no key" if key is None else f"keys {list(key.shape)}"
      raise ValueError(
        f"thinking.random_steps_min: all rows take the same random number of steps, drawn from one key; found {found}"
      )
    repeats = jax.random.randint(key, (config.landscapes,), config.random_steps_min, config.repeats_max + 1)
    if config.random_steps_of == "final":
      repeats = jnp.where(jnp.arange(config.landscapes) == last, repeats, 1)
  elif len(repeats) != config.landscapes:
    raise ValueError(
      f"randomness.repeats: expected one number for each of config.thinking.landscapes = {config.landscapes}, found "
      f"{len(repeats)}"
    )
  elif not isinstance(repeats, jax.core.Tracer):
    longest = int(sum(repeats))
  ends = jnp.cumsum(jnp.asarray(repeats))
  landscapes = jnp.minimum(jnp.searchsorted(ends, jnp.arange(longest), side="right"), last)
  return StepPlan(landscapes, ends[-1])


def at_landscape(context: Any, landscape: Any) -> Any:
  """The context of one landscape; a context that is not `PerLandscape` serves all."""
  if not isinstance(context, PerLandscape):
    return context
  return jax.tree.map(lambda a: a[landscape], context.contexts)


def check_context(context: Any, config: ThinkingConfig) -> None:
  """Raises ValueError where leaves of a `PerLandscape` have no leading axis of `config.landscapes`."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(context.contexts if isinstance(context, PerLandscape) else ()):
    if np.shape(leaf)[:1] != (config.landscapes,):
      raise ValueError(
        f"PerLandscape context{jax.tree_util.keystr(path)}: expected a leading axis of config.thinking.landscapes = "
        f"{config.landscapes}, found shape {list(np.shape(leaf))}; give a context that serves all landscapes without "
        "PerLandscape"
      )


def with_thinking(params: Any, config: ThinkingConfig) -> Any:
  """`params` with `params["thinking"]` whole: what it lacks of step size and noise comes from `config`."""
  given = {name: jnp.asarray(getattr(config, name), float) for name in ("step_size", "noise")}
  return {**params, "thinking": {**given, **params.get("thinking", {})}}


def step_size_of(thinking: Any, config: ThinkingConfig) -> jax.Array:
  """The step size of a step: that of `params["thinking"]`, at least `config.step_size_min`."""
  return jnp.maximum(thinking["step_size"], config.step_size_min)


def gradient_bound(step_size: jax.Array, config: ThinkingConfig) -> jax.Array | None:
  """Largest magnitude of an entry of dE/dp in a step, if there is a bound."""
  return config.authors.clip_gradient / step_size if config.authors.clip_gradient else None


def make_step(
  energy: descent.Energy,
  space: Space,
  config: ThinkingConfig,
  rule: Callable[[descent.Energy], descent.Slope],
  training: bool = False,
  inference: InferenceConfig = InferenceConfig(),
) -> Callable[..., tuple[Any, jax.Array]]:
  """`step(params, context, x, i, process) -> (x_new, energies)` for step i of a `Process`.

  Args:
    energy: of four arguments.
    rule: how the slope of the energy is computed and differentiated, e.g. `descent.double_reverse`.
    training: whether step sizes are random and Langevin noise is added, as `config` says.
    inference: adjusts step size and noise where not training.
  """
  slope = rule(energy)
  inference = InferenceConfig() if training else inference
  random_size = training and config.random_step_size > 1
  trained_noise = config.noise > 0 and (training or config.authors.eval_noise)

  def adjusted(landscape, new, old):
    return jnp.where(landscape == config.landscapes - 1, new, old) if inference.adjust == "final" else new

  def noise_scale(thinking, landscape):
    trained = jnp.maximum(thinking["noise"], NOISE_MIN) if trained_noise else 0.0
    if config.noise_falls:
      trained = trained * (1 - landscape / config.landscapes)
    return adjusted(landscape, inference.noise, trained) if inference.noise else trained

  def step(params, context, x, i, process):
    plan, key, randomness = process
    thinking = params["thinking"]
    landscape = jnp.asarray(plan.landscapes)[i]
    base = step_size_of(thinking, config)
    if inference.step_size_factor != 1:
      base = base * adjusted(landscape, inference.step_size_factor, 1.0)

    def size(energies):
      if not random_size:
        return base
      u = randomness.step_size
      if u is None:  # one draw for each energy, kept for all its steps
        u = draw(jax.random.uniform, streams.fold(key, 0), energies.shape, energies.dtype)
      elif jnp.shape(u) != energies.shape:
        raise ValueError(
          f"randomness.step_size: expected a number for each energy, {list(energies.shape)}, found {list(jnp.shape(u))}"
        )
      low, high = base / config.random_step_size, base * config.random_step_size
      return low + u * (high - low)

    space_now = space
    if trained_noise or inference.noise:
      noise = None
      if randomness.noise is not None:
        noise = jax.tree.map(lambda a: jnp.asarray(a)[i], randomness.noise)
      space_now, x = space.noised(x, streams.fold(key, 1 + i), noise_scale(thinking, landscape), noise)
    here, bound = at_landscape(context, landscape), gradient_bound(base, config)
    return descent.step(slope, space_now, params["model"], here, x, landscape, size, bound)

  return step


def think(
  energy: Callable[..., jax.Array],
  space: Space,
  params: Any,
  context: Any,
  candidate0: Any,
  key: Key[Array, "*k"],
  config: ThinkingConfig = ThinkingConfig(),
  *,
  training: bool = False,
  plan: StepPlan | None = None,
  randomness: Randomness = Randomness(),
  observe: Callable[[Any], Any] | None = None,
) -> Thoughts:
  """Descends the energy from `candidate0`, for any energy and space. Its result has no useful gradient.

  Args:
    energy: `(model_params, context, y, landscape) -> [*e]`, or the same without `landscape`: one energy for each
      independent candidate, whose leading axes are those of the candidate.
    space: see `spaces`.
    params: `{"model": ..., "thinking": {"step_size": scalar, "noise": scalar}}`; without `thinking` the numbers of
      `config` count.
    context: any pytree, for all landscapes; `PerLandscape(contexts)` where each landscape has its own.
    candidate0: the start `[*e, ...]`, e.g. `space.start(key, shape)`.
    key: of the noise and the random step sizes; one key, or an array of keys for the leading axes of the candidate.
    config: number of steps, landscapes, rules of step sizes.
    training: whether to draw the random step sizes, numbers of steps and Langevin noise of training.
    plan: the landscape of each step, in place of the one that `config` implies.
    randomness: random numbers in place of those of `key`.
    observe: called on the candidate after each step; its results are stacked.

  Returns:
    `Thoughts`; the number of steps may be traced.

  Raises:
    ValueError: shapes of energies, `PerLandscape` or `randomness` do not fit; the text says which.
    TypeError: `energy` takes neither three nor four arguments.
  """
  check_context(context, config)
  energy, params = descent.with_landscape(energy), with_thinking(params, config)
  plan_key, step_key = streams.split(key, 2)
  plan = step_plan(config, training, plan_key, randomness.repeats) if plan is None else plan
  longest = len(plan.landscapes)
  candidate0, space = jax.tree.map(jnp.asarray, candidate0), moving(space, config)
  step = make_step(energy, space, config, descent.double_reverse, training)
  process = Process(plan, step_key, randomness)
  start = space.prepare(params["model"], candidate0, longest)

  def see(x):
    return observe(space.candidate(x)) if observe else ()

  def body(i, carry):
    x, energies, observed = carry
    x, energy_now = step(params, context, x, i, process)
    return x, energies.at[i].set(energy_now), jax.tree.map(lambda a, now: a.at[i].set(now), observed, see(x))

  shapes = jax.eval_shape(lambda x: (step(params, context, x, 0, process)[1], see(x)), start)
  check_prefix(shapes[0], candidate0)
  energies, observed = jax.tree.map(lambda s: jnp.zeros((longest, *s.shape), s.dtype), shapes)
  candidate, energies, observed = jax.lax.fori_loop(0, plan.count, body, (start, energies, observed))
  return Thoughts(space.candidate(candidate), energies, observed, plan.count)
