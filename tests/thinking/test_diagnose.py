"""Signals of thinking on energies whose curvature is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import thinking
from ebt_jax.config import AuthorsConfig, ThinkingConfig

STIFFNESS = jnp.array([0.5, 1.0, 3.0])
WEIGHTS = jnp.array([[1.0, 1.0], [0.0, 2.0]])


def ellipse(params, context, y, landscape):
  return 0.5 * jnp.sum(STIFFNESS * (y - context) ** 2, -1)


def diagnose(step_size, **options):
  params = {"model": {}, "thinking": {"step_size": jnp.float64(step_size), "noise": jnp.float64(0.0)}}
  start = jax.random.normal(jax.random.key(0), (2, 2, 3))
  config = ThinkingConfig(steps=3, **options)
  see = lambda x: {"first": x[..., 0]}
  found = thinking.diagnose(
    ellipse, thinking.Euclidean(), params, 0.0, start, WEIGHTS, jax.random.key(1), config, signals=see, iterations=60
  )
  return start, {k: float(v) for k, v in found.items()}


def test_signals_are_weighted_means_of_what_happens(x64):
  start, found = diagnose(0.2)
  mean = lambda a: np.average(a, weights=WEIGHTS)
  for i in range(4):
    x = start * (1 - 0.2 * STIFFNESS) ** i
    assert found[f"energy_{i + 1}"] == pytest.approx(mean(ellipse(None, 0.0, x, 0)))
    assert found[f"gradient_norm_{i + 1}"] == pytest.approx(mean(jnp.linalg.norm(STIFFNESS * x, axis=-1)))
    assert found[f"first_{i + 1}"] == pytest.approx(mean(x[..., 0]))
  assert found["curvature"] == pytest.approx(0.2 * 3, rel=1e-3)
  assert found["growth"] == pytest.approx(1 - 0.2 * 0.5, rel=1e-3) and found["unsettled"] == 0
  assert thinking.warnings_for(found, 3) == []


@pytest.mark.parametrize(
  "step_size, options, curvature, growth",
  [
    (-1.0, {"step_size_min": 0.1}, 0.3, 0.95),  # the least step size there is
    (0.2, {"authors": AuthorsConfig(clip_gradient=1e-6)}, 0.6, 1.0),  # a bound on all of the gradient: steps are shifts
  ],
)
def test_it_looks_at_the_step_that_is_taken(x64, step_size, options, curvature, growth):
  _, found = diagnose(step_size, **options)
  assert found["curvature"] == pytest.approx(curvature, rel=1e-3)
  assert found["growth"] == pytest.approx(growth, rel=5e-3)


def test_no_random_number_is_used_twice(monkeypatch):
  keys, normal = [], jax.random.normal

  def recorded(key, *args):
    if not isinstance(key, jax.core.Tracer):  # of shapes alone
      keys.append(jax.random.key_data(key).tolist())
    return normal(key, *args)

  monkeypatch.setattr(jax.random, "normal", recorded)
  args = (ellipse, thinking.Euclidean(), {"model": {}}, 0.0, jnp.ones((2, 2, 3)), WEIGHTS, jax.random.key(1))
  with jax.disable_jit():
    thinking.diagnose(*args, ThinkingConfig(steps=2, noise=0.1), iterations=1)
  assert len(set(map(tuple, keys))) == len(keys) >= 4  # of the noise before two steps, and of two power methods


def test_parts_of_a_candidate_count_together(x64):
  energy = lambda params, context, y: jnp.sum(y["a"] ** 2, (1, 2)) + 1.5 * y["b"] ** 2
  start = {"a": jax.random.normal(jax.random.key(0), (3, 2, 2)), "b": jnp.arange(3.0)}
  signals = lambda x: {"a": x["a"]}  # averaged over its own axes
  config = ThinkingConfig(steps=1, step_size=0.1)
  found = thinking.diagnose(
    energy, thinking.Euclidean(), {"model": {}}, (), start, jnp.ones(3), jax.random.key(1), config, signals=signals,
    iterations=60,
  )  # fmt: skip
  norm = jnp.sqrt(jnp.sum((2 * start["a"]) ** 2, (1, 2)) + (3 * start["b"]) ** 2)
  assert found["gradient_norm_1"] == pytest.approx(norm.mean())
  assert found["a_1"] == pytest.approx(start["a"].mean())
  assert found["curvature"] == pytest.approx(0.3, rel=1e-3) and found["growth"] == pytest.approx(0.8, rel=1e-3)


def test_the_simplex_reports_its_entropy_and_others_are_refused():
  x = jax.random.normal(jax.random.key(0), (2, 3, 5))
  args = ({"model": jnp.eye(5)}, (), x, jnp.ones(2), jax.random.key(0), ThinkingConfig(steps=1))
  energy = lambda params, context, y: jnp.sum(y**2, (1, 2))
  found = thinking.diagnose(energy, thinking.Simplex(lambda table: table), *args)
  entropy = -jnp.sum(jax.nn.softmax(x) * jax.nn.log_softmax(x), -1)
  assert found["entropy_1"] == pytest.approx(entropy.mean())
  with pytest.raises(TypeError, match="ChunkedSimplex .* use Simplex"):
    thinking.diagnose(energy, thinking.ChunkedSimplex(lambda table: table, 5), *args)
  with pytest.raises(ValueError, match=r"weights: expected one for each energy, \[2\], found \[2, 3\]"):
    thinking.diagnose(energy, thinking.Simplex(lambda t: t), *args[:3], jnp.ones((2, 3)), *args[4:])


def test_divergence_is_told_with_its_remedy(x64):
  _, found = diagnose(0.9)
  assert found["curvature"] == pytest.approx(2.7, rel=1e-3)
  assert found["growth"] == pytest.approx(1.7, rel=1e-3) and found["unsettled"] == 1
  (rises, climbs), (unsettled, text) = thinking.warnings_for(found, 3)
  assert (rises, unsettled) == ("energy rises", "unsettled")
  assert "raises the energy" in climbs and "lower config.thinking.step_size" in climbs
  assert "does not settle" in text and "1.7 times" in text
