"""Known laws come back inside their intervals, and the paper's printed rates from the points of its figures."""

import json
import math
import pathlib

import numpy as np
import pytest
from scipy import optimize

from ebt_jax import scaling
from ebt_jax.scaling import Interval, Points, crossing, faster, gap, interval, isoflop, law, line, points, student

PAPER = pathlib.Path(__file__).parent.parent / "experiments/scaling/paper_points.json"
PANELS = {p["figure"]: p for p in json.loads(PAPER.read_text(encoding="utf-8"))["panels"]}


def noisy(f, x, seeds=3, noise=0.003, rng=0):
  """Points of f with noise of each point, and a smaller one of each seed."""
  rng = np.random.default_rng(rng)
  x = [np.atleast_1d(v) for v in x]
  rows = [
    (v, f(*v) * math.exp(u + noise * rng.normal()), s)
    for s, u in enumerate(noise / 2 * rng.normal(size=seeds))
    for v in x
  ]
  x, y, seed = zip(*rows)
  return points(np.array(x), y, seed=seed)


def holds(i: Interval, truth: float, widest: float) -> bool:
  """The interval holds the truth, its own value, and says something."""
  return i.low <= truth <= i.high and i.low <= i.value <= i.high and i.high - i.low < widest


def share_held(n):
  """Of 100 intervals from n points of one seed, how many hold the slope."""
  found = [interval(line(noisy(lambda x: 400 * x**-0.2, TOKENS[:n], seeds=1, rng=rng)).slope) for rng in range(100)]
  return np.mean([not i.excludes(-0.2) for i in found])


TOKENS = np.geomspace(1e5, 1e7, 8)


@pytest.mark.parametrize("rng", range(4))
def test_line_and_rate(rng):
  a = line(noisy(lambda x: 400 * x**-0.2, TOKENS, rng=rng))
  b = line(noisy(lambda x: 800 * x**-0.25, TOKENS, rng=rng + 100))
  assert holds(interval(a.slope), -0.2, 0.02) and holds(interval(b.slope), -0.25, 0.02)
  assert holds(faster(a, b), 0.25, 0.1)
  assert math.exp(a.intercept[0]) == pytest.approx(400, rel=0.1)
  assert a([1e6]).shape == (1 + scaling.DRAWS, 1) and a([1e6])[0, 0] == pytest.approx(400 * 1e6**-0.2, rel=0.01)


@pytest.mark.parametrize("n", [4, 8])
def test_intervals_hold_the_truth_as_often_as_they_say(n):
  assert 0.88 <= share_held(n)


@pytest.mark.parametrize("rng", range(3))
def test_law_with_an_irreducible_loss(rng):
  found = law(noisy(lambda x: 0.8 + 60 * x**-0.4, TOKENS, rng=rng))
  assert holds(interval(found.floor), 0.8, 0.15) and found.has_floor
  assert holds(interval(found.exponent[:, 0]), 0.4, 0.25)
  assert holds(interval(found([3e6])[:, 0]), 0.8 + 60 * 3e6**-0.4, 0.02)


def test_a_law_without_an_irreducible_loss_is_seen_to_have_none():
  found = law(noisy(lambda x: 20 * x**-0.2, TOKENS))
  assert interval(found.exponent[:, 0]).low <= 0.2 <= interval(found.exponent[:, 0]).high and not found.has_floor


def test_one_wild_point_does_not_bend_the_law():
  p = noisy(lambda x: 0.8 + 60 * x**-0.4, TOKENS)
  y = p.y.copy()
  y[7] *= 2
  clean, wild = law(p), law(Points(p.x, y, p.level, p.seed))
  assert wild.exponent[0] == pytest.approx(clean.exponent[0], abs=0.05)
  assert abs(line(Points(p.x, y, p.level, p.seed)).slope[0] - line(p).slope[0]) > 0.01  # squares do follow it


def test_a_law_is_where_the_loss_of_huber_is_least():
  """scipy, from there, finds nothing lower; errors of the wild point count linearly."""
  p = noisy(lambda x: 0.8 + 60 * x**-0.4, TOKENS)
  p.y[7] *= 2
  found = law(p)

  def residual(theta):
    return np.log(np.exp(theta[0]) + np.exp(theta[1] - theta[2] * (np.log(p.x[:, 0]) - found.center[0]))) - np.log(p.y)

  r = np.abs(residual(found.theta[0]))
  assert r.max() > 10 * scaling.HUBER and (r < scaling.HUBER).sum() > 20
  cost = np.where(r < scaling.HUBER, r**2 / 2, scaling.HUBER * (r - scaling.HUBER / 2)).sum()
  best = optimize.least_squares(residual, found.theta[0], loss="huber", f_scale=scaling.HUBER, xtol=1e-12, ftol=1e-12)
  assert best.cost == pytest.approx(cost, rel=1e-6)


def test_weights_of_points():
  """Ones for the fit. A draw has one weight for all points of a seed, and one for all of a level; a single seed, or a
  single level, has none. Weights of n values have a variance of n / (n - 2), so that that of a mean is unbiased."""
  w = scaling.weights(points([1.0] * 3, [2.0] * 3, level=["a"] * 3, seed=[0, 0, 1]))
  assert w.shape == (1 + scaling.DRAWS, 3) and (w[0] == 1).all()
  np.testing.assert_array_equal(w[:, 0], w[:, 1])
  assert (w[1:, 0] != w[1:, 2]).mean() > 0.9  # the least weight comes often
  assert (scaling.weights(points([1.0] * 3, [2.0] * 3)) == 1).all()
  n = 10
  w = scaling.weights(points(np.arange(1, 1 + n), np.ones(n)))
  assert w[1:].mean() == pytest.approx(1, abs=4.5 * (n / (n - 2) / w[1:].size) ** 0.5)
  assert w[1:].var() == pytest.approx(n / (n - 2), rel=0.1)
  of_seed = scaling.weights(points(np.ones(n), np.ones(n), seed=range(n)))
  both = scaling.weights(points(np.arange(1, 1 + n), np.ones(n), seed=range(n)))
  np.testing.assert_allclose(both, w * of_seed)


def test_chinchilla():
  x = [(n, d) for n in np.geomspace(1e5, 1e7, 5) for d in np.geomspace(1e6, 1e8, 5)]
  found = law(noisy(lambda n, d: 1.2 + 90 * n**-0.45 + 120 * d**-0.35, x))
  assert holds(interval(found.floor), 1.2, 0.3)
  assert holds(interval(found.exponent[:, 0]), 0.45, 0.3) and holds(interval(found.exponent[:, 1]), 0.35, 0.3)


def test_isoflop():
  """Loss N^-0.4 + (C / 6N)^-0.4 is least at N = sqrt(C / 6)."""
  budgets, ratios = np.geomspace(1e14, 1e17, 4), np.geomspace(0.3, 3, 7)
  x = [(c, r * math.sqrt(c / 6)) for c in budgets for r in ratios]
  found = isoflop(noisy(lambda c, n: 1 + 50 * (n**-0.4 + (c / 6 / n) ** -0.4), x, noise=0.0003))
  assert found.inside.all() and holds(interval(found.growth.slope), 0.5, 0.1)
  assert np.allclose(found.size[0], np.sqrt(budgets / 6), rtol=0.1)
  beyond = [(c, r * math.sqrt(c / 6)) for c in budgets for r in np.geomspace(3, 10, 5)]
  with pytest.raises(ValueError, match="0 of 4 budgets have their lowest loss within the range of sizes"):
    isoflop(noisy(lambda c, n: 1 + 50 * (n**-0.4 + (c / 6 / n) ** -0.4), beyond, noise=0))


def test_crossing():
  slow, fast = noisy(lambda x: 400 * x**-0.2, TOKENS), noisy(lambda x: 400 * 1e6**0.05 * x**-0.25, TOKENS, rng=1)
  found = crossing(line(slow), line(fast), 1e5, 1e7)
  assert holds(found.at, 1e6, 1e6) and found.lower == "b" and found.share == 1
  swapped = crossing(line(fast), line(slow), 1e5, 1e7)
  assert swapped.at == found.at and swapped.lower == "a"
  early = crossing(line(slow), line(fast), 1e5, 3e5)
  assert early.at is None and early.lower == "a" and early.share == 0


def test_gap_at_an_equal_cost():
  a, b = noisy(lambda x: 400 * x**-0.2, TOKENS), noisy(lambda x: 360 * x**-0.2, TOKENS, rng=1)
  found = gap(a, b, 2e6)
  assert holds(found, -40 * 2e6**-0.2, 1.0) and found.excludes(0)
  assert math.isinf(gap(points(a.x[:8], a.y[:8]), points(b.x[:8], b.y[:8]), 2e6).high)  # one seed
  with pytest.raises(ValueError, match="no seed of both models has points on both sides of 2e"):
    gap(a, b, 2e7)


def test_student_interval():
  """Mean 2, standard error 1 / sqrt(3), t of two degrees of freedom 4.3027."""
  assert student([1.0, 2.0, 3.0]) == pytest.approx((2.0, 4.302652730 / math.sqrt(3)))
  assert student([1.0, 2.0, 3.0], 0.9)[1] == pytest.approx(2.919985580 / math.sqrt(3))
  assert student([1.0]) == (1.0, math.inf)


def test_more_seeds_and_less_noise_make_narrower_intervals():
  width = lambda **how: np.ptp(interval(line(noisy(lambda x: 400 * x**-0.2, TOKENS, **how)).slope)[1:])
  assert width(noise=0.001) < width() / 2 and width(seeds=12) < width()


def test_comparisons_are_paired():
  """What two models share of a level (a lucky size, a hard budget) is no error of their ratio."""
  bumps = np.exp(0.02 * np.random.default_rng(0).normal(size=len(TOKENS)))
  a, b = (line(points(TOKENS, c * bumps * TOKENS**-e)) for c, e in ((400, 0.2), (800, 0.25)))
  assert np.ptp(faster(a, b)[1:]) < np.ptp(interval(b.slope / a.slope[0])[1:]) / 2


@pytest.mark.parametrize(
  "arguments, message",
  [
    (([1, 2], [1.0]), "expected equal lengths, found x 2, y 1"),
    (([1, 2], [1.0, math.nan]), r"y must be finite and above 0, found \[nan\]"),
    (([0, 2], [1.0, 1.0]), r"x must be finite and above 0, found \[0.0\]"),
  ],
)
def test_bad_points_are_named(arguments, message):
  with pytest.raises(ValueError, match=message):
    points(*arguments)


def test_too_few_levels():
  few = points([1, 2, 2], [3.0, 2.0, 2.1], seed=[0, 0, 1])
  with pytest.raises(ValueError, match="a line needs points at 3 or more levels, found 2"):
    line(few)
  with pytest.raises(ValueError, match="irreducible loss needs points at 5 or more levels, found 2"):
    law(few)


@pytest.mark.parametrize("figure", PANELS)
def test_rates_that_the_paper_prints(figure):
  """Read off its figures: perplexities to half a percent. Losses of video are read to one part in 150 and fall by a
  sixth in all."""
  panel = PANELS[figure]
  a, b = (points(panel["x"], panel[model]) for model in ("transformer", "ebt"))
  found = faster(line(a), line(b))
  assert 100 * found.value == pytest.approx(panel["printed"], abs=8 if panel.get("item") == "frame" else 0.6)
  factor = panel.get("x_ebt_factor", 1)  # of compute: the same for all points, so that no slope changes
  assert faster(line(a), line(points(factor * b.x, b.y, level=b.level))).value == pytest.approx(found.value)
