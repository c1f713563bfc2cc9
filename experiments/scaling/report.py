"""Writes the report of a study: one HTML page that needs no other file, and its figures.

  python -m experiments.scaling.report DIR

The numbers of `DIR/report.html` come from `DIR/points.jsonl`, except for the comparison with the paper, which also uses
`paper_points.json` (points read off the paper's figures). Figures are also written to `DIR/figures/`.
"""

import collections
from collections.abc import Callable, Iterable, Sequence
import html
import json
import math
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np

from ebt_jax import cli, files, scaling
from ebt_jax.config import ConfigError
from ebt_jax.metrics import si
from ebt_jax.scaling import Crossing, Interval
from experiments.runner import page
from experiments.scaling import analysis, points
from experiments.scaling.analysis import COSTS, AxisResult, Pair

LABELS = {  # field of a point -> words
  "items": "training {item}s",
  "batch_items": "{item}s per batch",
  "layers": "blocks",
  "width": "width",
  "params_non_embedding": "non-embedding parameters",
  "flops": "training FLOPs",
  "thinking_steps": "thinking steps",
  "learning_rate": "learning rate",
}
PAPER = pathlib.Path(__file__).with_name("paper_points.json")
CHECKS = ("rates",)  # axes with an optimum, to which no law is fitted


class Words(NamedTuple):
  """How the points name what they count and measure.

  Attributes:
    item: what `items` counts, such as "token".
    unit: of the loss, such as "nats/token"; may be empty.
    headline: field of a point that a study shows beside the loss, such as "bits_per_byte"; may be empty.
  """

  item: str
  unit: str
  headline: str

  def label(self, field: str) -> str:
    """Words for a field of a point."""
    return LABELS.get(field, field).format(item=self.item)

  def of(self, y: str) -> str:
    """The unit of y with a space before it, or nothing."""
    return f" {self.unit}" if self.unit and y.endswith("loss") else ""

  def with_unit(self, text: str, y: str) -> str:
    """`text`, followed by the unit of y if it has one."""
    return f"{text},{self.of(y)}" if self.of(y) else text


def words_of(rows: Iterable[dict[str, Any]]) -> Words:
  """The words that all points agree on."""
  rows = list(rows)

  def common(field, otherwise):
    found = {r.get(field) for r in rows}
    return found.pop() or otherwise if len(found) == 1 else otherwise

  return Words(common("item", "item"), common("unit", ""), common("headline", ""))


def percent(i: Interval | None) -> str:
  return "" if i is None else f"{100 * i.value:+.1f}%<small>{_bounds(i, _percents)}</small>"


def number(i: Interval | None, digits: int = 3) -> str:
  return "" if i is None else f"{i.value:.{digits}f}<small>{_bounds(i, lambda v: f'{v:.{digits}f}')}</small>"


def large(i: Interval) -> str:
  return f"{si(i.value)}<small>{_bounds(i, _in_range)}</small>"


def _percents(v: float) -> str:
  return "above +999%" if v > 9.99 else f"{100 * v:+.1f}%"


def _in_range(v: float) -> str:
  return "below the range" if v == 0 else "beyond the range" if math.isinf(v) else si(v)


def _signed(v: float) -> str:
  return f"{v:+.3f}" if math.isfinite(v) else "−∞" if v < 0 else "∞"


def _bounds(i: Interval, form: Callable[[float], str]) -> str:
  return f"{form(i.low)} to {form(i.high)}"


def floor(law: scaling.Law | None) -> str:
  if law is None:
    return ""
  return number(scaling.interval(law.floor)) + ("" if law.has_floor else "<small>not resolved from 0</small>")


def exponent(rows: np.ndarray) -> str:
  i = scaling.interval(rows)
  inside = 0 < i.low and i.high < scaling.STEEPEST
  return number(i) + ("" if inside else f"<small>searched from 0 to {scaling.STEEPEST:g}</small>")


def crossing(c: Crossing | None, names: Sequence[str]) -> str:
  if c is None:
    return "no common range"
  if c.at is None:
    return f"none in range<small>{html.escape(names[c.lower == 'b'])} is lower</small>"
  return large(c.at)


def verdict(axis: dict[str, Any], first: str, series: str, p: Pair, words: Words) -> str:
  """One axis in words. Where an interval contains zero, the page says that the difference is not resolved."""
  a, b = html.escape(first), html.escape(series)
  unit = html.escape(words.of(axis["y"]))
  if p.rate.excludes(0):
    word = "faster" if p.rate.value > 0 else "slower"
    scales = f"By the paper's measure {b} scales {word} than {a}, {_plain(p.rate)}"
  else:
    scales = f"Which of {a} and {b} scales faster is not resolved ({_plain(p.rate)})"
  if p.exponent is not None:
    clear = "differs" if p.exponent.excludes(0) else "is not resolved from that of the other"
    scales += f"; the exponent of its law with an irreducible loss {clear} ({_plain(p.exponent)})"
  if p.gap is None:
    level = "no seed has points of both"
  elif math.isinf(p.gap.high):
    word = "above" if p.gap.value > 0 else "below"
    level = (
      f"{b} is {word} {a} by {abs(p.gap.value):.3f}{unit} for the only seed that has both, so there is no interval"
    )
  elif p.gap.excludes(0):
    word = "above" if p.gap.value > 0 else "below"
    level = f"{b} is {word} {a} by {abs(p.gap.value):.3f}{unit} ({_interval(p.gap)})"
  else:
    level = f"their difference is not resolved ({p.gap.value:+.3f}{unit}, {_interval(p.gap)})"
  c = p.crossing
  if c is None:
    cross = "Their ranges do not overlap."
  elif c.at is None:
    cross = f"Their {p.gap_law} do not cross in the measured range."
  else:
    lower = b if c.lower == "b" else a
    cross = f"Their {p.gap_law} cross at {si(c.at.value)} ({_bounds(c.at, _in_range)}); {lower} is lower from there on."
  at = f"{si(p.reach)} ({html.escape(words.label(axis['x']))})"
  return f"<li><b>{html.escape(axis['title'])}.</b> {scales}. At {at} {level}. {cross}</li>"


def _plain(i: Interval) -> str:
  return f"{100 * i.value:+.1f}%, interval {_bounds(i, _percents)}"


def _interval(i: Interval) -> str:
  return f"interval {_bounds(i, _signed)}"


def axis_section(result: AxisResult, rows: list[dict[str, Any]], figure: str, words: Words) -> str:
  """Figure and table of one axis."""
  axis = result.axis
  first = next(iter(axis["runs"]))
  line_y = next((fit.line_y for fit in result.fits.values()), axis["y"])
  body = []
  for name, fit in result.fits.items():
    p, pair = fit.points, result.pairs.get(name)
    end = analysis.at_the_end(rows, axis, name, words.headline) if words.headline else None
    body.append([
        html.escape(name), f"{len(set(p.level))} × {_seeds(p)}", number(scaling.interval(fit.line.slope)),
        exponent(fit.law.exponent[:, 0]) if fit.law else "",
        floor(fit.law),
        percent(pair.rate) if pair else "", percent(pair.exponent) if pair else "",
        crossing(pair.crossing, (first, name)) if pair else "",
        "" if end is None else f"{end:.3f}",
    ])  # fmt: skip
  head = ["series", "levels × seeds", f"slope of ln {html.escape(line_y)}", "exponent",
          html.escape(words.with_unit("irreducible loss", axis["y"])), f"rate over {html.escape(first)}",
          "exponent over it", "crossing", f"{html.escape(words.headline)} at the largest"]  # fmt: skip
  notes = [f"{result.missing} runs of this axis have no points yet."] if result.missing else []
  notes += [f"Not fitted: {html.escape(n)}." for n in result.notes]
  if axis["name"] in CHECKS:
    body = []
    notes.append(
      "No law is fitted here. The figure shows whether the learning rate of the rule, the middle one of each size, is "
      "near the best one."
    )
  return (
    f"<h2>{html.escape(axis['title'])}</h2><figure>{figure}<figcaption>Each mark is one evaluation of one "
    f"seed. Lines: the law with an irreducible loss where it could be fitted, else the straight line of "
    f"{html.escape(line_y)}; bands hold {scaling.CONFIDENCE:.0%} of the draws.</figcaption></figure>"
    + (page.table(head, body) + paired_table(rows, axis, words) if body else "")
    + "".join(f'<p class="note">{n}</p>' for n in notes)
  )


def paired_table(rows: list[dict[str, Any]], axis: dict[str, Any], words: Words) -> str:
  """Differences from the first series, between runs of the same seed, in a part of the page that is closed at first."""
  first, *others = axis["runs"]
  body = [
    [
      html.escape(name), si(p.x), f"{p.seeds}", f"{p.first:.4f}", f"{p.second:.4f}",
      f"{p.difference:+.4f} ± {p.half:.4f}", f"{p.lower}",
    ]
    for name in others for p in analysis.paired(rows, axis, first, name)
  ]  # fmt: skip
  if not body:
    return ""
  head = ["series", html.escape(words.label(axis["x"])), "seeds", html.escape(first), "series' own",
          f"less {html.escape(first)}", "seeds where lower"]  # fmt: skip
  return f"<details><summary>Differences, paired by seed</summary>{page.table(head, body)}</details>"


def _seeds(p: scaling.Points) -> str:
  """Number of seeds of the levels: `3`, or `1 to 3`."""
  counts = collections.Counter(level for level, _ in set(zip(p.level, p.seed))).values()
  return f"{max(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def cost_section(study: dict[str, Any], rows: list[dict[str, Any]], words: Words) -> str:
  """y of each series minus that of the first one at equal data, FLOPs and time."""
  out = []
  for axis in study["axes"]:
    mine = {name for names in axis["runs"].values() for name in names}
    sizes = {r["params_non_embedding"] for r in rows if r["run"] in mine}
    if not axis["curve"] or (axis["x"] != "items" and len(sizes) < 2):  # with one size there is nothing to choose
      continue
    body = []
    for cost, words_of_cost in COSTS.items():
      cost_label = html.escape(words_of_cost.format(item=words.item))
      for series, found in analysis.equal_cost(rows, axis, cost).items():
        if not found:
          body.append([cost_label, html.escape(series), "", "no common range"])
        for at, gap in found:
          body.append(
            [
              f"{si(at)} {cost_label}",
              html.escape(series),
              f"{gap.value:+.3f}<small>{_bounds(gap, _signed)}</small>",
              _level(gap),
            ]
          )
    if body:
      best = " (each series at its best size)" if axis["x"] != "items" else ""
      first = html.escape(next(iter(axis["runs"])))
      above = html.escape(words.of(axis["y"]).strip() or axis["y"])
      head = ["at equal cost", "series", f"{above} above {first}", f"{html.escape(axis['y'])} is"]
      out.append(f"<h3>{html.escape(axis['title'])}{best}</h3>" + page.table(head, body))
  return "<h2>At equal data, equal FLOPs and equal time</h2>" + "".join(out) if out else ""


def _level(gap: Interval) -> str:
  """A gap in words."""
  if math.isinf(gap.high):
    return "of one seed"
  return "higher" if gap.low > 0 else "lower" if gap.high < 0 else "not resolved"


def surface_section(
  study: dict[str, Any], rows: list[dict[str, Any]], draw: Callable[[dict], str], words: Words
) -> str:
  """Chinchilla's law and isoFLOP parabolas, of the first axis of sizes whose runs are curves."""
  axis = next((a for a in study["axes"] if a["curve"] and a["x"] == "params_non_embedding"), None)
  if axis is None:
    return ""
  found = {s: analysis.surface(rows, axis, s) for s in axis["runs"]}
  body = []
  for name, s in found.items():
    laws = [floor(s.law), *map(exponent, s.law.exponent.T)] if s.law else ["", "", ""]
    grows = number(scaling.interval(s.law.exponent[:, 1] / s.law.exponent.sum(1))) if s.law else ""
    body.append(
      [html.escape(name), *laws, grows, number(scaling.interval(s.isoflop.growth.slope)) if s.isoflop else ""]
    )
  notes = [n for s in found.values() for n in s.notes]
  for name, s in found.items():
    if s.isoflop is not None and not s.isoflop.inside.all():
      inside = s.isoflop.inside
      notes.append(
        f"{name}: {(~inside).sum()} of {len(inside)} budgets have their lowest loss outside the sizes that were trained"
      )
  head = [
    "series",
    "irreducible loss",
    "exponent of parameters",
    f"exponent of {html.escape(words.item)}s",
    "best size grows with FLOPs, by the law",
    "by isoFLOP parabolas",
  ]
  figure = draw({n: s.isoflop for n, s in found.items()}) if any(s.isoflop for s in found.values()) else ""
  caption = "The minimum of the parabola of loss over size, at each budget."
  return (
      "<h2>Parameters and data together</h2>" + page.table(head, body)
      + (f"<figure>{figure}<figcaption>{caption}</figcaption></figure>" if figure else "")
      + "".join(f'<p class="note">Not fitted: {html.escape(n)}.</p>' for n in notes)
  )  # fmt: skip


def paper_section(results: Sequence[AxisResult], item: str) -> str:
  """The rates that the paper prints, the same fits to the points of its figures, and the rates of this study.

  Args:
    item: what the study counts: its axes stand beside panels of text (`token`) or of video (`frame`), or beside none.
  """
  ours = {r.axis["name"]: r.pairs for r in results}
  known = json.loads(PAPER.read_text(encoding="utf-8"))
  body = []
  for panel in known["panels"]:
    x = panel["x"]
    fits = [
      scaling.line(scaling.points([v * f for v in x], panel[m], level=x))
      for m, f in (("transformer", 1), ("ebt", panel.get("x_ebt_factor", 1)))
    ]
    of = panel.get("item", "token")
    pairs = ours.get(panel["name"], {}) if of == item else {}
    here = [f"{html.escape(s)} {percent(p.rate)}" for s, p in pairs.items()]
    body.append(
      [
        f"{'video, ' if of == 'frame' else ''}{panel['name']} (Fig. {panel['figure']})",
        f"{panel['printed']:+.2f}%",
        percent(scaling.faster(*fits)),
        "<br>".join(here),
      ]
    )
  return (
    "<h2>Comparison with the paper</h2><p>The paper prints rates without a definition and without intervals. The "
    "ratio of slopes of ln perplexity (video: ln loss) over ln axis reproduces each of them. The intervals below are "
    "those of one seed, from the few points of its figures.</p>"
    + page.table(["panel", "printed", "from its points", "here"], body)
    + f'<p class="note">{html.escape(known["source"])}</p>'
  )


def whole(study: dict[str, Any], rows: list[dict[str, Any]], draw: tuple) -> tuple[str, dict[str, str]]:
  """The report, and its figures by name.

  Args:
    study: content of `study.json`.
    rows: points; those of runs outside the study are left out.
    draw: `panel` and `surface_panel` of figures.py.
  """
  panel, surface_panel = draw
  rows = [r for r in rows if r["run"] in study["runs"]]
  words = words_of(rows)
  results = [analysis.analyse_axis(rows, axis) for axis in study["axes"]]
  svgs = {
    r.axis["name"]: panel(r, words.label(r.axis["x"]), words.with_unit(f"held-out {r.axis['y']}", r.axis["y"]))
    for r in results
    if r.fits
  }
  runs = {r["run"] for r in rows}
  devices = sorted({r["device"] for r in rows})
  commits = sorted({r["git"] for r in rows if r["git"]})
  verdicts = []
  for r in results:
    if r.axis["name"] not in CHECKS:
      first = next(iter(r.axis["runs"]))
      verdicts += [verdict(r.axis, first, s, p, words) for s, p in r.pairs.items()]
  of_levels = (_seeds(f.points) for r in results for f in r.fits.values() if r.axis["name"] not in CHECKS)
  seeds = min((int(n.split()[0]) for n in of_levels), default=0)

  def surface_draw(isoflops):
    svgs["isoflop"] = surface_panel(isoflops, words.label("params_non_embedding"))
    return svgs["isoflop"]

  sections = [
    f"<h1>Scaling study {html.escape(study['study'])}</h1><p>{html.escape(study['about'])}</p>",
    f"<p>{len(runs)} of {len(study['runs'])} runs, {len(rows)} evaluations; series "
    + ", ".join(f"<b>{html.escape(s)}</b> <code>{html.escape(c)}</code>" for s, c in study["series"].items())
    + f"; {html.escape(', '.join(devices))}; program {html.escape(', '.join(commits)) or 'not in a repository'}.</p>",
    "<h2>What is and is not supported</h2>",
    f'<div class="verdict"><ul>{"".join(verdicts)}</ul></div>'
    if verdicts
    else "<p>Nothing yet: too few runs have finished.</p>",
    '<p class="note">This holds for the sizes, data and recipe that were measured, and for no others. Intervals are '
    f"{scaling.CONFIDENCE:.0%}, over levels and seeds ({seeds} at least); with three seeds or fewer they are "
    "rough. All losses are on the same held-out data.</p>",
    cost_section(study, rows, words),
    *(axis_section(r, rows, svgs[r.axis["name"]], words) for r in results if r.fits),
    surface_section(study, rows, surface_draw, words),
    paper_section(results, words.item),
    "<h2>How it is measured</h2><p>The rate is the paper's: straight lines of ln perplexity (ln loss where there is no "
    "perplexity) over ln axis by least squares, and the ratio of their slopes minus 1. No irreducible loss is "
    "subtracted, so the rate is valid only in the range that was measured. The law is loss = E + A x<sup>−a</sup>, "
    "fitted to the logarithm with Huber's loss from many starting points. Both fits are repeated on "
    f"{scaling.DRAWS} draws of random weights of levels and seeds; all series share the weights. FLOPs are counted "
    f"from the architecture. The paper counts, for each {html.escape(words.item)}, 6N FLOPs for Transformer++ and 20N "
    "for a thinking step of EBT, where N is the number of non-embedding parameters. Device seconds are measured; they "
    "include training steps only. Gaps at equal cost are means over seeds, with Student bounds. Curves begin after "
    f"{analysis.WARMUPS} warm-ups.</p>",
  ]
  return page.document(f"Scaling study {study['study']}", sections), svgs


def write_report(folder: pathlib.Path) -> pathlib.Path:
  """Writes `report.html` and `figures/` of a folder. Raises ConfigError where study or points are missing."""
  try:
    from experiments.scaling import figures
  except ImportError as e:
    raise ConfigError(f"the report needs matplotlib ({e}); run `pip install matplotlib`") from e
  text, svgs = whole(points.read_study(folder), points.read(folder), (figures.panel, figures.surface_panel))
  (folder / "figures").mkdir(exist_ok=True)
  for name, svg in svgs.items():
    files.replace_text(folder / "figures" / f"{name}.svg", svg)
  files.replace_text(folder / "report.html", text)
  return folder / "report.html"


def main(argv: list[str]) -> None:
  parser = cli.Parser(prog="experiments.scaling.report", description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=cli.path, metavar="DIR", help="--workdir of experiments.scaling.run")
  print(f"written to {write_report(parser.parse_args(argv).folder)}")


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
