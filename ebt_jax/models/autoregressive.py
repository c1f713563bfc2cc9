"""Autoregressive EBT: one energy for each (tokens so far, candidate for the next), for all positions in parallel.

Variants (paper appendix C, facts 1.3 to 1.5): `default`; `time_embed`, whose landscape is one token in front of the
context; `adaln` and `adaln_zero`, whose landscape modulates every block.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ebt_jax.config import ModelConfig
from ebt_jax.models import layers, trunk
from ebt_jax.models.trunk import Context


@dataclasses.dataclass(frozen=True)
class AutoregressiveEBT:
  """Pure functions of a parameter dict; `landscapes` is how many energy landscapes the model knows.

  Where `first_order`, energies are differentiated once only, so that fused attention can serve candidates too. Where
  `written_out`, the few layers of an energy are not a loop: faster, for memory.
  """

  config: ModelConfig
  landscapes: int = 1
  first_order: bool = False
  written_out: bool = False

  @property
  def prefix(self) -> int:
    """Entries in front of the first token."""
    return int(self.config.variant == "time_embed")

  @property
  def shared_context(self) -> bool:
    """Whether one context serves all landscapes."""
    return self.config.variant == "default" or self.landscapes == 1

  def init(self, key: jax.Array) -> dict:
    c = self.config
    keys = iter(jax.random.split(key, 8))
    unit = nn.initializers.normal(1.0)  # tables start at N(0, 1); only linear weights follow `config.init`
    params = {
      "embed": {"embedding": unit(next(keys), (c.vocab_size, c.width))},
      "layers": trunk.init(c, next(keys)),
      "norm": self._norm.init(next(keys), jnp.zeros((1, c.width))).get("params", {}),
    }
    if c.embedder == "linear":
      params["to_embed"] = {"kernel": layers.initializer(c)(next(keys), (c.vocab_size, c.width))}
    head = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")(next(keys), (c.width, 1))
    params["head"] = {"kernel": head * (0.0 if c.variant == "adaln_zero" else c.head_gain)}
    if c.variant != "default":
      params["time"] = {"embedding": unit(next(keys), (self.landscapes, c.width))}
    if c.variant.startswith("adaln"):
      params["head_modulation"] = trunk.modulation(c, 2).init(next(keys), jnp.zeros(c.width))["params"]
    return params

  def encode(self, params: dict, tokens: Int[Array, "b s"], landscape: Int[Array, ""] | int = 0) -> Context:
    """Everything that does not depend on the candidates; candidate i is the guess for token i + 1."""
    x = params["embed"]["embedding"][tokens]
    if self.prefix:
      time = jnp.broadcast_to(params["time"]["embedding"][landscape], (x.shape[0], 1, x.shape[-1]))
      x = jnp.concatenate([time, x], axis=1)
    positions = jnp.arange(x.shape[1])
    _, (keys, values) = trunk.context(self.config, params["layers"], x, positions, self._condition(params, landscape))
    return Context(keys, values, positions[self.prefix :] + 1)

  def table(self, params: dict) -> Float[Array, "v d"]:
    """Candidate distribution -> candidate embedding, `p @ table`; never in reduced precision (facts 1.1)."""
    return params["embed"]["embedding"] if self.config.embedder == "tied" else params["to_embed"]["kernel"]

  def energy(
    self, params: dict, context: Context, candidate: Float[Array, "b s d"], landscape: Int[Array, ""] | int = 0
  ) -> Float[Array, "b s"]:
    """Energy of each embedded candidate given what stands before it; candidates do not see each other."""
    condition = self._condition(params, landscape)
    config = self.config if self.first_order else dataclasses.replace(self.config, attention="plain")
    x = trunk.candidates(config, params["layers"], candidate, context, condition, self.written_out)
    x = self._norm.apply({"params": params["norm"]}, x)
    if condition is not None:
      modulation = trunk.modulation(self.config, 2)
      shift, scale = jnp.split(modulation.apply({"params": params["head_modulation"]}, nn.silu(condition)), 2)
      x = x * (1 + scale) + shift
    return jnp.einsum("bsd,do->bs", layers.wide(x), params["head"]["kernel"])

  def energies(
    self, params: dict, context: Context, candidates: Float[Array, "n b s d"], landscape: Int[Array, ""] | int = 0
  ) -> Float[Array, "n b s"]:
    """`energy` of several candidates for each position, as more positions of one context."""
    n, b, s, d = candidates.shape
    if n == 1:
      return self.energy(params, context, candidates[0], landscape)[None]
    if self.first_order and self.config.attention == "fused" and context.positions.ndim == 1:
      return jax.lax.map(lambda y: self.energy(params, context, y, landscape), candidates)
    at = jnp.tile(jnp.broadcast_to(context.positions, (b, s)), (1, n))
    flat = candidates.swapaxes(0, 1).reshape(b, n * s, d)
    found = self.energy(params, context._replace(positions=at), flat, landscape)
    return found.reshape(b, n, s).swapaxes(0, 1)

  def empty_cache(self, params: dict, rows: int, capacity: int, landscape: int = 0) -> Context:
    """A context of no tokens with room for `capacity`, ready for `extend`."""
    dtype = params["embed"]["embedding"].dtype
    keys, values = trunk.empty(self.config, rows, capacity + self.prefix, dtype)
    context = Context(keys, values, jnp.full((rows, 1), self.prefix))
    if self.prefix:
      time = jnp.broadcast_to(params["time"]["embedding"][landscape], (rows, 1, self.config.width))
      positions = jnp.zeros((rows, 1), jnp.int32)
      _, (keys, values) = trunk.cached(self.config, params["layers"], time, positions, keys, values)
    return Context(keys, values, context.positions)

  def extend(
    self, params: dict, context: Context, tokens: Int[Array, "b s"], lengths: Int[Array, " b"], landscape: int = 0
  ) -> Context:
    """Appends the first `lengths` tokens of each row; what is padded is overwritten by the next call."""
    positions = context.positions[:, :1] + jnp.arange(tokens.shape[1])
    x = params["embed"]["embedding"][tokens]
    condition = self._condition(params, landscape)
    _, (keys, values) = trunk.cached(
      self.config, params["layers"], x, positions, context.keys, context.values, condition
    )
    return Context(keys, values, context.positions + lengths[:, None])

  @property
  def _norm(self):
    return layers.Norm(self.config.norm, self.config.dyt_scale)

  def _condition(self, params, landscape):
    return params["time"]["embedding"][landscape] if self.config.variant.startswith("adaln") else None
