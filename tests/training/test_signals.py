"""Signals that ask a run to end: heard, or left alone where whoever starts the run ignores them."""

import os
import signal

import pytest

from ebt_jax.training.signals import ASKING, StopSignal


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1", "SIGUSR2"])
def test_every_signal_asks_once_and_is_put_back(name):
  number = getattr(signal, name)
  before = {n: signal.getsignal(n) for n in ASKING}
  with StopSignal() as stop:
    assert stop.asked is None
    os.kill(os.getpid(), number)
    assert stop.asked == number
  assert {n: signal.getsignal(n) for n in ASKING} == before


def test_what_nohup_ignores_stays_ignored():
  before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
  try:
    with StopSignal() as stop:
      os.kill(os.getpid(), signal.SIGHUP)
      assert stop.asked is None
  finally:
    signal.signal(signal.SIGHUP, before)
