"""The study of spans: its shares and differences by hand, and from tiny runs to table and figure."""

import json
import shutil
import sys

import numpy as np
import pytest

from experiments.infilling import spans, train
from tests.helpers import REPOSITORY, TINY, run


def found(flops, **right):
  spans_of = {n: 10.0 * n for n in spans.LENGTHS}
  return spans.Found({n: np.array(right.get(f"of_{n}", [0.0] * len(flops))) for n in spans.LENGTHS}, spans_of, flops)


def test_shares_are_means_over_lengths_and_budgets_buy_passes():
  one = found([10.0, 20.0, 40.0], of_4=[4, 8, 12], of_6=[0, 6, 12], of_8=[0, 0, 8])
  np.testing.assert_allclose(one.share(4), [0.1, 0.2, 0.3])
  np.testing.assert_allclose(one.share(*spans.TOGETHER), [0.1 / 3, 0.1, 0.2])
  assert [spans.affordable(one, budget) for budget in (5, 10, 39.9, 40, 1e3)] == [0, 0, 1, 2, 2]


def test_differences_are_paired_by_seed_at_equal_passes_and_at_equal_flops():
  passes = [2.0 * k for k in spans.PASSES]
  steps = [5.0 * k for k in spans.PASSES]
  ebt = [found(steps, of_4=[8, 12, 12, 12, 12]), found(steps, of_4=[4, 4, 4, 4, 4])]
  other = [found(passes, of_4=[4, 8, 8, 8, 8]), found(passes, of_4=[0, 4, 4, 4, 4])]
  kinds = {name: ebt if name.startswith("ebt") else other for name in spans.WAYS}
  got = spans.compared(kinds)
  one, two = (got[f"EBT - masked Transformer, surest first: {k}"] for k in ("1, 2 passes", "2, 4 passes"))
  np.testing.assert_allclose(one["4 and more, equal passes"], [0.1 / 3, 0.1 / 3])
  np.testing.assert_allclose(one["4 and more, equal FLOPs"], [0, 0], atol=1e-9)
  np.testing.assert_allclose(two["4 and more, equal FLOPs"], [0.1 / 3, 0], atol=1e-9)
  assert one["2 places, equal passes"] == [0, 0]
  assert len(got) == 2 * 3 * len(spans.PASSES) - 3 * 2  # the best of several has 1, 2 and 4 steps


def test_runs_are_of_one_trunk_and_differ_in_what_they_learn():
  configs = [r.resolve() for r in train.models()]
  assert [(c.model.kind, c.mask.weighting, c.seed) for c in configs[:4]] == [
    ("ebt", "place", 0), ("transformer", "place", 0), ("transformer", "row", 0), ("ebt", "place", 1)]  # fmt: skip
  first = configs[0]
  assert all((c.train, c.data) == (first.train, first.data) and c.model.layers == first.model.layers for c in configs)
  assert len({r.name for r in train.models()}) == 9


@pytest.mark.slow
def test_the_study_leaves_table_json_and_figure(tmp_path, monkeypatch):
  for kind in train.KINDS:
    first = tmp_path / "models/runs" / f"{kind},seed=0"
    done = run([f"--config={REPOSITORY}/configs/infill.py:{kind}", *TINY, "--config.sample.tokens=0",
                "--config.eval.max_windows=4", "--config.mask.span_max=8", f"--workdir={first}"])  # fmt: skip
    assert done.code == 0, done.err
    shutil.copytree(first, first.with_name(f"{kind},seed=1"))
  monkeypatch.setattr(sys, "argv", ["spans", f"--workdir={tmp_path}", "--windows=32", f"--out={tmp_path / 'out'}"])
  spans.main()
  table = (tmp_path / "out/spans.txt").read_text(encoding="utf-8")
  assert "seeds" in table and "EBT, the least energy of 4, 4" in table and "EBT - masked diffusion, sampled" in table
  got = json.loads((tmp_path / "out/spans.json").read_text(encoding="utf-8"))
  assert got["right"]["ebt"][0] == got["right"]["ebt"][1] and (tmp_path / "out/spans.png").stat().st_size > 10_000
