"""Autoregressive EBT of text: one energy for each (tokens so far, candidate for the next), see `causal`.

With `config.residual` the energy is E(c, y) = g E_theta(c, y) + (log sum exp(W h(c)) - <h(c), y>) / a0: h is the
normed last state of the context's own stream, W the table, a0 the initial step size, g `config.energy_gain`. Where
E_theta is 0, one step of descent gives p + W h, which are the logits of Transformer++ and the start's probabilities p.
So this EBT contains its baseline, and E_theta learns what is left. The first term, the level, is the same for all
candidates of a context: with it a0 E of a token is the negative log of its probability under Transformer++, so that
energies of different contexts compare. Thinking and training know slopes alone, and do not depend on it.
"""

import dataclasses

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ebt_jax.models import layers
from ebt_jax.models.causal import CausalEBT


@dataclasses.dataclass(frozen=True)
class AutoregressiveEBT(CausalEBT):
  """Pure functions of a parameter dict; y is a mixture of rows of `table`."""

  tables = ("embed", "to_embed")

  def init(self, key: jax.Array) -> dict:
    c = self.config
    keys = iter(jax.random.split(key, 8))
    unit = nn.initializers.normal(1.0)  # tables start at N(0, 1); only linear weights follow `config.init`
    params = {
      "embed": {"embedding": unit(next(keys), (c.vocab_size, c.width))},
      **self.init_trunk(next(keys), next(keys)),
    }
    if c.embedder == "linear":
      params["to_embed"] = {"kernel": layers.initializer(c)(next(keys), (c.vocab_size, c.width))}
    return {**params, **self.init_head(keys)}

  def table(self, params: dict) -> Float[Array, "v d"]:
    """Candidate distribution -> candidate embedding, `p @ table`; never in reduced precision."""
    return params["embed"]["embedding"] if self.config.embedder == "tied" else params["to_embed"]["kernel"]

  @property
  def projected(self) -> int:
    return self.config.vocab_size

  def logits(self, positions: int) -> int:
    return 2 * positions * self.config.width * self.config.vocab_size if self.config.residual else 0

  def entries(self, params: dict, inputs: Int[Array, "b s"]) -> Float[Array, "b s d"]:
    return params["embed"]["embedding"][inputs]

  def candidate_entries(self, params: dict, y: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
    return y

  def answer(self, params: dict, h: Float[Array, "b s d"], inputs: Int[Array, "b s"]) -> Float[Array, "b s d"]:
    """h, whose logits are h W.T."""
    return self.normed_state(params, h)

  def empty_answer(self, rows: int, dtype) -> Float[Array, "b 1 d"]:
    return jnp.zeros((rows, 1, self.config.width), dtype)

  def residual_term(self, answer: Float[Array, "b s d"], y: Float[Array, "b s d"]) -> Float[Array, "b s"]:
    return jnp.einsum("bsd,bsd->bs", answer, y) / -self.step_size

  def level(self, params: dict, answer: Float[Array, "b s d"]) -> Float[Array, "b s"]:
    return jax.nn.logsumexp(answer @ self.table(params).T, axis=-1) / self.step_size
