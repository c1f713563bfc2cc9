"""Losses against closed forms in numpy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import losses

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 3, 5)) * 3
TARGETS = RNG.integers(0, 5, (2, 3))
WEIGHTS = np.array([[1.0, 0.0, 2.0], [0.5, 1.0, 0.0]])


@pytest.mark.parametrize("smoothing", [0.0, 0.25, jnp.asarray(0.25)], ids=["none", "number", "traced"])
def test_token_losses_are_cross_entropies_with_smoothed_targets(x64, smoothing):
  log_p = LOGITS - np.log(np.exp(LOGITS).sum(-1, keepdims=True))
  s = float(smoothing)
  wanted = (1 - s) * np.eye(5)[TARGETS] + s / 5
  expected = -(wanted * log_p).sum(-1)
  found = losses.token_losses(jnp.asarray(LOGITS), jnp.asarray(TARGETS), smoothing)
  np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_token_losses_survive_extreme_logits():
  logits = jnp.array([[[1e4, -1e4]]])
  loss, pull = jax.vjp(lambda x: losses.token_losses(x, jnp.array([[1]])), logits)
  assert loss == 2e4
  np.testing.assert_array_equal(pull(jnp.ones((1, 1)))[0], [[[1, -1]]])


def test_energy_contrast_is_the_two_way_cross_entropy(x64):
  true, predicted = jnp.asarray(RNG.normal(size=(2, 2, 3)) * 4)
  weights = jnp.asarray(WEIGHTS)
  p = np.exp(-true) / (np.exp(-true) + np.exp(-predicted))
  got = losses.energy_contrast(true, predicted, weights)
  np.testing.assert_allclose(got, -(WEIGHTS * np.log(p)).sum(), rtol=1e-12)
  assert losses.energy_contrast(true - 1, predicted, weights) < got
