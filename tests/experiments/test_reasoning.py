"""The study of reasoning: its runs cost what they say, and its statistics are those of the boards."""

import dataclasses
import json
import subprocess
import sys
import types

import numpy as np
import pytest

from ebt_jax.config import Config, ConfigError, EvalConfig, ThinkingConfig
from ebt_jax.tasks import registry
from ebt_jax.use.sudoku import Solved
from experiments.reasoning import boards, page, picture, study, train
from tests.helpers import REPOSITORY, environment, run

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


def test_doubts_are_those_of_the_blanks_alone():
  p = np.array([[0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25], [0.1, 0.9, 0, 0]])
  found = boards.doubts_of(np.log(np.maximum(p, 1e-30))[None], np.array([[1.0, 0.0, 1.0]]))
  of_last = -0.1 * np.log(0.1) - 0.9 * np.log(0.9)
  wanted = {"entropy": np.log(2) + of_last, "surprise": -np.log(0.45), "weakest": np.log(2)}
  assert {name: float(a[0]) for name, a in found.items()} == pytest.approx(wanted, abs=1e-6)
  judged = FOUND._replace(doubts={"entropy": -ENERGY})
  assert list(judged.judges) == ["energy", "entropy"]
  right, value = judged.best_of(3, 0, "entropy")  # the candidate of most energy
  assert right.tolist() == [True, False, False, True] and value.tolist() == [-9, -2, -2, -6]


@pytest.mark.parametrize("steps_of, asked", [("final", [4]), ("every", [1, 2, 4])])
def test_landscapes_that_share_a_budget_are_asked_anew_for_each(monkeypatch, steps_of, asked):
  """The answer after step k of a budget of n is 10 n + k here."""
  config = Config(thinking=ThinkingConfig(steps=2, landscapes=2), eval=EvalConfig(steps_of=steps_of))
  model, budgets = types.SimpleNamespace(config=config), []

  def answer(model, examples, count, steps, **inference):
    budgets.append(steps)
    each = 10 * steps + np.arange(1, steps + 1)[:, None, None]
    return boards.Boards(each, each, each, each[-1], np.array([5]), {"entropy": -each})

  monkeypatch.setattr(boards, "answer", answer)
  found = boards.after(model, None, 8, (1, 2, 4))
  wanted = [11, 22, 44] if steps_of == "every" else [41, 42, 44]
  assert budgets == asked and found.energy[:, 0, 0].tolist() == wanted and found.used.tolist() == [[44]]
  assert found.doubts["entropy"].ravel().tolist() == [-n for n in wanted]


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
  for name in ("feedforward_flops", "looped_flops", "recursive_flops"):
    assert cost[name] == pytest.approx(cost["ebt"], rel=0.01)
  assert {configs[name].train.steps for name in ("ebt", "judge", "pair", "feedforward", "looped", "recursive")} == {100}
  assert configs["pair"].thinking == dataclasses.replace(configs["judge"].thinking, contrast_of="pair")
  size = {(c.model.layers, c.model.width, c.train.batch_size, c.sudoku) for c in configs.values()}
  assert len(size) == 1 and len(train.SETS["4x4"]()) == 27
  assert [run.series for run in train.SETS["9x9"](100)][:4] == [*["judge"] * 3, "feedforward"]


def test_the_picture_is_of_a_solved_puzzle_that_was_most_wrong_at_first():
  grid, given = np.array([int(c) for c in "3214412323411432"]), np.arange(16) % 3 == 0
  other = np.where(given, grid, grid % 4 + 1)

  def one(*steps):
    return Solved(grid, given, np.stack(steps), np.arange(len(steps), 0.0, -1.0))

  half = np.where(np.arange(16) < 8, other, grid)
  never, little, much = one(other, other, other), one(half, grid, grid), one(other, half, grid)
  assert picture.chosen([never, little, much]) is much
  with pytest.raises(ConfigError, match="none of the 1 puzzles is solved"):
    picture.chosen([never])
  fig = picture.draw(much, 4, [1, 2, 3])
  titles = [axes.get_title() for axes in fig.axes]
  assert titles[:4] == ["6 givens", "step 1: 10 wrong", "step 2: 5 wrong", "step 3: none wrong"]
  colors = [text.get_color() for text in fig.axes[2].texts]
  assert colors.count(picture.WRONG) == 5 and colors.count(picture.GIVEN) == 6


def test_one_seed_has_no_interval_and_what_is_unknown_is_left_out():
  assert study.said([0.25], ".2f") == "0.25" and study.said([np.nan], ".2f") == "-"
  assert study.said([1.0, 1.0, np.nan], ".1f") == "1.0 ± 0.0"


def result(kind, seed):
  """What the study finds in a run, with numbers that are easy to follow through the page."""
  ebt, steps = kind == "ebt", (1, 4, 16) if kind != "feedforward" else (1,)
  last, by_step = steps[-1], {k: 0.5 + k / 64 + seed / 100 for k in steps}
  out = {"trained_steps": min(3, last), "flops": 2e12, "params_non_embedding": 86530, "steps": 800}
  out["train_seconds"] = 60.0
  out["answer_flops"] = {k: 1e6 * k for k in steps}
  judged = {**({"energy": 0.75 + seed / 100} if ebt else {}), "entropy": 0.99}
  for short in study.SETS:
    out[short] = {"boards": by_step, "cells": by_step, "givens": {last: {5: 0.5, 6: 0.75}},
                  "wrong": dict.fromkeys(steps, 7), "auroc": dict.fromkeys(steps, judged)}  # fmt: skip
    if ebt:
      out[short] |= {"used": {5: 8.0, 6: 4.0}, "stopped": [6.0, 0.875]}
  if ebt:
    by_count = {n: 0.5 + n / 100 for n in study.CANDIDATES}
    out["out"]["candidates"] = {k: dict.fromkeys(study.CHOICES, by_count) for k in steps}
    out["out"]["within"] = dict.fromkeys(steps, 1.0)
  return out


def test_the_page_holds_what_was_measured(tmp_path):
  kinds = ("ebt", "feedforward", "looped_flops")
  results = {kind: [result(kind, seed) for seed in (0, 1)] for kind in kinds}
  path = tmp_path / "4x4.json"
  path.write_text(json.dumps({"settings": {"among": "4x4", "windows": 256, "few": 64}, **results}))
  assert page.read(path)[1] == results
  assert page.main([str(path)]) is None
  text = (tmp_path / "4x4.html").read_text()
  for words in (
    "75.5 ± 6.4",  # boards after 16 steps, over two seeds
    "does not reach the AUROC of 0.95 for solved against unsolved boards of different puzzles: 0.755 ± 0.064",
    "entropy 0.990 ± 0.000",
    "looped, equal FLOPs",
    "5: 8.00 ± 0.00, 6: 4.00 ± 0.00",
    "<td>14</td>",  # unsolved boards of both seeds
    "<svg",
  ):
    assert words in text, words
  assert "src=" not in text and 'href="http' not in text
  assert "EBT, out: 4 -&gt; 16 steps +18.8 ± 0.0 points.</li>" in text
  (tmp_path / "old.json").write_text(json.dumps({"settings": {}, "ebt": [{"steps": 800}]}))
  with pytest.raises(ConfigError, match="run experiments.reasoning.study again"):
    page.read(tmp_path / "old.json")
  rows = study.table(results)
  assert any("AUROC of energy 0.755 ± 0.064, entropy 0.990" in row for row in rows)


@pytest.mark.slow
def test_the_study_of_tiny_models(tmp_path):
  tiny = ["model.layers=1", "model.heads=1", "model.width=8", "train.batch_size=4", "train.warmup=0", "train.steps=4",
          "sudoku.boards=20", "sudoku.held_out=8", "eval.steps=2", f"sudoku.folder={tmp_path}/puzzles"]  # fmt: skip
  for kind in ("ebt", "feedforward", "looped"):
    flags = [f"--config={REPOSITORY}/configs/sudoku.py:4x4,{kind}", f"--workdir={tmp_path}/4x4/runs/{kind},seed=0"]
    done = run([*flags, *(f"--config.{key}" for key in tiny)])
    assert done.code == 0, done.err
  command = [sys.executable, "-m", "experiments.reasoning.study", f"--workdir={tmp_path}", f"--out={tmp_path}"]
  env = environment(tmp_path) | {"PYTHONPATH": str(REPOSITORY)}
  done = subprocess.run([*command, "--windows=8", "--few=4"], cwd=REPOSITORY, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stderr
  found = json.loads((tmp_path / "4x4.json").read_text())
  assert (
    found["ebt"][0]["out"]["boards"].keys() == found["looped"][0]["out"]["boards"].keys()
    and (tmp_path / "4x4.png").exists()
  )
  assert set(found["ebt"][0]["out"]["candidates"]["4"]["energy"]) == {"1", "2", "4", "8", "16", "32"}
  assert set(found["looped"][0]["out"]["auroc"]["4"]) == {"entropy", "surprise", "weakest"}
  assert page.write(tmp_path / "4x4.json").stat().st_size > 10_000
