"""A trained model of Sudoku from Python: boards after each step with their energies, and the energy of any board."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from ebt_jax import streams
from ebt_jax.config import ConfigError
from ebt_jax.data import sudoku, sudoku_rules
from ebt_jax.data.sudoku_rules import Puzzles
from ebt_jax.tasks.base import Params, Task, Thinks
from ebt_jax.use.model import Model


class Solved(NamedTuple):
  """A puzzle, digits from 1, and what a model made of it in t steps or passes."""

  grid: np.ndarray  # [cells], the solution
  given: np.ndarray  # bool [cells]
  boards: np.ndarray  # [t, cells], after each step
  energies: np.ndarray | None  # [t], after each step; None for models without energies
  steps: int | None = None  # thinking steps used; None for models without energies

  @property
  def wrong(self) -> np.ndarray:
    """`[t, cells]`."""
    return (self.boards != self.grid) & ~self.given

  @property
  def solved(self) -> bool:
    """Whether the last board is the solution."""
    return not self.wrong[-1].any()


class SudokuModel(Model):
  """A trained run of task `sudoku`: EBT, masked or looped Transformer; see `Model`."""

  def solve(self, puzzles: str | Sequence[str], *, seed: int = 0, **thinking: Any) -> Any:
    """Solves a puzzle, or several; none depends on the others.

    Args:
      puzzles: `size * size` digits, row by row, with 0 or one of `.-_` for blanks; each has exactly one solution.
      seed: of the starts of candidates.
      **thinking: `steps`, `candidates`, `until`; see `Model`.

    Returns:
      A `Solved`; of several puzzles a list of them.

    Raises:
      ConfigError: a puzzle is none, or has no solution or several.
    """
    texts = [puzzles] if isinstance(puzzles, str) else list(puzzles)
    found = self.solve_boards(parse(texts, self.config.sudoku.size, "puzzle"), seed=seed, **thinking)
    return found[0] if isinstance(puzzles, str) else found

  def solve_boards(self, puzzles: Puzzles, *, seed: int = 0, **thinking: Any) -> list[Solved]:
    """`solve` of puzzles that are read already."""
    return solve(self._task(**thinking), self._run.params, puzzles, seed)

  def energy(self, puzzle: str, boards: str | Sequence[str]) -> Float[np.ndarray, " n"]:
    """The energy of full boards for a puzzle: lower fits better, below 0 is right to a `judge`.

    Raises:
      ConfigError: the model has no energies, or a text is no board.
    """
    task, size = self._run.task, self.config.sudoku.size
    if not isinstance(task, Thinks):
      raise ConfigError(f"energy: model.kind={self.config.model.kind} has no energies")
    texts = [boards] if isinstance(boards, str) else list(boards)
    full = np.array([sudoku_rules.parse(text, size, f"board {i}") for i, text in enumerate(texts, 1)])
    if not full.all():
      raise ConfigError("energy: a board has blanks; give one with a digit in every cell")
    one = parse([puzzle], size, "puzzle")
    batch = sudoku.batch_of(Puzzles(*(np.repeat(a, len(full), 0) for a in one)))
    target = np.where(one.given, one.grids, full) - 1
    return np.asarray(self._with(_energies)(self._run.params, batch, target))


def _energies(task: Task):
  def run(params, batch, target):
    return task.energy_of(params, task.context(params, batch), target)

  return jax.jit(run)


def parse(texts: Sequence[str], size: int, where: str) -> Puzzles:
  """Puzzles that are written as digits, solved.

  Raises:
    ConfigError: a text is no puzzle with one solution; the message begins with `where` and its number.
  """
  wheres = [f"{where} {i}" for i in range(1, len(texts) + 1)]
  boards = [sudoku_rules.parse(text, size, at) for text, at in zip(texts, wheres)]
  grids = [sudoku_rules.solved(board, size, at) for board, at in zip(boards, wheres)]
  return Puzzles(np.array(grids, np.int8), np.array(boards) > 0)


def solve(task: Task, params: Params, puzzles: Puzzles, seed: int = 0) -> list[Solved]:
  """What a task makes of puzzles, as `config.eval` says; puzzle i draws the same start whatever the others are."""
  batch = jax.tree.map(jnp.asarray, sudoku.batch_of(puzzles))
  keys = streams.each(streams.key_for(seed, streams.GENERATE), jnp.arange(len(puzzles.grids)))

  @jax.jit
  def by_step(params, batch, keys):
    if not isinstance(task, Thinks):
      x = task.answers(params["model"], task.problem.inputs(batch), task.eval_steps)
      return jnp.argmax(x, -1), None, None
    found = task.verified(params, batch, keys, lambda x: jnp.argmax(x, -1))
    energies = jnp.concatenate([found.best(found.energies, 1)[1:], found.best(found.final)[None]])
    return found.best(found.observed, 1), energies, found.best(found.steps_used)

  boards, energies, steps = jax.device_get(by_step(params, batch, keys))
  boards = np.where(puzzles.given, puzzles.grids, boards + 1)
  none = [None] * len(puzzles.grids)
  of = none if energies is None else energies.T
  used = none if steps is None else steps.tolist()
  return [Solved(g, known, boards[:, i], of[i], used[i]) for i, (g, known) in enumerate(zip(*puzzles))]
