"""Writing text: prompts are encoded once, then each token costs thinking at one position and one append."""

import dataclasses
import functools
from typing import Any, Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax.config import ConfigError
from ebt_jax.evaluation.sampling import Sampling, sample


@dataclasses.dataclass
class Written:
  """One continuation: token ids, and for each the energy of the thought it was drawn from (Transformer++: entropy)."""

  prompt: list[int]
  tokens: list[int] = dataclasses.field(default_factory=list)
  energies: list[float] = dataclasses.field(default_factory=list)
  ended: bool = False  # by end-of-text


class Generator:
  """Generates from a task and its parameters; compiled once for each number of rows.

  Args:
    task: a text task; `config.eval.steps` is the number of thinking steps.
    params: its parameters.
    end_of_text: token that ends a row.
  """

  def __init__(self, task: Any, params: Any, end_of_text: int):
    self._task, self._params, self._end = task, params, end_of_text
    self._capacity = task.config.data.context_length
    self._prefill = jax.jit(functools.partial(task.prefill, capacity=self._capacity))
    self._advance = jax.jit(self._one_token, static_argnames="how", donate_argnums=1)

  def _one_token(self, params, state, key, how):
    think_key, sample_key = jax.random.split(key)
    logits, energy = self._task.propose(params, state, think_key)
    tokens = sample(logits, sample_key, how)
    return self._task.append(params, state, tokens), tokens, energy

  def __call__(
      self,
      prompts: Sequence[Sequence[int]],
      max_tokens: int,
      how: Sampling,
      seed: int = 0,
      on_token: Callable[[int, int, float], None] | None = None,
  ) -> list[Written]:
    """Continues every prompt.

    Args:
      prompts: token ids, at least one each, fewer than the context length.
      max_tokens: per row.
      on_token: called with (row, token, energy) as soon as a token is there.

    Raises:
      ConfigError: a prompt that is empty or does not fit.
    """
    for i, prompt in enumerate(prompts):
      if not 0 < len(prompt) < self._capacity:
        raise ConfigError(
            f"--prompt: prompt {i + 1} has {len(prompt)} tokens, expected 1 to {self._capacity - 1} "
            f"(config.data.context_length={self._capacity}); shorten it"
        )
    rows = [Written(list(map(int, p))) for p in prompts]
    key = jax.random.key(seed)
    state, room = self._encode([r.prompt for r in rows])
    for i in range(max_tokens):
      if all(r.ended for r in rows):
        break
      if not room:  # the window is full: go on from its second half
        state, room = self._encode([(r.prompt + r.tokens)[-(self._capacity // 2) :] for r in rows])
      state, tokens, energies = self._advance(self._params, state, jax.random.fold_in(key, i), how)
      room -= 1
      for row, (r, token, energy) in enumerate(zip(rows, np.asarray(tokens), np.asarray(energies))):
        if r.ended:
          continue
        r.tokens.append(int(token))
        r.energies.append(float(energy))
        r.ended = int(token) == self._end
        if on_token:
          on_token(row, int(token), float(energy))
    return rows

  def _encode(self, prompts: list[list[int]]):
    """Cache of the prompts, and how many tokens it still has room for."""
    tokens = np.zeros((len(prompts), self._capacity), np.int32)
    for row, prompt in zip(tokens, prompts):
      row[: len(prompt)] = prompt
    lengths = np.array([len(p) for p in prompts], np.int32)
    return self._prefill(self._params, jnp.asarray(tokens), jnp.asarray(lengths)), self._capacity - int(lengths.max())


def batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
  for i in range(0, len(items), size):
    yield items[i : i + size]
