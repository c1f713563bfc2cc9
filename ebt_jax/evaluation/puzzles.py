"""Puzzles for people: boards after each thinking step, side by side, with their energies."""

import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import files, streams, terminal
from ebt_jax.config import Config
from ebt_jax.data import sudoku, sudoku_rules
from ebt_jax.data.sudoku_rules import BLOCKS, Puzzles
from ebt_jax.evaluation.asked import Asked, read_prompts
from ebt_jax.runs import Run
from ebt_jax.tasks.base import Data, Params, Task, Thinks

WIDTH = 100  # most columns of a line
_RED, _PLAIN = "\x1b[31m", "\x1b[0m"


class Solved(NamedTuple):
  """A puzzle, digits from 1, and what a model made of it in t steps."""

  grid: np.ndarray  # [cells], the solution
  given: np.ndarray  # bool [cells]
  boards: np.ndarray  # [t, cells], after each step
  energies: np.ndarray | None  # [t], after each step

  @property
  def wrong(self) -> np.ndarray:
    """`[t, cells]`."""
    return (self.boards != self.grid) & ~self.given


def solve(task: Task, params: Params, puzzles: Puzzles, seed: int = 0) -> list[Solved]:
  """What a task makes of puzzles, as `config.eval` says; puzzle i draws the same start whatever the others are."""
  batch = jax.tree.map(jnp.asarray, sudoku.batch_of(puzzles))
  keys = streams.each(streams.key_for(seed, streams.GENERATE), jnp.arange(len(puzzles.grids)))

  @jax.jit
  def by_step(params, batch, keys):
    if not isinstance(task, Thinks):
      return jnp.argmax(task.answers(params["model"], task.problem.inputs(batch), task.eval_steps), -1), None
    found = task.verified(params, batch, keys, lambda x: jnp.argmax(x, -1))
    energies = jnp.concatenate([found.best(found.energies, 1)[1:], found.best(found.final)[None]])
    return found.best(found.observed, 1), energies

  boards, energies = jax.device_get(by_step(params, batch, keys))
  boards = np.where(puzzles.given, puzzles.grids, boards + 1)
  of = [None] * len(puzzles.grids) if energies is None else energies.T
  return [Solved(g, known, boards[:, i], of[i]) for i, (g, known) in enumerate(zip(*puzzles))]


def read(asked: Asked, config: Config) -> Puzzles:
  """Puzzles that a user has written, solved.

  Raises:
    ConfigError: a prompt is no puzzle with one solution; the text says which and why.
  """
  size, prompts = config.sudoku.size, read_prompts(asked.prompts, asked.prompts_file)
  wheres = [f"--prompt: puzzle {i}" for i in range(1, len(prompts) + 1)]
  boards = [sudoku_rules.parse(text, size, where) for text, where in zip(prompts, wheres)]
  grids = [sudoku_rules.solved(board, size, where) for board, where in zip(boards, wheres)]
  return Puzzles(np.array(grids, np.int8), np.array(boards) > 0)


def answer(run: Run, puzzles: Puzzles, asked: Asked) -> list[dict[str, Any]]:
  """Solves puzzles, and prints them."""
  size = run.config.sudoku.size
  found = solve(run.task, run.params, puzzles, asked.seed)
  for one in found:
    print(draw(one, size, terminal.columns(WIDTH), sys.stdout.isatty()), end="\n\n")
  return [as_json(one) for one in found]


def write_sample(task: Task, params: Params, data: Data, folder: pathlib.Path) -> str:
  """The first puzzle of the last held-out set, solved, saved in `sample.json`, and drawn."""
  row = list(data.held_out.values())[-1].rows(np.arange(1))
  (found,) = solve(task, params, Puzzles(row["target"] + 1, row["asked"] == 0))
  files.write_json(folder / "sample.json", as_json(found))
  return draw(found, task.config.sudoku.size, terminal.columns(WIDTH))


def trace(task: Task, params: Params) -> None:
  """Traces what `write_sample` computes."""
  batch = {name: jnp.ones((1, *a.shape), a.dtype) for name, a in task.problem.spec().items()}
  jax.eval_shape(lambda params: task.evaluate(params, batch, jax.random.split(jax.random.key(0), 1)), params)


def example(task: Task) -> str:
  """A puzzle as a prompt."""
  puzzles = sudoku.make(task.config.sudoku.size, 1, 2, lambda grid: True)
  return "--prompt=" + _text(np.where(puzzles.given, puzzles.grids, 0)[0])


def as_json(solved: Solved) -> dict[str, Any]:
  """Puzzle, solution, and of each step the board, its energy and how many cells are wrong."""
  energies = [None] * len(solved.boards) if solved.energies is None else solved.energies.tolist()
  steps = [
    {"step": i, "board": _text(board), "energy": energy, "wrong": int(wrong)}
    for i, (board, energy, wrong) in enumerate(zip(solved.boards, energies, solved.wrong.sum(1)), 1)
  ]
  puzzle = _text(np.where(solved.given, solved.grid, 0))
  return {"puzzle": puzzle, "solution": _text(solved.grid), "solved": not steps[-1]["wrong"], "steps": steps}


def _text(board) -> str:
  return "".join(str(int(d)) for d in board)


def draw(solved: Solved, size: int, width: int = WIDTH, color: bool = False) -> str:
  """The puzzle and its boards after 1, 2, 4, ... and all steps; `*` marks a wrong digit.

  Args:
    width: most columns of a line.
    color: wrong digits are red.
  """
  count = len(solved.boards)
  shown = sorted({2**i for i in range(count.bit_length())} | {count})
  blank = np.where(solved.given, solved.grid, 0)
  panels = [_panel("puzzle", blank, np.zeros_like(solved.given), size, f"{solved.given.sum()} givens", color)]
  for step in shown:
    wrong = solved.wrong[step - 1]
    below = f"{wrong.sum()} wrong" if wrong.any() else "solved"
    if solved.energies is not None:
      below = f"E {solved.energies[step - 1]:.3f} {below}"
    panels.append(_panel(f"step {step}", solved.boards[step - 1], wrong, size, below, color))
  columns = max(len(line) for panel in panels for line, _ in panel) + 3
  beside = max(1, (width + 3) // columns)
  lines = []
  for start in range(0, len(panels), beside):
    rows = zip(*panels[start : start + beside])
    lines += ["".join(shown + " " * (columns - len(plain)) for plain, shown in row).rstrip() for row in rows] + [""]
  return "\n".join(lines[:-1])


def _panel(title: str, board, wrong, size: int, below: str, color: bool) -> list[tuple[str, str]]:
  """Lines of one board, as (what counts for the width, what is shown)."""
  high, wide = BLOCKS[size]
  lines = [(title, title)]
  for r in range(size):
    if r and r % high == 0:
      lines.append(("", ""))
    plain, shown = "", ""
    for c in range(size):
      digit, bad = board[r * size + c], wrong[r * size + c]
      cell = (str(digit) if digit else ".") + ("*" if bad else " ")
      gap = " " if c and c % wide == 0 else ""
      plain, shown = plain + gap + cell, shown + gap + (f"{_RED}{cell}{_PLAIN}" if bad and color else cell)
    lines.append((plain, shown))
  return [*lines, (below, below)]
