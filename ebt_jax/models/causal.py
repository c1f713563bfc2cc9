"""What all autoregressive EBTs share: one energy for each (sequence so far, candidate for what comes next), for all
positions in parallel.

A subclass says how inputs and candidates become entries of the stream, and what a residual energy adds. Variants (paper
appendix C): `default`; `time_embed`, whose landscape is one position in front of the context; `adaln` and `adaln_zero`,
whose landscape modulates every block.
"""

import abc
import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from ebt_jax import flops
from ebt_jax.config import ModelConfig
from ebt_jax.flops import EnergyCost
from ebt_jax.models import cache, layers, trunk
from ebt_jax.models.base import Energy, Landscape
from ebt_jax.models.cache import Context


@dataclasses.dataclass(frozen=True)
class CausalEBT(Energy):
  """Pure functions of a parameter dict.

  Attributes:
    landscapes: energy landscapes that the model knows.
    first_order: energies are differentiated once only, so that fused attention can serve candidates too.
    unroll: unroll the layers of an energy; faster, more memory.
    step_size: a0, the initial step size of thinking, by which the residual term is divided.
    levelled: contexts have the level of a residual energy. Slopes do not depend on it, so training leaves it out.
  """

  config: ModelConfig
  landscapes: int = 1
  first_order: bool = False
  unroll: bool = False
  step_size: float = 1.0
  levelled: bool = True

  @abc.abstractmethod
  def entries(self, params: dict, inputs: Shaped[Array, "b s ..."]) -> Float[Array, "b e d"]:
    """What the context reads of inputs: `group` entries for each position."""

  @abc.abstractmethod
  def candidate_entries(self, params: dict, y: Float[Array, "b s ..."]) -> Float[Array, "b e d"]:
    """The same of embedded candidates."""

  @abc.abstractmethod
  def answer(self, params: dict, h: Float[Array, "b e d"], inputs: Shaped[Array, "b s ..."]) -> Float[Array, "b s ..."]:
    """What the context itself predicts, of its stream where a residual energy reads it."""

  @abc.abstractmethod
  def residual_term(self, answer: Float[Array, "b s ..."], y: Float[Array, "b s ..."]) -> Float[Array, "b s"]:
    """What a residual energy adds to g E_theta, up to the context's level."""

  def level(self, params: dict, answer: Float[Array, "b s ..."]) -> Float[Array, "b s"] | None:
    """What a residual energy adds for every candidate alike. None: nothing, its zero is the same in all contexts."""
    return None

  @property
  @abc.abstractmethod
  def projected(self) -> int:
    """Numbers of a candidate's entry before it is projected to the width of the stream; 0: it is not."""

  def logits(self, positions: int) -> int:
    """FLOPs of products of the context's answers with a table, of residual energies that need them."""
    return 0

  @property
  def group(self) -> int:
    """Entries of a position."""
    return 1

  @property
  def prefix(self) -> int:
    """Positions in front of the first input."""
    return int(self.config.variant == "time_embed")

  @property
  def modulated(self) -> bool:
    """Whether the landscape modulates every block (adaLN)."""
    return self.config.variant.startswith("adaln")

  @property
  def recomputes_last(self) -> bool:
    """Whether the backward pass computes the context's last block again. The paper's energy has no use for that block's
    output, so that a residual energy would need more memory; where layers run in a loop, there are many others."""
    return self.config.residual and not self.modulated and 1 < self.config.layers <= trunk.MAX_UNROLLED

  @property
  def shared_context(self) -> bool:
    return self.config.variant == "default" or self.landscapes == 1

  def for_training(self, save_memory: bool = False) -> "CausalEBT":
    return dataclasses.replace(self, first_order=False, unroll=not save_memory, levelled=False)

  def for_inference(self) -> "CausalEBT":
    return dataclasses.replace(self, first_order=True, unroll=False)

  def init_trunk(self, layers_key: jax.Array, norm_key: jax.Array) -> dict:
    """Parameters of the blocks and of the norm before the energy head."""
    return {"layers": trunk.init(self.config, layers_key, self.modulated), "norm": self.new_norm(norm_key)}

  def init_head(self, keys: Any) -> dict:
    """Parameters of the energy head, of the landscapes, and of the context's own answer where there is one."""
    c = self.config
    head = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")(next(keys), (c.width, 1))
    params = {"head": {"kernel": head * (0.0 if c.variant == "adaln_zero" else c.head_gain)}}
    if c.variant != "default":
      params["time"] = {"embedding": nn.initializers.normal(1.0)(next(keys), (self.landscapes, c.width))}
    if self.modulated:
      params["head_modulation"] = layers.modulation(c, 2).init(next(keys), jnp.zeros(c.width))["params"]
    if c.residual:
      params["context_norm"] = self.new_norm(next(keys))
    return params

  def new_norm(self, key: jax.Array) -> dict:
    """Parameters of a norm."""
    return self.norm.init(key, jnp.zeros((1, self.config.width))).get("params", {})

  @property
  def norm(self) -> layers.Norm:
    return layers.Norm(self.config.norm, self.config.dyt_scale)

  def encode(self, params: dict, inputs: Shaped[Array, "b s ..."], landscape: Landscape = 0) -> Context:
    """The context of `inputs`; candidate i is the guess for what comes after input i."""
    x_BxSxD = self.entries(params, inputs)
    if self.prefix:
      x_BxSxD = jnp.concatenate([self._time(params, landscape, len(x_BxSxD)), x_BxSxD], axis=1)
    positions = jnp.arange(x_BxSxD.shape[1] // self.group)
    condition = self._condition(params, landscape)
    h_BxSxD, (keys, values) = trunk.context(
      self.config, params["layers"], x_BxSxD, positions, condition, self.group, self.recomputes_last
    )
    context = Context(keys, values, positions[self.prefix :] + 1)
    if not self.config.residual:
      return context
    return self._with_answer(params, context, self.answer(params, h_BxSxD[:, self.prefix * self.group :], inputs))

  def _with_answer(self, params, context, answer):
    return context._replace(state=answer, level=self.level(params, answer) if self.levelled else None)

  def _time(self, params, landscape, rows):
    return jnp.broadcast_to(params["time"]["embedding"][landscape], (rows, self.group, self.config.width))

  def direct_answer(self, params: dict, context: Context) -> Float[Array, "b s ..."] | None:
    """The context's own prediction. None where the energy has no residual term."""
    return context.state

  def energy(
    self, params: dict, context: Context, y: Float[Array, "b s ..."], landscape: Landscape = 0
  ) -> Float[Array, "b s"]:
    """Energy of each embedded candidate given what comes before it; candidates do not see each other."""
    if not self.config.residual:
      return self._learnt_energy(params, context, y, landscape)
    energies = self.residual_term(context.state, y)
    if context.level is not None:
      energies = energies + context.level
    gain = self.config.energy_gain
    return energies + gain * self._learnt_energy(params, context, y, landscape) if gain else energies

  def _learnt_energy(self, params, context, y, landscape):
    condition = self._condition(params, landscape)
    config = self.config if self.first_order else dataclasses.replace(self.config, attention="plain")
    x_BxSxD = self.candidate_entries(params, y)
    x_BxSxD = trunk.candidates(config, params["layers"], x_BxSxD, context, condition, self.unroll, self.group)
    energies = layers.energy_head(self.config, params, x_BxSxD, condition)
    return energies if self.group == 1 else jnp.sum(energies.reshape(*y.shape[:2], self.group), -1)

  def energies(
    self, params: dict, context: Context, y: Float[Array, "n b s ..."], landscape: Landscape = 0
  ) -> Float[Array, "n b s"]:
    """`energy` of several candidates for each position, as further positions over one context."""
    n, b, s, *rest = y.shape
    if n == 1:
      return self.energy(params, context, y[0], landscape)[None]
    if self.first_order and self.config.attention == "fused" and context.positions.ndim == 1:
      return jax.lax.map(lambda one: self.energy(params, context, one, landscape), y)
    at = jnp.tile(jnp.broadcast_to(context.positions, (b, s)), (1, n))
    flat = y.swapaxes(0, 1).reshape(b, n * s, *rest)
    state, level = jax.tree.map(lambda a: jnp.tile(a, (1, n, *[1] * (a.ndim - 2))), (context.state, context.level))
    found = self.energy(params, context._replace(positions=at, state=state, level=level), flat, landscape)
    return found.reshape(b, n, s).swapaxes(0, 1)

  def unstacked(self, params: dict) -> dict:
    """The parameters as decoding wants them; see `cache.unstack`."""
    return {**params, "layers": cache.unstack(params["layers"])}

  def empty_cache(self, params: dict, rows: int, capacity: int, landscape: Landscape = 0) -> Context:
    """A context of no inputs with room for `capacity`, ready for `extend`."""
    dtype = params["head"]["kernel"].dtype
    context = cache.empty(self.config, rows, (capacity + self.prefix) * self.group, dtype)
    if self.config.residual:
      context = self._with_answer(params, context, self.empty_answer(rows, dtype))
    if not self.prefix:
      return context
    time = self._time(params, landscape, rows)
    _, (keys, values) = trunk.cached(self.config, params["layers"], time, context.positions, context, group=self.group)
    return context._replace(keys=keys, values=values, positions=context.positions + 1)

  @abc.abstractmethod
  def empty_answer(self, rows: int, dtype: Any) -> Float[Array, "b 1 ..."]:
    """In place of an answer before the first input."""

  def extend(
    self,
    params: dict,
    context: Context,
    inputs: Shaped[Array, "b s ..."],
    lengths: Int[Array, " b"],
    landscape: Landscape = 0,
  ) -> Context:
    """Appends the first `lengths` inputs of each row; the padding behind them is overwritten by the next call."""
    positions = context.positions[:, :1] + jnp.arange(inputs.shape[1])
    x_BxSxD, condition = self.entries(params, inputs), self._condition(params, landscape)
    last_BxGxD, (keys, values) = trunk.cached(
      self.config, params["layers"], x_BxSxD, positions, context, condition, self.group, lengths
    )
    longer = Context(keys, values, context.positions + lengths[:, None])
    if not self.config.residual:
      return longer
    last = self.answer(params, last_BxGxD, cache.at_last(inputs, lengths))
    return self._with_answer(
      params, longer, jnp.where(lengths.reshape(-1, *[1] * (last.ndim - 1)) > 0, last, context.state)
    )

  def flops(self, inputs: jax.ShapeDtypeStruct, single: bool = False) -> EnergyCost:
    c, length = self.config, inputs.shape[1]
    entries, positions = (length + self.prefix) * self.group, (1 if single else length) * self.group
    context = trunk.pass_cost(c, positions if single else entries, entries, self.recomputes_last)
    if single and self.prefix:  # landscapes in front do not change what the first layer projects of a new input
      shared = 6 * c.width**2 * (self.landscapes - 1) * self.group
      context = context._replace(forward=context.forward - shared // self.landscapes)
    candidate = trunk.pass_cost(c, positions, entries)
    products = 2 if c.residual else 1  # with the energy head, and with the context's state
    candidate = candidate._replace(forward=candidate.forward + 2 * positions * c.width * products)
    if c.residual and not c.energy_gain:
      candidate = flops.Pass(2 * positions * c.width)
    part = 2 * c.width**2 if c.variant.startswith("adaln") else 0
    modulation = 6 * c.layers * part, (6 * c.layers + 2) * part
    return EnergyCost(
      context, candidate, 2 * positions * c.width * self.projected, modulation, answer=self.logits(positions)
    )

  def normed_state(self, params: dict, h_BxSxD: Float[Array, "b e d"]) -> Float[Array, "b e d"]:
    """The context's stream through a norm of its own."""
    return self.norm.apply({"params": params["context_norm"]}, h_BxSxD)

  def _condition(self, params, landscape):
    return params["time"]["embedding"][landscape] if self.modulated else None
