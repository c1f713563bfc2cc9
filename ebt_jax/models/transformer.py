"""Transformer++ (Llama-style), the baseline: the trunk of EBT with one stream and a vocabulary projection."""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ebt_jax.config import ModelConfig
from ebt_jax.models import layers, trunk
from ebt_jax.models.trunk import Context


@dataclasses.dataclass(frozen=True)
class Transformer:
  """Pure functions of a parameter dict (facts 1.6)."""

  config: ModelConfig

  def init(self, key: jax.Array) -> dict:
    c = self.config
    k_embed, k_layers, k_norm, k_output = jax.random.split(key, 4)
    return {
      "embed": {"embedding": nn.initializers.normal(1.0)(k_embed, (c.vocab_size, c.width))},
      "layers": trunk.init(c, k_layers),
      "norm": self._norm.init(k_norm, jnp.zeros((1, c.width))).get("params", {}),
      "output": {"kernel": layers.initializer(c)(k_output, (c.width, c.vocab_size))},
    }

  def hidden(self, params: dict, tokens: Int[Array, "b s"]) -> Float[Array, "b s d"]:
    """The stream after the last norm; row t is what `read` turns into the prediction of token t + 1."""
    x = params["embed"]["embedding"][tokens]
    x, _ = trunk.context(self.config, params["layers"], x, jnp.arange(tokens.shape[1]))
    return self._norm.apply({"params": params["norm"]}, x)

  def read(self, kernel: Float[Array, "d v"], hidden: Float[Array, "b s d"]) -> Float[Array, "b s v"]:
    """Log-probabilities up to a constant; `kernel` is `params["output"]["kernel"]`."""
    return layers.wide(layers.einsum("bsd,dv->bsv", hidden, kernel, layers.compute_dtype(self.config)))

  def logits(self, params: dict, tokens: Int[Array, "b s"]) -> Float[Array, "b s v"]:
    return self.read(params["output"]["kernel"], self.hidden(params, tokens))

  def empty_cache(self, params: dict, rows: int, capacity: int) -> Context:
    keys, values = trunk.empty(self.config, rows, capacity, params["embed"]["embedding"].dtype)
    return Context(keys, values, jnp.zeros((rows, 1), jnp.int32))

  def extend(
    self, params: dict, context: Context, tokens: Int[Array, "b s"], lengths: Int[Array, " b"]
  ) -> tuple[Context, Float[Array, "b v"]]:
    """Appends the first `lengths` tokens of each row; returns the logits after the last of them too."""
    positions = context.positions[:, :1] + jnp.arange(tokens.shape[1])
    x = params["embed"]["embedding"][tokens]
    x, (keys, values) = trunk.cached(self.config, params["layers"], x, positions, context.keys, context.values)
    last = jnp.take_along_axis(x, (lengths - 1)[:, None, None], axis=1)
    last = self._norm.apply({"params": params["norm"]}, last)
    logits = self.read(params["output"]["kernel"], last)[:, 0]
    return Context(keys, values, context.positions + lengths[:, None]), logits

  @property
  def _norm(self):
    return layers.Norm(self.config.norm, self.config.dyt_scale)
