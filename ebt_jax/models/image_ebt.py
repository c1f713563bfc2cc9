"""Bidirectional EBT over the patches of a picture: one energy for each candidate picture (paper appendix D.3).

The energy is the mean over patches of a scalar of each. Its condition is one learnt vector: neither the noised picture
nor the thinking step enter, and what is known of the answer is where thinking starts.

With `config.residual` the energy is g E_theta(y) + |y - g(noised)|^2 / (2 a0): g(noised) is what the same trunk
predicts in one pass over the noised picture, with a condition of its own, and a0 the initial step size of thinking.
Where E_theta is 0, one step from anywhere lands on g(noised), so that this EBT contains a one-pass denoiser.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebt_jax.config import ImageConfig, ModelConfig
from ebt_jax.models import dit, patches
from ebt_jax.models.base import Energy, Landscape


@dataclasses.dataclass(frozen=True)
class ImageEBT(Energy):
  """Pure functions of a parameter dict.

  Attributes:
    unroll: unroll the layers; faster, more memory.
    step_size: a0.
  """

  config: ModelConfig
  image: ImageConfig
  unroll: bool = True
  step_size: float = 1.0
  tables = ("condition",)

  def for_training(self, save_memory: bool = False) -> "ImageEBT":
    return dataclasses.replace(self, unroll=not save_memory)

  def init(self, key: jax.Array) -> dict:
    c = self.config
    trunk_key, condition_key, head_key = jax.random.split(key, 3)
    conditions = 2 if c.residual else 1  # of the energy; of the pass over the noised picture
    params = {
      **dit.init(c, self.image, trunk_key),
      "condition": {"embedding": nn.initializers.normal(1.0)(condition_key, (conditions, c.width))},
      **dit.init_head(c, 1, head_key, bias=False),
    }
    if c.residual:
      params["answer"] = dit.init_head(c, self.image.patch_pixels, head_key)
    return params

  def encode(self, params: dict, inputs: Float[Array, "b h w c"], landscape: Landscape = 0):
    """g(noised) for a residual energy; nothing else depends on the noised picture."""
    if not self.config.residual:
      return ()
    change = dit.head(self.config, params["answer"], self.tokens(params, inputs, 1), self._condition(params, 1))
    return inputs + patches.join(change, self.image.patch, self.image.channels)

  def direct_answer(self, params: dict, context):
    """g(noised); None where the energy has no residual term."""
    return context if self.config.residual else None

  def energy(self, params: dict, context, y: Float[Array, "b h w c"], landscape: Landscape = 0) -> Float[Array, " b"]:
    """Energy of each candidate picture, values from -1 to 1."""
    gain = self.config.energy_gain
    learnt = self._learnt(params, y) if gain else 0.0
    if not self.config.residual:
      return learnt
    return gain * learnt + jnp.sum((y - context) ** 2, (1, 2, 3)) / (2 * self.step_size)

  def _learnt(self, params, y):
    return jnp.mean(self.patch_energies(params, y), -1)

  def patch_energies(self, params: dict, y: Float[Array, "b h w c"]) -> Float[Array, "b s"]:
    """What E_theta is the mean of."""
    return dit.head(self.config, params, self.tokens(params, y), self._condition(params, 0))[..., 0]

  def tokens(self, params: dict, y: Float[Array, "b h w c"], row: int = 0) -> Float[Array, "b s d"]:
    """The patches after the last block; `row` of the conditions is 0 for energies, 1 for a residual one's g."""
    return dit.stream(self.config, self.image, params, y, self._condition(params, row), self.unroll)

  def _condition(self, params, row):
    return params["condition"]["embedding"][row][None, None]
