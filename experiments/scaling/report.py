"""Writes the report of a study: one HTML page that needs no other file, and its figures.

  python -m experiments.scaling.report DIR

Every number of `DIR/report.html` comes from `DIR/points.jsonl` (and, where it says so, from the points read off the
paper's figures in `paper_points.json`). Figures are also written to `DIR/figures/`.
"""

import collections
from collections.abc import Callable, Iterable, Sequence
import html
import json
import math
import os
import pathlib
import sys
from typing import Any

import numpy as np

from ebt_jax import scaling
from ebt_jax.config import ConfigError
from ebt_jax.metrics import si
from ebt_jax.scaling import Crossing, Interval
from experiments.scaling import analysis, points
from experiments.scaling.analysis import COSTS, AxisResult, Pair

LABELS = {
    "tokens": "training tokens", "batch_tokens": "tokens a batch", "layers": "blocks", "width": "width",
    "params_non_embedding": "parameters outside the vocabulary", "flops": "training FLOPs",
    "thinking_steps": "thinking steps", "learning_rate": "learning rate",
}  # fmt: skip
PAPER = pathlib.Path(__file__).with_name("paper_points.json")
CHECKS = ("rates",)  # axes that have an optimum instead of a law
STYLE = pathlib.Path(__file__).with_name("report.css")


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
  return number(scaling.interval(law.floor)) + ("" if law.has_floor else "<small>not told from 0</small>")


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


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """Cells are HTML; a column without a filled cell is left out."""
  rows = list(rows)
  shown = [i for i in range(len(head)) if not rows or any(r[i] for r in rows)]
  head, rows = [head[i] for i in shown], [[r[i] for i in shown] for r in rows]

  def line(tag, cells):
    return "<tr>" + "".join(f"<{tag}>{c}</{tag}>" for c in cells) + "</tr>"

  return f'<div class="table"><table>{line("th", head)}{"".join(line("td", r) for r in rows)}</table></div>'


def verdict(title: str, first: str, series: str, p: Pair, unit: str) -> str:
  """One axis in words. What an interval does not exclude is said not to be resolved."""
  a, b = html.escape(first), html.escape(series)
  if p.rate.excludes(0):
    word = "faster" if p.rate.value > 0 else "slower"
    scales = f"By the paper's measure {b} scales {word} than {a}, {_plain(p.rate)}"
  else:
    scales = f"Which of {a} and {b} scales faster is not resolved ({_plain(p.rate)})"
  if p.exponent is not None:
    clear = "differs" if p.exponent.excludes(0) else "is not told apart"
    scales += f"; the exponent of its law with an irreducible loss {clear} ({_plain(p.exponent)})"
  if p.gap is None:
    level = "no seed has points of both"
  elif math.isinf(p.gap.high):
    word = "above" if p.gap.value > 0 else "below"
    level = f"{b} is {word} {a} by {abs(p.gap.value):.3f} nats in the one seed that has both, which bounds nothing"
  elif p.gap.excludes(0):
    level = f"{b} is {'above' if p.gap.value > 0 else 'below'} {a} by {abs(p.gap.value):.3f} nats ({_nats(p.gap)})"
  else:
    level = f"the two are not told apart ({p.gap.value:+.3f} nats, {_nats(p.gap)})"
  c = p.crossing
  if c is None:
    cross = "They share no range."
  elif c.at is None:
    cross = f"Their {p.gap_law} do not cross in the measured range."
  else:
    lower = b if c.lower == "b" else a
    cross = f"Their {p.gap_law} cross at {si(c.at.value)} ({_bounds(c.at, _in_range)}); {lower} is lower from there on."
  return f"<li><b>{html.escape(title)}.</b> {scales}. At {si(p.reach)} ({unit}) {level}. {cross}</li>"


def _plain(i: Interval) -> str:
  return f"{100 * i.value:+.1f}%, interval {_bounds(i, _percents)}"


def _nats(i: Interval) -> str:
  return f"interval {_bounds(i, _signed)}"


def axis_section(result: AxisResult, figure: str) -> str:
  """Figure and table of one axis."""
  axis = result.axis
  first = next(iter(axis["runs"]))
  rows = []
  for name, fit in result.fits.items():
    p, pair = fit.points, result.pairs.get(name)
    rows.append([
        html.escape(name), f"{len(set(p.level))} × {_seeds(p)}", number(scaling.interval(fit.line.slope)),
        exponent(fit.law.exponent[:, 0]) if fit.law else "",
        floor(fit.law),
        percent(pair.rate) if pair else "", percent(pair.exponent) if pair else "",
        crossing(pair.crossing, (first, name)) if pair else "",
    ])  # fmt: skip
  head = ["series", "levels × seeds", "slope of ln perplexity", "exponent", "irreducible loss, nats",
          f"rate over {html.escape(first)}", "exponent over it", "crossing"]  # fmt: skip
  notes = [f"{result.missing} runs of this axis have no points yet."] if result.missing else []
  notes += [f"Not fitted: {html.escape(n)}." for n in result.notes]
  if axis["name"] in CHECKS:
    rows = []
    notes.append(
      "No law is looked for: the figure shows whether the rule's rate, the middle one of a size, is near the best."
    )
  return (
    f"<h2>{html.escape(axis['title'])}</h2><figure>{figure}<figcaption>Each mark is one evaluation of one "
    f"seed. Lines: the law with an irreducible loss where it could be fitted, else the straight line of perplexity; "
    f"bands hold {scaling.CONFIDENCE:.0%} of the draws.</figcaption></figure>"
    + (table(head, rows) if rows else "")
    + "".join(f'<p class="note">{n}</p>' for n in notes)
  )


def _seeds(p: scaling.Points) -> str:
  """How many seeds the levels have: `3`, or `1 to 3`."""
  counts = collections.Counter(level for level, _ in set(zip(p.level, p.seed))).values()
  return f"{max(counts)}" if min(counts) == max(counts) else f"{min(counts)} to {max(counts)}"


def cost_section(study: dict[str, Any], rows: list[dict[str, Any]]) -> str:
  """Loss of each series less the first one's at equal data, FLOPs and time."""
  out = []
  for axis in study["axes"]:
    mine = {name for names in axis["runs"].values() for name in names}
    sizes = {r["params_non_embedding"] for r in rows if r["run"] in mine}
    if not axis["way"] or (axis["x"] != "tokens" and len(sizes) < 2):  # one size has no best one
      continue
    body = []
    for cost, words in COSTS.items():
      for series, found in analysis.equal_cost(rows, axis, cost).items():
        if not found:
          body.append([words, html.escape(series), "", "no common range"])
        for at, gap in found:
          low = (
            "of one seed"
            if math.isinf(gap.high)
            else "higher"
            if gap.low > 0
            else "lower"
            if gap.high < 0
            else "not told apart"
          )
          body.append(
            [f"{si(at)} {words}", html.escape(series), f"{gap.value:+.3f}<small>{_bounds(gap, _signed)}</small>", low]
          )
    if body:
      best = " (each series at its best size)" if axis["x"] != "tokens" else ""
      first = html.escape(next(iter(axis["runs"])))
      head = ["at equal cost", "series", f"nats above {first}", "loss is"]
      out.append(f"<h3>{html.escape(axis['title'])}{best}</h3>" + table(head, body))
  return "<h2>At equal data, equal FLOPs and equal time</h2>" + "".join(out) if out else ""


def surface_section(study: dict[str, Any], rows: list[dict[str, Any]], draw) -> str:
  """Chinchilla's law and isoFLOP parabolas where an axis has sizes with evaluations on the way."""
  axis = next((a for a in study["axes"] if a["way"] and a["x"] == "params_non_embedding"), None)
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
      notes.append(f"{name}: {(~inside).sum()} of {len(inside)} budgets have their least loss beyond the sizes tried")
  head = [
    "series",
    "irreducible loss",
    "exponent of parameters",
    "exponent of tokens",
    "best size grows with FLOPs, by the law",
    "by isoFLOP parabolas",
  ]
  figure = draw({n: s.isoflop for n, s in found.items()}) if any(s.isoflop for s in found.values()) else ""
  caption = "Where the parabola of loss over size is least at each budget."
  return (
      "<h2>Parameters and data together</h2>" + table(head, body)
      + (f"<figure>{figure}<figcaption>{caption}</figcaption></figure>" if figure else "")
      + "".join(f'<p class="note">Not fitted: {html.escape(n)}.</p>' for n in notes)
  )  # fmt: skip


def paper_section(results: Sequence[AxisResult]) -> str:
  """The paper's printed rates, the same fits of the points of its figures, and this study's."""
  ours = {r.axis["name"]: r.pairs for r in results}
  known = json.loads(PAPER.read_text(encoding="utf-8"))
  body = []
  for panel in known["panels"]:
    x = panel["x"]
    fits = [
      scaling.line(scaling.points([v * f for v in x], panel[m], level=x))
      for m, f in (("transformer", 1), ("ebt", panel.get("x_ebt_factor", 1)))
    ]
    here = [f"{html.escape(s)} {percent(p.rate)}" for s, p in ours.get(panel["name"], {}).items()]
    body.append(
      [
        f"{panel['name']} (Fig. {panel['figure']})",
        f"{panel['printed']:+.2f}%",
        percent(scaling.faster(*fits)),
        "<br>".join(here),
      ]
    )
  return (
    "<h2>Beside the paper</h2><p>The paper prints rates without saying how they come about or how sure they are. The "
    "ratio of slopes of ln perplexity (video: ln loss) over ln axis gives every one of them. Its intervals below are "
    "those of one seed, from the few points of its figures.</p>"
    + table(["panel", "printed", "from its points", "here"], body)
    + f'<p class="note">{html.escape(known["source"])}</p>'
  )


def page(study: dict[str, Any], rows: list[dict[str, Any]], draw: tuple) -> tuple[str, dict[str, str]]:
  """The report and its figures by name; `draw` are the functions of figures.py."""
  panel, surface_panel = draw
  results = [analysis.analyse_axis(rows, axis) for axis in study["axes"]]
  svgs = {r.axis["name"]: panel(r, LABELS.get(r.axis["x"], r.axis["x"])) for r in results if r.fits}
  runs = {r["run"] for r in rows}
  devices = sorted({r["device"] for r in rows})
  commits = sorted({r["git"] for r in rows if r["git"]})
  words = []
  for r in results:
    if r.axis["name"] not in CHECKS:
      first = next(iter(r.axis["runs"]))
      unit = LABELS.get(r.axis["x"], r.axis["x"])
      words += [verdict(r.axis["title"], first, s, p, unit) for s, p in r.pairs.items()]
  of_levels = (_seeds(f.points) for r in results for f in r.fits.values() if r.axis["name"] not in CHECKS)
  seeds = min((int(n.split()[0]) for n in of_levels), default=0)

  def surface_draw(isoflops):
    svgs["isoflop"] = surface_panel(isoflops, LABELS["params_non_embedding"])
    return svgs["isoflop"]

  sections = [
    f"<h1>Scaling study {html.escape(study['study'])}</h1><p>{html.escape(study['about'])}</p>",
    f"<p>{len(runs)} of {len(study['runs'])} runs, {len(rows)} evaluations; series "
    + ", ".join(f"<b>{html.escape(s)}</b> <code>{html.escape(c)}</code>" for s, c in study["series"].items())
    + f"; {html.escape(', '.join(devices))}; program {html.escape(', '.join(commits)) or 'not in a repository'}.</p>",
    "<h2>What is and is not supported</h2>",
    f'<div class="verdict"><ul>{"".join(words)}</ul></div>'
    if words
    else "<p>Nothing yet: too few runs have finished.</p>",
    '<p class="note">Of the sizes, data and recipe measured here, and no others. Intervals are '
    f"{scaling.CONFIDENCE:.0%}, over levels and seeds ({seeds} at least); with three seeds or fewer they are "
    "rough. Losses are on the same held-out text.</p>",
    cost_section(study, rows),
    *(axis_section(r, svgs[r.axis["name"]]) for r in results if r.fits),
    surface_section(study, rows, surface_draw),
    paper_section(results),
    "<h2>How it is measured</h2><p>The rate is the paper's: straight lines of ln perplexity over ln axis by least "
    "squares, and the ratio of their slopes less 1. It takes off no irreducible loss, so it belongs to the range it "
    "was measured in. The law is loss = E + A x<sup>−a</sup>, fitted to the logarithm by Huber's loss from many "
    f"starts. Both are done anew on {scaling.DRAWS} draws of random weights of levels and seeds, shared by the "
    "series. FLOPs are counted from the architecture; the paper's count is 6N a token for Transformer++ and 20N for "
    "a thinking step, N the parameters outside the vocabulary. Device seconds are measured, of training steps alone. "
    "Gaps at equal cost are means over seeds, with Student bounds. Points of a curve begin after two warm-ups.</p>",
  ]
  title = f"Scaling study {html.escape(study['study'])}"
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{title}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body>\n"
    + "\n".join(sections)
    + "\n</body></html>\n"
  ), svgs


def write(folder: pathlib.Path) -> pathlib.Path:
  """Writes `report.html` and `figures/` of a folder. Raises ConfigError where study or points are missing."""
  try:
    from experiments.scaling import figures
  except ImportError as e:
    raise ConfigError(f"the report needs matplotlib ({e}); run `pip install matplotlib`") from e
  text, svgs = page(points.read_study(folder), points.read(folder), (figures.panel, figures.surface_panel))
  (folder / "figures").mkdir(exist_ok=True)
  for name, svg in svgs.items():
    _write(folder / "figures" / f"{name}.svg", svg)
  _write(folder / "report.html", text)
  return folder / "report.html"


def _write(path: pathlib.Path, text: str) -> None:
  part = path.with_name(path.name + ".part")
  part.write_text(text, encoding="utf-8")
  os.replace(part, path)


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit(__doc__)
  try:
    print(f"written to {write(pathlib.Path(sys.argv[1]))}")
  except ConfigError as e:
    sys.exit(f"error: {e}")
