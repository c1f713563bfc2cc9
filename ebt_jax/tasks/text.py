"""Text: the next token from those before it, answered by EBT, by Transformer++ or by a recurrent network.

A batch is `tokens` int32 `[b, s + 1]`, `weights` float32 `[b, s]`, 1 for the targets that count, and `bytes` float32
`[b]`, the UTF-8 bytes that those targets stand for.
"""

import dataclasses
import functools
import logging
import math
import os
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ebt_jax import losses, thinking, vocabulary
from ebt_jax.config import Config, ConfigError, DataConfig
from ebt_jax.data import coverage, find, tokenizers, windows
from ebt_jax.data import text as text_data
from ebt_jax.data.examples import WindowExamples
from ebt_jax.data.windows import Windows
from ebt_jax.models.autoregressive import AutoregressiveEBT
from ebt_jax.models.bidirectional import MaskedEBT
from ebt_jax.models.recurrent import Recurrent
from ebt_jax.models.transformer import Transformer
from ebt_jax.tasks.base import Batch, Data, Kept, Mean, Problem, data_as_meant
from ebt_jax.tasks.direct import DirectTask
from ebt_jax.tasks.ebt import EBTTask

log = logging.getLogger(__name__)

DIRECT = {"transformer": Transformer, "rnn": Recurrent}  # kind of model -> a direct one
TOKENIZER = "tokenizer.json"  # the run's own copy, in its folder


def make(config: Config, shards: int = 1, kept: Kept | None = None) -> EBTTask | DirectTask:
  """The text task that `config.model.kind` names; see `registry.make`.

  Raises:
    ConfigError: the tokenizer has more tokens than the model, or `model.vocab_chunk` cannot be honoured.
  """
  config = with_vocabulary(config, kept)
  problem, c = TextProblem(config, kept), config.train
  rows, length = c.batch_size // c.microbatches, config.data.context_length
  chunk = vocabulary.chunk_positions(rows, length, config.model.vocab_size, shards, config.model.vocab_chunk)
  chunk = 0 if chunk >= length else chunk
  if config.model.kind in DIRECT:
    return DirectTask(config, problem, DIRECT[config.model.kind](config.model), chunk)
  model = AutoregressiveEBT(config.model, config.thinking.landscapes, step_size=config.thinking.step_size)
  if config.thinking.start == "context" and not config.model.residual:
    raise ConfigError("config.thinking.start: context is the start of residual energies; set model.residual, or noise")
  space = whole_space(config, model)
  return EBTTask(config, problem, model, space, chunked_space(config, space, chunk), shards)


def with_vocabulary(config: Config, kept: Kept | None) -> Config:
  """The config with the tokenizer's size where it gives none."""
  if config.model.vocab_size:
    return config
  size = TextProblem(config, kept).load_tokenizer(quiet=True).vocab_size
  return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def whole_space(config: Config, model: AutoregressiveEBT | MaskedEBT) -> thinking.Simplex:
  """Candidates held whole, `[b, s, v]`."""
  t = config.thinking
  return thinking.Simplex(
    table=lambda params: model.table(vocabulary.gather_tables(params)),
    start_scale=t.start_scale if t.start == "noise" else 0.0,
    normalize=t.authors.normalize,
    clip=t.authors.clip_candidate,
    sharpen=t.authors.sharpen,
  )


def chunked_space(config: Config, space: thinking.Simplex, chunk: int) -> thinking.ChunkedSimplex | None:
  """The same a few positions at a time, or None where an option needs candidates whole, or they are small."""
  m, t = config.model, config.thinking
  needs = [
    name
    for name, on in (
      ("thinking.replay_rows", t.replay_rows),
      ("thinking.explore", t.explore > 1),
      ("thinking.authors.normalize", t.authors.normalize != "every"),
      ("thinking.authors.clip_gradient", t.authors.clip_gradient),
    )
    if on
  ]
  if needs and m.vocab_chunk and chunk:
    raise ConfigError(
      f"config.model.vocab_chunk: {m.vocab_chunk} positions at a time, but {' and '.join(needs)} needs candidates "
      "whole; set model.vocab_chunk to 0, or turn that option off"
    )
  if needs or not chunk:
    return None
  path = t.gradient == "last" and t.step_size_path and (t.learn_step_size or t.learn_noise)
  table = space.table
  if not t.authors.soften_targets:  # which shares out some of each target over the vocabulary, padding included

    def table(params):
      return vocabulary.slice_table(AutoregressiveEBT(m, t.landscapes).table(params), 0)

  return thinking.ChunkedSimplex(
    table=table,
    start_scale=space.start_scale,
    clip=space.clip,
    sharpen=space.sharpen,
    vocabulary=m.vocab_size,
    chunk=chunk,
    noisy=t.noise > 0,
    history="live" if t.gradient == "unrolled" else "path" if path else "constant",
  )


@dataclasses.dataclass(frozen=True)
class TextProblem(Problem):
  """Predict each token from those before it; errors are nats."""

  config: Config
  kept: Kept | None = None  # of the run that this is a problem of

  item = "token"
  headline = "bits_per_byte"
  unit = "nats/token"

  @functools.cached_property
  def tokenizer(self) -> tokenizers.Tokenizer:
    """Read when it is needed: paper configs can be traced without its file."""
    tokenizer = self.load_tokenizer()
    size = self.config.model.vocab_size
    if tokenizer.vocab_size > size:
      raise ConfigError(
        f"config.model.vocab_size: {size} is less than the {tokenizer.vocab_size} tokens of "
        f"config.data.tokenizer={self.config.data.tokenizer!r}; set it to 0 or to at least that"
      )
    return tokenizer

  def load_tokenizer(self, quiet: bool = False) -> tokenizers.Tokenizer:
    """The run's own copy where there is one, or what the config names.

    Raises:
      ConfigError: it cannot be read, or is not the one that the run was trained with.
    """
    spec, kept = self.config.data.tokenizer, self.kept
    if kept is None:
      return tokenizers.load_tokenizer(spec)
    trained_as = kept.config.data.tokenizer
    path = _located(spec, kept.places if spec == trained_as else ())
    trained, own = kept.fingerprint.get("tokenizer", ""), kept.folder / TOKENIZER
    there = tokenizers.fingerprint_of(path)
    if spec != trained_as and trained and there != trained:
      tokenizers.load_tokenizer(path)  # says so if there is none
      raise ConfigError(
        f"config.data.tokenizer: {kept.folder} was trained with {trained_as} ({trained[:12]}), found {spec} "
        f"({there[:12]}); leave data.tokenizer out: a run has its own copy"
      )
    if not own.exists():  # bytes, or a run of an older version
      if trained and there != trained:
        raise ConfigError(
          f"config.data.tokenizer: {own} is missing and {path} is not the tokenizer that the run was trained with: "
          f"expected SHA-256 {trained[:12]}, found {there[:12] or 'no file'}; put that file there"
        )
      return tokenizers.load_tokenizer(path)
    tokenizer = tokenizers.load_tokenizer(str(own), os.path.basename(trained_as))
    if trained and tokenizer.fingerprint != trained:
      raise ConfigError(
        f"config.data.tokenizer: {own} has changed since training: expected SHA-256 {trained[:12]}, found "
        f"{tokenizer.fingerprint[:12]}; put the file of the training back"
      )
    if there and there != tokenizer.fingerprint and not quiet:
      log.warning(
        "%s is not the tokenizer that %s was trained with (%s, found %s); the run's own copy, %s, is used",
        *(path, kept.folder, tokenizer.fingerprint[:12], there[:12], own),
      )
    return tokenizer

  def files(self) -> dict[str, bytes]:
    content = self.tokenizer.content
    return {} if content is None else {TOKENIZER: content}

  @functools.cached_property
  def data_config(self) -> DataConfig:
    """With paths as the run meant them."""
    return data_as_meant(self.config, self.kept)

  def data(self) -> Data:
    try:
      found = text_data.build(self.data_config, self.tokenizer)
    except find.NoSource as e:
      if self.kept is None:
        raise
      searched = "".join(f"; searched too: {place}" for place in self.kept.places)
      raise ConfigError(f"{e}{searched}; give --set data.source=PATH where the data of the run are now") from e
    counts = found.counts
    train, first = self._examples(found.train, counts["train"]), self._examples(found.held_out, counts["held_out"])
    fingerprint = {
      "tokenizer": self.tokenizer.fingerprint,
      "train": windows.fingerprint(found.train, counts["train"]),
      "held_out": windows.fingerprint(found.held_out, counts["held_out"]),
    }
    held_out = {"held_out": first}
    for name, source in self.data_config.more_held_out.items():
      more, state = self._whole(source)
      held_out[name] = self._examples(more, state)
      fingerprint[name] = windows.fingerprint(more, state)
    return Data(train, held_out, found.summary, *_described(found.summary), fingerprint)

  def _whole(self, source: str) -> tuple[Windows, dict[str, Any]]:
    data: DataConfig = dataclasses.replace(self.config.data, source=source, max_documents=0)
    return text_data.whole(data, self.tokenizer)

  def _examples(self, found: Windows, counts: dict[str, Any]) -> WindowExamples:
    """Bytes are those of the text that was given, what tokens have lost of it shared out over the tokens."""
    size, scale = self.tokenizer.token_bytes, coverage.scale(counts)
    return WindowExamples(found, size if scale == 1 else size * scale, self.config.model.vocab_size)

  def examples_of(self, source: str) -> WindowExamples:
    return self._examples(*self._whole(source))

  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    s = self.config.data.context_length
    return {
      "tokens": jax.ShapeDtypeStruct((s + 1,), jnp.int32),
      "weights": jax.ShapeDtypeStruct((s,), jnp.float32),
      "bytes": jax.ShapeDtypeStruct((), jnp.float32),
    }

  def inputs(self, batch: Batch) -> Int[Array, "b s"]:
    return batch["tokens"][:, :-1]

  def target(self, batch: Batch) -> Int[Array, "b s"]:
    return batch["tokens"][:, 1:]

  def start(self, space: Any, key: Array, batch: Batch) -> Any:
    shape = (*batch["tokens"][:, 1:].shape, self.config.model.vocab_size)
    return space.start(key, (*key.shape[:-1], *shape))

  def error(self, x: Float[Array, "b s v"], target: Int[Array, "b s"], smoothing: Any = None) -> Float[Array, "b s"]:
    """Nats; logits of padding beyond the vocabulary count for nothing."""
    return losses.token_losses(vocabulary.mask_padding(x, self.config.model.vocab_size), target, smoothing)

  def counts(self, batch: Batch) -> dict[str, Mean]:
    if "bytes" not in batch:
      return {}
    return {"bytes_per_token": Mean(jnp.sum(batch["bytes"]), jnp.sum(batch["weights"]))}

  def numbers(self, means: dict[str, float]) -> dict[str, float]:
    found = {"perplexity": math.exp(min(means["loss"], 700.0))}
    if size := means.get("bytes_per_token"):
      found |= {"bits_per_byte": means["loss"] / math.log(2) / size, "bytes_per_token": size}
    return found


def _located(spec: str, places: tuple[pathlib.Path, ...]) -> str:
  """The path of a tokenizer below the first of `places` where it is."""
  return next((str(p / spec) for p in places if spec != "bytes" and (p / spec).is_file()), spec)


def _described(summary: dict[str, Any]) -> tuple[list[str], str]:
  """What a person reads of the data: at the start, and beside the results."""
  unigram = (
    f"unigram entropy {{of_it}}{summary['unigram_nats_per_token']:.4f} nats/token, "
    f"{summary['unigram_bits_per_byte']:.4f} bits/byte"
  )
  line = (
    f"data: {summary['train_tokens']:,} training tokens, {summary['held_out_tokens']:,} held out "
    f"({summary['held_out_documents']} documents); {unigram.format(of_it='')}"
  )
  lines = [line]
  if summary.get("lost_bytes"):
    of = f"{summary['text_bytes']:,} bytes of text ({summary['lost_share']:.2%})"
    lines.append(f"data: {summary['tokenizer']} loses {summary['lost_bytes']:,} of {of}")
  if summary.get("left_out"):
    lines.append(f"data: left out: {find.describe(summary['left_out'])}")
  return lines, unigram.format(of_it="of the same text: ")
