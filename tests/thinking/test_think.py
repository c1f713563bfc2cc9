"""Descent of energies that need no model: closed forms, step plans, randomness, shapes."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import streams, thinking
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
  thoughts = thinking.think(bowl, SPACE, params, centre, x0, KEY, ThinkingConfig(steps=n), observe=lambda x: x - centre)
  away = lambda i: (1 - a * k) ** i * np.asarray(x0 - centre)
  np.testing.assert_allclose(thoughts.candidate - centre, away(n), rtol=1e-12)
  np.testing.assert_allclose(thoughts.observed, [away(i + 1) for i in range(n)], rtol=1e-12)
  np.testing.assert_allclose(thoughts.energies, [k / 2 * (away(i) ** 2).sum(-1) for i in range(n)], rtol=1e-12)
  assert thoughts.steps_used == n


def test_momentum_sums_the_slopes(x64):
  """Of slopes of -1, beta = 1/2 takes steps of a, 3a/2, 7a/4; energies are minus the sums of the entries."""
  x0, params = jnp.array([[0.0, 1.0]]), parameters(0.2)
  config = ThinkingConfig(steps=3, momentum=0.5)
  moved = np.cumsum([0.2, 0.3, 0.35])
  thoughts = thinking.think(slide, SPACE, params, None, x0, KEY, config, observe=lambda x: x)
  np.testing.assert_allclose(thoughts.observed[:, 0], moved[:, None] + x0, rtol=1e-12)
  np.testing.assert_allclose(thoughts.energies[:, 0], [-1, -1.4, -2.0], rtol=1e-12)
  found = thinking.think_and_verify(slide, SPACE, params, None, x0[None], KEY, config, observe=lambda x: x)
  np.testing.assert_allclose(found.observed[:, 0], thoughts.observed, rtol=1e-12)
  np.testing.assert_allclose(found.final[0], [-1 - 2 * moved[-1]], rtol=1e-12)
  np.testing.assert_allclose(found.candidates[0], thoughts.candidate, rtol=1e-12)


@pytest.mark.parametrize(
  "repeats, order",
  [
    (None, [0, 1, 2, 2, 2]),
    ([2, 1, 3], [0, 0, 1, 2, 2, 2]),
    ([9, 1, 2], [0] * 9 + [1] + [2] * 2),  # more than the config would draw
  ],
)
def test_landscapes_are_descended_in_order(x64, repeats, order):
  a, stiffness = 0.3, np.array([1.0, 2.0, 0.5])
  centres = jax.random.normal(KEY, (3, 2, 4))
  x = x0 = np.asarray(jax.random.normal(jax.random.key(1), (2, 4)))
  for k in order:
    x = x - a * stiffness[k] * (x - np.asarray(centres[k]))
  config = ThinkingConfig(steps=5, landscapes=3)
  randomness = thinking.Randomness(repeats=repeats and jnp.array(repeats))
  params = parameters(a, stiffness=jnp.asarray(stiffness))
  thoughts = thinking.think(bowl, SPACE, params, thinking.PerLandscape(centres), x0, KEY, config, randomness=randomness)
  np.testing.assert_allclose(thoughts.candidate, x, rtol=1e-12)
  assert thoughts.steps_used == len(order)


def test_points_of_a_plane_find_the_minima_of_a_double_well():
  """All that is needed to think about something else than text: an energy, a space, a start."""

  def double_well(params, context, y):
    return (y[..., 0] ** 2 - 1) ** 2 + y[..., 1] ** 2

  space = thinking.Euclidean(start_scale=1.0, bound=2.0)
  start = space.start(jax.random.key(0), (64, 2))
  config = ThinkingConfig(steps=200, step_size=0.05)
  thoughts = thinking.think(double_well, space, {"model": {}}, (), start, KEY, config)
  found = space.decode({}, thoughts.candidate)
  np.testing.assert_allclose(found, np.stack([np.sign(start[:, 0]), np.zeros(64)], -1), atol=1e-3)
  assert np.all(np.diff(thoughts.energies, axis=0) <= 1e-6)


def test_parts_of_a_candidate_descend_together(x64):
  """A robot's action, say: several arrays, one energy for each row, each part at the rate of its own stiffness."""

  def action(params, context, y):
    near = context["stiff"] * jnp.sum((y["position"] - context["position"]) ** 2, (-2, -1))
    return 0.5 * (near + jnp.sum((y["grip"] - 1) ** 2, -1))

  space = thinking.Euclidean(bound=3.0)
  start = space.start(KEY, {"position": (4, 2, 3), "grip": (4, 5)})
  context = {"stiff": jnp.linspace(0.5, 2.0, 4), "position": jax.random.normal(KEY, (4, 2, 3))}
  config = ThinkingConfig(steps=6, step_size=0.3)
  thoughts = thinking.think(action, space, {"model": {}}, context, start, KEY, config)
  rate = (1 - 0.3 * context["stiff"][:, None, None]) ** 6
  far = start["position"] - context["position"]
  np.testing.assert_allclose(thoughts.candidate["position"], context["position"] + rate * far, rtol=1e-10)
  np.testing.assert_allclose(thoughts.candidate["grip"], 1 + 0.7**6 * (start["grip"] - 1), rtol=1e-10)
  np.testing.assert_allclose(thoughts.energies[0], action({}, context, start), rtol=1e-12)
  assert thoughts.energies.shape == (6, 4)
  still = ThinkingConfig(steps=1, step_size=1e-9, noise=0.5)
  noisy = thinking.think(action, space, {"model": {}}, context, start, KEY, still, training=True).candidate
  noise = {name: (noisy[name] - start[name]).ravel() / 0.5 for name in start}
  assert np.std(noise["grip"]) > 0.3 and np.abs(noise["grip"] - noise["position"][:20]).max() > 0.1  # of their own


def test_a_context_without_landscapes_serves_all_rows_and_landscapes(x64):
  """Read as one context for each of two landscapes it would send both rows to the first one's."""
  context = jnp.arange(6.0).reshape(2, 3)
  x0 = jnp.zeros((2, 3))
  for landscapes in (1, 2):
    params = parameters(0.5, stiffness=jnp.ones(landscapes))
    config = ThinkingConfig(steps=40, landscapes=landscapes)
    found = thinking.think(bowl, SPACE, params, context, x0, KEY, config).candidate
    np.testing.assert_allclose(found, context, atol=1e-10)


def test_step_size_and_noise_come_from_the_parameters_or_else_from_the_config():
  x0 = jnp.zeros((1, 400))
  config = ThinkingConfig(steps=1, step_size=0.25, noise=0.5)

  def run(**params):
    return thinking.think(slide, SPACE, {"model": {}, **params}, (), x0, KEY, config, training=True).candidate

  assert run().mean() == pytest.approx(0.25, abs=0.1) and run().std() == pytest.approx(0.5, abs=0.1)
  given = run(thinking={"step_size": jnp.float32(2.0)})  # the noise is still the config's
  np.testing.assert_allclose(given - 2.0, run() - 0.25, atol=1e-6)


@pytest.mark.parametrize(
  "energy, takes",
  [
    (lambda p, c, y: -jnp.sum(y, -1), None),
    (lambda p, c, y, landscape=0: -jnp.sum(y, -1), None),
    (lambda *args: -jnp.sum(args[2], -1) * len(args) / 4, None),
    (lambda p, y: -jnp.sum(y, -1), "found 2 arguments"),
  ],
)
def test_an_energy_may_leave_out_the_landscape(energy, takes):
  run = lambda: thinking.think(energy, SPACE, {"model": {}}, (), jnp.zeros((2, 3)), KEY, ThinkingConfig(1))
  if takes:
    with pytest.raises(TypeError, match=takes):
      run()
  else:
    np.testing.assert_allclose(run().candidate, 5.0)  # a step of the default size


def test_a_key_for_each_row_makes_its_thoughts_its_own(x64):
  config = ThinkingConfig(steps=3, noise=0.5, random_step_size=2.0)
  context, x0 = jax.random.normal(KEY, (2, 4, 3, 5))
  keys = jax.random.split(KEY, 4)
  run = lambda rows: thinking.think(
    valley, SPACE, parameters(0.1, 0.5), context[rows], x0[rows], keys[rows], config, training=True
  )
  some = np.array([2, 0])
  np.testing.assert_allclose(run(some).candidate, run(slice(None)).candidate[some], rtol=1e-12)
  with pytest.raises(ValueError, match="random_steps_min: all rows take the same random number"):
    random = dataclasses.replace(config, random_steps_min=1)
    thinking.think(valley, SPACE, parameters(0.1), context, x0, keys, random, training=True)


@pytest.mark.parametrize(
  "message, changes",
  [
    (r"found energies \[2, 3\] and a candidate \[2, 4\]", {"energy": lambda p, c, y: y[:, :3]}),
    (
      r"context\['h'\]: expected .*thinking.landscapes = 2, found shape \[3, 4\]",
      {"context": {"h": jnp.zeros((3, 4))}},
    ),
    (r"step_size: expected a number for each energy, \[2\], found \[2, 1\]", {"step_size": jnp.zeros((2, 1))}),
    ("repeats: expected one number for each of .* = 2, found 3", {"repeats": np.array([1, 1, 1])}),
  ],
)
def test_what_does_not_fit_is_told_at_the_door(message, changes):
  config = ThinkingConfig(steps=2, landscapes=2, random_step_size=2.0 if "step_size" in changes else 1.0)
  energy = changes.get("energy", lambda p, c, y: jnp.sum(y, -1))
  context = thinking.PerLandscape(changes["context"]) if "context" in changes else ()
  randomness = thinking.Randomness(changes.get("step_size"), None, changes.get("repeats"))
  args = ({"model": {}}, context, jnp.ones((2, 4)), KEY, config)
  with pytest.raises(ValueError, match=message):
    thinking.think(energy, SPACE, *args, training=True, randomness=randomness)
  measure = lambda params, context, x, energies, i, count: (jnp.sum(x), ())
  for mode in ("each", "last", "unrolled"):
    config = dataclasses.replace(config, gradient=mode)
    with pytest.raises(ValueError, match=message):
      thinking.thinking_loss(energy, SPACE, measure, *args[:-1], config, randomness=randomness)


def test_one_row_alone_thinks_what_it_thinks_among_eight(x64):
  config = ThinkingConfig(steps=3, noise=0.5, random_step_size=2.0)
  context, x0 = jax.random.normal(KEY, (2, 8, 3, 4))
  randomness = thinking.Randomness(
    step_size=jax.random.uniform(KEY, (8, 3)), noise=jax.random.normal(jax.random.key(1), (3, *x0.shape))
  )
  run = lambda context, x0, randomness: thinking.think(
    valley, SPACE, parameters(0.1, 0.5), context, x0, KEY, config, training=True, randomness=randomness
  )
  alone = thinking.Randomness(randomness.step_size[2:3], randomness.noise[:, 2:3])
  eight, one = run(context, x0, randomness), run(context[2:3], x0[2:3], alone)
  np.testing.assert_allclose(one.candidate, eight.candidate[2:3], rtol=1e-12)
  np.testing.assert_allclose(one.energies, eight.energies[:, 2:3], rtol=1e-12)


def test_a_traced_number_of_steps_equals_a_static_one_and_the_rest_is_zero():
  params, x0, most = parameters(0.1), jax.random.normal(KEY, (2, 3)), 4

  @jax.jit
  def traced(repeats):
    config = ThinkingConfig(steps=most)
    return thinking.think(valley, SPACE, params, x0, x0, KEY, config, randomness=thinking.Randomness(repeats=repeats))

  for n in range(1, most + 1):
    got, static = traced(jnp.array([n])), thinking.think(valley, SPACE, params, x0, x0, KEY, ThinkingConfig(n))
    np.testing.assert_allclose(got.candidate, static.candidate, rtol=1e-6)
    np.testing.assert_allclose(got.energies[:n], static.energies, rtol=1e-6)
    assert got.steps_used == n and not got.energies[n:].any()
  assert traced._cache_size() == 1


def test_randomness_from_outside_equals_that_of_the_key():
  """What the key draws is seen where the energy is known to be a slide or flat, then brought from outside."""
  config = ThinkingConfig(steps=4, noise=0.3, random_step_size=2.0)
  base, sigma, x0 = 0.2, 0.3, jax.random.normal(KEY, (2, 3, 5))

  def run(energy, randomness=thinking.Randomness(), **changes):
    c = dataclasses.replace(config, **changes)
    return thinking.think(
      energy, SPACE, parameters(base, sigma), x0, x0, KEY, c, training=True, randomness=randomness, observe=lambda x: x
    )

  sizes = run(slide, noise=0.0, steps=1).observed[0] - x0
  flat = run(lambda params, context, y, landscape: 0.0 * jnp.sum(y, -1)).observed
  noise = jnp.diff(jnp.concatenate([x0[None], flat]), axis=0) / sigma
  uniform = ((sizes - base / 2) / (2 * base - base / 2))[..., 0]
  own = streams.fold(streams.split(KEY, 2)[1], 0)  # the noise of step i has fold 1 + i
  np.testing.assert_allclose(uniform, jax.random.uniform(own, (2, 3)), rtol=1e-4, atol=1e-5)
  both = thinking.Randomness(step_size=uniform, noise=noise)
  from_key = run(valley).candidate
  np.testing.assert_allclose(run(valley, both).candidate, from_key, rtol=1e-4, atol=1e-5)
  for kept in (both._replace(step_size=1 - uniform), both._replace(noise=noise[::-1])):
    assert jnp.abs(run(valley, kept).candidate - from_key).max() > 1e-2
  assert np.abs(np.corrcoef(noise.reshape(4, -1)) - np.eye(4)).max() < 0.5  # steps do not share their noise


@pytest.mark.parametrize("shape", [(8, 512, 2), (4096, 2, 3, 1)], ids=["text", "images"])
def test_a_random_step_size_is_one_draw_for_each_energy(shape):
  """Of a position of a text, whose energies are `[b, s]`, and of a whole image, whose energies are `[b]`."""
  config = ThinkingConfig(steps=3, random_step_size=3.0)
  base, x0, text = 2.0, jnp.zeros(shape), len(shape) == 3
  slide = lambda params, context, y: -jnp.sum(y, -1 if text else (1, 2, 3))
  thoughts = thinking.think(slide, SPACE, parameters(base), x0, x0, KEY, config, training=True, observe=lambda x: x)
  sizes = np.diff(np.concatenate([x0[None], thoughts.observed]), axis=0)
  one = sizes[:1, ..., :1] if text else sizes[:1, :, :1, :1, :1]
  np.testing.assert_allclose(sizes, np.broadcast_to(one, sizes.shape), rtol=1e-5)
  u = (one.ravel() - base / 3) / (base * 3 - base / 3)
  assert u.min() > -1e-6 and u.max() < 1 + 1e-6
  ranks = np.arange(u.size) / u.size
  assert np.abs(np.sort(u) - ranks).max() < 1.95 / u.size**0.5  # Kolmogorov-Smirnov, 0.1%


@pytest.mark.parametrize("which", ["every", "final"])
def test_random_numbers_of_steps_are_uniform(which):
  config = ThinkingConfig(steps=5, landscapes=2, random_steps_min=2, random_steps_of=which)
  n = 4000
  plan = jax.vmap(lambda key: thinking.step_plan(config, True, key))(jax.random.split(KEY, n))
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
    assert len(thinking.step_plan(config, True, KEY).landscapes) == longest


def test_evaluation_draws_nothing():
  random = ThinkingConfig(steps=4, noise=0.5, random_step_size=2.0, random_steps_min=1)
  x0 = jax.random.normal(KEY, (2, 3))
  run = lambda config, seed: thinking.think(valley, SPACE, parameters(0.1, 0.5), x0, x0, jax.random.key(seed), config)
  plain = run(ThinkingConfig(steps=4), 0)
  for seed in (1, 2):
    np.testing.assert_array_equal(run(random, seed).candidate, plain.candidate)
  noisy = dataclasses.replace(random, authors=AuthorsConfig(eval_noise=True))
  assert jnp.any(run(noisy, 1).candidate != run(noisy, 2).candidate)


def test_noise_may_fall_from_landscape_to_landscape():
  config = ThinkingConfig(steps=5, landscapes=4, noise=2.0, noise_falls=True)
  still = lambda params, context, y, landscape: jnp.zeros(y.shape[0])
  seen = thinking.think(
    still, SPACE, parameters(0.1, noise=2.0), None, jnp.zeros((1, 3)), KEY, config, training=True, observe=lambda x: x,
    randomness=thinking.Randomness(noise=jnp.ones((5, 1, 3))),
  ).observed  # fmt: skip
  np.testing.assert_allclose(np.diff(seen[:, 0, 0], prepend=0), [2.0, 1.5, 1.0, 0.5, 0.5], rtol=1e-5)


def test_floors_and_bounds_of_a_step():
  x0 = jnp.zeros((2, 3))
  one = lambda step_size, **options: np.asarray(
      thinking.think(
          slide, thinking.Euclidean(bound=options.pop("bound", 0.0)), parameters(step_size), x0, x0, KEY,
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
  got = thinking.think(cubic, space, params, (), x0, KEY, config, observe=lambda x: x).observed

  softmax = lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True)
  x = x0
  for i in range(2):
    first = options.get("normalize") != "never" if i == 0 else second == "softmax"
    p = softmax(x) if first else x
    x = p - a * (p @ table) ** 2 @ table.T
    x = np.clip(x, -options["clip"], options["clip"]) if "clip" in options else x
    x = x / options["sharpen"] if "sharpen" in options else x
    np.testing.assert_allclose(got[i], x, rtol=1e-12)
