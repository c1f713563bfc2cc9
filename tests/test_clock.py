"""The clock leaves out compilation and pauses, and continues after a restart."""

import json
import math

import pytest

from ebt_jax.clock import Clock, duration


class Time:
  def __init__(self, now=1000.0):
    self.now = now

  def __call__(self):
    return self.now

  def go(self, seconds):
    self.now += seconds


def test_first_interval_and_pauses_are_left_out():
  time = Time()
  clock = Clock(time)
  time.go(60)  # compilation
  clock.tick(1, 100)
  assert math.isnan(clock.items_per_second) and clock.eta(10) == "?"
  for step in (2, 3):
    time.go(2)
    with clock.pause():
      time.go(500)
    clock.tick(step, 100)
  assert clock.items_per_second == pytest.approx(50)
  assert clock.eta_seconds(10) == pytest.approx(14)
  assert clock.wall_seconds == pytest.approx(1064)
  assert (clock.train_seconds, clock.train_steps, clock.train_items) == (pytest.approx(4), 2, 200)


def test_pause_ends_when_its_body_fails():
  time = Time()
  clock = Clock(time)
  clock.tick(0, 0)
  with pytest.raises(KeyError):
    with clock.pause():
      time.go(7)
      raise KeyError
  time.go(1)
  clock.tick(1, 5)
  assert clock.items_per_second == pytest.approx(5)


def test_throughput_is_that_of_the_recent_window():
  time = Time()
  clock = Clock(time, window=2)
  clock.tick(0, 0)
  for step, seconds in ((10, 100), (20, 5), (30, 5)):
    time.go(seconds)
    clock.tick(step, 1000)
  assert clock.items_per_second == pytest.approx(200)
  assert clock.eta_seconds(100) == pytest.approx(35)
  assert clock.eta_seconds(20) == 0


def test_continues_after_a_restart():
  time = Time()
  clock = Clock(time)
  for step in (1, 2):
    time.go(10)
    clock.tick(step, 100)
  state = json.loads(json.dumps(clock.state_dict()))
  time = Time(5.0)  # another process, another start
  clock = Clock(time)
  time.go(3)  # start-up
  clock.load_state_dict(state)
  assert clock.wall_seconds == pytest.approx(23)
  for step in (3, 4):
    time.go(10)
    clock.tick(step, 100)
  assert clock.wall_seconds == pytest.approx(43)
  assert (clock.train_seconds, clock.train_steps, clock.train_items) == (pytest.approx(20), 2, 200)


def test_reads_the_state_of_older_checkpoints():
  clock = Clock(Time())
  clock.load_state_dict({"wall_seconds": 9.0, "train_seconds": 7.0, "train_steps": 2, "train_tokens": 64})
  assert clock.state_dict() == {"wall_seconds": 9.0, "train_seconds": 7.0, "train_steps": 2, "train_items": 64}


def test_duration():
  times = (0, 45.4, 59.6, 125, 3600, 11220, 187200, math.nan)
  assert [duration(t) for t in times] == ["0s", "45s", "1m00s", "2m05s", "1h00m", "3h07m", "2d04h", "?"]
