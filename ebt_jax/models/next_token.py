"""What all direct models of text have around their blocks: a token table, the last norm, a vocabulary projection."""

import abc
import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ebt_jax import vocabulary
from ebt_jax.config import ModelConfig
from ebt_jax.models import layers
from ebt_jax.models.base import Predictor


@dataclasses.dataclass(frozen=True)
class NextToken(Predictor):
  """Pure functions of a parameter dict; `predict` is `read(head(params), hidden(params, inputs))`."""

  config: ModelConfig
  tables = ("embed", "output")

  @abc.abstractmethod
  def init_layers(self, key: jax.Array) -> dict:
    """Parameters of all blocks, each leaf with a leading layer axis."""

  @abc.abstractmethod
  def stream(self, params: dict, inputs: Int[Array, "b s"]) -> Float[Array, "b s d"]:
    """The stream after the last block; a position depends on the tokens up to its own."""

  def init(self, key: jax.Array) -> dict:
    c = self.config
    k_embed, k_layers, k_norm, k_output = jax.random.split(key, 4)
    return {
      "embed": {"embedding": nn.initializers.normal(1.0)(k_embed, (c.vocab_size, c.width))},
      "layers": self.init_layers(k_layers),
      "norm": self._norm.init(k_norm, jnp.zeros((1, c.width))).get("params", {}),
      "output": {"kernel": layers.initializer(c)(k_output, (c.width, c.vocab_size))},
    }

  def predict(self, params: dict, inputs: Int[Array, "b s"]) -> Float[Array, "b s v"]:
    """Logits of the token after each of the tokens `inputs`."""
    return self.read(params["output"]["kernel"], self.hidden(params, inputs))

  def hidden(self, params: dict, inputs: Int[Array, "b s"]) -> Float[Array, "b s d"]:
    """The stream after the last norm."""
    return self.normed(params, self.stream(params, inputs))

  def normed(self, params: dict, x_BxSxD: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
    """The last norm."""
    return self._norm.apply({"params": params["norm"]}, x_BxSxD)

  def head(self, params: dict) -> Float[Array, "d w"]:
    """The vocabulary projection, sharded and padded as `vocabulary.slice_table` does it; w >= v."""
    return vocabulary.slice_table(params["output"]["kernel"], 1)

  def read(self, head: Float[Array, "d w"], hidden: Float[Array, "b s d"]) -> Float[Array, "b s w"]:
    """Logits of hidden states; -inf at the padding of `head`."""
    logits = layers.wide(layers.einsum("bsd,dv->bsv", hidden, head, layers.compute_dtype(self.config)))
    return vocabulary.mask_padding(logits, self.config.vocab_size)

  def read_last(self, params: dict, x_BxSxD: Float[Array, "b s d"], lengths: Int[Array, " b"]) -> Float[Array, "b v"]:
    """Logits after the first `lengths` entries of each row of the stream."""
    last_Bx1xD = jnp.take_along_axis(x_BxSxD, (lengths - 1)[:, None, None], axis=1)
    return self.read(params["output"]["kernel"], self.normed(params, last_Bx1xD))[:, 0]

  @property
  def _norm(self):
    return layers.Norm(self.config.norm, self.config.dyt_scale)
