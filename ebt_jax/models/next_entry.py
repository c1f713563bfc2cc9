"""What all direct models of sequences share: blocks over what was given so far, a last norm, an answer.

The blocks (`transformer`, `recurrent`) say how a position reads those before it; the head (`next_token`, `frames`) says
what goes in and what comes out.
"""

import abc
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped

from ebt_jax.config import ModelConfig
from ebt_jax.models import layers
from ebt_jax.models.base import Predictor


@dataclasses.dataclass(frozen=True)
class NextEntry(Predictor):
  """Pure functions of a parameter dict."""

  config: ModelConfig

  @abc.abstractmethod
  def init_layers(self, key: jax.Array) -> dict:
    """Parameters of all blocks, each leaf with a leading layer axis."""

  @abc.abstractmethod
  def stream(self, params: dict, inputs: Shaped[Array, "b s ..."]) -> Float[Array, "b e d"]:
    """The stream after the last block; a position depends on the inputs up to its own."""

  @abc.abstractmethod
  def entries(self, params: dict, inputs: Shaped[Array, "b s ..."]) -> Float[Array, "b e d"]:
    """What the blocks read of inputs: `group` entries for each position."""

  @abc.abstractmethod
  def read_last(
    self, params: dict, x: Float[Array, "b g d"], inputs: Shaped[Array, "b 1 ..."]
  ) -> Float[Array, "b ..."]:
    """The answer after the one position that the stream x and the inputs are of."""

  @abc.abstractmethod
  def dtype(self, params: dict) -> Any:
    """Float type of the entries."""

  @abc.abstractmethod
  def output_flops(self, positions: int) -> int:
    """Of the projections between the last norm and the answer."""

  @property
  def group(self) -> int:
    """Entries of a position."""
    return 1

  def init_norm(self, key: jax.Array) -> dict:
    """Parameters of the last norm."""
    return self._norm.init(key, jnp.zeros((1, self.config.width))).get("params", {})

  def normed(self, params: dict, x_BxSxD: Float[Array, "b e d"]) -> Float[Array, "b e d"]:
    """The last norm."""
    return self._norm.apply({"params": params["norm"]}, x_BxSxD)

  @property
  def _norm(self):
    return layers.Norm(self.config.norm, self.config.dyt_scale)
