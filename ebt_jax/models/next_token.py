"""What all direct models of text have around their blocks: a token table, the last norm, a vocabulary projection."""

import dataclasses

from flax import linen as nn
import jax
from jaxtyping import Array, Float, Int

from ebt_jax import vocabulary
from ebt_jax.models import layers
from ebt_jax.models.next_entry import NextEntry


@dataclasses.dataclass(frozen=True)
class NextToken(NextEntry):
  """Pure functions of a parameter dict; `predict` is `read(head(params), hidden(params, inputs))`."""

  tables = ("embed", "output")

  def init(self, key: jax.Array) -> dict:
    c = self.config
    k_embed, k_layers, k_norm, k_output = jax.random.split(key, 4)
    return {
      "embed": {"embedding": nn.initializers.normal(1.0)(k_embed, (c.vocab_size, c.width))},
      "layers": self.init_layers(k_layers),
      "norm": self.init_norm(k_norm),
      "output": {"kernel": layers.initializer(c)(k_output, (c.width, c.vocab_size))},
    }

  def entries(self, params: dict, inputs: Int[Array, "b s"]) -> Float[Array, "b s d"]:
    return params["embed"]["embedding"][inputs]

  def dtype(self, params: dict):
    return params["embed"]["embedding"].dtype

  def predict(self, params: dict, inputs: Int[Array, "b s"]) -> Float[Array, "b s v"]:
    """Logits of the token after each of the tokens `inputs`."""
    return self.read(params["output"]["kernel"], self.hidden(params, inputs))

  def hidden(self, params: dict, inputs: Int[Array, "b s"]) -> Float[Array, "b s d"]:
    """The stream after the last norm."""
    return self.normed(params, self.stream(params, inputs))

  def head(self, params: dict) -> Float[Array, "d w"]:
    """The vocabulary projection, sharded and padded as `vocabulary.slice_table` does it; w >= v."""
    return vocabulary.slice_table(params["output"]["kernel"], 1)

  def read(self, head: Float[Array, "d w"], hidden: Float[Array, "b s d"]) -> Float[Array, "b s w"]:
    """Logits of hidden states; -inf at the padding of `head`."""
    logits = layers.wide(layers.einsum("bsd,dv->bsv", hidden, head, layers.compute_dtype(self.config)))
    return vocabulary.mask_padding(logits, self.config.vocab_size)

  def read_last(self, params: dict, x: Float[Array, "b 1 d"], inputs: Int[Array, "b 1"]) -> Float[Array, "b v"]:
    """Logits after one entry of each row."""
    return self.read(params["output"]["kernel"], self.normed(params, x))[:, 0]

  def output_flops(self, positions: int) -> int:
    return 2 * positions * self.config.width * self.config.vocab_size
