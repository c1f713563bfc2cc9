"""A masked Transformer that fills blanks in several passes: each settles some, and the next one reads them.

Two orders: the blanks it is surest of first (iterative unmasking), or any, sampled, as masked diffusion (MDLM) runs
backwards. The vocabulary has no token of the mask, and settled tokens stay: the parameterisation SUBS of MDLM.

Shapes: b rows, s places, v tokens, t passes.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from ebt_jax.flops import PredictorCost
from ebt_jax.models.base import Predictor
from ebt_jax.models.bidirectional import Masked, MaskedTransformer


class Blanks(NamedTuple):
  """Rows with blanks, and a seed for what is sampled in each."""

  known: Masked
  seed: UInt32[Array, " b"]


class Filled(NamedTuple):
  """An answer; given places count for nothing."""

  logits: Float[Array, "*t b s v"]  # of each blank when it was settled, or now where it is not
  tokens: Int[Array, "*t b s"]
  unsettled: Float[Array, "*t b s"]  # 1 at blanks that are left to later passes


@dataclasses.dataclass(frozen=True)
class Unmasking(Predictor):
  """`MaskedTransformer` in several passes.

  Attributes:
    sampled: pass i of n settles each blank that is left with probability 1 / (n - i), and samples its token, which is
      how masked diffusion with a linear schedule goes from t = 1 to 0; else the surest ones, equally many in each pass.
  """

  model: MaskedTransformer
  sampled: bool = False
  loops = True
  tables = MaskedTransformer.tables

  def init(self, key: Array) -> dict:
    return self.model.init(key)

  def predict(self, params: dict, inputs: Blanks) -> Filled:
    return jax.tree.map(lambda a: a[0], self.answers(params, inputs, 1))

  def answers(self, params: dict, inputs: Blanks, passes: int) -> Filled:
    known, seed = inputs

    def once(before, i):
      unsettled = before.unsettled
      now = self.model.predict(params, Masked(before.tokens, unsettled))
      choice, settled = (self._sample if self.sampled else self._surest)(now, unsettled, seed, i, passes - i)
      blank = unsettled > 0
      answer = Filled(
        jnp.where(blank[..., None], now, before.logits),
        jnp.where(blank, choice, before.tokens),
        unsettled * (1 - settled),
      )
      return answer, answer

    logits = jnp.zeros((*known.tokens.shape, self.model.config.vocab_size))
    return jax.lax.scan(once, Filled(logits, known.tokens, known.asked), jnp.arange(passes))[1]

  def _surest(self, logits, unsettled, seed, i, left):
    """The likeliest tokens, and which of them are settled: of n blanks and `left` passes, n / left, rounded up."""
    sure = jnp.where(unsettled > 0, jnp.max(jax.nn.log_softmax(logits), -1), -jnp.inf)
    rank = jnp.argsort(jnp.argsort(-sure, -1), -1)
    count = -(-jnp.sum(unsettled, -1).astype(jnp.int32) // left)
    return jnp.argmax(logits, -1), (rank < count[:, None]).astype(logits.dtype)

  def _sample(self, logits, unsettled, seed, i, left):
    def of_row(seed, logits):
      token_key, settle_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), i))
      settled = jax.random.uniform(settle_key, logits.shape[:-1]) * left < 1
      return jax.random.categorical(token_key, logits), settled.astype(logits.dtype)

    return jax.vmap(of_row)(seed, logits)

  def flops(self, inputs: Blanks, single: bool = False) -> PredictorCost:
    return self.model.flops(inputs.known, single)
