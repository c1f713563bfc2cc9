"""Figures of the report as SVG text. Equal points give equal text."""

import itertools
import math

import matplotlib
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter
import numpy as np

from ebt_jax.metrics import si
from experiments.runner import page
from experiments.scaling.analysis import AxisResult, Fit

# colours that colour-blind readers can tell apart; shapes and dashes for print
STYLES = (("#0072B2", "o", "-"), ("#D55E00", "s", "--"), ("#009E73", "^", "-."), ("#CC79A7", "D", ":"))
_LOOK = {"svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["Helvetica", "Arial", "DejaVu Sans"],
         "font.size": 11, "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False,
         "text.parse_math": False}  # fmt: skip


def panel(result: AxisResult, label: str, y_label: str) -> str:
  """y over the axis, both logarithmic, with fits and bands; below, the residuals of the fits."""
  with matplotlib.rc_context(_LOOK | {"svg.hashsalt": result.axis["name"]}):
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    top, low = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    for (name, fit), style in zip(result.fits.items(), itertools.cycle(STYLES)):
      _series(top, low, name, fit, style)
    for axes in (top, low):
      axes.set_xscale("log")
    top.set_yscale("log")
    _plain(top, "y")
    _plain(low, "x")
    top.tick_params(labelbottom=False, which="both")
    top.set_ylabel(y_label)
    low.set_ylabel("residual, %")
    low.set_xlabel(label)
    low.axhline(0, color="0.6", linewidth=0.8)
    top.legend()
    return page.svg(figure, f"{result.axis['title']}: {y_label} against {label}")


def surface_panel(isoflops: dict, label: str) -> str:
  """The best size at each compute budget, for each series."""
  with matplotlib.rc_context(_LOOK | {"svg.hashsalt": "isoflop"}):
    figure = Figure(figsize=(5.2, 3.4), layout="constrained")
    axes = figure.subplots()
    for (name, iso), (color, marker, dash) in zip(isoflops.items(), itertools.cycle(STYLES)):
      if iso is None:
        continue
      axes.plot(iso.compute[iso.inside], iso.size[0, iso.inside], marker, color=color, label=name)
      x = np.geomspace(iso.compute.min(), iso.compute.max(), 50)
      axes.plot(x, iso.growth(x)[0], dash, color=color)
    axes.set(xscale="log", yscale="log", xlabel="training FLOPs", ylabel=label)
    _plain(axes, "x")
    _plain(axes, "y")
    axes.legend()
    return page.svg(figure, "Best size at each compute budget")


def _series(top, low, name: str, fit: Fit, style: tuple[str, str, str]) -> None:
  color, marker, dash = style
  x, y = fit.points.x[:, 0], fit.points.y
  grid = np.geomspace(x.min(), x.max(), 100)
  rows = fit(grid)
  top.fill_between(grid, *np.percentile(rows[1:], [2.5, 97.5], axis=0), color=color, alpha=0.18, linewidth=0)
  top.plot(grid, rows[0], dash, color=color, linewidth=1.6)
  top.plot(x, y, marker, color=color, markersize=4, alpha=0.7, label=name)
  low.plot(x, 100 * (y / fit(x)[0] - 1), marker, color=color, markersize=3.5, alpha=0.7)


def _plain(axes, axis: str) -> None:
  """Few ticks, in plain numbers with k, M, G."""
  low, high = getattr(axes, f"get_{axis}lim")()
  decades = math.log10(high / low)
  subs = (1.0, 1.5, 2.0, 3.0, 5.0, 7.0) if decades < 0.9 else (1.0, 2.0, 5.0) if decades < 2 else (1.0,)
  if decades < 0.2:
    subs = tuple(1 + i / 10 for i in range(90))
  scale = getattr(axes, f"{axis}axis")
  scale.set_major_locator(LogLocator(subs=subs, numticks=50))
  scale.set_major_formatter(lambda value, _: si(value))
  scale.set_minor_formatter(NullFormatter())
