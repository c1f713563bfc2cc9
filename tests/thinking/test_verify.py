"""Thinking at inference on energies that need no model: how long, which steps, which candidate."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import thinking
from ebt_jax.config import AuthorsConfig, InferenceConfig, ThinkingConfig

KEY = jax.random.key(3)
SPACE = thinking.Euclidean()
THINK = ThinkingConfig(steps=2)


def bowl(params, context, y, landscape):
  """dE/dy = y - context."""
  return 0.5 * jnp.sum((y - context) ** 2, -1)


def wells(params, context, y, landscape):
  """Minima near -1 and 1, the second one deeper."""
  return jnp.sum((y**2 - 1) ** 2 - 0.3 * y, -1)


def hills(params, context, y, landscape):
  """Landscape 0 pulls down, landscape 1 up, each with slope 1."""
  return jnp.where(landscape == 0, 1.0, -1.0) * jnp.sum(y, -1)


def verify(energy, starts, inference, context=None, step_size=0.5, config=THINK, noise=0.0, **options):
  params = {"model": {}, "thinking": {"step_size": jnp.asarray(step_size), "noise": jnp.asarray(noise)}}
  context = jnp.zeros(starts.shape[1:]) if context is None else context
  call = lambda starts: thinking.think_and_verify(
    energy, SPACE, params, context, starts, KEY, config, inference, **options
  )
  return jax.jit(call)(starts)


def test_each_position_stops_where_its_energy_has_settled(x64):
  distance = np.array([[0.0, 1e-3, 1.0, 100.0]])
  starts = jnp.asarray(distance)[..., None]  # one candidate at four positions
  found = verify(bowl, starts, InferenceConfig(steps=40, tolerance=1e-6), observe=lambda x: x)
  # energy d^2/2 falls to a quarter in each step; the step after the first fall below the tolerance is not made
  fall = lambda d, i: (d * 0.5**i) ** 2 / 2 * 0.75
  used = [next(i + 1 for i in range(40) if fall(d, i) < 1e-6) for d in distance[0]]
  assert found.steps_used.tolist() == [used] and used[0] == 1 < used[2] < used[3] < 40
  np.testing.assert_allclose(found.candidates[0, :, 0], [d * 0.5**n for d, n in zip(distance[0], used)])
  assert found.energies.shape == (40, 1, 4) and found.observed.shape == (40, 1, 4, 1)
  np.testing.assert_array_equal(found.energies[-1], found.final)  # the rest of the budget repeats the end
  np.testing.assert_array_equal(found.observed[-1], found.candidates)
  alone = verify(bowl, starts[:, 2:3], InferenceConfig(steps=40, tolerance=1e-6))
  np.testing.assert_array_equal(alone.steps_used, found.steps_used[:, 2:3])


def test_free_energy_is_stationary_where_thinking_rests_and_chooses(x64):
  """x = softmax(x) - a E'(p) at rest; there the gradient of a E - H - |p|^2 / 2 is the same in all directions."""
  space, size = thinking.Simplex(table=lambda params: jnp.eye(5)), 0.7

  def tilted(params, context, y, landscape):
    return jnp.sum(context * y + y**3, -1)

  context, starts = jnp.array([0.3, -1.0, 0.2, 0.9, -0.5]), jax.random.normal(jax.random.key(0), (3, 1, 5), float)
  params = {"model": {}, "thinking": {"step_size": jnp.asarray(size), "noise": jnp.asarray(0.0)}}
  inference = InferenceConfig(steps=200, choose="free_energy")
  found = thinking.think_and_verify(tilted, space, params, context, starts, KEY, THINK, inference)
  p = jax.nn.softmax(found.candidates[0, 0])
  free = lambda p: size * jnp.sum(context * p + p**3) + jnp.sum(p * jnp.log(p)) - jnp.sum(p * p) / 2
  gradient = jax.grad(free)(p)
  np.testing.assert_allclose(gradient, gradient[0], rtol=1e-6)
  assert float(np.ptp(jax.grad(lambda p: jnp.sum(context * p + p**3))(p))) > 0.1  # where E alone is not
  few = thinking.think_and_verify(
    tilted, space, params, context, starts, KEY, THINK, InferenceConfig(steps=1, choose="free_energy")
  )
  values = jax.vmap(free)(jax.nn.softmax(few.candidates[:, 0]))
  assert few.kept.tolist() == [int(values.argmin())] and np.ptp(values) > 1e-3


def test_a_rising_energy_has_not_settled():
  starts = jnp.asarray([[[0.0], [1.0]]])
  found = verify(
    bowl, starts, InferenceConfig(steps=6, tolerance=1e-3), step_size=2.1
  )  # each step is 1.1 times too far
  assert found.steps_used.tolist() == [[1, 6]]


def test_without_tolerance_all_of_the_budget_is_used():
  found = verify(bowl, jnp.ones((1, 3, 2)), InferenceConfig(steps=5))
  assert found.steps_used.tolist() == [[5] * 3]
  assert verify(bowl, jnp.ones((1, 3, 2)), InferenceConfig()).energies.shape[0] == THINK.steps


def test_the_candidate_that_verifies_best_is_kept():
  starts = jnp.array([[-1.5, 0.9], [0.2, -0.4], [1.9, -3.0]])[..., None]  # three candidates at two positions
  found = verify(wells, starts, InferenceConfig(steps=60), step_size=0.02)
  np.testing.assert_allclose(found.final, wells(None, None, found.candidates, 0), rtol=1e-6)
  assert found.kept.tolist() == np.asarray(found.final).argmin(0).tolist()
  best = found.best(found.candidates)[..., 0]
  assert (best > 0.9).all() and (
    np.asarray(found.candidates)[..., 0].min(0) < -0.8
  ).all()  # others sit in the other well
  np.testing.assert_array_equal(
    found.best(found.energies, 1)[-1], [found.energies[-1, k, i] for i, k in enumerate(found.kept)]
  )
  fall = verify(wells, starts, InferenceConfig(steps=60, choose="fall"), step_size=0.02)
  assert fall.kept.tolist() == np.asarray(found.energies[0] - found.final).argmax(0).tolist() != found.kept.tolist()


def test_steps_that_raise_the_energy_are_not_made():
  starts = jnp.array([[[1.0], [0.0]]])  # a step of 2.5 leaves the bowl, unless it starts in its middle
  kept = verify(bowl, starts, InferenceConfig(steps=3, accept="lower"), step_size=2.5)
  np.testing.assert_array_equal(kept.candidates, starts)
  lost = verify(bowl, starts, InferenceConfig(steps=3), step_size=2.5)
  np.testing.assert_allclose(lost.candidates[0, :, 0], [-3.375, 0.0])
  fine = verify(bowl, starts, InferenceConfig(steps=3, accept="lower"), step_size=0.5)
  np.testing.assert_allclose(fine.candidates[0, :, 0], [0.125, 0.0])


def test_candidates_of_several_parts_with_one_energy_are_kept_whole(x64):
  """Images `[h, w]` with a label beside them: one energy for a row decides for all of its numbers."""

  def energy(params, context, y):
    return 0.5 * (jnp.sum((y["image"] - context) ** 2, (1, 2)) + y["label"] ** 2)

  context = jax.random.normal(KEY, (3, 2, 2))
  away = jnp.array([[1.0, 5.0, 1e-4], [3.0, 2.0, 1e-4]])  # of two candidates from three truths
  starts = {"image": context + away[..., None, None], "label": away}
  inference = InferenceConfig(steps=9, tolerance=1e-3, accept="lower")
  found = thinking.think_and_verify(
    energy, SPACE, {"model": {}}, context, starts, KEY, ThinkingConfig(2, step_size=0.5), inference,
    observe=lambda x: x["image"] - context,
  )  # fmt: skip
  left = away * 0.5 ** np.asarray(found.steps_used)
  np.testing.assert_allclose(found.candidates["label"], left, rtol=1e-12)
  np.testing.assert_allclose(found.candidates["image"] - context, jnp.broadcast_to(left[..., None, None], (2, 3, 2, 2)))
  assert found.steps_used[:, 2].tolist() == [1, 1] and found.steps_used[1, 0] > 5
  assert found.kept.tolist() == np.asarray(left).argmin(0).tolist()
  best = found.best(found.candidates)
  assert best["image"].shape == (3, 2, 2)
  np.testing.assert_allclose(best["label"], np.asarray(left).min(0), rtol=1e-12)
  seen = found.best(found.observed, 1)
  assert seen.shape == (9, 3, 2, 2)
  np.testing.assert_allclose(seen[-1], best["image"] - context, rtol=1e-9)


@pytest.mark.parametrize(
  "space, starts, error, message",
  [
    (SPACE, jnp.zeros(()), ValueError, r"candidates0: expected a leading axis .* found shapes \[\]"),
    (SPACE, {"a": jnp.zeros((2, 3)), "b": jnp.zeros((4, 3))}, ValueError, r"found shapes \[2, 3\], \[4, 3\]"),
    (
      SPACE,
      jnp.zeros((2, 3)),
      ValueError,
      r"leading axis of candidates, also for one: .*\[2, 4\].*\[2, 3\]",
    ),  # no axis of candidates
    (thinking.ChunkedSimplex(lambda p: p, 5), jnp.zeros((2, 3)), TypeError, "ChunkedSimplex .* use Simplex"),
  ],
)
def test_candidates_that_do_not_fit_are_refused(space, starts, error, message):
  energy = lambda params, context, y: jnp.sum(jax.tree.leaves(y)[0]) + context
  with pytest.raises(error, match=message):
    thinking.think_and_verify(energy, space, {"model": {}}, jnp.zeros(4), starts, KEY)


@pytest.mark.parametrize(
  "how, end",
  [
    (dict(steps=4), 1 * -1.0 + 3),
    (dict(steps=4, steps_of="every"), 0.0),
    (dict(steps=4, step_size_factor=2.0), 2 * (-1.0 + 3)),
    (dict(steps=4, step_size_factor=2.0, adjust="final"), -1.0 + 2 * 3),
  ],
)
def test_landscapes_and_step_sizes(how, end):
  config = ThinkingConfig(steps=2, landscapes=2)
  found = verify(hills, jnp.zeros((1, 1, 1)), InferenceConfig(**how), step_size=1.0, config=config)
  assert found.candidates.item() == pytest.approx(end)


def test_noise_can_be_asked_for_and_verification_is_free_of_it():
  starts = jnp.zeros((1, 500, 1))
  still, noisy = (verify(bowl, starts, InferenceConfig(steps=1, noise=n), step_size=1e-6) for n in (0.0, 0.7))
  np.testing.assert_array_equal(still.candidates, starts)
  assert np.std(noisy.candidates) == pytest.approx(0.7, rel=0.1)
  np.testing.assert_allclose(noisy.final, bowl(None, 0.0, noisy.candidates, 0), rtol=1e-5)
  trained = dataclasses.replace(THINK, noise=0.7, authors=AuthorsConfig(eval_noise=True))
  same = verify(bowl, starts, InferenceConfig(steps=1), step_size=1e-6, config=trained, noise=0.7)
  np.testing.assert_allclose(same.candidates, noisy.candidates, rtol=1e-6)
