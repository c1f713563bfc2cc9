"""Text: predict the next token by thinking (EBT) or by one pass (Transformer++), with one interface.

A batch is `{"tokens": int32 [b, s+1], "weights": float32 [b, s]}`; weights are 1 for the targets that count.
Both tasks have `init`, `loss`, `evaluate`, and for generation `prefill`, `propose` and `append`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ebt_jax import chunks, losses, parallel, thinking
from ebt_jax.config import Config, ConfigError, ThinkingConfig
from ebt_jax.data import text as text_data
from ebt_jax.data import tokenizers
from ebt_jax.models import trunk
from ebt_jax.models.autoregressive import AutoregressiveEBT
from ebt_jax.models.transformer import Transformer

Batch = dict[str, jax.Array]


class Decoding(NamedTuple):
  """Where generation stands: the cache (EBT: stacked over landscapes), and Transformer++'s logits for the next token."""

  context: Any
  logits: Float[Array, "b v"] | None


def with_tokenizer(config: Config) -> tuple[Config, tokenizers.Tokenizer]:
  """The tokenizer of a config, and the config with the model's vocabulary filled in."""
  tokenizer = tokenizers.load_tokenizer(config.data.tokenizer)
  size = config.model.vocab_size or tokenizer.vocab_size
  if tokenizer.vocab_size > size:
    raise ConfigError(
        f"config.model.vocab_size: {size} is less than the {tokenizer.vocab_size} tokens of "
        f"config.data.tokenizer={config.data.tokenizer!r}; set it to 0 or to at least that"
    )
  return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size)), tokenizer


def load_data(config: Config, tokenizer: tokenizers.Tokenizer):
  """Windows of the training and held-out splits, and their summary."""
  return text_data.build(config.data, tokenizer)


def whole_text(config: Config, tokenizer: tokenizers.Tokenizer):
  """Windows of all of `data.source`, for evaluation."""
  return text_data.whole(config.data, tokenizer)


def make_task(config: Config) -> "EBTText | TransformerText":
  """The task of a resolved config whose `model.vocab_size` is known."""
  return EBTText(config) if config.model.kind == "ebt" else TransformerText(config)


def for_decoding(params: Any) -> Any:
  """The same parameters with the layers apart, so that a token does not slice them out of a stack again."""
  return {**params, "model": {**params["model"], "layers": trunk.apart(params["model"]["layers"])}}


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
    m, model = self.config.model, params["model"]
    hidden = self.model.hidden(parallel.gather_tables(model), batch["tokens"][:, :-1])

    def loss_of(kernel, arrays):
      hidden, targets, weights = arrays
      logits = losses.without_padding(self.model.read(kernel, hidden), m.vocab_size)
      loss = losses.cross_entropy(logits, targets, weights)
      return loss, loss

    size = chunks.positions(*hidden.shape[:2], m.vocab_size, m.vocab_chunk)
    arrays = (hidden, batch["tokens"][:, 1:], batch["weights"])
    kernel = parallel.slice_vocabulary(model["output"]["kernel"], 1)
    loss, seen = chunks.summed(loss_of, kernel, arrays, size)
    return loss, {"final_loss": seen}

  def evaluate(self, params: Any, batch: Batch, key: PRNGKeyArray) -> dict[str, jax.Array]:
    """Sums over a batch: `loss` `[1]`."""
    return {"loss": self.loss(params, batch, key)[0][None]}

  def prefill(self, params: Any, tokens: Int[Array, "b s"], lengths: Int[Array, "b"], capacity: int) -> Decoding:
    """Encodes the first `lengths` tokens of each prompt into a cache with room for `capacity`."""
    cache = self.model.empty_cache(params["model"], tokens.shape[0], capacity)
    return Decoding(*self.model.extend(params["model"], cache, tokens, lengths))

  def propose(self, params: Any, state: Decoding, key: PRNGKeyArray) -> tuple[jax.Array, jax.Array]:
    """Logits `[b, v]` of the next token; the second value, an energy for EBT, is the entropy in nats here."""
    log_p = jax.nn.log_softmax(state.logits)
    return state.logits, -jnp.sum(jnp.exp(log_p) * log_p, -1)

  def append(self, params: Any, state: Decoding, tokens: Int[Array, "b"]) -> Decoding:
    return Decoding(*self.model.extend(params["model"], state.context, tokens[:, None], jnp.ones_like(tokens)))


@dataclasses.dataclass(frozen=True)
class EBTText:
  """EBT on text: the candidate of each position is a distribution over the vocabulary."""

  config: Config

  @property
  def model(self) -> AutoregressiveEBT:
    return AutoregressiveEBT(self.config.model, self.config.thinking.landscapes)

  @property
  def space(self) -> thinking.Simplex:
    """Candidates held whole, `[b, s, v]`."""
    t = self.config.thinking
    return thinking.Simplex(
        table=lambda model: self.model.table(parallel.gather_tables(model)),
        start_scale=t.start_scale if t.start == "noise" else 0.0,
        normalize=t.normalize,
        clip=t.clip_candidate,
        sharpen=t.sharpen,
    )

  def training_space(self, rows: int, length: int) -> thinking.Simplex:
    """`space`, or the same a few positions at a time where the vocabulary makes candidates too large to hold."""
    m, t, space = self.config.model, self.config.thinking, self.space
    size = chunks.positions(rows, length, m.vocab_size, m.vocab_chunk)
    if size >= length or t.normalize != "every" or t.clip_gradient:
      return space
    path = t.gradient == "last" and t.step_size_path and (t.learn_step_size or t.learn_noise)
    settings = {f.name: getattr(space, f.name) for f in dataclasses.fields(space)}
    if not t.soften_targets:  # which shares out some of each target over the vocabulary, padding included
      settings["table"] = lambda model: parallel.slice_vocabulary(self.model.table(model), 0)
    return thinking.ChunkedSimplex(
        **settings,
        vocabulary=m.vocab_size,
        chunk=size,
        noisy=t.noise > 0,
        history="live" if t.gradient == "unrolled" else "path" if path else "constant",
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
    model = parallel.gather_tables(params["model"])
    contexts = [self.model.encode(model, tokens, k) for k in self._landscapes()]
    return jax.tree.map(lambda *a: jnp.stack(a), *contexts)

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
    space = self.training_space(*tokens.shape) if start is None else self.space
    if start is None:
      start = space.start(start_key, (*tokens.shape, self.config.model.vocab_size))
    start = parallel.keep_rows(start)
    contexts = self.contexts(params, tokens)
    loss, aux = thinking.thinking_loss(
        self.model.energy,
        space,
        functools.partial(self._measure, space),
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
    groups = chunks.row_groups(*batch["weights"].shape, self.config.model.vocab_size)
    if groups == 1:
      return self._evaluate(params, batch, key)
    parts = (parallel.deal_rows(batch, groups), jax.random.split(key, groups))
    sums = jax.lax.map(lambda part: self._evaluate(params, *part), parts)
    return jax.tree.map(lambda a: jnp.sum(a, 0), sums)

  def _evaluate(self, params, batch, key):
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

  def prefill(self, params: Any, tokens: Int[Array, "b s"], lengths: Int[Array, "b"], capacity: int) -> Decoding:
    """Encodes the first `lengths` tokens of each prompt into a cache with room for `capacity`."""

    def one(landscape):
      cache = self.model.empty_cache(params["model"], tokens.shape[0], capacity, landscape)
      return self.model.extend(params["model"], cache, tokens, lengths, landscape)

    return Decoding(jax.vmap(one)(self._landscapes()), None)

  def propose(self, params: Any, state: Decoding, key: PRNGKeyArray) -> tuple[jax.Array, jax.Array]:
    """Thinks about the next position alone: logits `[b, v]`, and the energy `[b]` of the finished thought.

    `eval.candidates` thoughts of different starts share the cache; the one of least energy counts.
    """
    start_key, think_key = jax.random.split(key)
    n, last = self.config.eval.candidates, self.config.thinking.landscapes - 1
    at = state.context.positions  # [landscapes, b, 1]
    contexts = state.context._replace(positions=jnp.broadcast_to(at, (*at.shape[:-1], n)))
    thoughts = thinking.think(
        self.model.energy,
        self.space,
        params,
        contexts,
        self.space.start(start_key, (at.shape[1], n, self.config.model.vocab_size)),
        think_key,
        dataclasses.replace(self.config.thinking, steps=self.eval_steps),
    )
    finished = self.space.read(params["model"], thoughts.candidate, last)
    energies = self.model.energy(params["model"], thinking.at_landscape(contexts, last), finished, last)
    best = jnp.argmin(energies, axis=1, keepdims=True)
    of_best = lambda a: jnp.take_along_axis(a, best.reshape(*best.shape, *[1] * (a.ndim - 2)), axis=1)[:, 0]
    return of_best(thoughts.candidate), of_best(energies)

  def append(self, params: Any, state: Decoding, tokens: Int[Array, "b"]) -> Decoding:
    def one(context, landscape):
      return self.model.extend(params["model"], context, tokens[:, None], jnp.ones_like(tokens), landscape)

    return Decoding(jax.vmap(one)(state.context, self._landscapes()), None)

  def _landscapes(self):
    """The landscapes that need a context of their own."""
    return jnp.arange(1 if self.model.shared_context else self.model.landscapes)

  def _measure(self, space, params, contexts, batch, x, energies, i, count):
    t: ThinkingConfig = self.config.thinking
    targets, weights = batch["tokens"][:, 1:], batch["weights"]
    arrays = (targets, weights)
    if t.soften_targets:
      smoothing = t.soften_targets * (count - 1 - i) / jnp.maximum(count - 1, 1)
      arrays += (jnp.broadcast_to(smoothing, weights.shape),)

    def loss_of(x, arrays):
      loss = losses.cross_entropy(x, *arrays)
      return loss, loss

    loss, seen = space.summed(params["model"], x, loss_of, arrays)
    seen = {"loss": seen, "energy": jnp.sum(weights * energies)}
    total = loss if t.gradient == "last" else loss / count
    if t.contrastive:
      total = total + t.contrastive * self._contrast(params, contexts, batch, energies, i == count - 1)
    return total, seen

  def _contrast(self, params, contexts, batch, energies, is_last):
    """Energy of the truth against that of the last prediction, at the last landscape."""
    landscape = self.config.thinking.landscapes - 1
    context = thinking.at_landscape(contexts, landscape)
    truth = self.space.table(params["model"])[batch["tokens"][:, 1:]]
    true = self.model.energy(params["model"], context, truth, landscape)
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
