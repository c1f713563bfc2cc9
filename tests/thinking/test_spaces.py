"""Candidate spaces alone: how starts and noise are spread, and what a candidate stands for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ebt_jax import thinking
from ebt_jax.thinking import spaces

KEYS = jax.random.split(jax.random.key(5), 300)
wide = jax.jit(spaces.wide_normal, static_argnums=1)


def test_wide_noise_is_standard_normal_and_independent():
  found = np.asarray(wide(KEYS.reshape(3, 100), 301))
  assert found.shape == (3, 100, 301) and found.dtype == np.float32
  flat = np.sort(found.ravel())
  distance = np.abs(stats.norm.cdf(flat) - np.arange(flat.size) / flat.size).max()
  assert distance < 1.95 / flat.size**0.5  # Kolmogorov-Smirnov, 0.1%
  assert 4 < np.abs(flat).max() <= 4.33
  columns = found.reshape(300, 301)
  for a, b in ((columns[:-1], columns[1:]), (columns[:, :-1], columns[:, 1:]), (columns[:, :150], columns[:, 151:])):
    assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4.5 / a.size**0.5  # rows, neighbours, halves of a word
  assert len(set(map(bytes, columns))) == 300
  np.testing.assert_array_equal(wide(KEYS[:2], 301), columns[:2])  # a position has its own key


@pytest.mark.parametrize("space", [thinking.Euclidean(start_scale=3.0), thinking.Simplex(lambda p: p, start_scale=3.0)])
def test_a_start_has_its_scale_and_a_key_for_each_row(space):
  rows = space.start(KEYS, (300, 4, 25))
  assert rows.shape == (300, 4, 25) and np.std(rows) == pytest.approx(3.0, rel=0.02)
  assert abs(np.mean(rows)) < 4.5 * 3 / rows.size**0.5
  np.testing.assert_array_equal(space.start(KEYS[7:9], (2, 4, 25)), rows[7:9])
  one = space.start(KEYS[0], (2, 4, 25))
  assert np.abs(one[0] - one[1]).max() > 1
  noisy = space.add_noise(rows, KEYS, 0.5) - rows
  assert np.std(noisy) == pytest.approx(0.5, rel=0.02)


def test_parts_of_a_start_are_draws_of_their_own():
  start = thinking.Euclidean().start(KEYS[0], {"a": (50,), "b": (50,), "c": (2, 25)})
  flat = np.stack([np.asarray(a).ravel() for a in start.values()])
  assert np.abs(np.corrcoef(flat) - np.eye(3)).max() < 0.6
  still = thinking.Euclidean(start_scale=0.0).start(KEYS[0], {"a": (3,)})
  assert still["a"].tolist() == [0, 0, 0]


def test_what_a_candidate_in_the_simplex_stands_for():
  table = jnp.asarray([[1.0, 0.0], [0.0, 2.0], [3.0, 3.0]])
  space = thinking.Simplex(lambda params: params["table"])
  x = jnp.log(jnp.asarray([[0.7, 0.2, 0.1], [0.25, 0.25, 0.5]]))
  params = {"table": table}
  np.testing.assert_allclose(space.energy_input(params, x, 0), [[1.0, 0.7], [1.75, 2.0]], rtol=1e-6)
  assert space.decode(params, x).tolist() == [0, 2] and space.decode(params, x[:, None]).tolist() == [[0], [2]]
  np.testing.assert_array_equal(space.embed_target(params, jnp.asarray([2, 1])), [[3, 3], [0, 2]])
  p = jnp.exp(x)
  np.testing.assert_allclose(space.signals(x)["entropy"], -(p * np.log(p)).sum(-1), rtol=1e-6)
  np.testing.assert_allclose(
    space.potential(x), (p * np.log(p) - p**2 / 2).sum(-1), rtol=1e-6
  )  # also of shifted logits
  np.testing.assert_allclose(space.potential(x + 3), space.potential(x), rtol=1e-5)
  slope = jnp.asarray([[1.0, -1.0], [0.5, 2.0]])
  general = thinking.ArraySpace.embed_vjp(space, params, p, slope)
  np.testing.assert_allclose(space.embed_vjp(params, p, slope), general, rtol=1e-6)
  np.testing.assert_allclose(general, [[1, -2, 0], [0.5, 4, 7.5]], rtol=1e-6)


def test_an_embedding_and_bounds_of_a_vector():
  space = thinking.Euclidean(lambda params, x: params * x**2, bound=1.5)
  x, size = jnp.asarray([[1.0, -0.5]]), jnp.asarray([0.25])
  np.testing.assert_allclose(space.energy_input(3.0, x, 0), [[3.0, 0.75]])
  slope = jnp.asarray([[-1.0, 2.0]])  # dE/dx = slope * 6x = [-6, -6]
  np.testing.assert_allclose(space.step(3.0, x, 0, slope, size), [[1.5, 1.0]])
  np.testing.assert_allclose(space.step(3.0, x, 0, slope, size, bound=1.0), [[1.25, -0.25]])
