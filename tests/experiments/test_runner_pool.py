"""The pool of runs: who trains a run, what is shown of it, and how long the rest will take."""

import io
import json
import pathlib
import shlex
import signal
import sys

import pytest

from ebt_jax import sweep
from ebt_jax.clock import duration
from ebt_jax.config import ConfigError
from experiments.runner import launch, pool, screen
from experiments.runner.launch import Slot, Task
from experiments.scaling import studies
from tests.helpers import REPOSITORY

FAKE = f"{sys.executable} {REPOSITORY}/tests/experiments/fake_trainer.py"


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
  monkeypatch.chdir(REPOSITORY)
  monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def test_a_run_that_another_process_trains_is_waited_for(tmp_path):
  task = Task(
    sweep.Run("r", studies.SERIES["ebt"], {"train.steps": 200, "eval.every": 100}), tmp_path, shlex.split(FAKE)
  )
  orphan = task.start(Slot(), task.lock())
  assert task.lock() is None
  p = pool.Progress(task, 1.0, 200)
  free = [Slot()]
  pool.advance(p, free)
  assert p.state == "elsewhere" and len(free) == 1 and "by another process" in screen.progress_table([p], 0.0, 1)
  orphan.wait()
  pool.advance(p, free)
  assert p.state == "done" and (task.workdir / "starts").read_text() == "0\n"


class _SignalWhereErrorsAreIgnored:
  def __del__(self):
    signal.raise_signal(signal.SIGTERM)


def test_a_signal_is_heard_wherever_it_arrives(tmp_path):
  """Python ignores what a handler raises in a finaliser or before a fork; the pool ends all the same."""
  task = Task(sweep.Run("r", studies.SERIES["ebt"], {"train.steps": 10**6}), tmp_path, shlex.split(FAKE))
  p = pool.Progress(task, 1.0, 10**6)

  def show(*_):
    if p.state == "running":
      _SignalWhereErrorsAreIgnored()

  with pytest.raises(pool.Stopped, match="SIGTERM"):
    pool.train([p], [Slot()], show)
  assert p.process.poll() is not None and not task.done


def test_time_to_go():
  """By FLOPs and the speed of each series; what runs counts for what it has left."""
  run = lambda config, **how: pool.Progress(Task(sweep.Run("r", config, {}), pathlib.Path("nowhere")), 10.0, 100, **how)
  all_ = [
    run("a", state="running", step=50, started=100.0),
    run("a"),
    run("b", state="running", step=25, started=110.0),
    run("b"),
  ]
  # a: 10 s for 5 FLOPs, 15 left; b: 0 s yet
  assert pool.eta(all_[:2], 110.0, 1) == pytest.approx(30)
  assert pool.eta(all_, 120.0, 2) == pytest.approx((15 * 20 / 5 + 17.5 * 10 / 2.5) / 2)
  assert duration(pool.eta([run("a")], 0.0, 1)) == "?"


def test_slots_share_cores_and_gpus(monkeypatch):
  monkeypatch.setattr(launch.os, "sched_getaffinity", lambda _: {0, 1, 2, 3, 4})
  assert launch.slots(2) == [Slot((0, 1)), Slot((2, 3))]
  monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
  assert [s.gpu for s in launch.slots(3, gpus=2)] == ["0", "1", "0"]
  monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4, GPU-5")  # the user's choice is what the jobs share
  assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in launch.slots(3, gpus=2)] == ["4", "GPU-5", "4"]
  with pytest.raises(ConfigError, match="--gpus: 3 asked for, CUDA_VISIBLE_DEVICES=4, GPU-5 has 2"):
    launch.slots(3, gpus=3)


def test_the_headline_is_shown_as_soon_as_it_was_evaluated(tmp_path):
  p = pool.Progress(Task(sweep.Run("r", "", {}), tmp_path), 1.0, 9, headline="psnr", state="running")
  p.task.workdir.mkdir(parents=True)
  rows = [{"step": 0}, {"step": 1, "train/final_loss": 2.5}, {"step": 2, "eval/psnr": 20.25}, {"step": 3}]
  rows.append({"step": 4, "train/final_loss": 1.5})
  shown = []
  for n in range(1, len(rows) + 1):
    text = "".join(json.dumps(row) + "\n" for row in rows[:n])
    (p.task.workdir / "metrics.jsonl").write_text(text + '{"step": 5, "trai')
    p.look()
    shown.append((p.step, p.number))
  train, psnr = ("train loss", 2.5), ("psnr", 20.25)
  assert shown == [(0, None), (1, train), (2, psnr), (3, psnr), (4, psnr)]
  assert "psnr 20.2500" in screen.progress_table([p], 0.0, 1)


class Tty(io.StringIO):
  def isatty(self):
    return True


def test_a_table_on_a_narrow_terminal_is_drawn_in_its_place(monkeypatch):
  """No line wraps, so that going up by the number of lines finds the first; what a run failed of commands nothing."""
  monkeypatch.setenv("COLUMNS", "40")
  p = pool.Progress(
    Task(sweep.Run("r" * 30, "", {}), pathlib.Path("x")), 1.0, 9, state="failed", failure="a\x1b[2J日" * 9
  )
  out = Tty()
  shown = screen.Screen(out)
  shown.show([p, p], 0.0, 1)
  first = out.getvalue()
  assert first.count("\n") == 3 and "\x1b" not in first and max(map(len, first.split("\n"))) == 39
  shown.show([p, p], 1.0, 1)
  assert out.getvalue() == first + "\x1b[3F\x1b[J" + first
