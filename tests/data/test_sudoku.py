"""Sudoku: rules, the solver against another one, puzzles that are made, users' files, what is held out."""

import logging

import numpy as np
import pytest
from scipy import optimize, sparse

from ebt_jax.config import ConfigError
from ebt_jax.data import sudoku, sudoku_rules
from ebt_jax.data.sudoku_rules import BLOCKS, Puzzles

# published puzzles and their solutions
EASY = "530070000600195000098000060800060003400803001700020006060000280000419005000080079"
EASY_SOLVED = "534678912672195348198342567859761423426853791713924856961537284287419635345286179"


def agreement(grid, given, size: int) -> int:
  """The fewest cells that a solution shares with `grid`, by integer programming: all, where `grid` is the only one."""
  cells, units = size * size, np.array(sudoku_rules.places(size))
  choices = np.arange(cells * size).reshape(cells, size)
  groups = [*choices]  # a digit in each cell, and each digit in each row, column and block
  groups += [choices[units[:, kind] == i, d] for kind in range(3) for i in range(size) for d in range(size)]
  rows = np.repeat(np.arange(len(groups)), size)
  rules = sparse.csr_array((np.ones(len(rows)), (rows, np.concatenate(groups))), (len(groups), choices.size))
  right = choices[np.arange(cells), grid - 1]
  low, cost = np.zeros(choices.size), np.zeros(choices.size)
  low[right[given]], cost[right] = 1, 1
  bounds, one = optimize.Bounds(low, 1), optimize.LinearConstraint(rules, 1, 1)
  return round(optimize.milp(cost, constraints=one, integrality=np.ones(choices.size), bounds=bounds).fun)


def assert_valid(grid, size):
  units = np.array(sudoku_rules.places(size))
  for kind in range(3):
    assert all(sorted(grid[units[:, kind] == i]) == list(range(1, size + 1)) for i in range(size))


def test_blocks_are_where_people_draw_them():
  assert [p.block for p in sudoku_rules.places(6)[:12]] == [0, 0, 0, 1, 1, 1] * 2
  assert sudoku_rules.places(9)[80] == (8, 8, 8) and sudoku_rules.places(4)[6] == (1, 2, 1)


def test_the_solver_finds_the_published_solution_and_counts_up_to_its_limit():
  board = sudoku_rules.parse(EASY, 9, "here")
  assert "".join(map(str, sudoku_rules.solutions(board, 9)[0])) == EASY_SOLVED
  assert len(sudoku_rules.solutions(board, 9)) == 1
  assert [len(sudoku_rules.solutions([0] * 16, 4, n)) for n in (1, 2, 1000)] == [1, 2, 288]  # all grids of 4x4
  twice = [1, 1, *[0] * 14]
  assert sudoku_rules.solutions(twice, 4) == [] and sudoku_rules.broken_rule(twice, 4) == "row 1 holds 1 twice"


@pytest.mark.parametrize("size", [4, 6, 9])
def test_made_puzzles_have_one_solution_and_no_given_to_spare(size):
  found = sudoku.make(size, 2, 5, lambda grid: True)
  for grid, given in zip(*found):
    assert_valid(grid, size)
    assert agreement(grid, given, size) == size * size
    for cell in np.flatnonzero(given)[:: 1 if size == 4 else 5]:
      assert agreement(grid, np.where(np.arange(size * size) == cell, False, given), size) < size * size


@pytest.mark.parametrize("size", [4, 6, 9])
def test_variants_keep_the_rules_and_the_number_of_givens_and_are_functions_of_their_number(size):
  base, share = sudoku.make(size, 3, 1, lambda grid: True), 0.2
  cells = size * size
  low, high = cells // 2, cells // 2 + 4
  variants = sudoku.Variants(base, size, (low, high), 0, share)
  rows = variants.rows(np.arange(60))
  again = variants.rows(np.array([17, 3]))
  for name in rows:
    np.testing.assert_array_equal(rows[name][[17, 3]], again[name])
  for target, asked in zip(rows["target"], rows["asked"]):
    assert_valid(target + 1, size)
    assert not sudoku.is_held_out(target + 1, share)
    assert len(sudoku_rules.solutions((target + 1) * (asked == 0), size)) == 1
  givens = (rows["asked"] == 0).sum(1)
  assert set(givens) == set(range(low, high + 1))
  assert len({t.tobytes() for t in rows["target"]}) > 40 and len({a.tobytes() for a in rows["asked"]}) == 60


def test_held_out_grids_are_a_share_of_all_and_made_once(tmp_path, monkeypatch):
  train, held = sudoku.made(str(tmp_path), 4, 30, 20, 0.25)
  assert not any(sudoku.is_held_out(g, 0.25) for g in train.grids) and all(
    sudoku.is_held_out(g, 0.25) for g in held.grids
  )
  grids = sudoku_rules.solutions([0] * 16, 4, 1000)
  assert 0.15 < np.mean([sudoku.is_held_out(np.array(g), 0.25) for g in grids]) < 0.35
  monkeypatch.setattr(sudoku, "make", None)
  again = sudoku.made(str(tmp_path), 4, 30, 20, 0.25)
  assert [sudoku.fingerprint(p) for p in again] == [sudoku.fingerprint(p) for p in (train, held)]
  monkeypatch.undo()
  path = next(tmp_path.glob("train*"))
  path.write_bytes(path.read_bytes()[:100])  # damaged: made again
  assert sudoku.fingerprint(sudoku.made(str(tmp_path), 4, 30, 20, 0.25)[0]) == sudoku.fingerprint(train)


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
  (tmp_path / "file").touch()
  with pytest.raises(ConfigError, match="config.sudoku.folder: .*file"):
    sudoku.made(str(tmp_path / "file"), 4, 1, 1, 0.5)


def test_puzzles_with_fewer_givens_than_there_are():
  held = sudoku.make(4, 30, 1, lambda grid: True)
  few = sudoku.puzzles_with(held, (5, 6), 0)
  assert set(few.given.sum(1)) == {5, 6} and all(agreement(g, k, 4) == 16 for g, k in list(zip(*few))[:5])
  with pytest.raises(ConfigError, match="config.sudoku.harder_max: no puzzle of at most 3 givens among 30, the fewest"):
    sudoku.puzzles_with(held, (1, 3), 0)


@pytest.mark.parametrize(
  "text, words",
  [
    (EASY[:-1], "line 2: expected 81 digits, row by row, found 80"),
    (EASY[:-1] + "x", "line 2: expected digits 1 to 9, and 0 or . for blanks, found 'x' at place 81"),
    ("55" + EASY[2:], "line 2: row 1 holds 5 twice; a digit stands once in each row, column and block"),
    ("0" * 81, "line 2: the puzzle has more than one solution; expected exactly one"),
    ("516849732307605000809700065135060907472591006968370050253186074684207500791050608", "line 2: the puzzle has no "),
  ],
)
def test_a_line_that_is_no_puzzle_is_named(tmp_path, text, words):
  path = tmp_path / "mine.txt"
  path.write_text(f"{EASY}\n{text}\n")
  with pytest.raises(ConfigError) as e:
    sudoku_rules.read(str(path), 9)
  assert words in str(e.value) and "mine.txt" in str(e.value) and "\n" not in str(e.value)


def test_a_users_file_may_have_dots_notes_and_solutions(tmp_path):
  path = tmp_path / "mine.txt"
  path.write_text(f"# from a newspaper\n\n{EASY.replace('0', '.')},{EASY_SOLVED}\n{EASY}\n")
  found = sudoku_rules.read(str(path), 9)
  assert isinstance(found, Puzzles) and "".join(map(str, found.grids[0])) == EASY_SOLVED
  assert found.given.sum(1).tolist() == [30, 30] and BLOCKS[9] == (3, 3)
  for content, words in (("", "holds no puzzle"), (None, "cannot be read")):
    path.unlink(missing_ok=True)
    if content is not None:
      path.write_text(content)
    with pytest.raises(ConfigError, match=words):
      sudoku_rules.read(str(path), 9)


def test_making_many_says_how_long_it_takes(caplog, monkeypatch):
  monkeypatch.setattr(sudoku.time, "monotonic", iter(range(0, 10**6, 15)).__next__)
  with caplog.at_level(logging.WARNING):
    sudoku.make(4, 4, 0, lambda grid: True)
  assert "making Sudoku puzzles: 2 of 4" in caplog.text
