"""metrics.jsonl survives kills and resumes; its rows are valid JSON; numbers are readable."""

import builtins
import json
import logging
import math
import struct

import numpy as np
import pytest

from ebt_jax import files, metrics
from ebt_jax.metrics import MetricsWriter, read_rows, si


def fill(workdir, steps):
  with MetricsWriter(workdir, tensorboard=False) as w:
    for n in steps:
      w.write(n, {"loss": np.float32(1) / n, "time/tokens_per_second": 10.0 * n})
  return w.path


def test_rows_are_there_as_soon_as_written(tmp_path):
  w = MetricsWriter(tmp_path / "run", tensorboard=False)
  w.write(np.int64(3), {"loss": np.float32(0.1), "steps": 2})
  assert read_rows(w.path) == [{"step": 3, "loss": float(np.float32(0.1)), "steps": 2.0}]  # not closed yet
  w.close()


def test_not_finite_is_valid_json_and_comes_back(tmp_path):
  with MetricsWriter(tmp_path, tensorboard=False) as w:
    w.write(1, {"a": math.nan, "b": math.inf, "c": -np.inf})

  def refuse(name):
    raise AssertionError(f"{name} is no JSON")

  row = json.loads(w.path.read_text(), parse_constant=refuse)
  assert row == {"step": 1, "a": "nan", "b": "inf", "c": "-inf"}
  (row,) = read_rows(w.path)
  assert math.isnan(row["a"]) and row["b"] == math.inf and row["c"] == -math.inf


def test_resumed_file_equals_that_of_a_run_never_killed(tmp_path):
  whole = fill(tmp_path / "whole", [1, 2, 3, 4, 5, 6])
  killed = fill(tmp_path / "killed", [1, 2, 3, 4, 5])
  with open(killed, "a") as f:
    f.write('{"step": 6, "lo')  # killed while writing
  with MetricsWriter(killed.parent, tensorboard=False) as w:
    w.truncate_after(3)
    for n in (4, 5, 6):
      w.write(n, {"loss": np.float32(1) / n, "time/tokens_per_second": 10.0 * n})
  assert killed.read_bytes() == whole.read_bytes()
  assert [p.name for p in killed.parent.iterdir()] == [metrics.FILE]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3}\n{"st', '{"step": 3}'])
def test_torn_last_line_does_not_swallow_the_next_row(tmp_path, torn):
  path = fill(tmp_path, [1, 2])
  with open(path, "a") as f:
    f.write(torn)
  whole = [1, 2] + [3] * ('{"step": 3}' in torn)
  assert [r["step"] for r in read_rows(path)] == whole
  fill(tmp_path, [4])
  assert [r["step"] for r in read_rows(path)] == whole + [4]


def test_kill_while_truncating_keeps_the_rows(tmp_path, monkeypatch):
  path = fill(tmp_path, [1, 2, 3])
  before = path.read_bytes()

  def killed(*_):
    raise KeyboardInterrupt

  monkeypatch.setattr(files.os, "replace", killed)
  w = MetricsWriter(tmp_path, tensorboard=False)
  with pytest.raises(KeyboardInterrupt):
    w.truncate_after(1)
  assert path.read_bytes() == before


def test_broken_line_in_the_middle_is_named(tmp_path):
  path = fill(tmp_path, [1, 2])
  path.write_text('{"loss": 1}\n' + path.read_text())
  with pytest.raises(ValueError, match=r"metrics.jsonl, line 1: found .*loss.*delete that line"):
    read_rows(path)


def events_of(path):
  """(step, values by name, whether a session starts) of each event: a length, its checksum, the event, its checksum."""
  event_pb2, content = pytest.importorskip("tensorboardX").proto.event_pb2, path.read_bytes()
  while content:
    (length,) = struct.unpack("Q", content[:8])
    event = event_pb2.Event.FromString(content[12 : 12 + length])
    yield event.step, {v.tag: v.simple_value for v in event.summary.value}, event.session_log.status == 1
    content = content[16 + length :]


def test_tensorboard_resumes_with_a_purge(tmp_path):
  with MetricsWriter(tmp_path) as w:
    w.write(1, {"train/loss": 1.0, "lr": 0.25})
    w.write(2, {"train/loss": math.inf})
  with MetricsWriter(tmp_path) as w:
    w.truncate_after(1)
    w.write(2, {"train/loss": 0.5})
  first, again = sorted((tmp_path / "tensorboard").iterdir(), key=lambda path: len(path.name))
  assert "tfevents" in first.name and "tfevents" in again.name
  assert list(events_of(first))[1:] == [
    (1, {"train/loss": 1.0, "lr": 0.25}, False),
    (2, {"train/loss": math.inf}, False),
  ]
  assert list(events_of(again))[1:] == [(2, {}, True), (2, {"train/loss": 0.5}, False)]  # drops what is there of step 2


def test_without_tensorboardx_rows_are_written_all_the_same(tmp_path, monkeypatch, caplog):
  real = builtins.__import__

  def no_tensorboard(name, *args, **kwargs):
    if name == "tensorboardX":
      raise ImportError(name)
    return real(name, *args, **kwargs)

  monkeypatch.setattr(builtins, "__import__", no_tensorboard)
  with caplog.at_level(logging.WARNING), MetricsWriter(tmp_path) as w:
    w.write(1, {"loss": 1.0, "accuracy": 0.5})
    w.write(2, {"loss": 1.0})
  assert len(read_rows(w.path)) == 2
  assert caplog.text.count("pip install tensorboardX") == 1


def test_si():
  assert [si(x) for x in (0, 0.25, 950, 999.4, 999.6, 12345, 4.5e6, 1.23e9, -12345)] == [
    *("0", "0.25", "950", "999", "1k", "12.3k", "4.5M", "1.23G", "-12.3k")
  ]
  assert si(math.nan) == "nan" and si(math.inf) == "inf"


@pytest.mark.parametrize("flushed", [True, False])
def test_a_full_disk_for_tensorboard_does_not_stop_the_run(tmp_path, caplog, monkeypatch, flushed):
  tensorboardX = pytest.importorskip("tensorboardX")
  monkeypatch.setattr(tensorboardX.record_writer, "open_file", lambda path: open("/dev/full", "wb"))
  if not flushed:  # then the end is the first to notice
    monkeypatch.setattr(metrics, "_FLUSH_SECONDS", math.inf)
  with metrics.MetricsWriter(tmp_path) as w:
    for step in range(1, 9):
      w.write(step, {"train/loss": 0.0})
  of = {True: "step 1: no more TensorBoard events", False: "the last TensorBoard events are lost"}[flushed]
  assert caplog.text.count(of) == caplog.text.count("TensorBoard") == 1 and "No space left on device" in caplog.text
  assert w.rows == 8 and len(read_rows(tmp_path / "metrics.jsonl")) == 8
