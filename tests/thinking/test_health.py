"""Signals of thinking on an energy whose curvature is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import thinking
from ebt_jax.config import ThinkingConfig

STIFFNESS = jnp.array([0.5, 1.0, 3.0])
WEIGHTS = jnp.array([[1.0, 1.0], [0.0, 2.0]])


def ellipse(params, context, y, landscape):
  return 0.5 * jnp.sum(STIFFNESS * (y - context) ** 2, -1)


def look(step_size):
  params = {"model": {}, "thinking": {"step_size": jnp.float64(step_size), "noise": jnp.float64(0.0)}}
  start = jax.random.normal(jax.random.key(0), (2, 2, 3))
  config = ThinkingConfig(steps=3, step_size=step_size)
  see = lambda x: {"first": x[..., 0]}
  args = (
    ellipse,
    thinking.Euclidean(),
    params,
    jnp.zeros((1, 2, 2, 3)),
    start,
    WEIGHTS,
    jax.random.key(1),
    config,
    see,
  )
  found = thinking.look(*args, iterations=60)
  return start, {k: float(v) for k, v in found.items()}


def test_signals_are_weighted_means_of_what_happens(x64):
  start, found = look(0.2)
  mean = lambda a: np.average(a, weights=WEIGHTS)
  for i in range(4):
    x = start * (1 - 0.2 * STIFFNESS) ** i
    assert found[f"energy_{i + 1}"] == pytest.approx(mean(ellipse(None, 0.0, x, 0)))
    assert found[f"gradient_norm_{i + 1}"] == pytest.approx(mean(jnp.linalg.norm(STIFFNESS * x, axis=-1)))
    assert found[f"first_{i + 1}"] == pytest.approx(mean(x[..., 0]))
  assert found["curvature"] == pytest.approx(0.2 * 3, rel=1e-3)
  assert found["growth"] == pytest.approx(1 - 0.2 * 0.5, rel=1e-3) and found["unsettled"] == 0
  assert thinking.advice(found, 3) == []


def test_divergence_is_told_with_its_remedy(x64):
  _, found = look(0.9)
  assert found["curvature"] == pytest.approx(2.7, rel=1e-3)
  assert found["growth"] == pytest.approx(1.7, rel=1e-3) and found["unsettled"] == 1
  climbs, unsettled = thinking.advice(found, 3)
  assert "raises the energy" in climbs and "lower config.thinking.step_size" in climbs
  assert "does not settle" in unsettled and "1.7 times" in unsettled
