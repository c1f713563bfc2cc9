"""Blanks of a text filled by a trained run, step by step: for people, and as JSON.

In a prompt each `_` is one token that is asked for (with `data.tokenizer=bytes` one byte).
"""

import pathlib
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import files, streams, terminal
from ebt_jax.config import Config, ConfigError
from ebt_jax.data.tokenizers import Tokenizer
from ebt_jax.data.windows import Windows
from ebt_jax.evaluation.asked import Asked, read_prompts
from ebt_jax.runs import Run
from ebt_jax.tasks.base import Batch, Data, Params, Task, Thinks

BLANK = "_"


class Step(NamedTuple):
  """A text after one thinking step, or one pass."""

  text: str  # blanks that are left to later passes are `_`
  score: float
  quantity: str  # what the score is: the energy of the row, or the nats of the tokens when they were settled


def parse(prompt: str, number: int, task: Task) -> Batch:
  """A batch of one row: the tokens of a prompt and its blanks.

  Raises:
    ConfigError: the prompt has no blank, or more tokens than the model was trained with.
  """
  shown = f"--prompt: prompt {number}, {terminal.visible(repr(prompt[:40]))}"
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
  return _row(tokens, asked)


def _row(tokens: list[int], asked: list[float]) -> Batch:
  places = jnp.ones((1, len(asked)))
  found = {"tokens": jnp.array([[0, *tokens]]), "weights": places, "bytes": places}
  return {**found, "asked": jnp.array([asked]), "seed": jnp.zeros(1, jnp.uint32)}


class Filler:
  """Fills rows, one at a time; compiled once for each length."""

  def __init__(self, task: Task, params: Params):
    self._task, self._params, self._fill = task, params, jax.jit(self._filled)

  def _filled(self, params, batch, key):
    """Tokens, places that are left, and scores after each step, `[t, ...]`."""
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
    tokenizer = self._task.problem.tokenizer
    quantity = "energy" if isinstance(self._task, Thinks) else "nats"
    return [
      Step(_text(np.where(asked, now, given), open_ > 0, tokenizer), float(score), quantity)
      for now, open_, score in zip(tokens, left, scores)
    ]


def _text(tokens: np.ndarray, blank: np.ndarray, tokenizer: Tokenizer) -> str:
  """The decoding of tokens, with `_` at blanks; a run of tokens is decoded as a whole."""
  edges = np.flatnonzero(np.diff(blank.astype(int))) + 1
  parts = zip(np.split(tokens, edges), np.split(blank, edges))
  return "".join(BLANK * len(run) if is_blank[0] else tokenizer.decode(run.tolist()) for run, is_blank in parts)


def as_json(prompt: str, steps: list[Step]) -> dict[str, Any]:
  """The text at the end, and after each step."""
  return {
    "prompt": prompt,
    "text": steps[-1].text,
    "steps": [{"text": s.text, s.quantity: s.score} for s in steps],
  }


def draw(prompt: str, steps: list[Step], encoding: str = "utf-8") -> str:
  """The prompt, and under it the text after each step with its score."""
  lines = [f"{'':>4} {steps[0].quantity:>10}  {terminal.visible(prompt, encoding, keep='')}"]
  lines += [f"{i:>4} {s.score:>10.4f}  {terminal.visible(s.text, encoding, keep='')}" for i, s in enumerate(steps, 1)]
  return "\n".join(lines)


def read(asked: Asked, config: Config) -> list[str]:
  """The prompts; they are parsed with the run's tokenizer."""
  return read_prompts(asked.prompts, asked.prompts_file)


def answer(run: Run, prompts: list[str], asked: Asked) -> list[dict[str, Any]]:
  """Fills the blanks of prompts, and prints each of them after every step."""
  rows = [parse(prompt, i, run.task) for i, prompt in enumerate(prompts, 1)]
  fill, out = Filler(run.task, run.params), []
  for prompt, row in zip(prompts, rows):
    steps = fill(row, asked.seed)
    print(draw(prompt, steps, terminal.encoding()), end="\n\n", flush=True)
    out.append(as_json(prompt, steps))
  return out


def example(task: Task) -> str:
  """A prompt with blanks."""
  return '--prompt="The ____ of the ______ States"'


def write_sample(task: Task, params: Params, data: Data, folder: pathlib.Path) -> str:
  """Fills blanks of the start of a held-out text, as the task draws them; saves `sample.json`; returns it drawn."""
  if not task.config.sample.tokens:
    return ""
  held_out: Windows = data.held_out["held_out"].windows
  row, tokenizer = _sample_row(task, held_out.tokens[0][1:], int(held_out.lengths[0])), task.problem.tokenizer
  tokens, asked = (np.asarray(row[name][0]) for name in ("tokens", "asked"))
  prompt, truth = _text(tokens[1:], asked > 0, tokenizer), tokenizer.decode(tokens[1:].tolist())
  steps = Filler(task, params)(row)
  files.write_json(folder / "sample.json", {**as_json(prompt, steps), "truth": truth})
  return f"{draw(prompt, steps, terminal.encoding())}\n{'truth':>15}  {terminal.visible(truth, keep='')}"


def _sample_row(task: Task, tokens: np.ndarray, length: int) -> Batch:
  count = min(task.config.sample.prompt_tokens, length, task.config.data.context_length)
  row = _row(tokens[:count].tolist(), [0.0] * count)
  fresh = {name: a for name, a in row.items() if name not in ("asked", "seed")}
  return task.problem.corrupt(fresh, streams.key_for(0, streams.GENERATE)[None])


def trace(task: Task, params: Params) -> None:
  """Traces what `write_sample` computes."""
  count = task.config.sample.prompt_tokens
  row = _row([0] * count, [1.0] * count)
  jax.eval_shape(Filler(task, params)._filled, params, row, streams.key_for(0, streams.GENERATE))
