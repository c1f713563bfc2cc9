"""A trained text model as people use it from Python: it continues texts, scores them, and shows how it thinks."""

from collections.abc import Callable, Iterator, Sequence
import dataclasses
import math
import os
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from ebt_jax import streams
from ebt_jax.config import Config, ConfigError
from ebt_jax.data.tokenizers import StreamDecoder, Tokenizer, split_text
from ebt_jax.data.windows import Assembler, from_flat
from ebt_jax.runs import Run
from ebt_jax.tasks import decoding
from ebt_jax.tasks.base import Task, Thinks
from ebt_jax.use.generate import Generator, Written
from ebt_jax.use.likelihood import Likelihood, Scorer, candidate_energies
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


class TextModel:
  """A trained run of task `text`; made by `ebt_jax.load`.

  Attributes:
    config: of the run, with the settings that were asked for.
    step: of the checkpoint.
    tokenizer: of the run.
  """

  def __init__(self, run: Run):
    self._run, self._made = run, {}
    self.config: Config = run.config
    self.step: int = run.step
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

  def _with(self, make: Callable[[Task], Any], **thinking: Any) -> Any:
    """What `make` gives for the task with these settings, made once."""
    key = (make.__name__, *sorted(thinking.items()))
    if key not in self._made:
      self._made[key] = make(self._task(**thinking))
    return self._made[key]

  def _generator(self, task: Task) -> Generator:
    return Generator.of(task, self._run.params)

  def _scorer(self, task: Task) -> Scorer:
    return Scorer(task, self._run.params, self.tokenizer.end_of_text)

  def _fits(self, ids: list[int], what: str) -> list[int]:
    most = self.config.data.context_length
    if len(ids) > most:
      raise ConfigError(f"{what}: {len(ids)} tokens, more than the {most} of the model's window; shorten it")
    return ids

  def _task(self, steps: int = 0, candidates: int = 0, until: float | None = None) -> Task:
    """The task with other settings of inference."""
    how = {"steps": steps, "candidates": candidates, "tolerance": until}
    changed = {name: value for name, value in how.items() if value not in (0, None)}
    config = dataclasses.replace(self.config, eval=dataclasses.replace(self.config.eval, **changed))
    config.check()
    return dataclasses.replace(self._run.task, config=config) if changed else self._run.task

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


def _energies(task: Task):
  """Of the tokens that follow, or of one distribution at every position; `[b, s]`."""

  def run(params, tokens, p):
    return candidate_energies(task, params, {"tokens": tokens}, p)

  return jax.jit(run)
