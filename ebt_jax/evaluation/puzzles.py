"""Puzzles for people: boards after each thinking step, side by side, with their energies."""

import pathlib
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import files, page, terminal
from ebt_jax.config import Config
from ebt_jax.data import sudoku
from ebt_jax.data.sudoku_rules import BLOCKS, Puzzles
from ebt_jax.evaluation import thoughts
from ebt_jax.evaluation.asked import Asked, read_prompts
from ebt_jax.runs import Run
from ebt_jax.tasks.base import Data, Examples, Params, Task
from ebt_jax.use import sudoku as sudoku_model
from ebt_jax.use.sudoku import Solved, SudokuModel, solve

WIDTH = 100  # most columns of a line
SHOWN = 3  # held-out puzzles on a page
_RED, _PLAIN = "\x1b[31m", "\x1b[0m"


def read(asked: Asked, config: Config) -> Puzzles:
  """Puzzles that a user has written, solved.

  Raises:
    ConfigError: a prompt is no puzzle with one solution; the text says which and why.
  """
  return sudoku_model.parse(read_prompts(asked.prompts, asked.prompts_file), config.sudoku.size, "--prompt: puzzle")


def answer(run: Run, puzzles: Puzzles, asked: Asked) -> list[Solved]:
  """Solves puzzles, and prints them."""
  found = SudokuModel(run).solve_boards(puzzles, seed=asked.seed)
  for one in found:
    print(draw(one, run.config.sudoku.size, terminal.columns(WIDTH), sys.stdout.isatty()), end="\n\n")
  return found


def results(run: Run, found: list[Solved]) -> list[dict[str, Any]]:
  """The answers as JSON."""
  return [as_json(one) for one in found]


def held_out(run: Run, sets: dict[str, Any]) -> list[Solved]:
  """The first puzzles of the last held-out set, solved."""
  return _sample(run.task, run.params, list(sets.values())[-1], SHOWN)


def sections(run: Run, found: list[Solved]) -> list[str]:
  """The board after each step, with its energy."""
  out, size = [], run.config.sudoku.size
  for number, one in enumerate(found, 1):
    blank = _board(np.where(one.given, one.grid, 0), one, np.zeros_like(one.given), size)
    shown = [(blank, f"puzzle, {one.given.sum()} givens")]
    for i, (board, wrong) in enumerate(zip(one.boards, one.wrong), 1):
      energy = "" if one.energies is None else f"energy {one.energies[i - 1]:.4f}, "
      state = f"{wrong.sum()} wrong" if wrong.any() else "solved"
      shown.append((_board(board, one, wrong, size), f"step {i}: {energy}{state}"))
    chart = ""
    if one.energies is not None:
      said = "Energy after each step"
      curve = page.curves(one.energies[:, None], 0, said, first=1)
      chart = f"<figure>{curve}<figcaption>{said}</figcaption></figure>"
    note = '<p class="note">Digits that were given are bold; wrong ones are red, underlined and marked ×.</p>'
    out.append(thoughts.section(f"Puzzle {number}", note, thoughts.steps_of(shown), chart))
  return out


def _board(board, solved: Solved, wrong, size: int) -> str:
  """A board as a table."""
  high, wide = BLOCKS[size]
  rows = []
  for r in range(size):
    cells = []
    for c in range(size):
      at = r * size + c
      digit = str(int(board[at])) if board[at] else '<span class="unseen">blank</span>'
      digit = f"<b>{digit}</b>" if solved.given[at] else digit
      digit = f'<span class="wrong">{digit}×<span class="unseen"> wrong</span></span>' if wrong[at] else digit
      edge = ' class="right"' if (c + 1) % wide == 0 and c + 1 < size else ""
      cells.append(f"<td{edge}>{digit}</td>")
    low = ' class="low"' if (r + 1) % high == 0 and r + 1 < size else ""
    rows.append(f"<tr{low}>{''.join(cells)}</tr>")
  return f'<table class="board"><tbody>{"".join(rows)}</tbody></table>'


def write_sample(task: Task, params: Params, data: Data, folder: pathlib.Path) -> str:
  """The first puzzle of the last held-out set, solved, saved in `sample.json`, and drawn."""
  (found,) = _sample(task, params, list(data.held_out.values())[-1], 1)
  files.write_json(folder / "sample.json", as_json(found))
  return draw(found, task.config.sudoku.size, terminal.columns(WIDTH))


def _sample(task: Task, params: Params, examples: Examples, count: int) -> list[Solved]:
  """The first puzzles of a set, solved."""
  rows = examples.rows(np.arange(min(count, len(examples))))
  return solve(task, params, Puzzles(rows["target"] + 1, rows["asked"] == 0))


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
