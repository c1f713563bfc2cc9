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

from ebt_jax import chunks, losses, parallel, streams, thinking
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


class Proposal(NamedTuple):
  """The next token of each row: logits, the energy of the finished thought, and the thinking steps it took."""

  logits: Float[Array, "b v"]
  energy: Float[Array, " b"]
  steps: Int[Array, " b"]


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


def stores(task: "EBTText") -> bool:
  """Whether training stores activations for the second order on this backend, rather than computing them anew."""
  c = task.config
  space = task.training_space(c.train.batch_size // c.train.microbatches, c.data.context_length)
  return thinking.second_order(task.lean(space)) is thinking.double_reverse


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

  def evaluate(self, params: Any, batch: Batch, keys: PRNGKeyArray) -> dict[str, jax.Array]:
    """Sums over a batch: `loss` `[1]`."""
    return {"loss": self.loss(params, batch, keys)[0][None]}

  def scores(self, params: Any, batch: Batch, keys: PRNGKeyArray) -> dict[str, jax.Array]:
    """`loss` of every token in nats, `[1, b, s]`."""
    logits = self.model.logits(params["model"], batch["tokens"][:, :-1])
    return {"loss": losses.token_losses(logits, batch["tokens"][:, 1:])[None]}

  def prefill(self, params: Any, tokens: Int[Array, "b s"], lengths: Int[Array, " b"], capacity: int) -> Decoding:
    """Encodes the first `lengths` tokens of each prompt into a cache with room for `capacity`."""
    cache = self.model.empty_cache(params["model"], tokens.shape[0], capacity)
    return Decoding(*self.model.extend(params["model"], cache, tokens, lengths))

  def propose(self, params: Any, state: Decoding, keys: PRNGKeyArray) -> Proposal:
    """What comes next; the energy is the entropy in nats here, the step is one pass."""
    log_p = jax.nn.log_softmax(state.logits)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, -1)
    return Proposal(state.logits, entropy, jnp.ones(entropy.shape, jnp.int32))

  def append(self, params: Any, state: Decoding, tokens: Int[Array, " b"]) -> Decoding:
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
      normalize=t.authors.normalize,
      clip=t.authors.clip_candidate,
      sharpen=t.authors.sharpen,
    )

  def training_space(self, rows: int, length: int) -> thinking.Simplex:
    """`space`, or the same a few positions at a time where the vocabulary makes candidates too large to hold."""
    m, t, space = self.config.model, self.config.thinking, self.space
    size = chunks.positions(rows, length, m.vocab_size, m.vocab_chunk)
    if size >= length or t.authors.normalize != "every" or t.authors.clip_gradient:
      return space
    path = t.gradient == "last" and t.step_size_path and (t.learn_step_size or t.learn_noise)
    settings = {f.name: getattr(space, f.name) for f in dataclasses.fields(space)}
    if not t.authors.soften_targets:  # which shares out some of each target over the vocabulary, padding included
      settings["table"] = lambda model: parallel.slice_vocabulary(self.model.table(model), 0)
    return thinking.ChunkedSimplex(
      **settings,
      vocabulary=m.vocab_size,
      chunk=size,
      noisy=t.noise > 0,
      history="live" if t.gradient == "unrolled" else "path" if path else "constant",
    )

  def lean(self, space: thinking.Simplex) -> bool:
    """Whether training saves memory rather than time."""
    return self.config.model.remat or isinstance(space, thinking.ChunkedSimplex)

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

    A batch may have `replayed`, rows of `replay_row`, which come after the fresh ones; then the log has `finished`,
    what the buffer is to keep of the fresh rows.

    Args:
      start: candidates `[b, s, v]` to start from; None draws them.
      options: `draws` and `slope` of `thinking.thinking_loss`.
    """
    start_key, think_key = jax.random.split(key)
    replayed = batch.get("replayed")
    fresh = {name: batch[name] for name in ("tokens", "weights")}
    space = self.training_space(*fresh["weights"].shape) if start is None and not replayed else self.space
    if start is None:
      start = space.start(start_key, (*fresh["weights"].shape, self.config.model.vocab_size))
    if replayed:
      start = jnp.concatenate([start, replayed["start"].astype(start.dtype)])
      batch = {n: parallel.keep_rows(jnp.concatenate([a, replayed[n].astype(a.dtype)])) for n, a in fresh.items()}
    tokens = batch["tokens"][:, :-1]
    start = parallel.keep_rows(start)
    contexts = self.contexts(params, tokens)
    slope = options.setdefault("slope", thinking.second_order(self.lean(space)))
    model = dataclasses.replace(self.model, written_out=slope is thinking.double_reverse)  # the other rule saves memory
    loss, aux = thinking.thinking_loss(
      model.energy,
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
    log = self._log(aux, batch["weights"])
    if replayed:
      log["finished"] = {**fresh, "start": aux["candidate"][: len(fresh["tokens"])]}
    return loss, log

  def replay_row(self) -> Any:
    """Shapes of what the replay buffer keeps of one row: its tokens and the candidates it has thought up.

    Candidates are kept whole, `[s, v]`. A trail of slopes would be some hundred times smaller, but dE/dp = slope W.T
    holds for the table W of its own training step, which later steps change: what it regenerates is another candidate.
    """
    s, v = self.config.data.context_length, self.config.model.vocab_size
    shape = jax.ShapeDtypeStruct
    return {
        "tokens": shape((s + 1,), jnp.int32), "weights": shape((s,), jnp.float32), "start": shape((s, v), jnp.float32)
    }  # fmt: skip

  def verified(self, params: Any, tokens: Int[Array, "b s"], keys: PRNGKeyArray, observe=None, **options):
    """Thinks at every position as `eval` says; a `thinking.Verified` of `eval.candidates` and positions `[b, s]`.

    Args:
      keys: one for each row, `[b]`: what a row draws does not depend on the rows beside it.
    """
    start, think_keys = self.starts(keys, tokens.shape)
    contexts = self.contexts(params, tokens)
    return self._think(params, contexts, start, think_keys, observe=observe, **options)

  def starts(self, keys, shape):
    """Starts of `eval.candidates` `[n, b, s, v]`, and keys `[n, b]` to think with."""
    n = self.config.eval.candidates
    start_keys, think_keys = (streams.split(k, n) for k in streams.split(keys, 2))
    return self.space.start(start_keys, (n, *shape, self.config.model.vocab_size)), think_keys

  def _think(self, params, contexts, start, key, **options):
    how = (self.config.thinking, self.config.eval)
    model = dataclasses.replace(self.model, first_order=True)
    options["several"] = model.energies
    return thinking.think_and_verify(model.energy, self.space, params, contexts, start, key, *how, **options)

  def scores(self, params: Any, batch: Batch, keys: PRNGKeyArray) -> dict[str, jax.Array]:
    """What is known of every token: `loss` in nats after each step and `energy` before it `[t, b, s]`, `final_energy`
    `[b, s]`, thinking `steps` used `[b, s]`; all of the candidate that is kept."""
    targets = batch["tokens"][:, 1:]

    def observe(x):
      return losses.token_losses(x, jnp.broadcast_to(targets, x.shape[:-1]))

    found = self.verified(params, batch["tokens"][:, :-1], keys, observe)
    return {
      "loss": found.best(found.observed, 1),
      "energy": found.best(found.energies, 1),
      "final_energy": found.best(found.final),
      "steps": found.best(found.steps_used),
    }

  def evaluate(self, params: Any, batch: Batch, keys: PRNGKeyArray) -> dict[str, jax.Array]:
    """Sums over a batch: `loss` in nats after each step, the `energy` before each step and at the end, `[steps]` and
    `[steps + 1]`, and the `steps` used, `[1]`."""
    groups = chunks.row_groups(*batch["weights"].shape, self.config.model.vocab_size * self.config.eval.candidates)
    if groups == 1:
      return self._evaluate(params, batch, keys)
    parts = parallel.deal_rows((batch, keys), groups)
    sums = jax.lax.map(lambda part: self._evaluate(params, *part), parts)
    return jax.tree.map(lambda a: jnp.sum(a, 0), sums)

  def _evaluate(self, params, batch, keys):
    found, weights = self.scores(params, batch, keys), batch["weights"]
    energies = jnp.concatenate([found["energy"], found["final_energy"][None]])

    def total(a):
      return jnp.einsum("nbs,bs->n", a, weights)

    return {"loss": total(found["loss"]), "energy": total(energies), "steps": total(found["steps"][None])}

  def health(self, params: Any, batch: Batch, key: PRNGKeyArray) -> dict[str, jax.Array]:
    """How thinking goes on these rows, or on some of them where candidates are large: see `thinking.look`."""
    groups = chunks.row_groups(*batch["weights"].shape, self.config.model.vocab_size)
    if groups > 1:
      batch = jax.tree.map(lambda a: a[0], parallel.deal_rows(batch, groups))
    start_key, think_key = jax.random.split(key)
    tokens = batch["tokens"][:, :-1]
    start = self.space.start(start_key, (*tokens.shape, self.config.model.vocab_size))

    def entropy(x):
      return {"entropy": -jnp.sum(jax.nn.softmax(x) * jax.nn.log_softmax(x), -1)}

    return thinking.look(
        self.model.energy, self.space, params, self.contexts(params, tokens), start, batch["weights"], think_key,
        self.config.thinking, entropy,
    )  # fmt: skip

  def prefill(self, params: Any, tokens: Int[Array, "b s"], lengths: Int[Array, " b"], capacity: int) -> Decoding:
    """Encodes the first `lengths` tokens of each prompt into a cache with room for `capacity`."""

    def one(landscape):
      cache = self.model.empty_cache(params["model"], tokens.shape[0], capacity, landscape)
      return self.model.extend(params["model"], cache, tokens, lengths, landscape)

    return Decoding(jax.vmap(one)(self._landscapes()), None)

  def propose(self, params: Any, state: Decoding, keys: PRNGKeyArray) -> Proposal:
    """Thinks about the next position alone.

    `eval.candidates` thoughts of different starts share the cache; `eval.choose` says which counts.

    Args:
      keys: one for each row, `[b]`.
    """
    start, think_keys = self.starts(keys, (len(keys), 1))
    found = self._think(params, state.context, start, think_keys)
    return Proposal(*(found.best(a)[:, 0] for a in (found.candidates, found.final, found.steps_used)))

  def append(self, params: Any, state: Decoding, tokens: Int[Array, " b"]) -> Decoding:
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
    if t.authors.soften_targets:
      smoothing = t.authors.soften_targets * (count - 1 - i) / jnp.maximum(count - 1, 1)
      arrays += (jnp.broadcast_to(smoothing, weights.shape),)

    def loss_of(x, arrays):
      loss = losses.cross_entropy(x, *arrays)
      return loss, loss

    loss, seen = space.summed(params["model"], x, loss_of, arrays)
    seen = {"loss": seen, "energy": jnp.sum(weights * energies)}
    total = loss if t.gradient == "last" else loss / count
    if t.authors.contrastive:
      total = total + t.authors.contrastive * self._contrast(params, contexts, batch, energies, i == count - 1)
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
