"""From points to fits and comparisons: every number of the report.

Every other series is compared with the first one: they are b and a in `ebt_jax/scaling.py`. Rows are points of
`points.jsonl`, axes are entries of `study.json`.
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from ebt_jax import scaling
from ebt_jax.scaling import Crossing, Interval, IsoFLOP, Law, Line, Points

Row = dict[str, Any]
COSTS = {  # field of a point -> words
  "items": "training {item}s",
  "flops": "FLOPs counted here",
  "flops_paper": "FLOPs as the paper counts",
  "device_seconds": "device seconds",
}
WARMUPS = 2  # a curve begins when this many times the items of the warm-up have been trained on


@dataclasses.dataclass(frozen=True)
class Fit:
  """One series along one axis.

  Attributes:
    points: the points of `y`.
    line: the paper's straight line, of the field `line_y`.
    line_y: field of a point, see `line_field`.
    law: the law of `y` with an irreducible loss; None where it could not be fitted.
  """

  points: Points
  line: Line
  line_y: str
  law: Law | None

  def __call__(self, x) -> np.ndarray:
    """y at x [m] -> [1 + DRAWS, m]: of the law, or else of the line."""
    if self.law:
      return self.law(x)
    y = self.line(x)
    return np.log(np.maximum(y, 1 + 1e-9)) if is_perplexity(self.line_y) else y


@dataclasses.dataclass(frozen=True)
class Pair:
  """A series compared with the first one along one axis.

  Attributes:
    rate: how much faster it scales by the paper's measure.
    exponent: ratio of the exponents of the two laws, minus 1; None where a law is missing.
    crossing: within the range that both were measured in; None where their ranges do not overlap.
    reach: the largest x that both have.
    gap: y minus that of the first series at `reach`; None where no seed of both has points there.
    gap_law: "laws" or "lines", whichever `crossing` was computed from.
  """

  rate: Interval
  exponent: Interval | None
  crossing: Crossing | None
  reach: float
  gap: Interval | None
  gap_law: str


@dataclasses.dataclass(frozen=True)
class AxisResult:
  """Results of one axis; `missing` counts runs without points, `notes` say what could not be fitted."""

  axis: dict[str, Any]
  fits: dict[str, Fit]
  pairs: dict[str, Pair]
  missing: int
  notes: list[str]


@dataclasses.dataclass(frozen=True)
class Surface:
  """loss(N, D) of one series: Chinchilla's law and isoFLOP parabolas, None where they could not be fitted."""

  law: Law | None
  isoflop: IsoFLOP | None
  notes: list[str]


def is_perplexity(field: str) -> bool:
  return field.endswith("perplexity")


def line_field(rows: Sequence[Row], y: str) -> str:
  """The field that the paper's line is fitted to: the perplexity of the loss `y` if all points have it, else `y`."""
  perplexity = y.removesuffix("loss") + "perplexity"
  return perplexity if y.endswith("loss") and rows and all(perplexity in r for r in rows) else y


def to_points(rows: Sequence[Row], *x: str, y: str = "loss") -> Points:
  """Points over the fields `x`. Their level, what the experimenter chose, is the level of the run and the step."""
  at = np.array([[r[name] for name in x] for r in rows]).reshape(len(rows), len(x))
  return scaling.points(at, [r[y] for r in rows], [(r["level"], r["step"]) for r in rows], [r["seed"] for r in rows])


def of_series(rows: Sequence[Row], axis: dict[str, Any], series: str) -> list[Row]:
  """Points of the axis's runs of a series."""
  names = set(axis["runs"].get(series, ()))
  return [r for r in rows if r["run"] in names and axis["y"] in r]


def after_warmup(rows: Sequence[Row]) -> list[Row]:
  """Points of a curve, without its beginning."""
  return [r for r in rows if r["items"] >= WARMUPS * r["warmup_items"]]


def on_axis(rows: Sequence[Row], axis: dict[str, Any], series: str) -> list[Row]:
  """Points of a series on an axis: the last one of each run; of a curve over items, all after the warm-up."""
  mine = of_series(rows, axis, series)
  return after_warmup(mine) if axis["curve"] and axis["x"] == "items" else [r for r in mine if r["end"]]


def analyse_axis(rows: Sequence[Row], axis: dict[str, Any]) -> AxisResult:
  """Fits every series of an axis and compares each with the first."""
  fits, notes = {}, []
  found = {r["run"] for r in rows}
  missing = sum(name not in found for names in axis["runs"].values() for name in names)
  by_series = {series: on_axis(rows, axis, series) for series in axis["runs"]}
  line_y = line_field([r for mine in by_series.values() for r in mine], axis["y"])
  for series, mine in by_series.items():
    try:
      line = scaling.line(to_points(mine, axis["x"], y=line_y))
      p = to_points(mine, axis["x"], y=axis["y"])
    except ValueError as e:
      notes.append(f"{series}: {e}")
      continue
    try:
      law = scaling.law(p)
    except ValueError as e:
      law = None
      notes.append(f"{series}: {e}")
    fits[series] = Fit(p, line, line_y, law)
  first = next(iter(axis["runs"]), None)
  pairs = {s: compare(fits[first], f) for s, f in fits.items() if first in fits and s != first}
  return AxisResult(axis, fits, pairs, missing, notes)


def compare(a: Fit, b: Fit) -> Pair:
  """Compares b with a."""
  low = max(v.points.x[:, 0].min() for v in (a, b))
  high = min(v.points.x[:, 0].max() for v in (a, b))
  both = a.law is not None and b.law is not None
  fa, fb = (a.law, b.law) if both else (a.line, b.line)
  exponent = scaling.interval(b.law.exponent[:, 0] / np.maximum(a.law.exponent[:, 0], 1e-9) - 1) if both else None
  try:
    gap = scaling.gap(a.points, b.points, high)
  except ValueError:  # the ranges may not overlap, for example FLOPs of two models of very different cost
    gap = None
  cross = scaling.crossing(fa, fb, low, high) if low < high else None
  return Pair(scaling.faster(a.line, b.line), exponent, cross, high, gap, "laws" if both else "lines")


class Paired(NamedTuple):
  """Two series at one x, over the seeds that both have there: means, and the difference with its Student interval."""

  x: float
  seeds: int
  first: float
  second: float
  difference: float
  half: float
  lower: int  # seeds where the second series is lower


def paired(rows: Sequence[Row], axis: dict[str, Any], first: str, second: str) -> list[Paired]:
  """Differences between runs of the same level, step and seed, wherever two seeds or more have both."""

  def by_run(series):
    return {(r["level"], r["step"], r["seed"]): r for r in on_axis(rows, axis, series)}

  a, b = by_run(first), by_run(second)
  both: dict[tuple, list[tuple[Row, Row]]] = {}
  for key in a.keys() & b.keys():
    both.setdefault(key[:2], []).append((a[key], b[key]))
  out = []
  for pairs in both.values():
    if len(pairs) > 1:
      ours, theirs = np.array([[r[axis["y"]] for r in pair] for pair in pairs]).T
      mean, half = scaling.student(theirs - ours)
      x = float(np.mean([r[axis["x"]] for pair in pairs for r in pair]))  # seeds may differ by a short row of data
      out.append(
        Paired(x, len(pairs), float(ours.mean()), float(theirs.mean()), mean, half, int(np.sum(theirs < ours)))
      )
  return sorted(out)


def equal_cost(rows: Sequence[Row], axis: dict[str, Any], cost: str) -> dict[str, list[tuple[float, Interval]]]:
  """y of each series minus that of the first one at equal costs: the largest that both reach, its half and quarter.

  Where the axis has several sizes, the y of a series at a cost is that of its best size.
  """
  names = list(axis["runs"])
  curves = {s: frontier(of_series(rows, axis, s), cost, axis["y"]) for s in names}
  out = {}
  for series in names[1:]:
    a, b = curves[names[0]], curves[series]
    if a is None or b is None:
      continue
    reach = min(a.x.max(), b.x.max())
    found = []
    for part in (0.25, 0.5, 1.0):
      try:
        found.append((part * reach, scaling.gap(a, b, part * reach)))
      except ValueError:  # one of the two was not measured at this cost
        continue
    out[series] = found
  return out


def frontier(rows: Sequence[Row], cost: str, y: str = "loss") -> Points | None:
  """The least y over the runs of a seed, at each cost of a grid; None without rows."""
  curves: dict[tuple[Any, str], list[tuple[float, float]]] = {}
  for r in after_warmup(rows):
    if not r[cost]:  # the paper's count, of models that it does not know
      return None
    curves.setdefault((r["seed"], r["run"]), []).append((math.log(r[cost]), math.log(r[y])))
  if not curves:
    return None
  ends = [x for curve in curves.values() for x, _ in curve]
  grid = np.linspace(min(ends), max(ends), 200)
  best: dict[Any, np.ndarray] = {}
  for (seed, _), curve in curves.items():
    ln_x, ln_y = np.array(sorted(curve)).T
    at = np.interp(grid, ln_x, ln_y, left=np.inf, right=np.inf)
    best[seed] = np.minimum(best.get(seed, np.inf), at)
  out = [(math.exp(x), math.exp(v), seed) for seed, low in best.items() for x, v in zip(grid, low) if math.isfinite(v)]
  xs, ys, seeds = zip(*out)
  return scaling.points(xs, ys, seed=seeds)


def surface(rows: Sequence[Row], axis: dict[str, Any], series: str) -> Surface:
  """loss(N, D) from all evaluations of the runs of an axis of sizes."""
  mine = after_warmup(of_series(rows, axis, series))
  sizes = len({r["params_non_embedding"] for r in mine})
  if sizes < 3:
    return Surface(None, None, [f"{series}: a law of parameters and data needs 3 or more sizes, found {sizes}"])
  notes, law, iso = [], None, None
  try:
    law = scaling.law(to_points(mine, "params_non_embedding", "items", y=axis["y"]))
  except ValueError as e:
    notes.append(f"{series}: {e}")
  try:
    iso = scaling.isoflop(isoflop_points(mine, axis["y"]))
  except ValueError as e:
    notes.append(f"{series}: {e}")
  return Surface(law, iso, notes)


def isoflop_points(rows: Sequence[Row], y: str = "loss") -> Points:
  """y at four budgets of FLOPs that at least three sizes reach, interpolated between evaluations in log space."""
  curves: dict[tuple[str, Any, float], list[Row]] = {}
  for r in rows:
    curves.setdefault((r["level"], r["seed"], r["params_non_embedding"]), []).append(r)
  if not curves:
    raise ValueError("isoFLOP parabolas need runs of 3 or more sizes, found none")
  spans = {k: (min(r["flops"] for r in c), max(r["flops"] for r in c)) for k, c in curves.items()}
  budgets = np.geomspace(*(f(v for s in spans.values() for v in s) for f in (min, max)), 40)

  def reach(c):
    return len({n for (_, _, n), (low, high) in spans.items() if low <= c <= high})

  good = [c for c in budgets if reach(c) >= 3]
  if len(good) < 4:
    raise ValueError(f"isoFLOP parabolas need 4 or more budgets that 3 or more sizes reach, found {len(good)}")
  out = []
  for c in (good[round(i * (len(good) - 1) / 3)] for i in range(4)):
    for (level, seed, n), curve in curves.items():
      curve = sorted(curve, key=lambda r: r["flops"])
      if curve[0]["flops"] <= c <= curve[-1]["flops"]:
        ln_y = np.interp(math.log(c), [math.log(r["flops"]) for r in curve], [math.log(r[y]) for r in curve])
        out.append(((c, n), math.exp(ln_y), level, seed))
  xs, ys, levels, seeds = zip(*out)
  return scaling.points(np.array(xs), ys, levels, seeds)


def at_the_end(rows: Sequence[Row], axis: dict[str, Any], series: str, field: str) -> float | None:
  """Mean of a field over the seeds of the largest x; None where a point lacks it."""
  mine = on_axis(rows, axis, series)
  reach = max((r[axis["x"]] for r in mine), default=None)
  last = [r.get(field) for r in mine if r[axis["x"]] == reach]
  return float(np.mean(last)) if last and None not in last else None
