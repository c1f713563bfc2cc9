"""A user's own task (`experiments/own_task`) trains, resumes, is evaluated, and goes through a scaling study."""

import json
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
import pytest

from ebt_jax import runs
from ebt_jax.config import resolve
from ebt_jax.tasks import registry
from tests.helpers import REPOSITORY, environment, run

SUDOKU = REPOSITORY / "experiments/own_task/sudoku.py"
SMALL = [
  f"--config.{key}"
  for key in (
    "model.width=16", "train.steps=40", "train.batch_size=16", "train.warmup=5", "train.log_every=10",
    "checkpoint.every=10", "eval.max_windows=64",
  )
]  # fmt: skip
KILL = """
import os, pathlib, signal, sys, time
from ebt_jax.data.loader import Loader
folder = pathlib.Path(next(a for a in sys.argv if a.startswith("--workdir=")).partition("=")[2])
batch = Loader.batch
def patched(self, step, rows=None):
  if step == 15:
    while not (folder / "checkpoints/10/checksums.json").exists():
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
  return batch(self, step, rows)
Loader.batch = patched
"""


def test_every_board_is_a_sudoku_and_no_held_out_one_is_trained_on():
  data = registry.make(resolve({"task": "experiments.own_task.sudoku:make"})).problem.data()
  train, held_out = (e.rows(np.arange(len(e))) for e in (data.train, data.held_out["held_out"]))
  boards = {tuple(b) for b in train["target"]}
  assert len(boards) == 240 and not boards & {tuple(b) for b in held_out["target"]}
  for board in train["target"][:240].reshape(-1, 4, 4):
    units = [*board, *board.T, *(board[i : i + 2, j : j + 2].ravel() for i in (0, 2) for j in (0, 2))]
    assert all(sorted(unit) == [0, 1, 2, 3] for unit in units)
  assert (train["asked"].sum(1) == 10).all()


def test_it_trains_resumes_and_thinks_longer(tmp_path):
  flags = [f"--config={SUDOKU}", *SMALL]
  whole = run([*flags, f"--workdir={tmp_path}/whole"])
  assert whole.code == 0, whole.err
  assert run([*flags, f"--workdir={tmp_path}/killed"], KILL).code == -signal.SIGKILL
  again = run([*flags, f"--workdir={tmp_path}/killed"])
  assert again.code == 0 and "resuming from step 10" in again.out, again.err
  a, b = (json.loads((tmp_path / n / "final_result.json").read_text()) for n in ("whole", "killed"))
  assert a["eval"] == b["eval"] and (a["item"], a["headline"], a["unit"]) == ("cell", "boards", "nats/cell")
  assert a["items"] == 40 * 16 * 10 and 0 <= a["eval"]["boards"] <= a["eval"]["cells"] <= 1
  assert len(a["eval"]["boards_by_step"]) == 4 and len(a["eval"]["energy_by_step"]) == 5
  assert "nats/cell" in whole.out and "boards" in whole.out and "cells/s" in whole.out
  done = run([f"--workdir={tmp_path}/whole", "--mode=eval", "--set", "eval.steps=8", "eval.candidates=3"])
  assert done.code == 0, done.err
  assert len(json.loads(next((tmp_path / "whole").glob("eval_*think8*.json")).read_text())["boards_by_step"]) == 8
  refused = run([f"--workdir={tmp_path}/whole", "--mode=generate", "--prompt=1"])
  assert refused.code == 2 and "answers no prompts" in refused.err
  assert runs.open_run(tmp_path / "whole").step == 40


@pytest.mark.slow
def test_it_goes_through_a_scaling_study(tmp_path):
  flags = ["--study=experiments.own_task.study:study", f"--workdir={tmp_path}/study", "--jobs=2", "--axes=width"]
  quick = ["--set", "train.batch_size=8", "--set", "train.warmup=5", "--set", "eval.max_windows=32"]
  command = [sys.executable, "-m", "experiments.scaling.run", *flags, *quick]
  env = environment(tmp_path) | {"PYTHONPATH": str(REPOSITORY)}
  done = subprocess.run(command, cwd=REPOSITORY, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  report = [sys.executable, "-m", "experiments.scaling.report", f"{tmp_path}/study"]
  done = subprocess.run(report, cwd=REPOSITORY, env=env, capture_output=True, text=True)
  assert done.returncode == 0, done.stdout + done.stderr
  page = pathlib.Path(tmp_path / "study/report.html").read_text(encoding="utf-8")
  assert "nats/cell" in page and "boards" in page and os.path.exists(tmp_path / "study/figures/width.svg")
  points = [json.loads(line) for line in (tmp_path / "study/points.jsonl").read_text().splitlines()]
  assert {(p["series"], p["level"]) for p in points} == {
    (s, f"width{w}") for s in ("direct", "ebt") for w in (16, 32, 64)
  }
  assert all(p["flops"] > 0 and p["items"] > 0 for p in points)
