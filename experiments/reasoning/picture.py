"""A board through the thinking steps, wrong digits red, with the energy after each step below.

  python -m experiments.reasoning.picture runs/sudoku_4x4 --out=board.png

Of the first held-out puzzles with few givens it shows the one that is most wrong after the first step and solved after
the last.
"""

import io
import pathlib
import sys

import numpy as np

from ebt_jax import cli, files, record
from ebt_jax.config import ConfigError
from ebt_jax.data.sudoku_rules import BLOCKS, Puzzles
from ebt_jax.tasks.sudoku import HARDER
from ebt_jax.use import sudoku
from experiments.thinking import common

GIVEN, RIGHT, WRONG = "#222222", "#1b6ca8", "#d62828"


def chosen(solved: list[sudoku.Solved]) -> sudoku.Solved:
  """Raises ConfigError where none is solved."""
  right = [one for one in solved if not one.wrong[-1].any()]
  if not right:
    raise ConfigError(
      f"none of the {len(solved)} puzzles is solved after the last step; train longer, or give more --steps"
    )
  return max(right, key=lambda one: one.wrong[0].sum())


def board(axes, digits, solved: sudoku.Solved, wrong, size: int) -> None:
  """Draws one board; blanks are 0."""
  high, wide = BLOCKS[size]
  for i in range(size + 1):
    axes.plot([0, size], [i, i], color="k", lw=1.4 if i % high == 0 else 0.4)
    axes.plot([i, i], [0, size], color="k", lw=1.4 if i % wide == 0 else 0.4)
  for cell, digit in enumerate(digits):
    if digit:
      color = GIVEN if solved.given[cell] else WRONG if wrong[cell] else RIGHT
      weight = "bold" if solved.given[cell] or wrong[cell] else "normal"
      row, column = divmod(cell, size)
      axes.text(column + 0.5, row + 0.52, str(digit), color=color, weight=weight, ha="center", va="center", fontsize=13)
  axes.set(xlim=(-0.05, size + 0.05), ylim=(size + 0.05, -0.05), aspect="equal")
  axes.axis("off")


def draw(solved: sudoku.Solved, size: int, shown: list[int]):
  """The puzzle, the boards after the steps `shown`, and below them the energies after all steps."""
  fig, axes = common.figure(1.45 * (len(shown) + 1), 3.4, nrows=2, ncols=len(shown) + 1, height_ratios=[1.4, 1])
  board(axes[0, 0], np.where(solved.given, solved.grid, 0), solved, solved.wrong[0] & False, size)
  axes[0, 0].set_title(f"{solved.given.sum()} givens", fontsize=9)
  for panel, step in zip(axes[0, 1:], shown):
    wrong = solved.wrong[step - 1]
    board(panel, solved.boards[step - 1], solved, wrong, size)
    panel.set_title(f"step {step}: {wrong.sum() or 'none'} wrong", fontsize=9, color=WRONG if wrong.any() else RIGHT)
  grid = axes[1, 0].get_gridspec()
  for panel in axes[1]:
    panel.remove()
  below, steps = fig.add_subplot(grid[1, :]), np.arange(1, len(solved.energies) + 1)
  below.plot(steps, solved.energies, "-", color="#888888", lw=1)
  right = ~solved.wrong.any(1)
  for which, color, label in ((~right, WRONG, "wrong board"), (right, RIGHT, "solved board")):
    below.plot(steps[which], solved.energies[which], "o", color=color, ms=5, label=label)
  below.set(xlabel="thinking step", ylabel="energy", xticks=steps)
  below.legend(frameon=False, fontsize=8)
  return fig


def main(argv: list[str]) -> None:
  parser = cli.Parser(prog="experiments.reasoning.picture", description=__doc__.split("\n")[0])
  parser.add_argument("run", type=cli.path, help="folder of a run of task=sudoku, model.kind=ebt")
  parser.add_argument("--out", type=cli.path, default=pathlib.Path(__file__).parent / "results/board.png")
  parser.add_argument("--steps", type=cli.at_least(1), default=16)
  parser.add_argument("--windows", type=cli.at_least(1), default=64, help="puzzles to choose from")
  args = parser.parse_args(argv)
  model = common.open_model(args.run)
  if (model.config.task, model.config.model.kind) != ("sudoku", "ebt"):
    raise ConfigError(f"{args.run}: expected a run of task=sudoku with model.kind=ebt; only energies can be drawn")
  examples = record.data_of(model.run.task, model.run.folder).held_out[HARDER]
  rows = examples.rows(np.arange(min(args.windows, len(examples))))
  found = sudoku.solve(model.task(steps=args.steps), model.params, Puzzles(rows["target"] + 1, rows["asked"] == 0))
  one = chosen(found)
  first = int(np.flatnonzero(one.wrong.any(1)).max(initial=0)) + 2  # the first step after which all is right for good
  shown = sorted({1, 2, 3, min(first, args.steps), args.steps} & set(range(1, args.steps + 1)))
  drawn = io.BytesIO()
  draw(one, model.config.sudoku.size, shown).savefig(drawn, format="png")
  files.replace_bytes(args.out, drawn.getvalue())
  print(f"written to {args.out}")


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
