"""Writing text: prompts are encoded once, then each token costs thinking at one position and one append.

Tokens are written by a loop on the device; the host sees them when a bunch is done, or the window is full.
"""

from collections.abc import Callable, Sequence
import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import streams
from ebt_jax.config import ConfigError
from ebt_jax.evaluation.sampling import Sampling, sample
from ebt_jax.tasks import text

BUNCH = 8  # tokens written at once where somebody is reading along


@dataclasses.dataclass
class Written:
  """One continuation: token ids, for each the energy of the thought it was drawn from (Transformer++: entropy) and the
  thinking steps that took."""

  prompt: list[int]
  tokens: list[int] = dataclasses.field(default_factory=list)
  energies: list[float] = dataclasses.field(default_factory=list)
  steps: list[int] = dataclasses.field(default_factory=list)
  ended: bool = False  # by end-of-text


class Generator:
  """Generates from a task and its parameters; compiled once for each number of rows.

  Args:
    task: a text task; `config.eval.steps` is the number of thinking steps.
    params: its parameters.
    end_of_text: token that ends a row.
  """

  def __init__(self, task: Any, params: Any, end_of_text: int):
    self._task, self._end = task, end_of_text
    self._params = jax.jit(text.for_decoding)(params)
    self._capacity = task.config.data.context_length
    self._prefill = jax.jit(functools.partial(task.prefill, capacity=self._capacity))
    self._write = jax.jit(self._several, static_argnames="how", donate_argnums=1)

  def _several(self, params, state, ended, first, count, key, how):
    """Writes `count` tokens a row, fewer where all rows end.

    Args:
      state: the task's cache.
      ended: `[b]`.
      first: how many tokens were written before: text does not depend on how it is cut into bunches.

    Returns:
      The cache, tokens, energies and steps `[capacity, b]`, and how many of them are there.
    """

    def going(carry):
      i, ended = carry[:2]
      return (i < count) & ~jnp.all(ended)

    def one(carry):
      i, ended, state, *seen = carry
      of_rows = streams.each(jax.random.fold_in(key, first + i), jnp.arange(ended.shape[0]))
      think_keys, sample_keys = streams.split(of_rows, 2)
      logits, energy, steps = self._task.propose(params, state, think_keys)
      token = sample(logits, sample_keys, how)
      # a thought that diverged ends its row; and as the energy is needed here, the compiler knows that nobody looks at
      # the cache any more when `append` writes to it, and makes no copy
      token = jnp.where(jnp.isfinite(energy), token, self._end)
      state = self._task.append(params, state, token)
      seen = [whole.at[i].set(now) for whole, now in zip(seen, (token, energy, steps))]
      return i + 1, ended | (token == self._end), state, *seen

    def zeros(dtype):
      return jnp.zeros((self._capacity, ended.shape[0]), dtype)

    carry = (jnp.int32(0), ended, state, zeros(jnp.int32), zeros(jnp.float32), zeros(jnp.int32))
    written, _, *rest = jax.lax.while_loop(going, one, carry)
    return *rest, written

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
      on_token: called with (row, token, energy) for each token, every `BUNCH` tokens.

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
    key = streams.key_for(seed, streams.GENERATE)
    state, room = self._encode([r.prompt for r in rows])
    done = 0
    while done < max_tokens and not all(r.ended for r in rows):
      if not room:  # the window is full: go on from its second half
        state, room = self._encode([(r.prompt + r.tokens)[-(self._capacity // 2) :] for r in rows])
      count = min(room, max_tokens - done, BUNCH if on_token else room)
      ended = np.array([r.ended for r in rows])
      state, *seen = self._write(self._params, state, ended, done, count, key, how)
      tokens, energies, steps, written = jax.device_get(seen)
      room, done = room - int(written), done + int(written)
      for i, row in np.ndindex(int(written), len(rows)):
        r, token, energy = rows[row], int(tokens[i, row]), float(energies[i, row])
        if r.ended:
          continue
        r.tokens.append(token)
        r.energies.append(energy)
        r.steps.append(int(steps[i, row]))
        r.ended = token == self._end
        if on_token:
          on_token(row, token, energy)
    return rows

  def _encode(self, prompts: list[list[int]]):
    """Cache of the prompts, and how many tokens it still has room for."""
    tokens = np.zeros((len(prompts), self._capacity), np.int32)
    for row, prompt in zip(tokens, prompts):
      row[: len(prompt)] = prompt
    lengths = np.array([len(p) for p in prompts], np.int32)
    return self._prefill(self._params, jnp.asarray(tokens), jnp.asarray(lengths)), self._capacity - int(lengths.max())
