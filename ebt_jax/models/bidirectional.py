"""Models in which every position sees all others: rows of tokens of which some are asked for.

`MaskedEBT` scores candidates at the asked places together, so that they can agree; `MaskedTransformer` answers in one
pass, and `LoopedTransformer` in several passes through the same blocks. All three have the trunk of the autoregressive
models. `EnergyStack` is what makes energies of a stream of any kind.

Shape suffixes: B rows, S places, V tokens, D width of the stream, T passes.
"""

import dataclasses
from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ebt_jax.config import ModelConfig
from ebt_jax.flops import EnergyCost, Pass, PredictorCost
from ebt_jax.models import layers, trunk
from ebt_jax.models.base import Energy, Landscape, Predictor


class Masked(NamedTuple):
  """Rows of which some places are asked for."""

  tokens: Int[Array, "b s"]  # those at asked places are not read
  asked: Float[Array, "b s"]  # 1 at places that are asked for, 0 at given ones


@dataclasses.dataclass(frozen=True)
class EnergyStack:
  """Blocks in which every position sees all, and an energy of each position.

  Variants as of `AutoregressiveEBT`: the landscape is one position in front (`time_embed`) or modulates every block and
  the head (`adaln`, `adaln_zero`).

  Attributes:
    landscapes: energy landscapes that the model knows.
    rotary: keys and queries are rotated by their places; else the stream has to say where it is.
  """

  config: ModelConfig
  landscapes: int = 1
  rotary: bool = False

  @property
  def prefix(self) -> int:
    """Positions in front of the stream."""
    return int(self.config.variant == "time_embed")

  @property
  def modulated(self) -> bool:
    """Whether a condition modulates every block (adaLN)."""
    return self.config.variant.startswith("adaln")

  def init(self, key: jax.Array) -> dict:
    c = self.config
    keys = iter(jax.random.split(key, 5))
    params = {"layers": trunk.init(c, next(keys), self.modulated), "norm": init_norm(c, next(keys))}
    head = nn.initializers.variance_scaling(1.0, "fan_avg", "normal")(next(keys), (c.width, 1))
    params["head"] = {"kernel": head * (0.0 if c.variant == "adaln_zero" else c.head_gain)}
    if c.variant != "default":
      params["time"] = {"embedding": nn.initializers.normal(1.0)(next(keys), (self.landscapes, c.width))}
    if self.modulated:
      params["head_modulation"] = layers.modulation(c, 2).init(next(keys), jnp.zeros(c.width))["params"]
    return params

  def energies(
    self,
    params: dict,
    x_BxSxD: Float[Array, "b s d"],
    landscape: Landscape = 0,
    condition: Float[Array, "b 1 d"] | None = None,
    unroll: bool = False,
  ) -> Float[Array, "b s"]:
    """An energy of each position of a stream.

    Args:
      condition: of each row, beside the landscape; needs an adaLN variant.
      unroll: unroll the layers; faster, more memory.
    """
    c = self.config
    if self.modulated:
      of_landscape = params["time"]["embedding"][landscape]
      condition = of_landscape if condition is None else of_landscape + condition
    elif condition is not None:
      raise ValueError(f"a condition of each row modulates blocks: set variant to adaln, found {c.variant!r}")
    if self.prefix:
      time = jnp.broadcast_to(params["time"]["embedding"][landscape], (len(x_BxSxD), 1, c.width))
      x_BxSxD = jnp.concatenate([time, x_BxSxD], axis=1)
    positions = jnp.arange(x_BxSxD.shape[1]) if self.rotary else None
    x_BxSxD = trunk.whole(c, params["layers"], x_BxSxD, positions, condition, unroll)[:, self.prefix :]
    return layers.energy_head(c, params, x_BxSxD, condition)

  def cost(self, places: int) -> tuple[Pass, int]:
    """FLOPs of one stream of `places` positions, and those of modulation by one condition."""
    c, positions = self.config, places + self.prefix
    stream = trunk.pass_cost(c, positions, positions)
    part = 2 * c.width**2 if self.modulated else 0
    return stream._replace(forward=stream.forward + 2 * places * c.width), (6 * c.layers + 2) * part


@dataclasses.dataclass(frozen=True)
class _Tokens:
  """What the models of masked rows share: given tokens, blanks and places as a stream.

  Attributes:
    places: learned embeddings of this many places; 0: places are told apart by rotary positions.
    alike: ways to group the places, each the group of every place; embeddings of one group start with a part in common.
  """

  config: ModelConfig
  places: int = 0
  alike: tuple[tuple[int, ...], ...] = ()
  tables = ("embed", "to_embed", "output", "place", "blank")

  def _init_tokens(self, key: jax.Array) -> dict:
    c, unit = self.config, nn.initializers.normal(1.0)
    keys = jax.random.split(key, 3)
    params = {
      "embed": {"embedding": unit(keys[0], (c.vocab_size, c.width))},
      "blank": {"embedding": unit(keys[1], (1, c.width))},
    }
    if self.places:
      params["place"] = {"embedding": self._init_places(keys[2])}
    return params

  def _init_places(self, key: jax.Array) -> Float[Array, "s d"]:
    """Normal numbers: of each place, or the sum of those of its groups."""
    unit, width = nn.initializers.normal(1.0), self.config.width
    if not self.alike:
      return unit(key, (self.places, width))
    keys = jax.random.split(key, len(self.alike))
    parts = [unit(k, (max(group) + 1, width))[jnp.array(group)] for k, group in zip(keys, self.alike)]
    return sum(parts) / len(parts) ** 0.5

  def _stream(self, params: dict, inputs: Masked) -> Float[Array, "b s d"]:
    given = params["embed"]["embedding"][inputs.tokens]
    x_BxSxD = jnp.where(inputs.asked[..., None] > 0, params["blank"]["embedding"], given)
    return x_BxSxD + params["place"]["embedding"] if self.places else x_BxSxD


class _Known(NamedTuple):
  """The context of `MaskedEBT`: the stream without candidates."""

  stream: Float[Array, "b s d"]
  asked: Float[Array, "b s"]


@dataclasses.dataclass(frozen=True)
class MaskedEBT(_Tokens, Energy):
  """Energies of candidates at the asked places of a row; candidates see the given tokens and each other.

  Attributes:
    landscapes: energy landscapes that the model knows.
    by_place: an energy of each place, 0 at given ones, in place of their sum. Its slope is that of the sum too, so
      thinking is the same; energies of one row are then not independent, and choosing candidates place by place mixes
      answers.
    unroll: unroll the layers; faster, more memory.
  """

  landscapes: int = 1
  by_place: bool = False
  unroll: bool = False

  @property
  def _stack(self) -> EnergyStack:
    return EnergyStack(self.config, self.landscapes, rotary=not self.places)

  def for_training(self, save_memory: bool = False) -> "MaskedEBT":
    return dataclasses.replace(self, unroll=not save_memory)

  def for_inference(self) -> "MaskedEBT":
    return dataclasses.replace(self, unroll=False)

  def init(self, key: jax.Array) -> dict:
    c = self.config
    tokens, stack, to_embed = jax.random.split(key, 3)
    params = {**self._init_tokens(tokens), **self._stack.init(stack)}
    params["blank"] = jax.tree.map(jnp.zeros_like, params["blank"])  # at first, a blank is its candidate alone
    if c.embedder == "linear":  # as strong as given tokens: the stream has to depend on the candidate
      params["to_embed"] = {"kernel": nn.initializers.normal(1.0)(to_embed, (c.vocab_size, c.width))}
    return params

  def table(self, params: dict) -> Float[Array, "v d"]:
    """Candidate distribution -> candidate embedding, `p @ table`; never in reduced precision."""
    return params["embed"]["embedding"] if self.config.embedder == "tied" else params["to_embed"]["kernel"]

  def encode(self, params: dict, inputs: Masked, landscape: Landscape = 0) -> _Known:
    return _Known(self._stream(params, inputs), inputs.asked)

  def energy(
    self, params: dict, context: _Known, y: Float[Array, "b s d"], landscape: Landscape = 0
  ) -> Float[Array, " b *p"]:
    """Energy of the embedded candidates of a row, `[b]`, or of each place, `[b, s]`; y at given places is not read."""
    x_BxSxD = context.stream + context.asked[..., None] * y
    energies_BxS = context.asked * self._stack.energies(params, x_BxSxD, landscape, unroll=self.unroll)
    return energies_BxS if self.by_place else jnp.sum(energies_BxS, -1)

  def flops(self, inputs: Masked, single: bool = False) -> EnergyCost:
    c, places = self.config, inputs.tokens.shape[1]
    candidate, of_energy = self._stack.cost(places)
    positions = places + self._stack.prefix
    attention = 4 * c.layers * c.width * positions**2  # queries, keys and values all depend on the candidates
    return EnergyCost(Pass(0), candidate, 2 * places * c.width * c.vocab_size, (0, of_energy), attention)


@dataclasses.dataclass(frozen=True)
class MaskedTransformer(_Tokens, Predictor):
  """Masked Transformer++: logits of every place from the given tokens, in one pass."""

  def init(self, key: jax.Array) -> dict:
    c = self.config
    tokens, blocks, of_norm, output = jax.random.split(key, 4)
    return {
      **self._init_tokens(tokens),
      "layers": trunk.init(c, blocks),
      "norm": init_norm(c, of_norm),
      "output": {"kernel": layers.initializer(c)(output, (c.width, c.vocab_size))},
    }

  def predict(self, params: dict, inputs: Masked) -> Float[Array, "b s v"]:
    return self._read(params, self._pass(params, self._stream(params, inputs)))

  def _pass(self, params, x_BxSxD):
    """The normed stream after all blocks."""
    positions = None if self.places else jnp.arange(x_BxSxD.shape[1])
    x_BxSxD = trunk.whole(self.config, params["layers"], x_BxSxD, positions, unroll=True)
    return norm(self.config).apply({"params": params["norm"]}, x_BxSxD)

  def _read(self, params, x_BxSxD):
    dtype = layers.compute_dtype(self.config)
    return layers.wide(layers.einsum("bsd,dv->bsv", x_BxSxD, params["output"]["kernel"], dtype))

  def flops(self, inputs: Masked, single: bool = False) -> PredictorCost:
    c, places = self.config, inputs.tokens.shape[1]
    return PredictorCost(trunk.pass_cost(c, places, places), 2 * places * c.width * c.vocab_size)


@dataclasses.dataclass(frozen=True)
class LoopedTransformer(MaskedTransformer):
  """The same blocks gone through several times, with an answer after each pass: what thinks longer without an energy.

  Each pass is given the normed stream of the pass before and the inputs again.
  """

  loops = True

  @property
  def uses(self) -> int:
    return 1 + self.config.latent_updates

  def predict(self, params: dict, inputs: Masked) -> Float[Array, "b s v"]:
    return self.answers(params, inputs, 1)[-1]

  def flops(self, inputs: Masked, single: bool = False) -> PredictorCost:
    cost = super().flops(inputs, single)
    return cost._replace(trunk=Pass(*(self.uses * flops for flops in cost.trunk)))

  def answers(self, params: dict, inputs: Masked, passes: int) -> Float[Array, "t b s v"]:
    known = self._stream(params, inputs)
    if self.config.latent_updates:
      return self._recursive(params, known, passes)

    def once(x_BxSxD, _):
      x_BxSxD = self._pass(params, x_BxSxD + known)
      return x_BxSxD, self._read(params, x_BxSxD)

    return jax.lax.scan(once, jnp.zeros_like(known), None, length=passes)[1]

  def _recursive(self, params, known, passes):
    """A Tiny Recursive Model (arXiv 2510.04871): each pass updates a latent stream several times, from the inputs, the
    answer's stream and itself, and then the answer's from both. No gradient flows from one pass to the next."""

    def once(streams, _):
      answer, latent = jax.lax.stop_gradient(streams)
      for _ in range(self.config.latent_updates):
        latent = self._pass(params, known + answer + latent)
      answer = self._pass(params, answer + latent)
      return (answer, latent), self._read(params, answer)

    start = jnp.zeros_like(known)
    return jax.lax.scan(once, (start, start), None, length=passes)[1]


def norm(config: ModelConfig) -> layers.Norm:
  """The norm that `config` names."""
  return layers.Norm(config.norm, config.dyt_scale)


def init_norm(config: ModelConfig, key: jax.Array) -> dict:
  """Parameters of `norm`."""
  return norm(config).init(key, jnp.zeros((1, config.width))).get("params", {})
