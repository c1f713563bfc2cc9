"""Every number that the benchmarks print, from known times, against values worked out by hand."""

import itertools
import json
from types import SimpleNamespace

import jax.numpy as jnp
import pytest

from ebt_jax import flops
from tools.bench import recurrent, rivals, suites, timing
from tools.bench.rivals import BASE


def test_rounds_take_turns_and_the_warm_up_does_not_count(monkeypatch):
  """A clock that a takes 1 second of in its first round, 2 in its second, ...; b takes ten times as long."""
  now, order = [0.0], []
  monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

  def call(name, times):
    def wait():
      order.append(name)
      now[0] += next(times)

    return wait

  calls = {"a": call("a", itertools.count(1.0)), "b": call("b", itertools.count(10.0, 10.0))}
  assert timing.interleaved(calls, rounds=2) == {"a": [2, 3], "b": [20, 30]}
  assert order == ["a", "b"] * 3
  assert timing.summary([3.0, 1.0, 2.5]) == {"seconds": 2.5, "low": 1, "high": 3}


def test_a_table():
  rows = [{"name": "a", "seconds": 2.0, "low": 1.0, "high": 3.0, "ratio": 0.5}, {"name": "b", "note": "not run"}]
  lines = timing.table(rows, (*timing.TIMES, ("ratio", "ratio", ".2f")), "shape").splitlines()
  assert [line.split() for line in lines] == [
    ["shape", "s/step", "min..max", "ratio"], ["a", "2.000", "1.000..3.000", "0.50"], ["b"], ["b:", "not", "run"],
  ]  # fmt: skip


def test_ratios_are_over_the_base_and_utilisation_is_of_the_peak(monkeypatch):
  """A step of 6 seconds against 2 is a ratio of 3; 600 FLOPs in 6 seconds are half of a peak of 200 a second."""
  monkeypatch.setattr(flops, "peak", lambda kind: 200.0)
  steps = object.__new__(rivals.Steps)
  steps.rows = [
    {"name": "EBT", "flops": 1500, "progress_flops": 600, "seconds": 6.0},
    {"name": BASE, "flops": 500, "progress_flops": 100, "seconds": 2.0},
    {"name": "too large", "flops": 1000, "progress_flops": 1000},
  ]
  steps.compare()
  ebt, base, large = steps.rows
  assert (ebt["ratio"], ebt["flops_ratio"], ebt["utilisation"]) == (3, 3, 0.5)
  assert (base["ratio"], base["flops_ratio"], base["utilisation"]) == (1, 1, 0.25)
  assert large["flops_ratio"] == 2 and "ratio" not in large and "utilisation" not in large
  line = timing.table(steps.rows, rivals.STEP[2:]).splitlines()[1]
  assert line.split() == ["EBT", "3.00", "3.00", "50.0%"]


def test_a_step_counts_the_rows_of_its_batch(monkeypatch):
  """FLOPs are those of a row times the rows; what is too large is compiled and not run."""
  shape = {"layers": 1, "heads": 1, "width": 8, "context": 8, "batch": 3, "vocab": 11, "dtype": "float32"}
  base = rivals.transformer(shape)
  assert rivals.counted(base) == 3 * base.task.flops().row["total"]
  monkeypatch.setattr(type(base.task), "init", lambda self, key: {"model": {}})
  monkeypatch.setattr(timing, "compiled", lambda step, *a: (Program(), 1.5))
  steps = rivals.Steps([base], limit_gb=6.9)
  (row,) = steps.rows
  assert row["note"].startswith("compiled and not run: it needs 7.0 GB") and not steps.programs
  assert (row["temp_mb"], row["result_mb"], row["compile_s"]) == (4e3, 3e3, 1.5)
  assert row["flops"] == row["progress_flops"] == rivals.counted(base)
  assert rivals.ebt(shape, 3).steps == 3 and rivals.ebt(shape, 3, "last").task.config.thinking.gradient == "last"


class Program:
  def memory_analysis(self):
    return SimpleNamespace(temp_size_in_bytes=4e9, output_size_in_bytes=3e9)


def test_differences_are_relative_to_the_largest():
  whole = ((jnp.array(2.0), None), {"a": jnp.array([1.0, 4.0]), "b": jnp.array([10.0])})
  other = ((jnp.array(2.5), None), {"a": jnp.array([1.0, 3.0]), "b": jnp.array([11.0])})
  assert suites.difference(whole, other) == {"loss_error": 0.25, "gradient_error": 0.25}


def test_decoding(monkeypatch, capsys):
  """16 tokens for each of 2 rows in 4, 5, 8 and 2 seconds; a token after a prefix from the slope of two timings."""
  seconds = {"EBT": 4.0, "EBT, residual": 5.0, "authors'": 8.0, BASE: 2.0}

  def times(calls, rounds):
    found = {}
    for key in calls:
      if key[1] == "whole":
        found[key] = [seconds[key[0]]]
      elif len(key) == 2:  # the authors' one token
        found[key] = [0.3]
      else:  # 5 calls of one token take 1 second; of 1 + n tokens, 0.1 n more for each call
        several = min(4, 63 - key[1])
        each = 0.2 if "8" in key[0] else 0.1
        found[key] = [1.0 + (key[2] == "several") * 5 * each * several]
    return found

  monkeypatch.setattr(timing, "interleaved", times)
  shape = {"layers": 1, "heads": 1, "width": 8, "context": 64, "batch": 2, "vocab": 257}
  args = SimpleNamespace(**shape, dtype="float32", size=None, rounds=1, torch="")
  rows = {row["name"]: row for row in suites.decode(args)["rows"]}
  assert rows["EBT: 16 tokens after 48"]["tokens_per_second"] == 2 * 16 / 4
  assert rows["authors': 16 tokens after 48"]["ratio"] == 2 and rows[f"{BASE}: 16 tokens after 48"]["ratio"] == 0.5
  assert rows["EBT, residual: 16 tokens after 48"]["ratio"] == 1.25
  for prefix in (5, 16, 32, 50, 61):
    assert rows[f"EBT: a token after {prefix}"]["seconds"] == pytest.approx(0.1)
    assert rows[f"EBT, 8 candidates: a token after {prefix}"]["ratio"] == pytest.approx(2)
    assert rows[f"authors': a token after {prefix}"]["ratio"] == pytest.approx(3)
  assert rows["EBT: 61 encoded and a token"]["seconds"] == pytest.approx(0.2)
  line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith("authors': 16"))
  assert line.split()[5:] == ["8.0000", "8.0000..8.0000", "4.0", "2.00"]


def test_tokens_of_recurrent_models(monkeypatch):
  """32 tokens in 3.2 seconds after 16 tokens, in 6.4 after 256, in 9.6 after 4,096."""
  seconds = dict(zip(recurrent.PREFIXES, (3.2, 6.4, 9.6)))
  monkeypatch.setattr(timing, "interleaved", lambda calls, rounds: {key: [seconds[key[1]]] for key in calls})
  monkeypatch.setattr(recurrent, "written", lambda task, prefix: None)
  monkeypatch.setattr(recurrent.Steps, "run", lambda self, rounds: None)
  shape = {"layers": 1, "heads": 1, "width": 16, "context": 8, "batch": 2, "vocab": 257}
  args = SimpleNamespace(**shape, dtype="float32", size=None, rounds=1, only="RG-LRU", max_gb=1.0)
  rows = {row["name"]: row for row in recurrent.recurrent(args)["decode"]}
  found = [(row["seconds"], row["ratio"]) for row in (rows[f"RG-LRU: a token after {n}"] for n in seconds)]
  assert found == [(pytest.approx(0.1), 1), (pytest.approx(0.2), 2), (pytest.approx(0.3), pytest.approx(3))]


def test_pytorch_is_said_in_times_of_our_seconds(monkeypatch, tmp_path, capsys):
  """PyTorch takes 6 seconds where EBT takes 2."""
  shape = dict.fromkeys(("layers", "heads", "width", "context", "batch", "vocab"), 1)
  found = {"rows": [{"name": "each 2", "seconds": 6.0}]}
  (tmp_path / "torch_train.json").write_text(json.dumps(found))
  monkeypatch.setattr(suites.subprocess, "run", lambda *a, **k: SimpleNamespace(returncode=0))
  args = SimpleNamespace(out=tmp_path, rounds=1, torch="python")
  suites.torch(args, shape, [{"name": "EBT, each 2", "seconds": 2.0}, {"name": "EBT, each 8"}])
  assert capsys.readouterr().out == "PyTorch, each 2: 3.00 times the seconds of EBT, each 2\n"
