"""Transformer++ (Llama-style), the baseline: the trunk of EBT with one stream and a vocabulary projection.

With `config.passes` above 1 its blocks are applied so often, one pass after the other: more depth, the same parameters.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ebt_jax.flops import PredictorCost
from ebt_jax.models import cache, trunk
from ebt_jax.models.cache import Context
from ebt_jax.models.next_token import NextToken


@dataclasses.dataclass(frozen=True)
class Transformer(NextToken):
  """Pure functions of a parameter dict."""

  def init_layers(self, key: jax.Array) -> dict:
    return trunk.init(self.config, key)

  def stream(self, params: dict, inputs: Int[Array, "b s"]) -> Float[Array, "b s d"]:
    x_BxSxD = params["embed"]["embedding"][inputs]
    return trunk.context(self._deep, self._layers(params), x_BxSxD, jnp.arange(inputs.shape[1]))[0]

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
    logits = self.read_last(params, x_BxSxD, lengths)
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
