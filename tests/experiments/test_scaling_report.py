"""The report of points that follow known laws: what it says, that it is one page, and that its numbers are theirs."""

import html.parser
import json
import math
import random
import re

import numpy as np
import pytest

from ebt_jax import scaling
from ebt_jax.config import ConfigError
from experiments.scaling import analysis, points, report, studies
from experiments.scaling import run as runner

figures = pytest.importorskip("experiments.scaling.figures", reason="needs matplotlib")


def loss(series: str, n: float, d: float) -> float:
  """EBT starts behind, and comes to be below Transformer++ at 200,000 tokens of a model of 2 x 128."""
  return 1.1 + 4 * n**-0.3 + (22 * d**-0.3 if series == "transformer" else 22 * 2e5**0.1 * d**-0.4)


def study_of(name: str, noise: float = 0.002, shift: float = 1.0, ebt_label: str = "ebt"):
  """Study and rows, as run.py and points.py would leave them."""
  study, series = studies.get(name), dict(zip(("transformer", ebt_label), studies.SERIES.values()))
  plan = study.runs(series)
  described = runner.describe(study, series, plan)
  rows = []
  for name, run in described["runs"].items():
    c = next(r for of in plan.values() for rs in of.values() for r in rs if r.name == name).resolve()
    n, per_step = 7 * c.model.layers * c.model.width**2, c.train.batch_size * c.data.context_length
    ebt = run["series"] != "transformer"
    for step in range(c.eval.every, c.train.steps + 1, c.eval.every):
      d = step * per_step
      y = shift * loss(run["series"], n, d) * (1 + noise * random.Random(f"{c.seed} {n} {step} {ebt}").gauss(0, 1))
      rows.append(
        {
          "run": name,
          **{key: run[key] for key in ("series", "level", "seed")},
          "kind": c.model.kind,
          "params": n,
          "params_non_embedding": n,
          "layers": c.model.layers,
          "width": c.model.width,
          "thinking_steps": 2 * ebt,
          "learning_rate": c.train.learning_rate,
          "batch_items": per_step,
          "warmup_items": c.train.warmup * per_step,
          **{"item": "token", "unit": "nats/token", "headline": "bits_per_byte"},
          **{"devices": 1, "device": "1 x fake", "git": "abc"},
          "step": step,
          "end": step == c.train.steps,
          "items": d,
          "flops": d * n * (35.0 if ebt else 6.0),
          "flops_paper": d * n * (40.0 if ebt else 6.0),
          "device_seconds": d * n * (7e-9 if ebt else 1e-9),
          **{"loss": y, "perplexity": math.exp(y), "bits_per_byte": y / math.log(2)},
        }
      )
  return described, rows


@pytest.fixture(scope="module")
def quick():
  return study_of("quick")


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
  monkeypatch.setattr(scaling, "DRAWS", 20)


def axis(study, name):
  return next(a for a in study["axes"] if a["name"] == name)


def test_fits_find_the_laws(quick):
  study, rows = quick
  data = analysis.analyse_axis(rows, axis(study, "data"))
  assert not data.missing and not data.notes
  pair = data.pairs["ebt"]
  assert pair.rate.low > 0 and pair.gap.value == pytest.approx(
    loss("ebt", 229376, 262144) - loss("transformer", 229376, 262144), abs=0.01
  )
  assert pair.crossing.lower == "b" and pair.crossing.at.low < 2e5 < pair.crossing.at.high
  items = {p for (p,) in data.fits["ebt"].points.x.tolist()}
  assert min(items) == 64 * 16 * 64  # the first evaluation after two warm-ups of 32
  flops = analysis.analyse_axis(rows, axis(study, "flops")).pairs["ebt"]
  assert flops.reach == 6 * 14 * 128**2 * 262144  # all that the largest Transformer++ costs: less than EBT of 64
  part = math.log(6 * 128**2 / (35 * 48**2)) / math.log(64**2 / 48**2)  # of the way from EBT of 48 to EBT of 64
  below, above = (math.log(loss("ebt", 14 * width**2, 262144)) for width in (48, 64))
  between = math.exp(below + part * (above - below))
  assert flops.gap.value == pytest.approx(between - loss("transformer", 14 * 128**2, 262144), abs=0.01)
  surface = analysis.surface(rows, axis(study, "params"), "transformer")
  assert surface.law.exponent[0, 1] == pytest.approx(0.3, abs=0.06)


def test_equal_cost_takes_the_best_size(quick):
  study, rows = quick
  at, gap = analysis.equal_cost(rows, axis(study, "params"), "device_seconds")["ebt"][-1]
  # a curve begins after its warm-up, so EBT's largest model has no point at what Transformer++ costs in all
  assert at == pytest.approx(262144 * 229376 * 1e-9)
  ebt = min(loss("ebt", n, at / (n * 7e-9)) for n in (14 * 96**2, 14 * 64**2))
  assert gap.excludes(0) and gap.value == pytest.approx(ebt - loss("transformer", 229376, 262144), abs=0.01)


@pytest.mark.parametrize("label", ["my model", "m" * 129])
def test_the_name_of_a_run_is_no_source_of_numbers(quick, label):
  """Names with a space, and names that are too long, get a digest; levels are still told apart and paired."""
  (study, rows), (renamed, others) = quick, study_of("quick", ebt_label=label)
  assert any(name not in study["runs"] for name in renamed["runs"])
  for name in ("width", "data"):
    a, b = (analysis.analyse_axis(r, axis(s, name)) for r, s in ((rows, study), (others, renamed)))
    assert b.pairs[label] == a.pairs["ebt"]
  surfaces = [
    analysis.surface(rows, axis(study, "params"), "ebt"),
    analysis.surface(others, axis(renamed, "params"), label),
  ]
  assert np.array_equal(*(s.law.exponent for s in surfaces))


def test_another_number_than_the_loss(quick):
  """The paper's line is of the perplexity that belongs to a loss, and of the loss itself where there is none."""
  study, rows = quick
  hard = axis(study, "data") | {"y": "hard/loss"}
  with_perplexity = [r | {"hard/loss": 2 * r["loss"], "hard/perplexity": math.exp(2 * r["loss"])} for r in rows]
  without = [r | {"hard/loss": 2 * r["loss"]} for r in rows]
  fits = [analysis.analyse_axis(r, hard).fits["ebt"] for r in (with_perplexity, without)]
  base = analysis.analyse_axis(rows, axis(study, "data"))
  assert [f.line_y for f in fits] == ["hard/perplexity", "hard/loss"]
  assert fits[0].line.slope == pytest.approx(
    2 * base.fits["ebt"].line.slope
  )  # ln perplexity is the loss, twice as large
  assert fits[1].law.exponent == pytest.approx(base.fits["ebt"].law.exponent, rel=1e-3)
  straight = [analysis.Fit(f.points, f.line, f.line_y, None)([1e5])[0, 0] for f in fits]
  assert straight == pytest.approx([fits[1].law([1e5])[0, 0]] * 2, rel=0.02)  # both in units of the loss
  assert not analysis.on_axis(rows, hard, "ebt")  # points without the number are left out


class Page(html.parser.HTMLParser):
  """Tags that are open, and addresses that a browser would fetch."""

  VOID = {"meta", "br", "path", "use", "rect", "circle", "line"}

  def __init__(self, text):
    super().__init__()
    self.open, self.fetched, self.svgs = [], [], 0
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    self.svgs += tag == "svg"
    self.fetched += [v for k, v in attrs if k in ("src", "href", "xlink:href") and not v.startswith("#")]
    if tag not in self.VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.handle_starttag(tag, attrs)
    if tag not in self.VOID:
      self.open.pop()

  def handle_endtag(self, tag):
    if tag not in self.VOID:
      assert self.open.pop() == tag


def written(folder, study, rows):
  folder.mkdir()
  (folder / points.STUDY).write_text(json.dumps(study))
  (folder / points.FILE).write_text("".join(json.dumps(r) + "\n" for r in rows))
  return report.write_report(folder).read_text(encoding="utf-8")


def test_one_page_that_says_what_is_supported(quick, tmp_path):
  study, rows = quick
  text = written(tmp_path / "s", study, rows)
  page = Page(text)
  assert page.open == [] and page.fetched == [] and page.svgs >= 4
  assert (
    "<b>Data.</b> By the paper's measure ebt scales faster than transformer" in text
    and "ebt is lower from there on" in text
  )
  assert "24 of 24 runs" in text and "(3 at least)" in text and "+35.98%" in text and "nan" not in text
  for cost in analysis.COSTS.values():
    assert cost.format(item="token") in text
  assert "bits_per_byte at the largest" in text and "irreducible loss, nats/token" in text
  assert {p.stem for p in (tmp_path / "s/figures").iterdir()} >= {"data", "width", "params", "flops"}
  joined_earlier = {**rows[0], "run": "gone", "series": "gone", "unit": "?"}
  assert written(tmp_path / "again", study, [*rows, joined_earlier]) == text  # its run is not in study.json any more


def test_numbers_come_from_the_points(quick, tmp_path):
  """Losses that are a tenth higher change gaps, slopes of perplexity and floors (exponents stay)."""
  first, second = (written(tmp_path / n, *s) for n, s in (("a", quick), ("b", study_of("quick", shift=1.1))))
  cells = lambda text: [
    re.sub("<[^>]+>", " ", c) for c in re.findall(r"<td>(.*?)</td>", text.split("<h2>Comparison with the paper")[0])
  ]
  numeric = [(a, b) for a, b in zip(cells(first), cells(second), strict=True) if re.match(r"[+-]?\d+\.\d+%? ", a)]
  changed = [a != b for a, b in numeric]
  assert len(changed) > 30 and sum(changed) > len(changed) / 2


def test_few_points_are_said_to_be_few(quick, tmp_path):
  study, rows = quick
  few = [r for r in rows if r["seed"] == 0 and r["width"] in (96, 128)]
  text = written(tmp_path / "few", study, few)
  assert "4 of 24 runs" in text and "runs of this axis have no points yet" in text
  assert "<b>Data.</b>" in text and "<b>Width.</b>" not in text and "(1 at least)" in text
  assert "Nothing yet: too few runs have finished." in written(tmp_path / "none", study, [])


def test_no_difference_is_called_none(monkeypatch, tmp_path):
  monkeypatch.setitem(globals(), "loss", lambda series, n, d: 1.1 + 4 * n**-0.3 + 22 * d**-0.3)
  text = written(tmp_path / "s", *study_of("quick", noise=0.004))
  verdicts = re.findall(r"<li>(.*?)</li>", text)
  assert len(verdicts) == 4 and sum("is not resolved" in v for v in verdicts) >= 3


def test_a_folder_that_is_no_study(tmp_path):
  with pytest.raises(
    ConfigError, match=r"study.json: cannot be read .*; expected the --workdir of experiments.scaling.run"
  ):
    report.write_report(tmp_path)
  (tmp_path / points.STUDY).write_text('{"study": "", "about": "", "series": {}, "axes": [], "runs": {}}')
  with pytest.raises(ConfigError, match=r"points.jsonl: cannot be read .*python -m experiments.scaling.points"):
    report.write_report(tmp_path)


def test_an_exponent_at_the_bound_of_its_search_is_marked():
  inside, at_bound = np.full(101, 0.3), np.full(101, scaling.STEEPEST)
  assert "searched" not in report.exponent(inside) and "searched" in report.exponent(at_bound)
