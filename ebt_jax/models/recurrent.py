"""Recurrent models of sequences: pre-norm blocks as those of Transformer++, a recurrent cell in place of attention.

With `model.cell=rg_lru` this is Hawk (arXiv 2402.19427), with as many weights as Transformer++ to 1%. What decoding
carries has the same size after any number of tokens.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from ebt_jax import parallel
from ebt_jax.config import ModelConfig
from ebt_jax.flops import Pass, PredictorCost
from ebt_jax.models import cache, layers, trunk
from ebt_jax.models.next_entry import NextEntry
from ebt_jax.models.next_token import NextToken
from ebt_jax.models.recurrence import CELLS

States = tuple[Any, ...]  # of each block, leaves [b, ...]


class Block(nn.Module):
  """h = x + cell(norm(x)); y = h + ffn(norm(h))."""

  config: ModelConfig

  def setup(self):
    c = self.config
    self.recurrent_norm, self.ffn_norm = (layers.Norm(c.norm, c.dyt_scale) for _ in range(2))
    self.recurrent, self.ffn = CELLS[c.cell](c), layers.GatedFFN(c)

  def __call__(self, x_BxSxD, before, lengths=None):
    """The stream, and the state after the first `lengths` entries of each row."""
    y, after = self.recurrent(self.recurrent_norm(x_BxSxD), before, lengths)
    x_BxSxD = x_BxSxD + y
    return x_BxSxD + self.ffn(self.ffn_norm(x_BxSxD)), after


@dataclasses.dataclass(frozen=True)
class RecurrentBlocks(NextEntry):
  """Pure functions of a parameter dict."""

  def init_layers(self, key: jax.Array) -> dict:
    x = jnp.zeros((1, 1, self.config.width))

    def one(key):
      return Block(self.config).init(key, x, self._empty(1, x.dtype))

    return jax.vmap(one)(jax.random.split(key, self.config.layers))["params"]

  def stream(self, params: dict, inputs: Shaped[Array, "b s ..."]) -> Float[Array, "b s d"]:
    x_BxSxD = self.entries(params, inputs)
    before = self._empty(len(inputs), layers.wide(x_BxSxD).dtype)

    def apply(x, layer):
      return self._apply(layer[0], x, before)[0], ()

    return trunk.scan(self.config, apply, x_BxSxD, (params["layers"],), unroll=True)[0]

  def unstacked(self, params: dict) -> dict:
    """The parameters as decoding wants them: one tree for each block."""
    stacked = params["layers"]
    if isinstance(stacked, tuple):
      return params
    each = tuple(jax.tree.map(lambda a: a[i], stacked) for i in range(self.config.layers))
    return {**params, "layers": each}

  def empty_cache(self, params: dict, rows: int, capacity: int) -> States:
    """The states before the first input, ready for `extend`; their size does not depend on `capacity`."""
    dtype = jnp.promote_types(self.dtype(params), jnp.float32)
    return tuple(self._empty(rows, dtype) for _ in range(self.config.layers))

  def extend(
    self, params: dict, context: States, inputs: Shaped[Array, "b s ..."], lengths: Int[Array, " b"]
  ) -> tuple[States, Float[Array, "b ..."]]:
    """Reads the first `lengths` inputs of each row; returns the answer after the last of them too."""
    x_BxSxD, states = self.entries(params, inputs), []
    for layer, before in zip(self.unstacked(params)["layers"], context, strict=True):
      x_BxSxD, after = self._apply(layer, x_BxSxD, before, lengths)
      states.append(after)
    last_BxGxD = cache.at_last(x_BxSxD, lengths, self.group)
    return tuple(states), self.read_last(params, last_BxGxD, cache.at_last(inputs, lengths))

  def flops(self, inputs: jax.ShapeDtypeStruct, single: bool = False) -> PredictorCost:
    c, positions = self.config, 1 if single else inputs.shape[1]
    last, cell = c.width * c.hidden, CELLS[c.cell].products(c)
    rest = cell + 2 * c.width * c.hidden
    again = rest if c.remat else 0  # else the outputs of all products are saved
    trunk_cost = Pass(*(2 * positions * c.layers * n for n in (rest + last, again, last)))
    return PredictorCost(trunk_cost, self.output_flops(positions))

  def _empty(self, rows, dtype):
    return CELLS[self.config.cell].empty(self.config, rows, dtype)

  def _apply(self, params, x, before, lengths=None):
    x = parallel.shard_rows(x)  # as in `trunk`
    return Block(self.config).apply({"params": params}, x, before, lengths)


class Recurrent(NextToken, RecurrentBlocks):
  """Of text."""
