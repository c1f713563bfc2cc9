"""Transformer++ (Llama-style), the baseline: the trunk of EBT with one stream and a vocabulary projection.

With `config.passes` above 1 its blocks are applied so often, one pass after the other: more depth, the same parameters.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from ebt_jax.flops import PredictorCost
from ebt_jax.models import cache, trunk
from ebt_jax.models.cache import Context
from ebt_jax.models.next_entry import NextEntry
from ebt_jax.models.next_token import NextToken


@dataclasses.dataclass(frozen=True)
class TransformerBlocks(NextEntry):
  """Pure functions of a parameter dict."""

  def init_layers(self, key: jax.Array) -> dict:
    return trunk.init(self.config, key)

  def stream(self, params: dict, inputs: Shaped[Array, "b s ..."]) -> Float[Array, "b e d"]:
    positions = jnp.arange(inputs.shape[1])
    return trunk.context(self._deep, self._layers(params), self.entries(params, inputs), positions, group=self.group)[0]

  def unstacked(self, params: dict) -> dict:
    """The parameters as decoding wants them; see `cache.unstack`."""
    return {**params, "layers": cache.unstack(self._layers(params))}

  def empty_cache(self, params: dict, rows: int, capacity: int) -> Context:
    """A context of no inputs with room for `capacity`, ready for `extend`."""
    return cache.empty(self._deep, rows, capacity * self.group, self.dtype(params))

  def extend(
    self, params: dict, context: Context, inputs: Shaped[Array, "b s ..."], lengths: Int[Array, " b"]
  ) -> tuple[Context, Float[Array, "b ..."]]:
    """Appends the first `lengths` inputs of each row; returns the answer after the last of them too."""
    positions = context.positions[:, :1] + jnp.arange(inputs.shape[1])
    last_BxGxD, (keys, values) = trunk.cached(
      self._deep, self._layers(params), self.entries(params, inputs), positions, context, None, self.group, lengths
    )
    answer = self.read_last(params, last_BxGxD, cache.at_last(inputs, lengths))
    return Context(keys, values, context.positions + lengths[:, None]), answer

  def flops(self, inputs: jax.ShapeDtypeStruct, single: bool = False) -> PredictorCost:
    length = inputs.shape[1]
    positions = 1 if single else length
    cost = trunk.pass_cost(self._deep, positions * self.group, length * self.group)
    return PredictorCost(cost, self.output_flops(positions))

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


class Transformer(NextToken, TransformerBlocks):
  """Of text."""
