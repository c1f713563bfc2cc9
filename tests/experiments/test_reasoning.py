"""The study of reasoning: its runs cost what they say, and its statistics are those of the boards."""

import numpy as np
import pytest

from ebt_jax.tasks import registry
from experiments.reasoning import boards, train

# one step, three candidates, four boards
SOLVED = np.array([[[0, 1, 0, 1], [1, 0, 0, 1], [1, 1, 0, 0]]], bool)
ENERGY = np.array([[[3.0, 1.0, 1.0, 5.0], [2.0, 2.0, 0.0, 6.0], [9.0, 0.0, 2.0, 4.0]]])
FOUND = boards.Boards(SOLVED, SOLVED.astype(float), ENERGY, np.ones((3, 4), int), np.array([5, 6, 6, 5]))


def test_the_candidate_of_least_energy_among_the_first_n_is_kept():
  for n, solved, energy in (
    (1, [0, 1, 0, 1], [3, 1, 1, 5]),
    (2, [1, 1, 0, 1], [2, 1, 0, 5]),
    (3, [1, 1, 0, 0], [2, 0, 0, 4]),
  ):
    right, least = FOUND.best_of(n)
    assert right.tolist() == [bool(x) for x in solved] and least.tolist() == energy


def test_auroc_is_the_share_of_pairs_in_the_right_order():
  solved, energy = np.array([1, 1, 0, 0, 0], bool), np.array([1.0, 4.0, 2.0, 4.0, 9.0])
  pairs = [(a < b) + 0.5 * (a == b) for a in energy[solved] for b in energy[~solved]]
  assert boards.auroc(solved, energy) == pytest.approx(np.mean(pairs))
  assert np.isnan(boards.auroc(np.ones(3, bool), energy[:3]))
  # pairs of a right and a wrong candidate, by puzzle: 2 < 3, 9 > 3; 1 < 2, 0 < 2; none; 5 > 4, 6 > 4
  assert boards.ordered(FOUND, 0) == pytest.approx(3 / 6)
  assert np.isnan(boards.ordered(FOUND._replace(solved=np.ones_like(SOLVED)), 0))
  assert boards.by_givens(SOLVED[0, 0], FOUND.givens) == {5: 0.5, 6: 0.5}


def test_rivals_at_equal_flops_cost_what_ebt_costs_and_those_at_equal_steps_see_the_same_rows():
  runs = [run for run in train.SETS["4x4"](100) if run.overrides["seed"] == 0]
  configs = {run.series: run.resolve() for run in runs}
  cost = {name: c.train.steps * registry.make(c).flops().row["total"] for name, c in configs.items()}
  for name in ("feedforward_flops", "looped_flops"):
    assert cost[name] == pytest.approx(cost["ebt"], rel=0.01)
  assert {configs[name].train.steps for name in ("ebt", "feedforward", "looped")} == {100}
  size = {(c.model.layers, c.model.width, c.train.batch_size, c.sudoku) for c in configs.values()}
  assert len(size) == 1 and len(train.SETS["4x4"]()) == 15
