"""Infilling: the blanks of a text from all that stands around them, answered by EBT or by a masked Transformer.

The places of a row are the targets of a window of text. A batch is `tokens` int32 `[b, s + 1]`, of which the first is
not read, `weights` float32 `[b, s]`, 1 for places that hold text, `bytes` float32 `[b, s]` of each place, and what
`corrupt` draws: `asked` float32 `[b, s]`, 1 at blanks, and `seed` uint32 `[b]` for what a row samples.

With `mask.weighting=row` each blank of a row of n places and k blanks counts n / k. For random layouts of all rates the
mean loss is then the bound of masked diffusion on the nats of a token (MDLM, arXiv 2406.07524): blanks that are drawn
one by one with probability t count 1 / t there, and the integral over t of t^(k-1) (1-t)^(n-k) C(n, k) is 1 / k. Here
k is drawn, which has the same mean and a smaller variance.
"""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from ebt_jax import streams
from ebt_jax.config import Config, ConfigError
from ebt_jax.data import words
from ebt_jax.data.examples import WindowExamples
from ebt_jax.models.bidirectional import Masked, MaskedEBT, MaskedTransformer
from ebt_jax.models.unmasking import Blanks, Filled, Unmasking
from ebt_jax.tasks import masks, text
from ebt_jax.tasks.base import Batch, Kept, Mean
from ebt_jax.tasks.direct import DirectTask
from ebt_jax.tasks.ebt import EBTTask

LENGTHS = 8  # spans of up to so many places are counted apart by length


def make(config: Config, shards: int = 1, kept: Kept | None = None) -> EBTTask | DirectTask:
  """The infilling task that `config.model.kind` names; see `registry.make`."""
  config = text.with_vocabulary(config, kept)
  problem = InfillProblem(config, kept)
  if config.model.kind == "transformer":
    model = Unmasking(MaskedTransformer(config.model), config.mask.unmasking == "ancestral")
    return UnmaskingTask(config, problem, model)
  model = MaskedEBT(config.model, landscapes=config.thinking.landscapes, by_place=config.mask.by_place)
  return EBTTask(config, problem, model, text.whole_space(config, model), shards=shards)


class UnmaskingTask(DirectTask):
  """One pass in training, `eval.steps` passes in evaluation."""

  passes = 1


@dataclasses.dataclass(frozen=True)
class InfillProblem(text.TextProblem):
  """Find the tokens of the blanks; errors are nats."""

  headline = "exact_match"

  @functools.cached_property
  def _words(self) -> tuple[np.ndarray, np.ndarray]:
    return words.of_tokens(self.tokenizer)

  def _examples(self, found: Any, counts: dict[str, Any]) -> WindowExamples:
    if found.counted is not None:
      raise ConfigError("config.data: task infill blanks any token and has no use for prompts; train on the text alone")
    return dataclasses.replace(super()._examples(found, counts), by_place=True)

  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    found = super().spec()
    return {**found, "bytes": found["weights"]}

  def corrupt(self, batch: Batch, key: Array) -> Batch:
    if "asked" in batch:
      return batch
    keys = key if key.ndim else streams.split(key, len(batch["tokens"]))
    of_words = masks.Words(*map(jnp.asarray, self._words)) if self.config.mask.layout == "word" else None
    asked = masks.draw(self.config.mask, key, batch["weights"], self.target(batch), of_words)
    return {**batch, "asked": asked, "seed": jax.vmap(jax.random.bits)(streams.fold(keys, streams.SAMPLE))}

  def inputs(self, batch: Batch) -> Masked | Blanks:
    asked = batch["asked"]
    known = Masked(jnp.where(asked > 0, 0, self.target(batch)), asked)
    return known if self.config.model.kind == "ebt" else Blanks(known, batch["seed"])

  def weights(self, batch: Batch) -> Float[Array, "b s"]:
    """Of a batch without blanks those of all tokens."""
    valid = batch["weights"]
    if "asked" not in batch:
      return valid
    asked = batch["asked"] * valid
    if self.config.mask.weighting == "place":
      return asked
    share = jnp.sum(valid, -1) / jnp.maximum(jnp.sum(asked, -1), 1)
    return asked * share[:, None]

  def error(self, x: Any, target: Int[Array, "b s"], smoothing: Any = None) -> Float[Array, "b s"]:
    return super().error(x.logits if isinstance(x, Filled) else x, target, smoothing)

  def tokens_of(self, x: Any) -> Int[Array, "b s"]:
    """The tokens that an answer stands for; those at given places mean nothing."""
    return x.tokens if isinstance(x, Filled) else jnp.argmax(x, -1)

  def measures(self, x: Any, batch: Batch) -> dict[str, Array]:
    """Spans that are right as a whole, `right`, out of `spans`, in all and by length (`right_3`), at its last place.

    They are divided by the weight of that place, so that in weighted sums each span counts once.
    """
    asked, length = batch["asked"], self.config.data.context_length
    up_to, ends = masks.spans(asked)
    wrong = (asked > 0) & (self.tokens_of(x) != self.target(batch))
    before = jnp.pad(jnp.cumsum(wrong, -1), ((0, 0), (1, 0)))
    place = jnp.arange(asked.shape[1])
    since = before[:, 1:] - jnp.take_along_axis(before, place - up_to + 1, -1)  # wrong tokens of the span up to here
    right = ends & (since == 0)
    weight = self.weights(batch)
    once = 1 / jnp.where(weight > 0, weight, 1)
    found = {"right": right, "spans": ends}
    for n in range(1, min(LENGTHS, length) + 1):
      found |= {f"right_{n}": right & (up_to == n), f"spans_{n}": ends & (up_to == n)}
    return {name: a * once for name, a in found.items()}

  def counts(self, batch: Batch) -> dict[str, Mean]:
    return {"bytes_per_token": Mean.of(batch["bytes"], self.weights(batch))}

  def numbers(self, means: dict[str, float]) -> dict[str, float]:
    """`exact_match`: the share of spans that are right as a whole, in all and by length; `nelbo`: see above."""
    found = {}
    for name in ("", *(f"_{n}" for n in range(1, LENGTHS + 1))):
      if means.get(f"spans{name}"):
        found[f"exact_match{name}"] = means[f"right{name}"] / means[f"spans{name}"]
    if size := means.get("bytes_per_token"):
      found["bits_per_byte"] = means["loss"] / math.log(2) / size
    mask = self.config.mask
    if (mask.weighting, mask.layout, mask.rate_min, mask.rate_max) == ("row", "random", 0, 1):
      found["nelbo"] = means["loss"]
    return found
