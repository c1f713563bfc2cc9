"""A trained text model as people use it from Python: it continues texts, scores them, and shows how it thinks."""

from collections.abc import Iterator, Sequence
import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from ebt_jax import streams
from ebt_jax.config import ConfigError
from ebt_jax.data.tokenizers import StreamDecoder, Tokenizer, split_text, token_name
from ebt_jax.data.windows import Assembler, from_flat
from ebt_jax.runs import Run
from ebt_jax.tasks import decoding
from ebt_jax.tasks.base import Task, Thinks
from ebt_jax.use.generate import Generator, Written
from ebt_jax.use.likelihood import Likelihood, Scorer
from ebt_jax.use.model import Model
from ebt_jax.use.sampling import Sampling

ROWS = 8  # windows that are scored in one device call


class Token(NamedTuple):
  """One generated token: the text that it adds, the energy of its thought (Transformer++: entropy), thinking steps."""

  id: int
  text: str
  energy: float
  steps: int


class Continuation(NamedTuple):
  """A prompt and what a model wrote after it; the texts of all tokens joined are `text`."""

  prompt: str
  text: str
  tokens: list[Token]
  window_full: list[int]
  """After how many tokens the model forgot all but the last half of its window."""


class TextScores(NamedTuple):
  """What a model makes of a text, token by token; n tokens, t thinking steps.

  A text longer than the context of the model is cut into windows that do not see each other, as in evaluation.
  """

  tokens: list[str]
  log_likelihood: Float[np.ndarray, " n"]  # nats, of each token given those before it
  log_likelihood_by_step: Float[np.ndarray, "t n"]  # after each thinking step
  energies: Float[np.ndarray, "t+1 n"] | None  # before each step and at the end; None for models without energies
  steps: np.ndarray | None  # thinking steps used, int [n]
  bytes: int  # UTF-8 bytes of the text

  @property
  def perplexity(self) -> float:
    return math.exp(-float(np.mean(self.log_likelihood)))

  @property
  def bits_per_byte(self) -> float:
    return -float(np.sum(self.log_likelihood)) / math.log(2) / self.bytes


class NextToken(NamedTuple):
  """How a model thought about the next token: n candidates, t steps, v tokens of the vocabulary."""

  probabilities: Float[np.ndarray, "t v"]  # of the kept candidate, after each step
  energies: Float[np.ndarray, "t+1 n"]  # of each candidate, before each step and at the end
  steps: np.ndarray  # used by each candidate, int [n]
  kept: int  # the candidate that is kept
  top: list[list[tuple[str, float]]]  # after each step, the likeliest tokens of the kept candidate, as text


class Likely(NamedTuple):
  """A token that a thought finds likely; `text` is in quotes, or its bytes where it is part of a character."""

  text: str
  p: float
  energy: float | None = None  # as the whole answer, of the last step alone; None for models without energies


class TokenThought(NamedTuple):
  """How a model found one token of a text: t steps, n candidates; models without energies have one step."""

  text: str  # what it adds to the text
  name: str  # in quotes, or its bytes
  p: float  # that the end of the thought gives it
  energy: float  # of the end of the thought (Transformer++: entropy)
  steps: int  # used
  likeliest: list[list[Likely]]  # of the kept candidate, after each step
  energies: Float[np.ndarray, "t+1 n"] | None  # of each candidate, before each step and at the end
  kept: int  # the candidate that is kept


class TextModel(Model):
  """A trained run of task `text`; see `Model`.

  Attributes:
    tokenizer: of the run.
  """

  def __init__(self, run: Run):
    super().__init__(run)
    self.tokenizer: Tokenizer = run.task.problem.tokenizer

  @property
  def quantity(self) -> str:
    """What `Token.energy` is: "energy" or "entropy"."""
    return decoding.writer(self._run.task).quantity

  def generate(
    self,
    prompt: str | Sequence[str],
    max_tokens: int = 200,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    **thinking: Any,
  ) -> Any:
    """Continues a prompt, or several at once; a row does not depend on its neighbours.

    Args:
      prompt: a text, or several.
      max_tokens: of each continuation; it ends earlier at the end of a text.
      temperature, top_k, top_p, seed: how tokens are drawn; `top_k=1` takes the likeliest.
      **thinking: `steps`, `candidates`, `until` (see `think`), where they differ from the run's.

    Returns:
      A `Continuation`; of several prompts a list of them.

    Raises:
      ConfigError: an empty prompt, or settings that do not fit.
    """
    prompts = [prompt] if isinstance(prompt, str) else list(prompt)
    sampling = Sampling(temperature, top_k, top_p)
    ids = [self.encode(p) for p in prompts]
    written = self.generator(**thinking)(ids, max_tokens, sampling, seed)
    found = [self.continuation(w) for w in written]
    return found[0] if isinstance(prompt, str) else found

  def stream(
    self,
    prompt: str,
    max_tokens: int = 200,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    seed: int = 0,
    **thinking: Any,
  ) -> Iterator[Token]:
    """The tokens of `generate` as they come. A text that later tokens may still change comes with them."""
    row = Written(self.encode(prompt))
    decoder, shown = StreamDecoder(self.tokenizer), self.tokenizer.decode(row.prompt)
    owed = shown[len("".join(map(decoder.push, row.prompt))) :]  # of the prompt, and not said by the decoder yet

    def own(text):
      nonlocal owed
      same = os.path.commonprefix([owed, text])
      owed = owed[len(same) :] if len(same) == len(text) else ""
      return text[len(same) :]

    last = None
    for _ in self.generator(**thinking).extend([row], max_tokens, Sampling(temperature, top_k, top_p), seed):
      if last:
        yield last
      last = Token(row.tokens[-1], own(decoder.push(row.tokens[-1])), row.energies[-1], row.steps[-1])
    if last:
      yield last._replace(text=last.text + own(decoder.flush()))

  def score(self, text: str, **thinking: Any) -> TextScores:
    """The log-likelihood of every token of a text given those before it, and energies.

    The first token follows the end of another text, as in training.

    Args:
      text: at least one token.
      **thinking: `steps`, `candidates`, `until`, where they differ from the run's.
    """
    ids, score = self.encode(text), self._with(self._scoring, **thinking)
    end, c = self.tokenizer.end_of_text, self.config.data.context_length
    cut = Assembler("packed", c, end, np.dtype(np.int32))
    cut.add(np.array(ids, np.int32))
    cut.finish()
    windows = from_flat(*cut.drain(), "packed", c)
    lengths = np.minimum(windows.lengths, len(ids) - c * np.arange(len(windows)))  # without the end of the text
    parts = []
    for first in range(0, len(windows), ROWS):
      rows = np.arange(first, first + ROWS)
      here = np.minimum(rows, len(windows) - 1)
      weights = (np.arange(c) < np.where(rows < len(windows), lengths[here], 0)[:, None]).astype(np.float32)
      found = jax.device_get(score(self._run.params, windows.tokens[here].astype(np.int32), weights, rows))
      parts.append([None if a is None else a[..., weights > 0] for a in found])
    errors, energies, steps = (None if p[0] is None else np.concatenate(p, -1) for p in zip(*parts))
    pieces = split_text(self.tokenizer, [], ids)[1]
    return TextScores(pieces, -errors[-1], -errors, energies, steps, len(text.encode("utf-8", "replace")))

  def likelihood(self, pairs: Sequence[tuple[str, str]], **thinking: Any) -> list[Likelihood]:
    """The likelihood of continuations, and their energy as candidates, as benchmarks and multiple choice ask for them.

    Context and continuation are tokenised one by one, as a prompt is. What is found of one pair does not depend on the
    others. An empty context is the end of another text.

    Args:
      pairs: (context, continuation); a continuation has at least one token.
      **thinking: `steps`, `candidates`, `until`, where they differ from the run's.
    """
    ids = [
      (self.tokenizer.encode(context).tolist(), self.encode(continuation, "continuation"))
      for context, continuation in pairs
    ]
    return self._with(self._scorer, **thinking)(ids)

  def thoughts(self, text: str | Sequence[int], *, top: int = 5, seed: int = 0, **thinking: Any) -> list[TokenThought]:
    """How the model finds each token of a text, given those before it.

    Args:
      text: or its token ids; one at least, and at most as many as the window holds. The first follows the end of
        another text.
      top: likeliest tokens of each step.
      seed: of the starts of candidates.
      **thinking: `steps`, `candidates`, `until`; see `Model`.

    Raises:
      ConfigError: the text has no tokens or too many.
    """
    ids = self._fits(self.encode(text, "text") if isinstance(text, str) else list(text), "text")
    tokens = np.zeros((1, self.config.data.context_length + 1), np.int32)
    tokens[0, : len(ids) + 1] = [self.tokenizer.end_of_text, *ids]
    run = self._with(_watching, {"top": top}, **thinking)
    found, thought = jax.device_get(run(self._run.params, tokens, streams.key_for(seed, streams.GENERATE)[None]))
    p, energies, steps = (a[0, : len(ids)].tolist() for a in found)
    thoughts = [jax.tree.map(lambda a: a[0, i], thought) for i in range(len(ids))]
    return named_thoughts(self.tokenizer, Written([], ids, energies, steps, p=p, thoughts=thoughts))

  def think(self, prompt: str, *, seed: int = 0, top: int = 5, **thinking: Any) -> NextToken:
    """Thinks about the token after a prompt, and shows how.

    Args:
      prompt: the context; at least one token.
      seed: of the starts of the candidates.
      top: number of likeliest tokens that are named after each step.
      **thinking: `steps`, most of them; `candidates`, of which the one of least energy is kept; `until`, the change of
        energy below which a candidate is finished.

    Raises:
      ConfigError: the model does not think, or the prompt does not fit.
    """
    if not isinstance(self._run.task, Thinks):
      raise ConfigError(f"think: model.kind={self.config.model.kind} answers in one pass and has no thinking steps")
    ids = self._fits(self.encode(prompt), "prompt")
    tokens = np.zeros((1, self.config.data.context_length), np.int32)
    tokens[0, : len(ids)] = ids
    key = streams.key_for(seed, streams.GENERATE)[None]
    think, lengths = self._with(self._thinking, **thinking), np.array([len(ids)], np.int32)
    p, energies, steps, kept = jax.device_get(think(self._run.params, tokens, lengths, key))
    likeliest = np.argsort(-p, axis=-1)[:, :top]
    named = [
      [(split_text(self.tokenizer, ids, [int(i)])[1][0], float(q[i])) for i in row] for q, row in zip(p, likeliest)
    ]
    return NextToken(p, energies, steps, int(kept), named)

  def energy(
    self, context: str, candidate: str | Float[np.ndarray, " v"] | Float[jax.Array, " v"]
  ) -> Float[np.ndarray, " n"]:
    """The energy of a candidate continuation, at the last landscape: lower fits better.

    Args:
      context: at least one token.
      candidate: a text, whose n tokens each have an energy given all before them, or probabilities of the next token.

    Raises:
      ConfigError: the model has no energies, or context and candidate are longer than its window.
    """
    if not isinstance(self._run.task, Thinks):
      raise ConfigError(f"energy: model.kind={self.config.model.kind} has no energies; score gives its log-likelihoods")
    ids = self.encode(context, "context")
    more = self.encode(candidate, "candidate") if isinstance(candidate, str) else [0]
    self._fits(ids + more[:-1], "context with the candidate")
    tokens = np.zeros((1, self.config.data.context_length + 1), np.int32)
    tokens[0, : len(ids) + len(more)] = ids + more
    p, size = None if isinstance(candidate, str) else jnp.asarray(candidate, jnp.float32), self.config.model.vocab_size
    if p is not None and p.shape != (size,):
      raise ConfigError(f"energy: expected a text or probabilities of {size} tokens, found shape {list(p.shape)}")
    found = jax.device_get(self._with(_energies)(self._run.params, tokens, p))
    return found[0, len(ids) - 1 : len(ids) - 1 + len(more)]

  def encode(self, text: str, what: str = "prompt") -> list[int]:
    """Token ids. Raises ConfigError where there are none."""
    ids = self.tokenizer.encode(text).tolist()
    if not ids:
      raise ConfigError(f"{what}: {text!r} has no tokens that the tokenizer of the run knows; give some text")
    return ids

  def continuation(self, written: Written) -> Continuation:
    """What was written, as text."""
    prompt, texts = split_text(self.tokenizer, written.prompt, written.tokens)
    tokens = [Token(*row) for row in zip(written.tokens, texts, written.energies, written.steps)]
    return Continuation(prompt, "".join(texts), tokens, written.window_full)

  def generator(self, **thinking: Any) -> Generator:
    """Writes token ids; see `Generator`."""
    return self._with(self._generator, **thinking)

  def _generator(self, task: Task) -> Generator:
    return Generator.of(task, self._run.params)

  def _scorer(self, task: Task) -> Scorer:
    return Scorer(task, self._run.params, self.tokenizer.end_of_text)

  def _fits(self, ids: list[int], what: str) -> list[int]:
    most = self.config.data.context_length
    if len(ids) > most:
      raise ConfigError(f"{what}: {len(ids)} tokens, more than the {most} of the model's window; shorten it")
    return ids

  def _scoring(self, task: Task):
    def run(params, tokens, weights, numbers):
      keys = streams.each(streams.key_for(task.config.eval.seed, streams.EVALUATE), numbers)
      found = task.scores(params, {"tokens": tokens, "weights": weights}, keys)
      energies = None
      if found.energy is not None:
        energies = jnp.concatenate([found.energy, found.final_energy[None]])
      return found.error, energies, found.steps

    return jax.jit(run)

  def _thinking(self, task: Task):
    writer = decoding.writer(task)

    def run(params, tokens, lengths, keys):
      params = writer.prepare(params)
      state = writer.prefill(params, tokens, lengths, tokens.shape[1])
      found = writer.think(params, state, keys, jax.nn.softmax)
      energies = jnp.concatenate([found.energies, found.final[None]])
      return found.best(found.observed, 1)[:, 0, 0], energies[:, :, 0, 0], found.steps_used[:, 0, 0], found.kept[0, 0]

    return jax.jit(run)


def named_thoughts(tokenizer: Tokenizer, written: Written) -> list[TokenThought]:
  """The thoughts of what was written, with tokens as people read them."""
  texts, out = split_text(tokenizer, written.prompt, written.tokens)[1], []
  for i, (token, thought) in enumerate(zip(written.tokens, written.thoughts)):
    likeliest = [
      [Likely(token_name(tokenizer, int(t)), float(p)) for t, p in zip(*row)] for row in zip(thought.tokens, thought.p)
    ]
    if thought.alone is not None:
      likeliest[-1] = [likely._replace(energy=float(e)) for likely, e in zip(likeliest[-1], thought.alone)]
    seen = (written.p[i], written.energies[i], written.steps[i], likeliest, thought.energies, int(thought.kept))
    out.append(TokenThought(texts[i], token_name(tokenizer, token), *seen))
  return out


def _watching(task: Task, top: int):
  """Probabilities of tokens, energies and steps `[b, s]`, and thoughts."""

  def run(params, tokens, keys):
    batch = {"tokens": tokens, "weights": jnp.ones(tokens[:, 1:].shape)}
    logits, *seen, thought = decoding.thoughts(task, params, batch, keys, top)
    p = jnp.take_along_axis(jax.nn.softmax(logits), tokens[:, 1:, None], -1)[..., 0]
    return (p, *seen), thought

  return jax.jit(run)


def _energies(task: Task):
  """Of the tokens that follow, or of one distribution at every position; `[b, s]`."""

  def run(params, tokens, p):
    batch = {"tokens": tokens}
    context = task.context(params, batch)
    if p is None:
      return task.energy_of(params, context, task.problem.target(batch))
    y = task.space.embed(params["model"], jnp.broadcast_to(p, (*tokens[:, 1:].shape, *p.shape)))
    return task.energy(params, context, y)

  return jax.jit(run)
