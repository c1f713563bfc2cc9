"""Autoregressive EBT: one energy for each (tokens so far, candidate for the next), for all positions in parallel.

With `config.residual` the energy is E(c, y) = g E_theta(c, y) - <h(c), y> / a0: h is the normed last state of the
context's own stream, a0 the initial step size, g `config.energy_gain`. Where E_theta is 0, one step of descent gives
p + h W.T, which are the logits of Transformer++ and the start's probabilities p. So this EBT contains its baseline, and
E_theta learns what is left.

Variants (paper appendix C): `default`; `time_embed`, whose landscape is one token in front of the context; `adaln` and
`adaln_zero`, whose landscape modulates every block.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ebt_jax import flops
from ebt_jax.config import ModelConfig
from ebt_jax.flops import EnergyCost
from ebt_jax.models import cache, layers, trunk
from ebt_jax.models.base import Energy, Landscape
from ebt_jax.models.cache import Context


@dataclasses.dataclass(frozen=True)
class AutoregressiveEBT(Energy):
  """Pure functions of a parameter dict.

  Attributes:
    landscapes: energy landscapes that the model knows.
    first_order: energies are differentiated once only, so that fused attention can serve candidates too.
    unroll: unroll the layers of an energy; faster, more memory.
    step_size: a0, the initial step size of thinking, by which the residual term is divided.
  """

  config: ModelConfig
  landscapes: int = 1
  first_order: bool = False
  unroll: bool = False
  step_size: float = 1.0
  tables = ("embed", "to_embed")

  @property
  def prefix(self) -> int:
    """Entries in front of the first token."""
    return int(self.config.variant == "time_embed")

  @property
  def modulated(self) -> bool:
    """Whether the landscape modulates every block (adaLN)."""
    return self.config.variant.startswith("adaln")

  @property
  def shared_context(self) -> bool:
    return self.config.variant == "default" or self.landscapes == 1

  def for_training(self, save_memory: bool = False) -> "AutoregressiveEBT":
    return dataclasses.replace(self, first_order=False, unroll=not save_memory)

  def for_inference(self) -> "AutoregressiveEBT":
    return dataclasses.replace(self, first_order=True, unroll=False)

  def init(self, key: jax.Array) -> dict:
    c = self.config
    keys = iter(jax.random.split(key, 8))
    unit = nn.initializers.normal(1.0)  # tables start at N(0, 1); only linear weights follow `config.init`
    params = {
      "embed": {"embedding": unit(next(keys), (c.vocab_size, c.width))},
      "layers": trunk.init(c, next(keys), self.modulated),
      "norm": self._new_norm(next(keys)),
    }
    if c.embedder == "linear":
      params["to_embed"] = {"kernel": layers.initializer(c)(next(keys), (c.vocab_size, c.width))}
    head = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")(next(keys), (c.width, 1))
    params["head"] = {"kernel": head * (0.0 if c.variant == "adaln_zero" else c.head_gain)}
    if c.variant != "default":
      params["time"] = {"embedding": unit(next(keys), (self.landscapes, c.width))}
    if self.modulated:
      params["head_modulation"] = layers.modulation(c, 2).init(next(keys), jnp.zeros(c.width))["params"]
    if c.residual:
      params["context_norm"] = self._new_norm(next(keys))
    return params

  def _new_norm(self, key):
    return self._norm.init(key, jnp.zeros((1, self.config.width))).get("params", {})

  def encode(self, params: dict, inputs: Int[Array, "b s"], landscape: Landscape = 0) -> Context:
    """The context of the tokens `inputs`; candidate i is the guess for token i + 1."""
    x_BxSxD = params["embed"]["embedding"][inputs]
    if self.prefix:
      time = jnp.broadcast_to(params["time"]["embedding"][landscape], (x_BxSxD.shape[0], 1, x_BxSxD.shape[-1]))
      x_BxSxD = jnp.concatenate([time, x_BxSxD], axis=1)
    positions = jnp.arange(x_BxSxD.shape[1])
    condition = self._condition(params, landscape)
    h_BxSxD, (keys, values) = trunk.context(self.config, params["layers"], x_BxSxD, positions, condition)
    return Context(keys, values, positions[self.prefix :] + 1, self._state(params, h_BxSxD[:, self.prefix :]))

  def direct_answer(self, params: dict, context: Context) -> Float[Array, "b s d"] | None:
    """h, the context's own prediction: its logits are h W.T. None where the energy has no residual term."""
    return context.state

  def table(self, params: dict) -> Float[Array, "v d"]:
    """Candidate distribution -> candidate embedding, `p @ table`; never in reduced precision."""
    return params["embed"]["embedding"] if self.config.embedder == "tied" else params["to_embed"]["kernel"]

  def energy(
    self, params: dict, context: Context, y: Float[Array, "b s d"], landscape: Landscape = 0
  ) -> Float[Array, "b s"]:
    """Energy of each embedded candidate given the tokens before it; candidates do not see each other."""
    if not self.config.residual:
      return self._learnt_energy(params, context, y, landscape)
    energies = jnp.einsum("bsd,bsd->bs", context.state, y) / -self.step_size
    gain = self.config.energy_gain
    return energies + gain * self._learnt_energy(params, context, y, landscape) if gain else energies

  def _learnt_energy(self, params, context, y, landscape):
    condition = self._condition(params, landscape)
    config = self.config if self.first_order else dataclasses.replace(self.config, attention="plain")
    x_BxSxD = trunk.candidates(config, params["layers"], y, context, condition, self.unroll)
    return layers.energy_head(self.config, params, x_BxSxD, condition)

  def energies(
    self, params: dict, context: Context, y: Float[Array, "n b s d"], landscape: Landscape = 0
  ) -> Float[Array, "n b s"]:
    """`energy` of several candidates for each position, as further positions over one context."""
    n, b, s, d = y.shape
    if n == 1:
      return self.energy(params, context, y[0], landscape)[None]
    if self.first_order and self.config.attention == "fused" and context.positions.ndim == 1:
      return jax.lax.map(lambda one: self.energy(params, context, one, landscape), y)
    at = jnp.tile(jnp.broadcast_to(context.positions, (b, s)), (1, n))
    flat = y.swapaxes(0, 1).reshape(b, n * s, d)
    state = None if context.state is None else jnp.tile(context.state, (1, n, 1))
    found = self.energy(params, context._replace(positions=at, state=state), flat, landscape)
    return found.reshape(b, n, s).swapaxes(0, 1)

  def unstacked(self, params: dict) -> dict:
    """The parameters as decoding wants them; see `cache.unstack`."""
    return {**params, "layers": cache.unstack(params["layers"])}

  def empty_cache(self, params: dict, rows: int, capacity: int, landscape: Landscape = 0) -> Context:
    """A context of no tokens with room for `capacity`, ready for `extend`."""
    context = cache.empty(self.config, rows, capacity + self.prefix, params["embed"]["embedding"].dtype)
    if self.config.residual:
      context = context._replace(state=jnp.zeros((rows, 1, self.config.width), context.keys[0].dtype))
    if not self.prefix:
      return context
    time = jnp.broadcast_to(params["time"]["embedding"][landscape], (rows, 1, self.config.width))
    _, (keys, values) = trunk.cached(self.config, params["layers"], time, context.positions, context)
    return context._replace(keys=keys, values=values, positions=context.positions + 1)

  def extend(
    self, params: dict, context: Context, tokens: Int[Array, "b s"], lengths: Int[Array, " b"], landscape: Landscape = 0
  ) -> Context:
    """Appends the first `lengths` tokens of each row; the padding behind them is overwritten by the next call."""
    positions = context.positions[:, :1] + jnp.arange(tokens.shape[1])
    x_BxSxD, condition = params["embed"]["embedding"][tokens], self._condition(params, landscape)
    layers = params["layers"]
    x_BxSxD, (keys, values) = trunk.cached(self.config, layers, x_BxSxD, positions, context, condition)
    state = None
    if self.config.residual:
      new = self._state(params, jnp.take_along_axis(x_BxSxD, (lengths - 1)[:, None, None], axis=1))
      state = jnp.where(lengths[:, None, None] > 0, new, context.state)
    return Context(keys, values, context.positions + lengths[:, None], state)

  def flops(self, inputs: jax.ShapeDtypeStruct, single: bool = False) -> EnergyCost:
    c, length = self.config, inputs.shape[1]
    entries, positions = length + self.prefix, 1 if single else length
    context = trunk.pass_cost(c, positions if single else entries, entries)
    if single and self.prefix:  # landscapes in front do not change what the first layer projects of a new token
      shared = 6 * c.width**2 * (self.landscapes - 1)
      context = context._replace(forward=context.forward - shared // self.landscapes)
    candidate = trunk.pass_cost(c, positions, entries)
    products = 2 if c.residual else 1  # with the energy head, and with the context's state
    candidate = candidate._replace(forward=candidate.forward + 2 * positions * c.width * products)
    if c.residual and not c.energy_gain:
      candidate = flops.Pass(2 * positions * c.width)
    part = 2 * c.width**2 if c.variant.startswith("adaln") else 0
    modulation = 6 * c.layers * part, (6 * c.layers + 2) * part
    return EnergyCost(context, candidate, 2 * positions * c.width * c.vocab_size, modulation)

  @property
  def _norm(self):
    return layers.Norm(self.config.norm, self.config.dyt_scale)

  def _state(self, params, x_BxSxD):
    """The context's stream as the residual term reads it."""
    return self._norm.apply({"params": params["context_norm"]}, x_BxSxD) if self.config.residual else None

  def _condition(self, params, landscape):
    return params["time"]["embedding"][landscape] if self.modulated else None
