"""A tracker shows one curve of a run that was resumed, has all rows, and never ends training."""

import json
import logging
import sys
import types

import pytest

from ebt_jax.errors import UserError
from ebt_jax.metrics import MetricsWriter


class Fake(types.ModuleType):
  """The part of wandb and trackio that is used; `runs` by id have the rows that were logged."""

  def __init__(self, name):
    super().__init__(name)
    self.runs, self.inits, self.down = {}, [], False

  def init(self, project, resume, name, config, id=None, **_):
    if self.down:
      raise ConnectionError("no network")
    assert project == "ebt_jax" and resume == "allow" and id in (None, name)
    self.inits.append(config)
    return Curve(self, self.runs.setdefault(name, []))


class Curve:
  def __init__(self, module, rows):
    self.module, self.rows = module, rows

  def define_metric(self, name, step_metric):
    assert (name, step_metric) == ("*", "step")

  def log(self, row, step=None):
    if self.module.down:
      raise ConnectionError("lost\nmore")
    self.rows.append(row if step is None else {"step": step, **row})

  def finish(self):
    pass


@pytest.fixture(params=["wandb", "trackio"])
def fake(request, monkeypatch):
  module = Fake(request.param)
  monkeypatch.setitem(sys.modules, request.param, module)
  return module


def train(folder, fake, steps, start=0, tracker=True):
  name = fake.__name__ if tracker else ""
  with MetricsWriter(folder, tensorboard=False, tracker=name, config={"seed": 3}) as writer:
    writer.truncate_after(start)
    for n in steps:
      writer.write(n, {"train/loss": 1 / n})
      if n % 2 == 0:
        writer.write(n, {"eval/loss": 2 / n})


WHOLE = [{"step": n, **row} for n in (1, 2, 3, 4, 5) for row in (
  [{"train/loss": 1 / n}] + [{"eval/loss": 2 / n}] * (n % 2 == 0))]  # fmt: skip


def test_a_resumed_run_has_one_curve(fake, tmp_path):
  train(tmp_path / "run", fake, [1, 2, 3, 4])
  train(tmp_path / "run", fake, [3, 4, 5], start=2)  # killed before its checkpoint of step 3
  (rows,) = fake.runs.values()
  assert rows == WHOLE and fake.inits == [{"seed": 3}] * 2
  assert list(json.loads((tmp_path / "run/tracker.json").read_text()).values()) == list(fake.runs)


def test_a_tracker_that_comes_later_gets_all_rows(fake, tmp_path):
  train(tmp_path, fake, [1, 2, 3], tracker=False)
  train(tmp_path, fake, [4, 5], start=3)
  assert list(fake.runs.values()) == [WHOLE]


def test_a_tracker_that_fails_ends_nothing_and_gets_the_rest_later(fake, tmp_path, caplog):
  with caplog.at_level(logging.WARNING), MetricsWriter(tmp_path, tensorboard=False, tracker=fake.__name__) as writer:
    writer.truncate_after(0)
    for n in (1, 2, 3, 4):
      fake.down = n > 2
      writer.write(n, {"train/loss": 1 / n})
      if n % 2 == 0:
        writer.write(n, {"eval/loss": 2 / n})
  (said,) = caplog.records
  assert f"{fake.__name__} gets no more rows (ConnectionError: lost)" in said.getMessage()
  train(tmp_path, fake, [5], start=4)  # there is still no network
  fake.down = False
  train(tmp_path, fake, [], start=5)
  assert list(fake.runs.values()) == [WHOLE]


def test_a_tracker_that_is_not_installed_is_named(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "wandb", None)
  with pytest.raises(UserError, match=r"--tracker: wandb is not installed; pip install 'ebt_jax\[wandb\]'"):
    MetricsWriter(tmp_path, tracker="wandb")


def test_wandb_itself_without_a_network(tmp_path, monkeypatch):
  pytest.importorskip("wandb")
  monkeypatch.setenv("WANDB_MODE", "offline")
  for start, steps in ((0, [1, 2]), (1, [2, 3])):
    with MetricsWriter(tmp_path / "run", tensorboard=False, tracker="wandb", config={"a": {"b": 1}}) as writer:
      writer.truncate_after(start)
      for n in steps:
        writer.write(n, {"train/loss": 1 / n})
  identity = json.loads((tmp_path / "run/tracker.json").read_text())["wandb"]
  assert len(list((tmp_path / "run/wandb").glob(f"offline-run-*-{identity}/run-{identity}.wandb"))) == 2
