"""The likelihood and the energy of continuations of contexts: what multiple choice and other benchmarks ask."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int
import numpy as np

from ebt_jax import streams
from ebt_jax.tasks.base import Params, Task, Thinks

ROWS = 8  # rows of one device call
SHORTEST = 32  # places of the shortest row; longer ones have twice as many, and so on


class Likelihood(NamedTuple):
  """Of one continuation, token by token; n tokens."""

  tokens: Int[np.ndarray, " n"]
  log_likelihood: Float[np.ndarray, " n"]  # nats
  likeliest: Bool[np.ndarray, " n"]  # whether it is the token that the model finds likeliest
  energies: Float[np.ndarray, " n"] | None  # of the tokens as candidates; None for models without energies

  @property
  def total(self) -> float:
    """Nats, of the whole continuation."""
    return float(np.sum(self.log_likelihood, dtype=np.float64))

  @property
  def energy(self) -> float | None:
    """The sum over its tokens."""
    return None if self.energies is None else float(np.sum(self.energies, dtype=np.float64))


class Scorer:
  """Scores continuations; what it finds of one does not depend on the others.

  A context that is too long loses its beginning. A continuation that is longer than the model's window is scored in
  parts, each with at least half a window before it.

  Args:
    task: of text.
    params: its parameters.
    end_of_text: what an empty context stands for.
  """

  def __init__(self, task: Task, params: Params, end_of_text: int):
    self._params, self._end, self._size = params, end_of_text, task.config.data.context_length
    self._score = _scoring(task)

  def __call__(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[Likelihood]:
    """Each continuation after its context, both as token ids; a continuation has at least one."""
    parts = [(number, *part) for number, pair in enumerate(pairs) for part in self._parts(*pair)]
    by_size: dict[int, list] = {}
    for part in parts:
      by_size.setdefault(self._places(len(part[2]) - 1), []).append(part)
    found: list[list] = [[] for _ in pairs]
    for size, group in sorted(by_size.items()):
      for i in range(0, len(group), ROWS):
        for (number, order, tokens, count), values in zip(group[i : i + ROWS], self._run(group[i : i + ROWS], size)):
          places = slice(len(tokens) - 1 - count, len(tokens) - 1)
          cut = [None if v is None else v[places] for v in values]
          found[number].append((order, np.asarray(tokens[-count:]), *cut))
    return [self._joined(parts) for parts in found]

  def _parts(self, context: Sequence[int], continuation: Sequence[int]) -> Iterator[tuple[int, list[int], int]]:
    """Number, tokens and targets of each row; the targets are the last of its tokens."""
    context = [int(t) for t in context] or [self._end]
    whole, at, order = context + [int(t) for t in continuation], len(context), 0
    while at < len(whole):
      left = len(whole) - at
      count = left if left <= self._size else self._size // 2
      at += count
      yield order, whole[max(0, at - self._size - 1) : at], count
      order += 1

  def _places(self, length: int) -> int:
    """The size that a row is padded to: it depends on the row alone, so that its random start does too."""
    size = SHORTEST
    while size < length:
      size *= 2
    return min(size, self._size)

  def _run(self, group, size):
    tokens = np.full((ROWS, size + 1), self._end, np.int32)
    orders, weights = np.zeros(ROWS, np.int32), np.zeros((ROWS, size), np.float32)
    for row, (_, order, ids, count) in enumerate(group):
      tokens[row, : len(ids)], orders[row] = ids, order
      weights[row, len(ids) - 1 - count : len(ids) - 1] = 1
    found = jax.device_get(self._score(self._params, tokens, weights, orders))
    return [[None if a is None else a[row] for a in found] for row in range(len(group))]

  def _joined(self, parts) -> Likelihood:
    _, tokens, error, likeliest, energies = zip(*sorted(parts, key=_order))
    energies = None if energies[0] is None else np.concatenate(energies)
    return Likelihood(np.concatenate(tokens), -np.concatenate(error), np.concatenate(likeliest), energies)


def _order(part):
  return part[0]


def _scoring(task: Task):
  """A function of parameters, tokens, weights and row numbers that gives errors, hits and energies, each `[b, s]`."""
  problem, size = task.problem, task.config.model.vocab_size

  @jax.jit
  def run(params, tokens, weights, numbers):
    batch = {"tokens": tokens, "weights": weights}
    target = problem.target(batch)

    def judge(x):
      return problem.error(x, target), jnp.argmax(x[..., :size], -1) == target

    if not isinstance(task, Thinks):
      return *judge(task.answers(params["model"], problem.inputs(batch), task.eval_steps)[-1]), None
    keys = streams.each(streams.key_for(task.config.eval.seed, streams.EVALUATE), numbers)
    context = task.context(params, batch)
    found = task.think(params, context, *task.starts(params, context, keys, batch))
    return *judge(found.best(found.candidates)), task.energy_of(params, context, target)

  return run
