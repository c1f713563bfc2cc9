"""The second-order rule against plain autodiff."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.config import ModelConfig
from ebt_jax.models.autoregressive import AutoregressiveEBT
from ebt_jax.thinking import descent

MODEL = AutoregressiveEBT(ModelConfig(layers=2, heads=2, width=16, vocab_size=11))


def small_energy(params, context, y, landscape):
  """Nonlinear in everything; the context has integers."""
  h = jnp.tanh(y @ params["w"] + context["h"] + params["table"][landscape])
  chosen = jnp.take_along_axis(h, context["index"][..., None], -1)[..., 0]
  return chosen**2 + jnp.sum(jnp.sin(h * params["u"]), -1)


def small_problem():
  keys = iter(jax.random.split(jax.random.key(0), 9))
  normal = lambda *shape: jax.random.normal(next(keys), shape)
  params = {"w": normal(4, 5), "table": normal(2, 5), "u": normal(5)}
  context = {"h": normal(2, 3, 5), "index": jnp.array([[0, 4, 2], [1, 1, 3]])}
  return small_energy, params, context, normal(2, 3, 4)


def model_problem():
  keys = iter(jax.random.split(jax.random.key(0), 9))
  cast = lambda tree: jax.tree.map(lambda a: a.astype(jnp.float64) if a.dtype == jnp.float32 else a, tree)
  params = cast(MODEL.init(next(keys)))
  tokens = jax.random.randint(next(keys), (2, 6), 0, 11)
  return MODEL.energy, params, MODEL.encode(params, tokens), jax.random.normal(next(keys), (2, 6, 16))


def gradients(slope, energy, params, context, y):
  """Of a scalar made of both results, so that both get cotangents, for everything that is a float."""
  r, v = jax.random.normal(jax.random.key(1), y.shape[:-1]), jax.random.normal(jax.random.key(2), y.shape)
  leaves, structure = jax.tree.flatten(context)
  floats = {i: a for i, a in enumerate(leaves) if jnp.issubdtype(a.dtype, jnp.inexact)}

  def scalar(params, floats, y):
    context = jax.tree.unflatten(structure, [floats.get(i, a) for i, a in enumerate(leaves)])
    energies, dy = slope(energy)(params, context, y, jnp.array(1))
    return jnp.sum(r * energies) + jnp.sum(v * dy)

  return jax.jit(jax.value_and_grad(scalar, (0, 1, 2)))(params, floats, y)


@pytest.mark.parametrize("problem", [small_problem, model_problem])
def test_the_rule_equals_differentiating_twice(x64, problem):
  energy, *inputs = problem()
  value, ours = gradients(descent.reverse_over_forward, energy, *inputs)
  expected, theirs = gradients(descent.double_reverse, energy, *inputs)
  np.testing.assert_allclose(value, expected, rtol=1e-12)
  for path, a in jax.tree_util.tree_leaves_with_path(theirs):
    b = dict(jax.tree_util.tree_leaves_with_path(ours))[path]
    np.testing.assert_allclose(b, a, rtol=1e-10, atol=1e-10 * np.abs(a).max(), err_msg=jax.tree_util.keystr(path))
  assert all(np.abs(a).max() > 0 for a in jax.tree.leaves(theirs[1:]))


def test_a_constant_slope_has_the_values_and_no_derivative(x64):
  energy, *inputs = small_problem()
  value, zero = gradients(descent.constant, energy, *inputs)
  np.testing.assert_allclose(value, gradients(descent.double_reverse, energy, *inputs)[0], rtol=1e-12)
  assert not any(np.any(a) for a in jax.tree.leaves(zero))


def test_activations_are_stored_on_cpus_where_memory_is_not_short():
  assert descent.second_order() is descent.double_reverse
  assert descent.second_order(save_memory=True) is descent.reverse_over_forward


def test_an_energy_without_a_signature_is_called_with_all_four_arguments():
  assert descent.with_landscape(min) is min
