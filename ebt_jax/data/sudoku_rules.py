"""The rules of Sudoku: boards of 4, 6 or 9 digits, reading them from text, and solving them.

A board is `size * size` integers, row by row, 0 for a blank. No package of the registries solves boards
of all sizes, has a seed and installs everywhere, and users' puzzles have to be checked: so the solver is here. It fills
the blank with the fewest digits left, and goes back where none is left.
"""

from collections.abc import Sequence
import functools
import pathlib
from typing import NamedTuple

import numpy as np

from ebt_jax.config import ConfigError

BLOCKS = {4: (2, 2), 6: (2, 3), 9: (3, 3)}  # size -> rows and columns of a block
BLANKS = "0.-_"
Board = Sequence[int] | np.ndarray


class Place(NamedTuple):
  """The row, the column and the block of a cell."""

  row: int
  column: int
  block: int


@functools.cache
def places(size: int) -> tuple[Place, ...]:
  """Of each cell."""
  high, wide = BLOCKS[size]
  at = [divmod(cell, size) for cell in range(size * size)]
  return tuple(Place(r, c, r // high * (size // wide) + c // wide) for r, c in at)


def broken_rule(board: Board, size: int) -> str:
  """`row 3 holds 5 twice`, of the first rule that the digits of a board break; empty where they break none."""
  for unit in Place._fields:
    seen = set()
    for place, digit in zip(places(size), board):
      key = getattr(place, unit), digit
      if digit and key in seen:
        return f"{unit} {key[0] + 1} holds {digit} twice"
      seen.add(key)
  return ""


def solutions(board: Board, size: int, limit: int = 2) -> list[tuple[int, ...]]:
  """The first `limit` solutions of a board, fewer where there are fewer."""
  board, at, found = [int(d) for d in board], places(size), []
  rows, columns, blocks = ([(1 << size) - 1] * size for _ in Place._fields)  # bits of the digits that each lacks
  blanks = [cell for cell, digit in enumerate(board) if not digit]
  for (r, c, b), digit in zip(at, board):
    if digit:
      bit = 1 << digit - 1
      if not rows[r] & columns[c] & blocks[b] & bit:
        return []
      rows[r], columns[c], blocks[b] = rows[r] ^ bit, columns[c] ^ bit, blocks[b] ^ bit
  tried: list[tuple[int, int, int]] = []  # cells filled in so far: where it stood in `blanks`, digits not tried yet
  while True:
    if blanks:  # the one with the fewest digits
      fewest = size + 1
      for i, cell in enumerate(blanks):
        r, c, b = at[cell]
        fit = rows[r] & columns[c] & blocks[b]
        if fit.bit_count() < fewest:
          fewest, best, digits = fit.bit_count(), i, fit
          if fewest <= 1:
            break
      tried.append((blanks[best], best, digits))
      blanks[best] = blanks[-1]
      blanks.pop()
    else:
      found.append(tuple(board))
      if len(found) >= limit:
        return found
    while tried:  # the next digit of the last cell that has one
      cell, best, digits = tried.pop()
      r, c, b = at[cell]
      if board[cell]:
        bit = 1 << board[cell] - 1
        rows[r], columns[c], blocks[b] = rows[r] ^ bit, columns[c] ^ bit, blocks[b] ^ bit
      if digits:
        bit = digits & -digits
        rows[r], columns[c], blocks[b] = rows[r] ^ bit, columns[c] ^ bit, blocks[b] ^ bit
        board[cell] = bit.bit_length()
        tried.append((cell, best, digits ^ bit))
        break
      board[cell] = 0
      blanks.append(cell)
      blanks[best], blanks[-1] = blanks[-1], blanks[best]
    else:
      return found


def parse(text: str, size: int, where: str) -> list[int]:
  """The board that a text of `size * size` digits stands for; blanks are 0 or one of `.-_`, white space is left out.

  Raises:
    ConfigError: names `where` and what was found: a character that is no digit of this size, or too few or many.
  """
  marks = "".join(text.split())
  for i, mark in enumerate(marks):
    if mark not in BLANKS and not (mark.isascii() and mark.isdigit() and int(mark) <= size):
      raise ConfigError(f"{where}: expected digits 1 to {size}, and 0 or . for blanks, found {mark!r} at place {i + 1}")
  if len(marks) != size * size:
    raise ConfigError(f"{where}: expected {size * size} digits, row by row, found {len(marks)}")
  return [0 if mark in BLANKS else int(mark) for mark in marks]


def solved(board: Board, size: int, where: str) -> tuple[int, ...]:
  """The one solution of a board.

  Raises:
    ConfigError: names `where`: a rule is broken, or there is no solution, or more than one.
  """
  if broken := broken_rule(board, size):
    raise ConfigError(f"{where}: {broken}; a digit stands once in each row, column and block")
  found = solutions(board, size)
  if len(found) != 1:
    count = "no solution" if not found else "more than one solution"
    raise ConfigError(f"{where}: the puzzle has {count}; expected exactly one")
  return found[0]


class Puzzles(NamedTuple):
  """Puzzles and their only solutions."""

  grids: np.ndarray  # int8 [n, cells], digits from 1
  given: np.ndarray  # bool [n, cells]


def read(path: str, size: int, key: str = "config.data.source") -> Puzzles:
  """The puzzles of a text file, one a line; lines that are empty or start with # are left out.

  Raises:
    ConfigError: the file cannot be read or holds no puzzle; or a line is no puzzle, which is named with its number.
  """
  try:
    lines = pathlib.Path(path).expanduser().read_text(encoding="utf-8-sig").splitlines()
  except (OSError, UnicodeDecodeError) as e:
    raise ConfigError(f"{key}: {path} cannot be read as text: {e}") from e
  wheres = [(f"{path}, line {i}", line) for i, line in enumerate(lines, 1) if line.strip() and line.strip()[0] != "#"]
  if not wheres:
    raise ConfigError(f"{key}: {path} holds no puzzle; write one a line, {size * size} digits")
  boards = [parse(line.split(",")[0], size, where) for where, line in wheres]
  grids = [solved(board, size, where) for board, (where, _) in zip(boards, wheres)]
  return Puzzles(np.array(grids, np.int8), np.array(boards) > 0)
