"""The clock leaves out compilation and pauses, and goes on after a restart."""

import json
import math

import pytest

from ebt_jax.chrono import Chrono, duration


class Clock:
  def __init__(self, now=1000.0):
    self.now = now

  def __call__(self):
    return self.now

  def go(self, seconds):
    self.now += seconds


def test_first_interval_and_pauses_are_left_out():
  clock = Clock()
  chrono = Chrono(clock)
  clock.go(60)  # compilation
  chrono.tick(1, 100)
  assert math.isnan(chrono.tokens_per_second) and chrono.eta(10) == "?"
  for step in (2, 3):
    clock.go(2)
    with chrono.pause():
      clock.go(500)
    chrono.tick(step, 100)
  assert chrono.tokens_per_second == pytest.approx(50)
  assert chrono.eta_seconds(10) == pytest.approx(14)
  assert chrono.wall_seconds == pytest.approx(1064)
  assert (chrono.train_seconds, chrono.train_steps, chrono.train_tokens) == (pytest.approx(4), 2, 200)


def test_pause_ends_when_its_body_fails():
  clock = Clock()
  chrono = Chrono(clock)
  chrono.tick(0, 0)
  with pytest.raises(KeyError):
    with chrono.pause():
      clock.go(7)
      raise KeyError
  clock.go(1)
  chrono.tick(1, 5)
  assert chrono.tokens_per_second == pytest.approx(5)


def test_throughput_is_that_of_the_recent_window():
  clock = Clock()
  chrono = Chrono(clock, window=2)
  chrono.tick(0, 0)
  for step, seconds in ((10, 100), (20, 5), (30, 5)):
    clock.go(seconds)
    chrono.tick(step, 1000)
  assert chrono.tokens_per_second == pytest.approx(200)
  assert chrono.eta_seconds(100) == pytest.approx(35)
  assert chrono.eta_seconds(20) == 0


def test_goes_on_after_a_restart():
  clock = Clock()
  chrono = Chrono(clock)
  for step in (1, 2):
    clock.go(10)
    chrono.tick(step, 100)
  state = json.loads(json.dumps(chrono.state_dict()))
  clock = Clock(5.0)  # another process, another start
  chrono = Chrono(clock)
  clock.go(3)  # start-up
  chrono.load_state_dict(state)
  assert chrono.wall_seconds == pytest.approx(23)
  for step in (3, 4):
    clock.go(10)
    chrono.tick(step, 100)
  assert chrono.wall_seconds == pytest.approx(43)
  assert (chrono.train_seconds, chrono.train_steps, chrono.train_tokens) == (pytest.approx(20), 2, 200)


def test_duration():
  times = (0, 45.4, 59.6, 125, 3600, 11220, 187200, math.nan)
  assert [duration(t) for t in times] == ["0s", "45s", "1m00s", "2m05s", "1h00m", "3h07m", "2d04h", "?"]
