"""Transformer++ (Llama-style), the baseline: the trunk of EBT with one stream and a vocabulary projection.

With `config.passes` above 1 its blocks are applied so often, one pass after the other: more depth, the same parameters.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ebt_jax import vocabulary
from ebt_jax.config import ModelConfig
from ebt_jax.flops import PredictorCost
from ebt_jax.models import cache, layers, trunk
from ebt_jax.models.base import Predictor
from ebt_jax.models.cache import Context


@dataclasses.dataclass(frozen=True)
class Transformer(Predictor):
  """Pure functions of a parameter dict; `predict` is `read(head(params), hidden(params, inputs))`."""

  config: ModelConfig
  tables = ("embed", "output")

  def init(self, key: jax.Array) -> dict:
    c = self.config
    k_embed, k_layers, k_norm, k_output = jax.random.split(key, 4)
    return {
      "embed": {"embedding": nn.initializers.normal(1.0)(k_embed, (c.vocab_size, c.width))},
      "layers": trunk.init(c, k_layers),
      "norm": self._norm.init(k_norm, jnp.zeros((1, c.width))).get("params", {}),
      "output": {"kernel": layers.initializer(c)(k_output, (c.width, c.vocab_size))},
    }

  def predict(self, params: dict, inputs: Int[Array, "b s"]) -> Float[Array, "b s v"]:
    """Logits of the token after each of the tokens `inputs`."""
    return self.read(params["output"]["kernel"], self.hidden(params, inputs))

  def hidden(self, params: dict, inputs: Int[Array, "b s"]) -> Float[Array, "b s d"]:
    """The stream after the last norm."""
    x_BxSxD = params["embed"]["embedding"][inputs]
    x_BxSxD, _ = trunk.context(self._deep, self._layers(params), x_BxSxD, jnp.arange(inputs.shape[1]))
    return self._norm.apply({"params": params["norm"]}, x_BxSxD)

  def head(self, params: dict) -> Float[Array, "d w"]:
    """The vocabulary projection, sharded and padded as `vocabulary.slice_table` does it; w >= v."""
    return vocabulary.slice_table(params["output"]["kernel"], 1)

  def read(self, head: Float[Array, "d w"], hidden: Float[Array, "b s d"]) -> Float[Array, "b s w"]:
    """Logits of hidden states; -inf at the padding of `head`."""
    logits = layers.wide(layers.einsum("bsd,dv->bsv", hidden, head, layers.compute_dtype(self.config)))
    return vocabulary.mask_padding(logits, self.config.vocab_size)

  def unstacked(self, params: dict) -> dict:
    """The parameters as decoding wants them; see `cache.unstack`."""
    return {**params, "layers": cache.unstack(self._layers(params))}

  def empty_cache(self, params: dict, rows: int, capacity: int) -> Context:
    """A context of no tokens with room for `capacity`, ready for `extend`."""
    return cache.empty(self._deep, rows, capacity, params["embed"]["embedding"].dtype)

  def extend(
    self, params: dict, context: Context, tokens: Int[Array, "b s"], lengths: Int[Array, " b"]
  ) -> tuple[Context, Float[Array, "b v"]]:
    """Appends the first `lengths` tokens of each row; returns the logits after the last of them too."""
    positions = context.positions[:, :1] + jnp.arange(tokens.shape[1])
    x_BxSxD = params["embed"]["embedding"][tokens]
    x_BxSxD, (keys, values) = trunk.cached(self._deep, self._layers(params), x_BxSxD, positions, context)
    last_Bx1xD = jnp.take_along_axis(x_BxSxD, (lengths - 1)[:, None, None], axis=1)
    last_Bx1xD = self._norm.apply({"params": params["norm"]}, last_Bx1xD)
    logits = self.read(params["output"]["kernel"], last_Bx1xD)[:, 0]
    return Context(keys, values, context.positions + lengths[:, None]), logits

  def flops(self, inputs: jax.ShapeDtypeStruct, single: bool = False) -> PredictorCost:
    c, length = self.config, inputs.shape[1]
    positions = 1 if single else length
    return PredictorCost(trunk.pass_cost(self._deep, positions, length), 2 * positions * c.width * c.vocab_size)

  @property
  def uses(self) -> int:
    return self.config.passes

  @property
  def _deep(self):
    """The config of all passes as one stack of blocks."""
    return dataclasses.replace(self.config, layers=self.config.layers * self.uses)

  def _layers(self, params):
    """The blocks of all passes: the same ones, once for each pass; unstacked blocks are so already."""
    stacked = params["layers"]
    if self.uses == 1 or isinstance(stacked, tuple):
      return stacked
    return jax.tree.map(lambda a: jnp.concatenate([a] * self.uses), stacked)

  @property
  def _norm(self):
    return layers.Norm(self.config.norm, self.config.dyt_scale)
