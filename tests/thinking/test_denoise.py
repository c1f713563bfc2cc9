"""The loss of the slope of an energy against the noise of a noised answer, for a bowl whose slope is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import thinking
from ebt_jax.config import ThinkingConfig

CONFIG = ThinkingConfig(steps=4, landscapes=4)


def bowl(params, context, y, landscape):
  """Stiffer by one in each landscape."""
  return 0.5 * (params["stiffness"] + landscape) * jnp.sum((y - context) ** 2, -1)


@pytest.mark.parametrize("rule", [thinking.double_reverse, thinking.reverse_over_forward])
def test_the_errors_are_those_of_the_slope_and_have_its_derivative(x64, rule):
  answer, noise, known = np.random.default_rng(0).normal(size=(3, 2, 5))
  for landscape, share in enumerate((1.0, 0.75, 0.5, 0.25)):
    x = answer + share * noise
    stiffness = 2.0 + landscape

    def total(value):
      params = {"model": {"stiffness": value}}
      errors, energies = thinking.denoise(
        bowl, thinking.Euclidean(), params, known, answer, noise, landscape, CONFIG, rule
      )
      return jnp.sum(errors), (errors, energies)

    (_, (errors, energies)), gradient = jax.value_and_grad(total, has_aux=True)(2.0)
    missed = stiffness * (x - known) / share - noise
    np.testing.assert_allclose(errors, missed**2, rtol=1e-9)
    np.testing.assert_allclose(energies, 0.5 * stiffness * ((x - known) ** 2).sum(-1), rtol=1e-9)
    np.testing.assert_allclose(gradient, np.sum(2 * missed * (x - known) / share), rtol=1e-9)


def test_targets_are_corners():
  space = thinking.Corners(embedding=lambda params, x: x @ params, choices=3)
  found = space.point(jnp.array([[2, 0]]))
  assert found.tolist() == [[[-1, -1, 1], [1, -1, -1]]]
  assert space.decode(None, found).tolist() == [[2, 0]]
  np.testing.assert_array_equal(space.embed_target(jnp.eye(3), jnp.array([[2, 0]])), found)
  with pytest.raises(NotImplementedError, match="use Corners"):
    thinking.Simplex(table=lambda params: params).point(jnp.array([1]))
