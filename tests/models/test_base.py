"""What a user's own energy has by default."""

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax.models.base import Energy


class Quadratic(Energy):
  def init(self, key):
    return {"w": jax.random.normal(key, (3,))}

  def energy(self, params, context, y, landscape=0):
    return jnp.sum(params["w"] * (y["x"] - context) ** 2, -1)


def test_an_energy_needs_init_and_energy_alone():
  model, y = Quadratic(), {"x": jax.random.normal(jax.random.key(1), (4, 2, 3))}
  params = model.init(jax.random.key(0))
  context = model.encode(params, jnp.ones((2, 3)))
  found = model.energies(params, context, y)
  each = [model.energy(params, context, {"x": x}) for x in y["x"]]
  np.testing.assert_allclose(found, each, rtol=1e-6)
  assert model.for_training(save_memory=True) is model.for_inference() is model
  assert model.flops(None) is None and model.shared_context
