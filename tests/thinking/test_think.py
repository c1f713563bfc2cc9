"""Descent of energies that need no model, its schedule and its randomness."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import thinking
from ebt_jax.config import AuthorsConfig, ThinkingConfig

KEY = jax.random.key(7)
SPACE = thinking.Euclidean()


def bowl(params, context, y, landscape):
  """Half a squared distance: dE/dy = k (y - centre)."""
  return 0.5 * params["stiffness"][landscape] * jnp.sum((y - context) ** 2, -1)


def slide(params, context, y, landscape):
  """dE/dy = -1 everywhere: each entry of a candidate moves by the step size."""
  return -jnp.sum(y, -1)


def valley(params, context, y, landscape):
  """Smooth, and different for each candidate."""
  return jnp.sum(jnp.cos(y + context), -1) + jnp.sum(y, -1) ** 2


def parameters(step_size, noise=0.0, **model):
  return {"model": model, "thinking": {"step_size": jnp.asarray(step_size), "noise": jnp.asarray(noise)}}


def test_descent_of_a_bowl_is_its_closed_form(x64):
  k, a, n = 3.0, 0.2, 6
  centre = jax.random.normal(KEY, (2, 3, 4))
  x0 = SPACE.start(jax.random.key(1), centre.shape)
  params = parameters(a, stiffness=jnp.array([k]))
  thoughts = thinking.think(
    bowl, SPACE, params, centre[None], x0, KEY, ThinkingConfig(steps=n), observe=lambda x: x - centre
  )
  away = lambda i: (1 - a * k) ** i * np.asarray(x0 - centre)
  np.testing.assert_allclose(thoughts.candidate - centre, away(n), rtol=1e-12)
  np.testing.assert_allclose(thoughts.observed, [away(i + 1) for i in range(n)], rtol=1e-12)
  np.testing.assert_allclose(thoughts.energies, [k / 2 * (away(i) ** 2).sum(-1) for i in range(n)], rtol=1e-12)
  assert thoughts.steps_used == n


@pytest.mark.parametrize("repeats, order", [(None, [0, 1, 2, 2, 2]), ([2, 1, 3], [0, 0, 1, 2, 2, 2])])
def test_landscapes_are_descended_in_order(x64, repeats, order):
  a, stiffness = 0.3, np.array([1.0, 2.0, 0.5])
  centres = jax.random.normal(KEY, (3, 2, 4))
  x = x0 = np.asarray(jax.random.normal(jax.random.key(1), (2, 4)))
  for k in order:
    x = x - a * stiffness[k] * (x - np.asarray(centres[k]))
  config = ThinkingConfig(steps=5, landscapes=3)
  draws = thinking.Draws(repeats=repeats and jnp.array(repeats))
  params = parameters(a, stiffness=jnp.asarray(stiffness))
  thoughts = thinking.think(bowl, SPACE, params, centres, x0, KEY, config, draws=draws)
  np.testing.assert_allclose(thoughts.candidate, x, rtol=1e-12)
  assert thoughts.steps_used == len(order)


def test_points_of_a_plane_find_the_minima_of_a_double_well():
  """All that is needed to think about something else than text: an energy, a space, a start."""

  def double_well(params, context, y, landscape):
    return (y[..., 0] ** 2 - 1) ** 2 + y[..., 1] ** 2

  space = thinking.Euclidean(start_scale=1.0, bound=2.0)
  start = space.start(jax.random.key(0), (64, 2))
  no_context = jnp.zeros(1)
  params = {"model": {}, "thinking": {"step_size": 0.05, "noise": 0.0}}
  thoughts = thinking.think(double_well, space, params, no_context, start, KEY, ThinkingConfig(steps=200))
  found = space.decode({}, thoughts.candidate)
  np.testing.assert_allclose(found, np.stack([np.sign(start[:, 0]), np.zeros(64)], -1), atol=1e-3)
  assert np.all(np.diff(thoughts.energies, axis=0) <= 1e-6)


def test_one_row_alone_thinks_what_it_thinks_among_eight(x64):
  config = ThinkingConfig(steps=3, noise=0.5, random_step_size=2.0)
  context, x0 = jax.random.normal(KEY, (2, 8, 3, 4))
  draws = thinking.Draws(
    step_size=jax.random.uniform(KEY, (8, 3, 1)), noise=jax.random.normal(jax.random.key(1), (3, *x0.shape))
  )
  run = lambda context, x0, draws: thinking.think(
    valley, SPACE, parameters(0.1, 0.5), context[None], x0, KEY, config, training=True, draws=draws
  )
  eight, one = run(context, x0, draws), run(context[2:3], x0[2:3], thinking.Draws(draws[0][2:3], draws[1][:, 2:3]))
  np.testing.assert_allclose(one.candidate, eight.candidate[2:3], rtol=1e-12)
  np.testing.assert_allclose(one.energies, eight.energies[:, 2:3], rtol=1e-12)


def test_a_traced_number_of_steps_equals_a_static_one_and_the_rest_is_zero():
  params, x0, most = parameters(0.1), jax.random.normal(KEY, (2, 3)), 4

  @jax.jit
  def traced(repeats):
    config = ThinkingConfig(steps=most)
    return thinking.think(valley, SPACE, params, x0[None], x0, KEY, config, draws=thinking.Draws(repeats=repeats))

  for n in range(1, most + 1):
    got, static = traced(jnp.array([n])), thinking.think(valley, SPACE, params, x0[None], x0, KEY, ThinkingConfig(n))
    np.testing.assert_allclose(got.candidate, static.candidate, rtol=1e-6)
    np.testing.assert_allclose(got.energies[:n], static.energies, rtol=1e-6)
    assert got.steps_used == n and not got.energies[n:].any()
  assert traced._cache_size() == 1


def test_draws_from_outside_equal_those_of_the_key():
  """What the key draws is seen where the energy is known to be a slide or flat, then brought from outside."""
  config = ThinkingConfig(steps=4, noise=0.3, random_step_size=2.0)
  base, sigma, x0 = 0.2, 0.3, jax.random.normal(KEY, (2, 3, 5))

  def run(energy, draws=thinking.Draws(), **changes):
    c = dataclasses.replace(config, **changes)
    return thinking.think(
      energy, SPACE, parameters(base, sigma), x0[None], x0, KEY, c, training=True, draws=draws, observe=lambda x: x
    )

  sizes = run(slide, noise=0.0, steps=1).observed[0] - x0
  flat = run(lambda params, context, y, landscape: 0.0 * jnp.sum(y, -1)).observed
  noise = jnp.diff(jnp.concatenate([x0[None], flat]), axis=0) / sigma
  uniform = ((sizes - base / 2) / (2 * base - base / 2))[..., :1]
  both = thinking.Draws(step_size=uniform, noise=noise)
  from_key = run(valley).candidate
  np.testing.assert_allclose(run(valley, both).candidate, from_key, rtol=1e-4, atol=1e-5)
  for kept in (both._replace(step_size=1 - uniform), both._replace(noise=noise[::-1])):
    assert jnp.abs(run(valley, kept).candidate - from_key).max() > 1e-2
  assert np.abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)).max() < 0.5  # steps do not share their noise


def test_a_random_step_size_is_one_draw_for_each_position():
  config = ThinkingConfig(steps=3, random_step_size=3.0)
  base, x0 = 2.0, jnp.zeros((8, 512, 2))
  thoughts = thinking.think(
    slide, SPACE, parameters(base), x0[None], x0, KEY, config, training=True, observe=lambda x: x
  )
  sizes = np.diff(np.concatenate([x0[None], thoughts.observed]), axis=0)
  np.testing.assert_allclose(sizes, np.broadcast_to(sizes[:1, ..., :1], sizes.shape), rtol=1e-5)
  u = (sizes[0, ..., 0].ravel() - base / 3) / (base * 3 - base / 3)
  assert u.min() > -1e-6 and u.max() < 1 + 1e-6
  ranks = np.arange(u.size) / u.size
  assert np.abs(np.sort(u) - ranks).max() < 1.95 / u.size**0.5  # Kolmogorov-Smirnov, 0.1%


@pytest.mark.parametrize("which", ["every", "final"])
def test_random_numbers_of_steps_are_uniform(which):
  config = ThinkingConfig(steps=5, landscapes=2, random_steps_min=2, random_steps_of=which)
  n = 4000
  plan = jax.vmap(lambda key: thinking.schedule(config, True, key)._replace(longest=0))(jax.random.split(KEY, n))
  used = np.arange(plan.landscapes.shape[1]) < np.asarray(plan.count)[:, None]
  repeats = np.stack([(used & (plan.landscapes == k)).sum(1) for k in (0, 1)], 1)
  assert np.all(np.diff(np.where(used, plan.landscapes, 1), axis=1) >= 0)
  np.testing.assert_array_equal(repeats.sum(1), plan.count)
  allowed = [(a, b) for a in ((2, 3, 4) if which == "every" else (1,)) for b in (2, 3, 4)]
  seen, counts = np.unique(repeats, axis=0, return_counts=True)
  assert list(map(tuple, seen)) == allowed
  p = 1 / len(allowed)
  assert np.abs(counts - n * p).max() < 4 * (n * p * (1 - p)) ** 0.5


def test_the_longest_plan_is_enough_for_every_draw():
  for which, longest in (("every", 8), ("final", 5)):
    config = ThinkingConfig(steps=5, landscapes=2, random_steps_min=1, random_steps_of=which)
    plan = thinking.schedule(config, True, KEY)
    assert plan.longest == longest == plan.landscapes.size


def test_evaluation_draws_nothing():
  random = ThinkingConfig(steps=4, noise=0.5, random_step_size=2.0, random_steps_min=1)
  x0 = jax.random.normal(KEY, (2, 3))
  run = lambda config, seed: thinking.think(
    valley, SPACE, parameters(0.1, 0.5), x0[None], x0, jax.random.key(seed), config
  )
  plain = run(ThinkingConfig(steps=4), 0)
  for seed in (1, 2):
    np.testing.assert_array_equal(run(random, seed).candidate, plain.candidate)
  noisy = dataclasses.replace(random, authors=AuthorsConfig(eval_noise=True))
  assert jnp.any(run(noisy, 1).candidate != run(noisy, 2).candidate)


def test_floors_and_bounds_of_a_step():
  x0 = jnp.zeros((2, 3))
  one = lambda step_size, **options: np.asarray(
      thinking.think(
          slide, thinking.Euclidean(bound=options.pop("bound", 0.0)), parameters(step_size), x0[None], x0, KEY,
          ThinkingConfig(steps=1, **options),
      ).candidate
  )  # fmt: skip
  np.testing.assert_allclose(one(-3.0, step_size_min=0.25), 0.25)
  np.testing.assert_allclose(
    one(8.0, authors=AuthorsConfig(clip_gradient=0.5)), 0.5
  )  # the bound on the gradient is c / step size
  np.testing.assert_allclose(one(0.25, authors=AuthorsConfig(clip_gradient=0.5)), 0.25)
  np.testing.assert_allclose(one(8.0, bound=2.0), 2.0)


@pytest.mark.parametrize(
  "options, second",
  [
    ({}, "softmax"),
    ({"normalize": "first"}, "same"),
    ({"normalize": "first", "clip": 0.4}, "same"),
    ({"normalize": "never", "sharpen": 0.5}, "same"),
  ],
)
def test_a_step_in_the_simplex_starts_from_probabilities(x64, options, second):
  a, table = 0.7, np.asarray(jax.random.normal(KEY, (5, 3)))
  x0 = np.asarray(jax.random.normal(jax.random.key(1), (2, 5)))
  space = thinking.Simplex(table=lambda params: params["table"], **options)
  cubic = lambda params, context, y, landscape: jnp.sum(y**3, -1) / 3
  params = parameters(a, table=jnp.asarray(table))
  config = ThinkingConfig(steps=2, landscapes=2)
  got = thinking.think(cubic, space, params, jnp.zeros(1), x0, KEY, config, observe=lambda x: x).observed

  softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)
  x = x0
  for i in range(2):
    first = options.get("normalize") != "never" if i == 0 else second == "softmax"
    p = softmax(x) if first else x
    x = p - a * (p @ table) ** 2 @ table.T
    x = np.clip(x, -options["clip"], options["clip"]) if "clip" in options else x
    x = x / options["sharpen"] if "sharpen" in options else x
    np.testing.assert_allclose(got[i], x, rtol=1e-12)
