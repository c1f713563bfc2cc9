"""A trained model of infilling from Python: the blanks of a text, filled step by step.

In a prompt each `_` is one token that is asked for (with `data.tokenizer=bytes` one byte).
"""

from collections.abc import Sequence
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import streams
from ebt_jax.config import ConfigError
from ebt_jax.data.tokenizers import split_text
from ebt_jax.tasks.base import Batch, Params, Task, Thinks
from ebt_jax.use.model import Model

BLANK = "_"


class Piece(NamedTuple):
  """A part of a text: what the prompt gave, what a model filled in, or blanks that are left."""

  text: str
  kind: str  # "given" | "filled" | "blank"


class Step(NamedTuple):
  """A text after one thinking step, or one pass."""

  pieces: list[Piece]
  score: float
  quantity: str  # what the score is: "energy", of the row, or "nats", of the tokens when they were settled

  @property
  def text(self) -> str:
    """Blanks that are left to later passes are `_`."""
    return "".join(piece.text for piece in self.pieces)


class Filled(NamedTuple):
  """A prompt with its blanks filled, and the text after each step."""

  prompt: str
  steps: list[Step]

  @property
  def text(self) -> str:
    return self.steps[-1].text


class InfillModel(Model):
  """A trained run of task `infill`; see `Model`."""

  def fill(self, prompt: str | Sequence[str], *, seed: int = 0, **thinking: Any) -> Any:
    """Fills the blanks of a prompt, or of several; a row does not depend on its neighbours.

    Args:
      prompt: a text with a `_` for each token to fill in, or several.
      seed: of the starts of candidates, and of what masked diffusion draws.
      **thinking: `steps`, `candidates`, `until`; see `Model`.

    Returns:
      A `Filled`; of several prompts a list of them.

    Raises:
      ConfigError: a prompt has no blank, or more tokens than the model has places.
    """
    several = [prompt] if isinstance(prompt, str) else list(prompt)
    rows = [parse(p, self._run.task, f"prompt {i}") for i, p in enumerate(several, 1)]
    fill = self._with(self._filler, **thinking)
    found = [Filled(p, fill(row, seed)) for p, row in zip(several, rows)]
    return found[0] if isinstance(prompt, str) else found

  def _filler(self, task: Task) -> "Filler":
    return Filler(task, self._run.params)


def parse(prompt: str, task: Task, where: str = "prompt") -> Batch:
  """A batch of one row: the tokens of a prompt and its blanks.

  Raises:
    ConfigError: the prompt has no blank, or more tokens than the model was trained with; the text begins with `where`.
  """
  shown = f"{where}, {prompt[:40]!r}"
  if BLANK not in prompt:
    raise ConfigError(f"{shown}, has no blank; write a {BLANK} for each token to fill in")
  tokenizer, tokens, asked = task.problem.tokenizer, [], []
  for part in re.split(f"({BLANK}+)", prompt):
    ids = [0] * len(part) if part.startswith(BLANK) else tokenizer.encode(part).tolist()
    tokens += ids
    asked += [float(part.startswith(BLANK))] * len(ids)
  most = task.config.data.context_length
  if len(tokens) > most:
    raise ConfigError(f"{shown}, has {len(tokens)} tokens, more than the {most} places of the model; shorten it")
  return row_of(tokens, asked)


def row_of(tokens: Sequence[int], asked: Sequence[float]) -> Batch:
  """A batch of one row; `asked` is 1 at blanks."""
  places = jnp.ones((1, len(asked)))
  found = {"tokens": jnp.array([[0, *tokens]]), "weights": places, "bytes": places}
  return {**found, "asked": jnp.array([asked]), "seed": jnp.zeros(1, jnp.uint32)}


def prompt_of(row: Batch, task: Task) -> str:
  """The text of a row, with `_` at its blanks."""
  tokens, asked = np.asarray(row["tokens"])[0, 1:], np.asarray(row["asked"])[0] > 0
  return "".join(p.text for p in _pieces(tokens, asked, asked, task))


class Filler:
  """Fills rows, one at a time; compiled once for each length."""

  def __init__(self, task: Task, params: Params):
    self._task, self._params, self._fill = task, params, jax.jit(self.filled)

  def filled(self, params: Params, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Tokens `[t, s]`, places that are left `[t, s]`, and scores `[t]` after each step."""
    task, problem, keys = self._task, self._task.problem, key[None]
    batch = {**batch, "seed": jax.vmap(jax.random.bits)(keys)}
    if isinstance(task, Thinks):

      def tokens_of(candidates):
        return jax.vmap(problem.tokens_of)(candidates)

      found = task.verified(params, batch, keys, tokens_of)
      tokens = found.best(found.observed, 1)
      energies = jnp.concatenate([found.best(found.energies, 1)[1:], found.best(found.final)[None]])
      return tokens[:, 0], jnp.zeros(tokens[:, 0].shape), energies.reshape(len(energies), -1).sum(-1)
    x = task.answers(params["model"], problem.inputs(batch), task.eval_steps)
    errors = jax.vmap(problem.error)(x, x.tokens)
    asked = batch["asked"][0] * (1 - x.unsettled[:, 0])
    return x.tokens[:, 0], x.unsettled[:, 0], jnp.sum(asked * errors[:, 0], -1)

  def __call__(self, batch: Batch, seed: int = 0) -> list[Step]:
    """What the row is after each step."""
    found = self._fill(self._params, batch, streams.key_for(seed, streams.GENERATE))
    (tokens, left, scores), row = jax.device_get((found, batch))
    given, asked = row["tokens"][0, 1:], row["asked"][0] > 0
    quantity = "energy" if isinstance(self._task, Thinks) else "nats"
    return [
      Step(_pieces(np.where(asked, now, given), asked, open_ > 0, self._task), float(score), quantity)
      for now, open_, score in zip(tokens, left, scores)
    ]


def _pieces(tokens: np.ndarray, asked: np.ndarray, blank: np.ndarray, task: Task) -> list[Piece]:
  """The text of tokens in parts of one kind each; tokens between blanks are decoded as a whole."""
  texts = []
  for run in np.split(np.arange(len(tokens)), np.flatnonzero(np.diff(blank.astype(int))) + 1):
    whole = tokens[run].tolist()
    texts += [BLANK] * len(run) if blank[run[:1]].any() else split_text(task.problem.tokenizer, [], whole)[1]
  kinds = np.where(blank, "blank", np.where(asked, "filled", "given")).tolist()
  pieces: list[Piece] = []
  for text, kind in zip(texts, kinds):
    if pieces and pieces[-1].kind == kind:
      pieces[-1] = Piece(pieces[-1].text + text, kind)
    else:
      pieces.append(Piece(text, kind))
  return pieces
