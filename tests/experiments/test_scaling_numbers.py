"""Every number of a scaling report, from points that follow laws exactly, against values worked out by hand."""

import json
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest

from ebt_jax import config as config_lib
from ebt_jax import files, scaling
from ebt_jax.scaling import Crossing, Interval
from experiments.scaling import analysis, best, points, report
from experiments.scaling.analysis import Pair

WORDS = report.Words("token", "nats/token", "bits_per_byte")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
  monkeypatch.setattr(scaling, "DRAWS", 20)


def row(series, x, loss, seed=0, level=None, size=100, **more):
  """The last evaluation of a run: `x` items, of a model of `size` parameters."""
  name = f"{series} {level or x} {seed}"
  return {
    **{"run": name, "series": series, "level": str(level or x), "seed": seed, "step": 10, "end": True},
    **{"items": x, "loss": loss, "params_non_embedding": size, "warmup_items": 0, "flops": 6.0 * size * x},
    **{"flops_paper": 6.0 * size * x, "device_seconds": 2.0 * x, "bits_per_byte": loss / 2, **more},
  }


def axis_of(rows, x="items", curve=False):
  runs = {}
  for r in rows:
    runs.setdefault(r["series"], {})[r["run"]] = None
  return {"name": "a", "title": "A", "x": x, "y": "loss", "curve": curve, "runs": {k: list(v) for k, v in runs.items()}}


def test_a_rate_is_the_ratio_of_slopes_and_an_exponent_that_of_exponents():
  """Slopes of -0.2 and -0.3 without a floor: b scales 50% faster, and its exponent is 50% larger."""
  xs = [10.0, 30, 100, 300, 1000, 3000]
  rows = [row("a", x, 9 * x**-0.2) for x in xs] + [row("b", x, 30 * x**-0.3) for x in xs]
  pair = analysis.analyse_axis(rows, axis_of(rows)).pairs["b"]
  assert pair.rate.value == pytest.approx(0.5, rel=1e-6) and pair.exponent.value == pytest.approx(0.5, abs=0.01)
  assert report.percent(pair.rate).startswith("+50.0%<small>+50.0% to +50.0%")
  assert pair.reach == 3000 and pair.gap.value == pytest.approx(30 * 3000**-0.3 - 9 * 3000**-0.2)
  # 9 x^-0.2 = 30 x^-0.3 where x = (30 / 9)^10
  assert pair.crossing.lower == "a" and pair.crossing.at is None  # beyond the range
  rows = [{**r, "items": r["items"] * 100} for r in rows]
  rows = [
    {**r, "loss": (9 if r["series"] == "a" else 30) * r["items"] ** (-0.2 if r["series"] == "a" else -0.3)}
    for r in rows
  ]
  pair = analysis.analyse_axis(rows, axis_of(rows)).pairs["b"]
  assert pair.crossing.lower == "b" and pair.crossing.at.value == pytest.approx((30 / 9) ** 10, rel=0.05)


def test_the_paper_s_line_is_of_perplexity():
  """ln perplexity is the loss: it falls from 4 to 2 over the same ln x in which the other falls from 4 to 3."""
  xs = [math.e**k for k in range(3)]
  rows = [row("a", x, 4 - k / 2, perplexity=math.exp(4 - k / 2)) for k, x in enumerate(xs)]
  rows += [row("b", x, 4 - k, perplexity=math.exp(4 - k)) for k, x in enumerate(xs)]
  result = analysis.analyse_axis(rows, axis_of(rows))
  assert result.fits["b"].line_y == "perplexity" and result.fits["b"].line.slope[0] == pytest.approx(-1)
  assert result.pairs["b"].rate.value == pytest.approx(1.0)  # twice as fast
  assert result.pairs["b"].gap.value == pytest.approx(-1) and result.pairs["b"].exponent is None
  assert result.fits["a"](np.array([xs[0], xs[-1]]))[0].tolist() == pytest.approx([4, 3])  # losses again


def test_gaps_at_equal_cost():
  """Losses fall by 1 with each doubling; b is lower by 0.5 at equal items, of which each costs it twice the seconds."""
  curve = {1000: 8.0, 2000: 7.0, 4000: 6.0, 8000: 5.0, 16000: 4.0}
  rows = []
  for seed, off in ((0, 0.0), (1, 0.25)):
    rows += [row("a", x, y + off, seed, "m", device_seconds=x / 10) for x, y in curve.items()]
    rows += [row("b", x, y - 0.5 + 2 * off, seed, "m", device_seconds=x / 5) for x, y in curve.items()]
  axis = axis_of(rows, curve=True)
  axis["runs"] = {"a": axis["runs"]["a"], "not trained": [], "b": axis["runs"]["b"]}
  by_items = analysis.equal_cost(rows, axis, "items")
  assert list(by_items) == ["b"]
  by_items = by_items["b"]
  assert [at for at, _ in by_items] == pytest.approx([4000, 8000, 16000])
  # 0.5 lower with seed 0, 0.25 lower with seed 1: the mean, and 12.706205 / 2 of the distance of two seeds
  assert [g.value for _, g in by_items] == pytest.approx([-0.375] * 3, abs=0.01)
  assert by_items[-1][1].high - by_items[-1][1].value == pytest.approx(0.25 * 12.706205 / 2, abs=0.01)
  by_time = analysis.equal_cost(rows, axis, "device_seconds")["b"]
  assert [at for at, _ in by_time] == pytest.approx(
    [400, 800, 1600]
  )  # a ends after 1600 seconds, where b has seen half the items
  assert [g.value for _, g in by_time] == pytest.approx([1 - 0.375] * 3, abs=0.02)
  text = report.cost_section({"axes": [axis]}, rows, WORDS)
  assert re.search(r"<td>1.6k device seconds</td><td>b</td><td>\+0\.6[12]\d<small>", text)
  assert "<th>nats/token above a</th>" in text


def test_the_best_size_counts_at_each_cost_and_the_warm_up_does_not():
  rows = [row("a", x, 5.0, level="small", warmup_items=150) for x in (100, 200, 400)]
  rows += [row("a", x, 9 - x / 100, level="large", warmup_items=150) for x in (100, 200, 400, 600)]
  found = analysis.frontier(rows, "items")  # the curves meet at 400 items
  assert found.x.min() == pytest.approx(400) and found.y.max() == pytest.approx(5.0)
  assert found.y[-1] == pytest.approx(3.0) and found.x.max() == pytest.approx(600)
  assert analysis.frontier([row("a", 9, 1.0, flops_paper=None)], "flops_paper") is None


def test_the_surface_finds_its_law_and_how_the_best_size_grows():
  """Exponents of 0.3 (parameters) and 0.2 (items): the best size grows with FLOPs to the power 0.2 / (0.3 + 0.2)."""
  rows = []
  for n in (1e3, 4e3, 1.6e4, 6.4e4):
    for d in (1e4, 4e4, 1.6e5, 6.4e5, 2.56e6):
      rows.append(row("a", d, 1 + 20 * n**-0.3 + 10 * d**-0.2, level=f"{n} {d}", size=n))
      rows[-1] |= {"run": f"a {n}"}
  axis = axis_of(rows, "params_non_embedding", curve=True)
  found = analysis.surface(rows, axis, "a")
  assert found.law.floor[0] == pytest.approx(1, abs=0.02)
  assert found.law.exponent[0].tolist() == pytest.approx([0.3, 0.2], abs=0.01)
  text = report.surface_section({"axes": [axis]}, rows, lambda isoflops: "", WORDS)
  cells = [re.sub("<small>.*", "", c) for c in re.findall("<td>(.*?)</td>", text)]
  heads = re.findall("<th>(.*?)</th>", text)
  at = dict(zip(heads, cells))
  assert float(at["exponent of parameters"]) == pytest.approx(0.3, abs=0.01)
  assert float(at["exponent of tokens"]) == pytest.approx(0.2, abs=0.01)
  assert float(at["best size grows with FLOPs, by the law"]) == pytest.approx(0.4, abs=0.01)


def test_isoflop_points_are_interpolated_at_equal_budgets():
  """Three sizes that all reach budgets of 1e3 to 1e4: the loss is ln-linear in FLOPs, so it is known at each budget."""
  rows = []
  for n in (1.0, 2.0, 4.0):
    for c in (1e3, 1e4):
      rows.append(row("a", c / n, n * c**-0.1, level=str(n), size=n, flops=c))
  found = analysis.isoflop_points(rows)
  assert sorted(set(found.x[:, 0].round(3))) == pytest.approx(
    [10**3, 10 ** (3 + 1 / 3), 10 ** (3 + 2 / 3), 10**4], rel=0.03
  )
  for (c, n), y in zip(found.x, found.y, strict=True):
    assert y == pytest.approx(n * c**-0.1)


def test_the_number_at_the_end_is_the_mean_over_seeds_at_the_largest_x():
  rows = [row("a", 10, 9.0), row("a", 20, 4.0), row("a", 20, 5.0, seed=1)]
  assert analysis.at_the_end(rows, axis_of(rows), "a", "bits_per_byte") == 2.25
  assert analysis.at_the_end(rows, axis_of(rows), "a", "accuracy") is None


def test_series_are_compared_seed_by_seed_at_each_x():
  rows = [row("a", 10, 5.0), row("a", 10, 7.0, seed=1), row("b", 10, 4.0), row("b", 10, 8.0, seed=1)]
  rows += [row("a", 20, 3.0), row("b", 20, 2.0), row("b", 20, 2.0, seed=1)]  # one seed has both
  (found,) = analysis.paired(rows, axis_of(rows), "a", "b")
  assert found[:5] == (10, 2, 6.0, 6.0, 0.0) and found.lower == 1
  assert found.half == pytest.approx(12.706 * np.sqrt(2) / np.sqrt(2), rel=1e-3)  # t at one degree of freedom


def test_points_of_a_run(tmp_path):
  """1000 seconds on 4 devices are 4000 device seconds, half of them at half of the steps; so are the paper's FLOPs."""
  config = config_lib.resolve({"model": {"layers": 3, "width": 32, "heads": 2}, "train": {"warmup": 5}})
  files.write_json(tmp_path / "config.json", config.to_dict())
  result = {
    **{"kind": "ebt", "params": 9, "params_non_embedding": 7, "steps": 20, "item": "token", "items": 640},
    **{"flops_paper": 5e6, "devices": 4, "device": "4 x fake", "train_seconds": 1000.0, "headline": "h", "git": "g"},
  }
  files.write_json(tmp_path / "final_result.json", result)
  metrics = [
    {"step": 10, "eval/loss": 2.5, "progress/items": 320, "progress/flops": 1e6, "eval/hard/loss": 3.5},
    {"step": 15, "eval/loss": "nan", "progress/items": 480, "progress/flops": 2e6},
    {"step": 20, "eval/loss": 2.0, "progress/items": 640, "progress/flops": 4e6},
  ]
  (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(m) + "\n" for m in metrics))
  half, whole = points.of_run(tmp_path)
  assert (half["device_seconds"], whole["device_seconds"]) == (2000, 4000)
  assert (half["flops_paper"], whole["flops_paper"]) == (2.5e6, 5e6) and (half["flops"], whole["flops"]) == (1e6, 4e6)
  assert (half["end"], whole["end"]) == (False, True) and (half["items"], whole["items"]) == (320, 640)
  assert (half["loss"], half["hard/loss"], whole["loss"]) == (2.5, 3.5, 2.0)
  assert (half["batch_items"], half["warmup_items"]) == (32, 160)


def test_a_verdict_in_words():
  """b is what is compared with a: a positive rate is faster, a negative gap is below."""
  axis = {"name": "data", "title": "Data", "x": "items", "y": "loss"}
  rate, gap = Interval(0.25, 0.1, 0.4), Interval(-0.125, -0.2, -0.05)
  crossing = Crossing(Interval(2e6, 1e6, math.inf), "b", 0.9)
  pair = Pair(rate, Interval(-0.3, -0.5, -0.1), crossing, 8e6, gap, "laws")
  text = report.verdict(axis, "a", "b", pair, WORDS)
  assert text == (
    "<li><b>Data.</b> By the paper's measure b scales faster than a, +25.0%, interval +10.0% to +40.0%; the exponent "
    "of its law with an irreducible loss differs (-30.0%, interval -50.0% to -10.0%). At 8M (training tokens) b is "
    "below a by 0.125 nats/token (interval -0.200 to -0.050). Their laws cross at 2M (1M to beyond the range); b is "
    "lower from there on.</li>"
  )
  slower = Pair(Interval(-0.25, -0.4, -0.1), None, Crossing(None, "a", 0.0), 8e6, Interval(0.125, 0.05, 0.2), "lines")
  text = report.verdict(axis, "a", "b", slower, WORDS)
  assert "b scales slower than a, -25.0%" in text and "b is above a by 0.125" in text and "lines do not cross" in text
  assert report.crossing(slower.crossing, ("a", "b")) == "none in range<small>a is lower</small>"
  assert report.crossing(Crossing(None, "b", 0.0), ("a", "b")) == "none in range<small>b is lower</small>"
  of_one = Pair(rate, None, None, 8e6, Interval(-0.125, -math.inf, math.inf), "laws")
  assert "b is below a by 0.125 nats/token for the only seed" in report.verdict(axis, "a", "b", of_one, WORDS)
  assert [report._level(g) for g in (gap, slower.gap, Interval(0.1, -0.1, 0.3))] == ["lower", "higher", "not resolved"]


def test_the_fits_reproduce_every_rate_that_the_paper_prints():
  """The paper's rate of EBT over Transformer++ from the points of its figures, to what can be read off a figure."""
  text = report.paper_section([], "token")
  rows = re.findall(r"<td>[^<(]+ \(Fig. [\w.]+\)</td><td>([+-][\d.]+)%</td><td>([+-][\d.]+)%", text)
  assert len(rows) == len(json.loads(report.PAPER.read_text(encoding="utf-8"))["panels"])
  for printed, fitted in rows:
    assert float(fitted) == pytest.approx(float(printed), abs=5), rows  # video: points from 1% of error


def test_rates_stand_beside_the_panels_of_their_modality():
  pair = SimpleNamespace(rate=Interval(1.5, 1.25, 2.0))
  results = [SimpleNamespace(axis={"name": "width"}, pairs={"mine": pair})]

  def beside(item):
    lines = re.findall(r"<tr><td>(.*?)</td></tr>", report.paper_section(results, item))
    return [line.partition(" (Fig")[0] for line in lines if "mine" in line]

  assert (beside("token"), beside("frame"), beside("image")) == (["width"], ["video, width"], [])


def test_a_table_of_an_axis():
  """Two series of two seeds at three levels: the counts, the slopes, and the headline number at the end."""
  rows = []
  for seed in (0, 1):
    for x in (10.0, 100.0, 1000.0):
      rows += [row("a", x, 8 * x**-0.25, seed), row("b", x, 8 * x**-0.5, seed)]
  result = analysis.analyse_axis(rows, axis_of(rows))
  text, _, paired = report.axis_section(result, rows, "", WORDS).partition("<details>")
  assert "<td>b</td><td>10</td><td>2</td><td>4.4987</td><td>2.5298</td><td>-1.9689 ± 0.0000</td><td>2</td>" in paired
  heads = re.findall("<th>(.*?)</th>", text)
  cells = [re.sub("<small>.*", "", c) for c in re.findall("<td>(.*?)</td>", text)]
  first, second = (dict(zip(heads, cells[i : i + len(heads)])) for i in (0, len(heads)))
  assert (first["series"], first["levels × seeds"], first["slope of ln loss"]) == ("a", "3 × 2", "-0.250")
  assert (second["slope of ln loss"], second["rate over a"]) == ("-0.500", "+100.0%")
  assert second["bits_per_byte at the largest"] == f"{4 * 1000**-0.5:.3f}"


def test_residuals_of_a_figure_are_of_the_points_over_the_fit():
  from experiments.scaling import figures

  drawn = {}

  def axes(name):
    def plot(x, y, *style, **look):
      drawn.setdefault(name, []).append((list(x), list(y)))

    return SimpleNamespace(plot=plot, fill_between=lambda *a, **k: None)

  line = scaling.Line(np.zeros(3), np.full(3, math.log(2)))  # 2 everywhere
  fit = analysis.Fit(scaling.points([1.0, 10.0], [2.2, 1.8]), line, "loss", None)
  figures._series(axes("top"), axes("low"), "a", fit, figures.STYLES[0])
  assert drawn["low"] == [([1.0, 10.0], pytest.approx([10.0, -10.0]))]  # percent
  assert drawn["top"][1] == ([1.0, 10.0], [2.2, 1.8])


def test_a_label_is_shown_as_it_is():
  """Dollars are no mathematics, and a title is no HTML."""
  from experiments.scaling import figures

  label = r"$x\1$ & <b>"
  rows = [row(label, x, y) for x, y in ((10.0, 4.0), (100.0, 3.0), (1000.0, 2.0))]
  axis = {**axis_of(rows), "title": label}
  svg = figures.panel(analysis.analyse_axis(rows, axis), "items", "loss")
  assert svg.count(r"$x\1$ &amp; &lt;b&gt;") == 2 and "<b>" not in svg  # the title and the legend


def test_series_are_compared_at_their_best_rates():
  losses = {("a", 1.0): [2.0, 2.2], ("a", 2.0): [1.0], ("a", 3.0): [2.4, 2.1], ("b", 1.0): [1.5, 1.9]}
  rows = [
    {"series": series, "learning_rate": rate, "seed": seed, "loss": loss}
    for (series, rate), several in losses.items()
    for seed, loss in enumerate(several)
  ]
  found = best.best(rows)
  assert found["a"] == best.Best(1.0, {0: 2.0, 1: 2.2})  # that of one seed is lower, and no mean
  shown = best.table(found)
  assert "rate 1: 2.1000 ± 1.2706 (2 seeds, 0.2000 apart)" in shown and "b less a: -0.4000 ± 1.2706" in shown


def test_series_are_compared_at_equal_cost_with_those_that_went_on():
  """A short run of b costs three times one of a: the loss of a after three times the items, a straight line in ln."""

  def points_of(series, seed, ends, cost, loss):
    return [
      {"series": series, "learning_rate": 1.0, "seed": seed, "step": n, "items": n, "end": n == ends[-1],
       "loss": loss(n), "flops": cost * n, "device_seconds": 2 * cost * n * (1 + seed)}
      for n in ends
    ]  # fmt: skip

  rows = []
  for seed in (0, 1):
    rows += points_of("a", seed, [100], 1.0, lambda n: 2.0)
    rows += points_of("a", seed, [100, 200, 400], 1.0, lambda n: 3.0 - np.log(n) / 10 + seed / 10)
    rows += points_of("b", seed, [100], 3.0, lambda n: 2.5)
  found = {"a": best.Best(1.0, {0: 2.0, 1: 2.0}), "b": best.Best(1.0, {0: 2.5, 1: 2.5})}
  mean = 2.5 - np.mean([3.0 - np.log(300) / 10, 3.1 - np.log(300) / 10])
  for cost in ("flops", "device_seconds"):
    shown = best.at_equal_cost(rows, found, cost)
    assert shown.startswith(f"b less a at equal {cost} (0.00 M items, ") and f"): {mean:+.4f} ± 0.6353 (2" in shown
