"""Sudoku puzzles that are made here: minimal ones, kept in a folder, of which training draws ever new variants.

A minimal puzzle has one solution, and none of its givens can be left out. Any further givens leave the solution alone,
so that one minimal puzzle makes puzzles of any larger number of givens. Relabelled digits and the symmetries of the
board (rows within a band, bands, the same of columns, and transposition where blocks are square) make it a new one each
time.

Which grids are held out is a function of the grid (`is_held_out`): no variant that training sees has such a grid.
"""

from collections.abc import Callable
import hashlib
import io
import logging
import os
import pathlib
import time
import zipfile
import zlib

import numpy as np

from ebt_jax import files
from ebt_jax.clock import duration
from ebt_jax.config import ConfigError
from ebt_jax.data.examples import ArrayExamples
from ebt_jax.data.sudoku_rules import BLOCKS, Puzzles, solutions

ROWS = 2**24  # of an epoch of variants; with more, every one of them still differs
_VERSION = 1  # of what `make` gives for a seed

log = logging.getLogger(__name__)


def is_held_out(grid: np.ndarray, share: float) -> bool:
  """Whether a grid is one of the `share` of all grids that are never trained on."""
  return zlib.crc32(np.ascontiguousarray(grid, np.int8).tobytes()) < share * 2**32


def random_grid(size: int, rng: np.random.Generator, wanted: Callable[[np.ndarray], bool]) -> np.ndarray:
  """A full board that is `wanted`: random blocks that share no row or column, completed, then a random variant."""
  high, wide = BLOCKS[size]
  while True:
    board = np.zeros((size, size), int)
    for i in range(min(size // high, size // wide)):
      block = 1 + rng.permutation(size).reshape(high, wide)
      board[i * high : (i + 1) * high, i * wide : (i + 1) * wide] = block
    grid = np.array(solutions(board.ravel(), size, 1), np.int8).reshape(-1, size * size)
    for _ in range(20 * len(grid)):  # of 4x4, not all such blocks can be completed
      order, digits = symmetry(size, rng)
      found = digits[grid[0][order]]
      if wanted(found):
        return found


def minimal(grid: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
  """Which cells of a grid are given `[cells]`, in a puzzle that has no other solution and no given to spare."""
  board = grid.astype(int)
  for cell in rng.permutation(size * size):
    digit, board[cell] = board[cell], 0
    if len(solutions(board, size)) > 1:
      board[cell] = digit
  return board > 0


def symmetry(size: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
  """A random order of the cells and a random name for each digit, 0 for blanks included, that keep all rules."""
  high, wide = BLOCKS[size]

  def shuffled(part):
    bands = np.arange(size).reshape(-1, part)
    return np.concatenate([rng.permutation(bands[i]) for i in rng.permutation(len(bands))])

  order = np.arange(size * size).reshape(size, size)[shuffled(high)][:, shuffled(wide)]
  if high == wide and rng.integers(2):
    order = order.T
  return order.ravel(), np.concatenate([[0], 1 + rng.permutation(size)]).astype(np.int8)


def make(size: int, count: int, seed: int, wanted: Callable[[np.ndarray], bool]) -> Puzzles:
  """Minimal puzzles with grids that are `wanted`; the first ones are the same whatever `count` is."""
  grids, given, start, shown = [], [], time.monotonic(), time.monotonic()
  for i in range(count):
    rng = np.random.default_rng([_VERSION, seed, i])
    grids.append(random_grid(size, rng, wanted))
    given.append(minimal(grids[-1], size, rng))
    if time.monotonic() - shown > 20:
      shown = time.monotonic()
      log.warning(
        "making Sudoku puzzles: %d of %d, %s left", i + 1, count, duration((shown - start) * (count / (i + 1) - 1))
      )
  return Puzzles(np.array(grids), np.array(given))


def made(folder: str, size: int, train: int, held_out: int, share: float) -> tuple[Puzzles, Puzzles]:
  """Minimal puzzles to train on, and held-out ones, from `folder`, where they are put the first time.

  Args:
    folder: empty: the user's cache, `~/.cache/ebt_jax/sudoku`.
    train, held_out: how many of each.
    share: of all grids that are held out.

  Raises:
    ConfigError: the folder cannot be written.
  """
  cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "ebt_jax/sudoku"
  where = pathlib.Path(folder or cache).expanduser()
  parts = (("train", train, 0), ("held_out", held_out, 1))
  found = []
  for name, count, seed in parts:
    path = where / f"{name}_{size}x{size}_{count}_of_{1 - share if name == 'train' else share:g}_v{_VERSION}.npz"
    try:
      with np.load(path) as there:
        puzzles = Puzzles(there["grids"], there["given"])
    except (
      OSError,
      ValueError,
      KeyError,
      EOFError,
      zipfile.BadZipFile,
    ):  # not there, or damaged: made again, to the same bits
      puzzles = make(size, count, seed, lambda grid, held=name != "train": is_held_out(grid, share) == held)
      content = io.BytesIO()
      np.savez_compressed(content, grids=puzzles.grids, given=puzzles.given)
      try:
        where.mkdir(parents=True, exist_ok=True)
        files.replace_bytes(path, content.getvalue())
      except OSError as e:
        raise ConfigError(f"config.sudoku.folder: {where} cannot be written: {e}; give another folder") from e
    found.append(puzzles)
  return tuple(found)


def with_givens(given: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
  """`given` and random further cells, `count` in all, or as many as there are where those are more."""
  more = count - int(given.sum())
  if more <= 0:
    return given
  out = given.copy()
  out[rng.choice(np.flatnonzero(~given), more, replace=False)] = True
  return out


class Variants:
  """Endless variants of some puzzles: row i is always the same one.

  Args:
    puzzles: to vary; each row takes one of them by chance.
    size: of the boards.
    givens: fewest and most givens, uniform; a puzzle that has more keeps them. None: those of the puzzles.
    seed: of all variants.
    share: of all grids that are held out; no variant has one of them.
  """

  def __init__(self, puzzles: Puzzles, size: int, givens: tuple[int, int] | None, seed: int, share: float):
    self._puzzles, self._size, self._givens, self._seed, self._share = puzzles, size, givens, seed, share

  def __len__(self) -> int:
    return ROWS

  def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
    found = [self._row(int(i)) for i in index]
    return batch_of(Puzzles(*map(np.stack, zip(*found))))

  def _row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([self._seed, number])
    i = rng.integers(len(self._puzzles.grids))
    grid, given = self._puzzles.grids[i], self._puzzles.given[i]
    if self._givens:
      given = with_givens(given, int(rng.integers(self._givens[0], self._givens[1] + 1)), rng)
    while True:
      order, digits = symmetry(self._size, rng)
      varied = digits[grid[order]]
      if not is_held_out(varied, self._share):
        return varied, given[order]


def puzzles_with(puzzles: Puzzles, givens: tuple[int, int], seed: int) -> Puzzles:
  """The same grids with between `givens` of them given, uniform; those that have more are left out."""
  low, high = givens
  rng, grids, given = np.random.default_rng(seed), [], []
  for grid, least in zip(*puzzles):
    if least.sum() <= high:
      grids.append(grid)
      given.append(with_givens(least, int(rng.integers(max(low, least.sum()), high + 1)), rng))
  if not grids:
    fewest = int(puzzles.given.sum(1).min())
    raise ConfigError(
      f"config.sudoku.harder_max: no puzzle of at most {high} givens among {len(puzzles.grids)}, the fewest are "
      f"{fewest}; raise it, or sudoku.held_out"
    )
  return Puzzles(np.stack(grids), np.stack(given))


def batch_of(puzzles: Puzzles) -> dict[str, np.ndarray]:
  """`target` int32 from 0, `asked` float32, both `[n, cells]`, and `weights` of 1."""
  arrays = {"target": puzzles.grids.astype(np.int32) - 1, "asked": (~puzzles.given).astype(np.float32)}
  return {**arrays, "weights": np.ones(len(puzzles.grids), np.float32)}


def examples(puzzles: Puzzles) -> ArrayExamples:
  """The puzzles as they are."""
  return ArrayExamples(**batch_of(puzzles))


def fingerprint(puzzles: Puzzles) -> str:
  """SHA-256 of grids and givens, in hex."""
  return hashlib.sha256(puzzles.grids.tobytes() + np.packbits(puzzles.given).tobytes()).hexdigest()
