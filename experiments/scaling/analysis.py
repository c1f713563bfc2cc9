"""From points to fits and comparisons: everything that the report says in numbers.

The first series is the one that others are compared with (a and b of `ebt_jax/scaling.py`).
"""

from collections.abc import Sequence
import dataclasses
import math
from typing import Any

import numpy as np

from ebt_jax import scaling
from ebt_jax.scaling import Crossing, Interval, IsoFLOP, Law, Line, Points

Row = dict[str, Any]
COSTS = {
  "tokens": "training tokens",
  "flops": "FLOPs counted here",
  "flops_paper": "FLOPs as the paper counts",
  "device_seconds": "device seconds",
}
WARMUPS = 2  # points of a curve begin after so many warm-ups


@dataclasses.dataclass(frozen=True)
class Fit:
  """One series along one axis: points of loss, the paper's line of perplexity, and the law where it could be fitted."""

  points: Points
  line: Line
  law: Law | None

  def loss(self, x) -> np.ndarray:
    """[1 + DRAWS, len(x)] in nats, of the law or else the line."""
    return self.law(x) if self.law else np.log(np.maximum(self.line(x), 1 + 1e-9))


@dataclasses.dataclass(frozen=True)
class Pair:
  """A series against the first one along one axis.

  Attributes:
    rate: how much faster it scales, as the paper counts.
    exponent: ratio of the exponents of the two laws, less 1; None where a law is missing.
    crossing: within the range that both were measured in; None where they share none.
    reach: the largest x of both.
    gap: loss less the first one's at `reach`; None where they share no range.
    gap_law: what `crossing` is of, "laws" or "lines".
  """

  rate: Interval
  exponent: Interval | None
  crossing: Crossing | None
  reach: float
  gap: Interval | None
  gap_law: str


@dataclasses.dataclass(frozen=True)
class AxisResult:
  """All that one axis says; `missing` counts runs that have no points, `notes` say what could not be fitted."""

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


def variant(row: Row) -> str:
  """What a run is, without its series and seed."""
  return row["run"].removeprefix(row["series"] + ",").rpartition(",seed=")[0]


def to_points(rows: Sequence[Row], *x: str, y: str = "loss") -> Points:
  """Points over the fields `x`, with what was chosen (variant and step) as their level."""
  at = np.array([[r[name] for name in x] for r in rows]).reshape(len(rows), len(x))
  return scaling.points(at, [r[y] for r in rows], [(variant(r), r["step"]) for r in rows], [r["seed"] for r in rows])


def on_axis(rows: Sequence[Row], axis: dict[str, Any], series: str) -> list[Row]:
  """Points of a series on an axis: the ends of its runs; of a curve over tokens, what follows the warm-up."""
  names = set(axis["runs"].get(series, ()))
  mine = [r for r in rows if r["run"] in names]
  if axis["way"] and axis["x"] == "tokens":
    return [r for r in mine if r["tokens"] >= WARMUPS * r["warmup_tokens"]]
  return [r for r in mine if r["end"]]


def analyse_axis(rows: Sequence[Row], axis: dict[str, Any]) -> AxisResult:
  """Fits every series of an axis and compares each with the first."""
  fits, notes = {}, []
  found = {r["run"] for r in rows}
  missing = sum(name not in found for names in axis["runs"].values() for name in names)
  for series in axis["runs"]:
    mine = on_axis(rows, axis, series)
    try:
      line = scaling.line(to_points(mine, axis["x"], y="perplexity"))
    except ValueError as e:
      notes.append(f"{series}: {e}")
      continue
    p = to_points(mine, axis["x"])
    try:
      law = scaling.law(p)
    except ValueError as e:
      law = None
      notes.append(f"{series}: {e}")
    fits[series] = Fit(p, line, law)
  first = next(iter(axis["runs"]), None)
  pairs = {s: compare(fits[first], f) for s, f in fits.items() if first in fits and s != first}
  return AxisResult(axis, fits, pairs, missing, notes)


def compare(a: Fit, b: Fit) -> Pair:
  """b against a."""
  low = max(v.points.x[:, 0].min() for v in (a, b))
  high = min(v.points.x[:, 0].max() for v in (a, b))
  both = a.law is not None and b.law is not None
  fa, fb = (a.law, b.law) if both else (a.line, b.line)
  exponent = scaling.interval(b.law.exponent[:, 0] / np.maximum(a.law.exponent[:, 0], 1e-9) - 1) if both else None
  try:
    gap = scaling.gap(a.points, b.points, high)
  except ValueError:  # FLOPs of one may begin where those of the other end
    gap = None
  cross = scaling.crossing(fa, fb, low, high) if low < high else None
  return Pair(scaling.faster(a.line, b.line), exponent, cross, high, gap, "laws" if both else "lines")


def equal_cost(rows: Sequence[Row], axis: dict[str, Any], cost: str) -> dict[str, list[tuple[float, Interval]]]:
  """Loss of each series less the first one's at equal costs: what both reach, a half and a quarter of it.

  Where the axis has several sizes, a series has at each cost the loss of its best size there.
  """
  names = list(axis["runs"])
  curves = {s: frontier([r for r in rows if r["run"] in set(axis["runs"][s])], cost) for s in names}
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
      except ValueError:  # a part of the range that one of them does not have
        continue
    out[series] = found
  return out


def frontier(rows: Sequence[Row], cost: str) -> Points | None:
  """The least loss over runs of a seed at each cost of a grid; None without rows."""
  curves: dict[tuple[Any, str], list[tuple[float, float]]] = {}
  for r in rows:
    if r["tokens"] >= WARMUPS * r["warmup_tokens"]:
      curves.setdefault((r["seed"], r["run"]), []).append((math.log(r[cost]), math.log(r["loss"])))
  if not curves:
    return None
  ends = [x for curve in curves.values() for x, _ in curve]
  grid = np.linspace(min(ends), max(ends), 200)
  best: dict[Any, np.ndarray] = {}
  for (seed, _), curve in curves.items():
    x, y = np.array(sorted(curve)).T
    at = np.interp(grid, x, y, left=np.inf, right=np.inf)
    best[seed] = np.minimum(best.get(seed, np.inf), at)
  out = [(math.exp(x), math.exp(v), seed) for seed, y in best.items() for x, v in zip(grid, y) if math.isfinite(v)]
  x, y, seed = zip(*out)
  return scaling.points(x, y, seed=seed)


def surface(rows: Sequence[Row], axis: dict[str, Any], series: str) -> Surface:
  """loss(N, D) from all evaluations of the runs of an axis of sizes."""
  names = set(axis["runs"].get(series, ()))
  mine = [r for r in rows if r["run"] in names and r["tokens"] >= WARMUPS * r["warmup_tokens"]]
  sizes = len({r["params_non_embedding"] for r in mine})
  if sizes < 3:
    return Surface(None, None, [f"{series}: a law of parameters and data needs 3 or more sizes, found {sizes}"])
  notes, law, iso = [], None, None
  try:
    law = scaling.law(to_points(mine, "params_non_embedding", "tokens"))
  except ValueError as e:
    notes.append(f"{series}: {e}")
  try:
    iso = scaling.isoflop(isoflop_points(mine))
  except ValueError as e:
    notes.append(f"{series}: {e}")
  return Surface(law, iso, notes)


def isoflop_points(rows: Sequence[Row]) -> Points:
  """Losses at four budgets that at least three sizes reach, straight between neighbouring evaluations in log space."""
  curves: dict[tuple[str, Any, float], list[Row]] = {}
  for r in rows:
    curves.setdefault((variant(r), r["seed"], r["params_non_embedding"]), []).append(r)
  if not curves:
    raise ValueError("isoFLOP parabolas need runs of 3 or more sizes, found none")
  spans = {k: (min(r["flops"] for r in c), max(r["flops"] for r in c)) for k, c in curves.items()}
  budgets = np.geomspace(*(f(v for s in spans.values() for v in s) for f in (min, max)), 40)

  def reach(c):
    return len({n for (_, _, n), (low, high) in spans.items() if low <= c <= high})

  good = [c for c in budgets if reach(c) >= 3]
  if len(good) < 4:
    raise ValueError("isoFLOP parabolas need budgets that 3 or more sizes reach, found hardly any")
  out = []
  for c in (good[round(i * (len(good) - 1) / 3)] for i in range(4)):
    for (name, seed, n), curve in curves.items():
      curve = sorted(curve, key=lambda r: r["flops"])
      if curve[0]["flops"] <= c <= curve[-1]["flops"]:
        y = np.interp(math.log(c), [math.log(r["flops"]) for r in curve], [math.log(r["loss"]) for r in curve])
        out.append(((c, n), math.exp(y), name, seed))
  x, y, level, seed = zip(*out)
  return scaling.points(np.array(x), y, level, seed)
