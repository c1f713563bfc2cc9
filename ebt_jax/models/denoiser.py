"""A denoiser over patches, conditioned on time: the network of DiT and of its flow-matching rival."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebt_jax.config import ImageConfig, ModelConfig
from ebt_jax.models import dit, patches
from ebt_jax.models.base import Predictor
from ebt_jax.models.layers import Linear

TIME_WIDTH = 256


@dataclasses.dataclass(frozen=True)
class Denoiser(Predictor):
  """`predict(params, (x, time))`: what is asked of a noised picture, `outputs` channels of the picture's size.

  Attributes:
    outputs: 2 channels for each of the picture's where a variance is learnt (DiT), else as many as the picture has.
  """

  config: ModelConfig
  image: ImageConfig
  outputs: int

  def init(self, key: jax.Array) -> dict:
    trunk_key, *time_keys = jax.random.split(key, 3)
    up, down = self._time_layers()
    x = jnp.zeros((1, TIME_WIDTH)), jnp.zeros((1, self.config.width))
    return {
      **dit.init(self.config, self.image, trunk_key),
      "time": {"up": up.init(time_keys[0], x[0])["params"], "down": down.init(time_keys[1], x[1])["params"]},
      **dit.init_head(self.config, self.image.patch**2 * self.outputs, trunk_key),
    }

  def predict(self, params: dict, inputs) -> Float[Array, "b h w o"]:
    condition = self._condition(params, inputs[1])
    answer = dit.head(self.config, params, self.tokens(params, inputs), condition)
    return patches.join(answer, self.image.patch, self.outputs)

  def tokens(self, params: dict, inputs) -> Float[Array, "b s d"]:
    """The patches after the last block."""
    x, time = inputs
    return dit.stream(self.config, self.image, params, x, self._condition(params, time))

  def _condition(self, params, time):
    """`[b, 1, d]` of times `[b]`, a diffusion's step numbers or of that size."""
    up, down = self._time_layers()
    features = patches.time_features(jnp.asarray(time, params["time"]["up"]["kernel"].dtype), TIME_WIDTH)
    hidden = nn.silu(up.apply({"params": params["time"]["up"]}, features))
    return down.apply({"params": params["time"]["down"]}, hidden)[:, None]

  def _time_layers(self):
    small = nn.initializers.normal(0.02)
    return (Linear(self.config.width, small, dit.ZERO) for _ in range(2))
