"""Scaling laws with intervals: lines in log space, laws with an irreducible loss, isoFLOP parabolas, crossings.

Every fit is made once with equal weights and `DRAWS` times with random weights of the points. Arrays of a fit have
`1 + DRAWS` rows: row 0 is the fit itself, the others are draws. `interval` reads a value and its bounds off them.

The random weights are those of the Bayesian bootstrap for two crossed factors (Owen and Eckles 2012, "Bootstrapping
data arrays of arbitrary order"). The weight of a point is that of its level (what the experimenter chose: a size, a
budget) times that of its seed. All points of one seed, and all points of one level, therefore move together, and the
interval covers both a lucky seed and a law that bends. Levels and seeds of equal name have equal weights in all models,
so that comparisons are paired. With few points, draws are spread as Student's distribution asks.

In simulations, 95% intervals contain the truth in 90 to 100% of cases, but in about 80% when there are three seeds and
seed noise dominates.
"""

from collections.abc import Callable, Hashable, Sequence
import dataclasses
import math
from typing import NamedTuple, SupportsFloat
import zlib

import numpy as np
from scipy import stats

DRAWS = 500
CONFIDENCE = 0.95
HUBER = 0.01  # of ln loss: errors below 1% are squared, larger ones are linear (Chinchilla: 0.001)
_FLOOR = 12.0  # an irreducible loss below e^-12 of the lowest loss counts as none
STEEPEST = 5.0  # largest exponent that is searched


class Interval(NamedTuple):
  """A value and its bounds at a confidence of `CONFIDENCE`."""

  value: float
  low: float
  high: float

  def excludes(self, x: float) -> bool:
    return not self.low <= x <= self.high


@dataclasses.dataclass(frozen=True)
class Points:
  """Measured points.

  Attributes:
    x: [n, axes], positive: training items, parameters, FLOPs, ...
    y: [n], positive: a loss or a perplexity.
    level: [n], what the experimenter chose. Levels are equal in the models that are compared; their x may differ.
    seed: [n], seed of the run.
  """

  x: np.ndarray
  y: np.ndarray
  level: tuple[Hashable, ...]
  seed: tuple[Hashable, ...]


def points(x, y, level: Sequence | None = None, seed: Sequence | None = None) -> Points:
  """Points, checked.

  Args:
    x: [n] or [n, axes].
    y: [n].
    level: [n]; default: x.
    seed: [n]; default: one seed for all.

  Raises:
    ValueError: lengths differ, or a value is not a finite number above 0.
  """
  x, y = np.asarray(x, float), np.asarray(y, float)
  x = x[:, None] if x.ndim == 1 else x
  level = [tuple(row) for row in x.tolist()] if level is None else level
  seed = [0] * len(y) if seed is None else seed
  if not len(x) == len(y) == len(level) == len(seed):
    raise ValueError(
      f"points: expected equal lengths, found x {len(x)}, y {len(y)}, level {len(level)}, seed {len(seed)}"
    )
  for name, a in (("x", x), ("y", y)):
    if not (np.isfinite(a).all() and (a > 0).all()):
      raise ValueError(
        f"points: {name} must be finite and above 0, found {a[~(np.isfinite(a) & (a > 0))][:3].tolist()}"
      )
  return Points(x, y, tuple(level), tuple(seed))


def weights(p: Points) -> np.ndarray:
  """Weights of the points [1 + DRAWS, n], ones in row 0. A factor with a single value adds no error."""
  out = np.ones((1 + DRAWS, len(p.y)))
  for factor, values in (("level", p.level), ("seed", p.seed)):
    distinct = sorted(set(values), key=repr)
    if len(distinct) > 1:
      drawn = {v: _drawn(f"{factor} {v!r}", len(distinct)) for v in distinct}
      out[1:] *= np.stack([drawn[v] for v in values], 1)
  return out


def _drawn(name: str, n: int) -> np.ndarray:
  """Weights [DRAWS] of one of n values. The shape of the gamma distribution makes the variance of a mean unbiased."""
  shape = max(n - 2, 0.1) / n
  return np.random.default_rng(zlib.crc32(name.encode())).gamma(shape, 1 / shape, DRAWS) + 1e-9


def _small_sample(p: Points, parameters: int) -> float:
  """Small-sample (Student) factor by which draws are spread around the fit."""
  n = len(set(zip(p.level, p.seed)))
  student = stats.t.ppf((1 + CONFIDENCE) / 2, n - parameters) / stats.norm.ppf((1 + CONFIDENCE) / 2)
  return math.sqrt(n / (n - parameters)) * student


def _spread(rows: np.ndarray, factor: float) -> np.ndarray:
  """Multiplies the distance of draws [1 + DRAWS, ...] from the fit, which is row 0."""
  return rows[:1] + factor * (rows - rows[:1])


def interval(rows: np.ndarray) -> Interval:
  """Value and bounds of [1 + DRAWS] values. Infinite values mean a bound beyond the measured range."""
  tail = 100 * (1 - CONFIDENCE) / 2
  low, high = np.percentile(rows[1:], [tail, 100 - tail], method="nearest")
  return Interval(float(rows[0]), float(low), float(high))


def student(values: Sequence[SupportsFloat] | np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float]:
  """Mean of independent values and the half width of its Student interval, which is infinite for one value."""
  n, mean = len(values), float(np.mean(values))
  if n < 2:
    return mean, math.inf
  return mean, float(stats.t.ppf((1 + confidence) / 2, n - 1) * np.std(values, ddof=1) / math.sqrt(n))


@dataclasses.dataclass(frozen=True)
class Line:
  """ln y = intercept + slope ln x; both [1 + DRAWS]."""

  slope: np.ndarray
  intercept: np.ndarray

  def __call__(self, x) -> np.ndarray:
    """y at x [m] -> [1 + DRAWS, m]."""
    return np.exp(self.intercept[:, None] + self.slope[:, None] * np.log(np.asarray(x, float)))


def line(p: Points) -> Line:
  """Ordinary least squares in log space. Raises ValueError for fewer than 3 levels."""
  _enough(p, 3, "a line")
  w, x, y = weights(p), np.log(p.x[:, 0]), np.log(p.y)

  def mean(a):
    return (w * a).sum(1, keepdims=True) / w.sum(1, keepdims=True)

  dx, dy = x - mean(x), y - mean(y)
  slope = (w * dx * dy).sum(1) / (w * dx * dx).sum(1)
  intercept = mean(y)[:, 0] - slope * mean(x)[:, 0]
  factor = _small_sample(p, 2)
  return Line(_spread(slope, factor), _spread(intercept, factor))


def faster(a: Line, b: Line) -> Interval:
  """How much faster b scales than a by the paper's measure: the ratio of their slopes, minus 1.

  The slopes are of ln perplexity (text) or ln loss (video) over ln axis. This reproduces every rate of the paper
  (arXiv 2507.02092, Figs. 4, 5, 9 and B.3). No irreducible loss is subtracted, so the rate is valid only in the range
  that was measured; it is not the exponent of a law.
  """
  return interval(np.abs(b.slope) / np.abs(a.slope) - 1)


@dataclasses.dataclass(frozen=True)
class Law:
  """loss = floor + sum over axes of scale x^-exponent.

  Attributes:
    floor: [1 + DRAWS], the irreducible loss.
    exponent: [1 + DRAWS, axes].
    least: the lowest loss that was measured.
    theta: [1 + DRAWS, 1 + 2 axes], parameters of `_descend` before draws are spread. Parameters that are spread one by
      one do not make a law that fits, so `__call__` spreads the loss instead.
    center: [axes], mean ln x.
    spread: factor by which draws are spread.
  """

  floor: np.ndarray
  exponent: np.ndarray
  least: float
  theta: np.ndarray
  center: np.ndarray
  spread: float

  def __call__(self, x) -> np.ndarray:
    """Loss at x [m] or [m, axes] -> [1 + DRAWS, m]."""
    x = np.asarray(x, float)
    z = np.log(x[:, None] if x.ndim == 1 else x) - self.center
    return np.exp(_spread(_residual(self.theta, z, 0.0)[0], self.spread))

  @property
  def has_floor(self) -> bool:
    """Whether the irreducible loss differs from none: its interval is above a hundredth of the lowest loss."""
    return interval(self.floor).low > 0.01 * self.least


def law(p: Points) -> Law:
  """Fits a law with an irreducible loss: L = E + A x^-a for one axis, Chinchilla's L = E + A N^-a + B D^-b for two.

  Minimises the Huber loss of ln y from many starting points (Hoffmann et al. 2022, arXiv 2203.15556, approach 3).

  Raises:
    ValueError: fewer levels than the number of parameters plus two.
  """
  axes = p.x.shape[1]
  _enough(p, 2 * axes + 3, "a law with an irreducible loss")
  center = np.log(p.x).mean(0)
  z, ln_y, w = np.log(p.x) - center, np.log(p.y), weights(p)
  top = ln_y.min()
  low, high = np.array([top - _FLOOR, *[-np.inf, 0.0] * axes]), np.array([top, *[np.inf, STEEPEST] * axes])
  starts = _starts(ln_y, axes)
  first, loss = _descend(z, ln_y, w[:1], starts[None], low, high)
  best = first[0, np.argmin(loss[0])]
  few = np.vstack([best, starts[:: len(starts) // 2]])
  theta, loss = _descend(z, ln_y, w, np.broadcast_to(few, (len(w), *few.shape)), low, high, tolerance=1e-6)
  theta = theta[np.arange(len(w)), np.argmin(loss, 1)]
  theta[0] = best
  factor = _small_sample(p, theta.shape[1])
  wide = np.clip(_spread(theta, factor), low, high)
  return Law(np.exp(wide[:, 0]), wide[:, 2::2], float(p.y.min()), theta, center, factor)


def _starts(ln_y: np.ndarray, axes: int) -> np.ndarray:
  """Starting points [starts, 1 + 2 axes]: ln floor, then ln scale and exponent of each axis, with x over its mean."""
  exponents = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6) if axes == 1 else (0.1, 0.3, 0.9)
  out = []
  for below in (0.02, 0.1, 0.3, 0.8, 3.0):
    floor = ln_y.min() - below
    scale = math.log((math.exp(ln_y.mean()) - math.exp(floor)) / axes)
    for chosen in np.stack(np.meshgrid(*[exponents] * axes), -1).reshape(-1, axes):
      out.append([floor, *[v for a in chosen for v in (scale, a)]])
  return np.array(out)


def _descend(z, ln_y, w, theta, low, high, tolerance: float = 1e-9) -> tuple[np.ndarray, np.ndarray]:
  """Levenberg-Marquardt on reweighted squares, for all draws and starting points at once.

  Args:
    z: [n, axes] centred ln x.
    ln_y: [n].
    w: [draws, n] weights.
    theta: [draws, starts, parameters], starting points.
    low: [parameters], lower bounds.
    high: [parameters], upper bounds.
    tolerance: a starting point is finished when a step lowers its loss by less than this fraction.

  Returns:
    theta [draws, starts, parameters] and its Huber loss [draws, starts].
  """
  shape = theta.shape[:2]
  theta = np.clip(theta.reshape(-1, theta.shape[2]), low, high)
  w = np.repeat(w / w.sum(1, keepdims=True), shape[1], 0)
  loss, damping = _huber(_residual(theta, z, ln_y)[0], w), np.full(len(theta), 1e-2)
  active = np.arange(len(theta))
  diagonal = np.arange(theta.shape[1])
  for _ in range(300):
    t, v = theta[active], w[active]
    r, jacobian = _residual(t, z, ln_y)
    v = v * np.minimum(1, HUBER / np.maximum(np.abs(r), 1e-300))
    weighted = (jacobian * v[..., None]).swapaxes(1, 2)
    hessian, gradient = weighted @ jacobian, weighted @ r[..., None]
    # a parameter at its bound stays there if the step would cross the bound
    held = ((t <= low) & (gradient[..., 0] > 0)) | ((t >= high) & (gradient[..., 0] < 0))
    free = ~held
    hessian = hessian * (free[:, :, None] & free[:, None])
    hessian[:, diagonal, diagonal] *= 1 + damping[active, None]
    hessian[:, diagonal, diagonal] += np.where(held, 1.0, 1e-14)
    new = np.clip(t - np.linalg.solve(hessian, gradient * free[..., None])[..., 0], low, high)
    new_loss = _huber(_residual(new, z, ln_y)[0], w[active])
    better = new_loss < loss[active]
    gain = (loss[active] - new_loss) / np.maximum(loss[active], 1e-300)
    theta[active] = np.where(better[:, None], new, t)
    loss[active] = np.where(better, new_loss, loss[active])
    damping[active] *= np.where(better, 0.3, 5.0)
    done = (better & (gain < tolerance)) | (damping[active] > 1e9)
    active = active[~done]
    if not len(active):
      break
  return theta.reshape(*shape, -1), loss.reshape(shape)


def _residual(theta, z, ln_y) -> tuple[np.ndarray, np.ndarray]:
  """ln of the law minus ln y [m, n], and its derivative with respect to theta [m, n, parameters]."""
  terms = theta[:, None, 1::2] - theta[:, None, 2::2] * z  # [m, n, axes]
  terms = np.concatenate([np.broadcast_to(theta[:, None, :1], (*terms.shape[:2], 1)), terms], -1)
  top = terms.max(-1, keepdims=True)
  e = np.exp(terms - top)
  total = e.sum(-1, keepdims=True)
  share = e / total
  jacobian = np.empty((*terms.shape[:2], theta.shape[1]))
  jacobian[..., 0], jacobian[..., 1::2], jacobian[..., 2::2] = share[..., 0], share[..., 1:], -share[..., 1:] * z
  return (top + np.log(total))[..., 0] - ln_y, jacobian


def _huber(r, w) -> np.ndarray:
  a = np.abs(r)
  return (w * np.where(a <= HUBER, a * a / 2, HUBER * (a - HUBER / 2))).sum(1)


@dataclasses.dataclass(frozen=True)
class IsoFLOP:
  """The best size at each compute budget, and how it grows.

  Attributes:
    compute: [budgets].
    size: [1 + DRAWS, budgets], minimum of the parabola of loss over ln size; NaN where it has none.
    loss: [1 + DRAWS, budgets], the loss there.
    growth: best size = exp(intercept) compute^slope, over the budgets whose minimum is `inside`.
    inside: [budgets], whether the minimum is within the range of sizes.
  """

  compute: np.ndarray
  size: np.ndarray
  loss: np.ndarray
  growth: Line
  inside: np.ndarray


def isoflop(p: Points) -> IsoFLOP:
  """Fits parabolas of loss over ln size at each budget; p.x is [n, (compute, size)].

  Raises:
    ValueError: a budget has fewer than 3 sizes, or fewer than 2 budgets have their minimum within the range of sizes.
  """
  compute = np.unique(p.x[:, 0])
  w = weights(p)
  size, loss, inside = np.empty((len(w), len(compute))), np.empty((len(w), len(compute))), []
  for i, c in enumerate(compute):
    at = p.x[:, 0] == c
    ln_n = np.log(p.x[at, 1])
    if len(set(ln_n)) < 3:
      raise ValueError(f"isoflop: expected 3 or more sizes at each budget, found {len(set(ln_n))} at {c:.3g}")
    center = ln_n.mean()
    basis = np.stack([np.ones_like(ln_n), ln_n - center, (ln_n - center) ** 2], 1)
    normal = np.einsum("ni,bn,nj->bij", basis, w[:, at], basis) + 1e-12 * np.eye(3)
    c0, c1, c2 = np.linalg.solve(normal, np.einsum("ni,bn->bi", basis, w[:, at] * p.y[at])[..., None])[..., 0].T
    with np.errstate(invalid="ignore", divide="ignore"):
      vertex = np.where(c2 > 0, -c1 / (2 * c2), np.nan)
      size[:, i], loss[:, i] = np.exp(np.clip(vertex + center, -50, 100)), c0 + c1 * vertex / 2
    inside.append(bool(ln_n.min() <= vertex[0] + center <= ln_n.max()))
  inside = np.array(inside)
  if inside.sum() < 2:
    raise ValueError(
      f"isoflop: {inside.sum()} of {len(compute)} budgets have their lowest loss within the range of sizes; "
      "expected 2 or more, train other sizes"
    )
  x, y = np.log(compute[inside]), np.log(size[:, inside])
  dx = x - x.mean()
  slope = np.nan_to_num((dx * y).sum(1) / (dx * dx).sum(), nan=np.inf)  # a draw without a minimum gives no bound
  return IsoFLOP(compute, size, loss, Line(slope, y.mean(1) - slope * x.mean()), inside)


@dataclasses.dataclass(frozen=True)
class Crossing:
  """Where b falls below a (or a below b).

  Attributes:
    at: x with bounds, which are 0 or infinite where draws do not cross in the range; None: no crossing in the range.
    lower: "a" or "b", whichever is lower at the end of the range.
    share: fraction of the draws that cross in the range.
  """

  at: Interval | None
  lower: str
  share: float


def crossing(a: Callable, b: Callable, low: float, high: float) -> Crossing:
  """The last crossing of two fits of one variable between x = low and x = high; a fit maps x [m] to [1 + DRAWS, m]."""
  x = np.geomspace(low, high, 400)
  gap = np.log(b(x)) - np.log(a(x))
  gap = gap if gap[0, -1] < 0 else -gap  # ln of the fit that ends lower over the other one
  change = (gap[:, :-1] >= 0) & (gap[:, 1:] < 0)
  i = change.shape[1] - 1 - np.argmax(change[:, ::-1], 1)
  rows = np.arange(len(gap))
  g0, g1 = gap[rows, i], gap[rows, i + 1]
  ln_x = np.log(x)
  crosses = change.any(1)
  part = np.where(crosses, g0 / np.where(crosses, g0 - g1, 1), 0)
  at = np.exp(ln_x[i] + (ln_x[i + 1] - ln_x[i]) * part)
  at = np.where(crosses & (gap[:, -1] < 0), at, np.where(gap[:, -1] < 0, 0.0, np.inf))
  found = bool(crosses[0])
  lower = "b" if (np.log(b(x[-1:])) < np.log(a(x[-1:])))[0, 0] else "a"
  return Crossing(interval(at) if found else None, lower, float(np.isin(at[1:], (0.0, np.inf), invert=True).mean()))


def gap(a: Points, b: Points, x: float) -> Interval:
  """Mean over seeds of y of b minus y of a at an equal x, interpolated between neighbouring points in log space.

  The bounds are Student's over the seeds that both have; they are infinite for one seed.

  Raises:
    ValueError: no seed of both reaches x.
  """
  found = []
  for seed in sorted(set(a.seed) & set(b.seed), key=repr):
    at = [_between(p, seed, x) for p in (a, b)]
    if None not in at:
      found.append(at[1] - at[0])
  if not found:
    raise ValueError(f"gap: no seed of both models has points on both sides of {x:.4g}")
  mean, half = student(found)
  return Interval(mean, mean - half, mean + half)


def _between(p: Points, seed: Hashable, x: float) -> float | None:
  """y of a seed at x; None where its points do not surround x."""
  mine = np.array([s == seed for s in p.seed])
  ln_x, ln_y = np.log(p.x[mine, 0]), np.log(p.y[mine])
  order = np.argsort(ln_x)
  if not len(ln_x) or not ln_x.min() - 1e-9 <= math.log(x) <= ln_x.max() + 1e-9:
    return None
  return float(np.exp(np.interp(math.log(x), ln_x[order], ln_y[order])))


def _enough(p: Points, needed: int, what: str) -> None:
  found = len(set(p.level))
  if found < needed:
    raise ValueError(f"{what} needs points at {needed} or more levels, found {found}")
