"""Text: predict the next token by thinking (EBT) or by one pass (Transformer++), with one interface.

A batch is `{"tokens": int32 [b, s+1], "weights": float32 [b, s]}`; weights are 1 for the targets that count.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ebt_jax import losses, thinking
from ebt_jax.config import Config, ThinkingConfig
from ebt_jax.models.autoregressive import AutoregressiveEBT
from ebt_jax.models.transformer import Transformer

Batch = dict[str, jax.Array]


def make_task(config: Config) -> "EBTText | TransformerText":
  """The task of a resolved config whose `model.vocab_size` is known."""
  return EBTText(config) if config.model.kind == "ebt" else TransformerText(config)


@dataclasses.dataclass(frozen=True)
class TransformerText:
  """Transformer++ on text."""

  config: Config

  @property
  def model(self) -> Transformer:
    return Transformer(self.config.model)

  @property
  def eval_steps(self) -> int:
    """Predictions that `evaluate` scores: one pass."""
    return 1

  def init(self, key: PRNGKeyArray) -> Any:
    return {"model": self.model.init(key)}

  def loss(self, params: Any, batch: Batch, key: PRNGKeyArray) -> tuple[Float[Array, ""], dict]:
    """Sum of token losses in nats, and sums to log."""
    logits = self.model.logits(params["model"], batch["tokens"][:, :-1])
    loss = losses.cross_entropy(logits, batch["tokens"][:, 1:], batch["weights"])
    return loss, {"final_loss": loss}

  def evaluate(self, params: Any, batch: Batch, key: PRNGKeyArray) -> dict[str, jax.Array]:
    """Sums over a batch: `loss` `[1]`."""
    return {"loss": self.loss(params, batch, key)[0][None]}


@dataclasses.dataclass(frozen=True)
class EBTText:
  """EBT on text: the candidate of each position is a distribution over the vocabulary."""

  config: Config

  @property
  def model(self) -> AutoregressiveEBT:
    return AutoregressiveEBT(self.config.model, self.config.thinking.landscapes)

  @property
  def space(self) -> thinking.Simplex:
    t = self.config.thinking
    return thinking.Simplex(
        embed=self.model.embed,
        start_scale=t.start_scale if t.start == "noise" else 0.0,
        normalize=t.normalize,
        clip=t.clip_candidate,
        sharpen=t.sharpen,
    )

  @property
  def eval_steps(self) -> int:
    return self.config.eval.steps or self.config.thinking.steps

  def init(self, key: PRNGKeyArray) -> Any:
    t = self.config.thinking
    inner = {"step_size": jnp.float32(t.step_size), "noise": jnp.float32(t.noise)}
    return {"model": self.model.init(key), "thinking": inner}

  def contexts(self, params: Any, tokens: Int[Array, "b s"]) -> Any:
    """Contexts stacked over landscapes; one entry where all landscapes share it."""
    model = self.model
    count = 1 if model.shared_context else model.landscapes
    return jax.vmap(lambda k: model.encode(params["model"], tokens, k))(jnp.arange(count))

  def loss(
      self, params: Any, batch: Batch, key: PRNGKeyArray, *, training=True, start=None, **options
  ) -> tuple[Float[Array, ""], dict]:
    """Sum of token losses in nats as `thinking.gradient` says, and sums to log.

    Args:
      start: candidates `[b, s, v]` to start from; None draws them.
      options: `draws` and `slope` of `thinking.thinking_loss`.
    """
    start_key, think_key = jax.random.split(key)
    tokens = batch["tokens"][:, :-1]
    if start is None:
      start = self.space.start(start_key, (*tokens.shape, self.config.model.vocab_size))
    contexts = self.contexts(params, tokens)
    loss, aux = thinking.thinking_loss(
        self.model.energy,
        self.space,
        self._measure,
        params,
        contexts,
        batch,
        start,
        think_key,
        self.config.thinking,
        training=training,
        **options,
    )
    return loss, self._log(aux, batch["weights"])

  def evaluate(self, params: Any, batch: Batch, key: PRNGKeyArray) -> dict[str, jax.Array]:
    """Sums over a batch: `loss` in nats after each step, and the `energy` before each step, `[steps]`."""
    start_key, think_key = jax.random.split(key)
    tokens, targets, weights = batch["tokens"][:, :-1], batch["tokens"][:, 1:], batch["weights"]
    thoughts = thinking.think(
        self.model.energy,
        self.space,
        params,
        self.contexts(params, tokens),
        self.space.start(start_key, (*tokens.shape, self.config.model.vocab_size)),
        think_key,
        dataclasses.replace(self.config.thinking, steps=self.eval_steps),
        observe=lambda x: losses.cross_entropy(x, targets, weights),
    )
    return {"loss": thoughts.observed, "energy": jnp.einsum("nbs,bs->n", thoughts.energies, weights)}

  def _measure(self, params, contexts, batch, x, energies, i, count):
    t: ThinkingConfig = self.config.thinking
    targets, weights = batch["tokens"][:, 1:], batch["weights"]
    smoothing = t.soften_targets * (count - 1 - i) / jnp.maximum(count - 1, 1) if t.soften_targets else 0.0
    loss = losses.cross_entropy(x, targets, weights, smoothing)
    seen = {"loss": loss, "energy": jnp.sum(weights * energies)}
    total = loss if t.gradient == "last" else loss / count
    if t.contrastive:
      total = total + t.contrastive * self._contrast(params, contexts, batch, energies, i == count - 1)
    return total, seen

  def _contrast(self, params, contexts, batch, energies, is_last):
    """Energy of the truth against that of the last prediction, at the last landscape."""
    landscape = self.config.thinking.landscapes - 1
    one_hot = jax.nn.one_hot(batch["tokens"][:, 1:], self.config.model.vocab_size)
    context = thinking.at_landscape(contexts, landscape)
    true = self.model.energy(params["model"], context, self.model.embed(params["model"], one_hot), landscape)
    return jnp.where(is_last, losses.energy_contrast(true, energies, batch["weights"]), 0.0)

  def _log(self, aux, weights):
    last = aux["steps"] - 1 if aux["seen"]["loss"].shape[0] > 1 else 0
    first_energy = jnp.sum(weights * aux["first_energies"]) if "first_energies" in aux else aux["seen"]["energy"][0]
    log = {
        "final_loss": aux["seen"]["loss"][last],
        "first_energy": first_energy,
        "last_energy": aux["seen"]["energy"][last],
    }
    if "first_energies" not in aux:
      log["first_loss"] = aux["seen"]["loss"][0]
    return log
