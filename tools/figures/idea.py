"""Draws the figure of the README: context, candidate and energy, and thinking steps on the energy landscape.

  python tools/figures/idea.py [OUT.svg]

The landscape is made up: the energy of a candidate of one number. The steps on it are computed by gradient descent.
"""

import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
import numpy as np

from ebt_jax import cli

BLUE, RED, GREY, PALE = "#1b6ca8", "#d1495b", "#444444", "#eef4f9"
START, STEPS, STEP_SIZE = -2.7, 5, 1.1
WELLS = ((0.75, 0.7, 1.6), (0.75, 2.9, 0.45))  # depth, place, squared width
STYLE = {"font.size": 11, "svg.hashsalt": "idea"}  # a fixed salt: the same file in each run


def energy(x):
  return 0.14 * x**2 - sum(depth * np.exp(-((x - place) ** 2) / width) for depth, place, width in WELLS)


def gradient(x):
  wells = sum(2 * d * (x - place) / width * np.exp(-((x - place) ** 2) / width) for d, place, width in WELLS)
  return 0.28 * x + wells


def box(axes, x, y, width, height, text, **style):
  style = {"facecolor": "white", "edgecolor": BLUE, "linewidth": 1.4, **style}
  axes.add_patch(FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.12", **style))
  axes.text(x + width / 2, y + height / 2, text, ha="center", va="center", linespacing=1.4)


def arrow(axes, start, end, color=GREY, **style):
  style = {"arrowstyle": "-|>", "mutation_scale": 13, "linewidth": 1.5, "shrinkA": 0, "shrinkB": 0, **style}
  axes.add_patch(FancyArrowPatch(start, end, color=color, **style))


def draw_model(axes):
  """What the model is given, what it returns, and the step back to the candidate."""
  axes.set(xlim=(0, 11.4), ylim=(0, 6.3))
  axes.axis("off")
  box(axes, 0.1, 0.2, 4.1, 1.4, "$\\bf{context}$\n“The state of the”", edgecolor=GREY)
  box(axes, 4.8, 0.2, 4.1, 1.4, "$\\bf{candidate}$ $x$\nfor the next token", edgecolor=RED)
  box(axes, 0.1, 2.6, 7.6, 1.1, "Energy-Based Transformer", facecolor=PALE)
  box(axes, 2.25, 4.7, 3.3, 1.4, "$\\bf{energy}$ $E$\na scalar")
  arrow(axes, (2.15, 1.6), (2.15, 2.6))
  arrow(axes, (6.2, 1.6), (6.2, 2.6))
  arrow(axes, (3.9, 3.7), (3.9, 4.7))
  bent = {"connectionstyle": "angle,angleA=0,angleB=90,rad=10", "linestyle": (0, (4, 2.5))}
  arrow(axes, (5.55, 5.4), (8.4, 1.6), RED, **bent)
  axes.text(8.6, 3.3, "$\\bf{thinking}$\n$\\bf{step}$\ndescend $E$", color=RED, va="center", linespacing=1.4)


def draw_landscape(axes):
  """The energy of every candidate for one context, and the candidates that the thinking steps visit."""
  x = np.linspace(-3.3, 4.0, 400)
  axes.plot(x, energy(x), color=BLUE, linewidth=2)
  visited = [START]
  for _ in range(STEPS):
    visited.append(visited[-1] - STEP_SIZE * gradient(visited[-1]))
  points = [(v, energy(v)) for v in visited]
  for start, end in zip(points, points[1:]):
    arrow(axes, start, end, RED, connectionstyle="arc3,rad=-0.4", shrinkA=4, shrinkB=4)
  axes.plot(*zip(*points), "o", color=RED, markersize=6, zorder=3)
  thin = {"arrowprops": {"arrowstyle": "-", "color": GREY, "linewidth": 0.8}, "ha": "center", "va": "center"}
  axes.annotate("start: noise", points[0], (-1.3, 1.45), **thin)
  axes.annotate("prediction", points[-1], (points[-1][0] + 0.1, -1.15), **thin)
  rule = "$x \\leftarrow x - \\alpha\\ \\partial E / \\partial x$"
  axes.text(-1.45, 0.5, f"thinking step\n{rule}\n$\\alpha$: step size", color=RED)
  axes.text(3.3, 1.45, "energy landscape\nof this context", color=BLUE, ha="right", va="center")
  axes.set(xlabel="candidate $x$", ylabel="energy $E$", xticks=[], yticks=[], xlim=(-3.5, 4.1), ylim=(-1.4, 1.9))
  axes.spines[["top", "right"]].set_visible(False)


def main(argv):
  parser = cli.Parser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "out", nargs="?", type=cli.path, default=pathlib.Path(__file__).with_suffix(".svg"), metavar="OUT.svg"
  )
  out = parser.parse_args(argv).out
  if out.suffix != ".svg":
    parser.error(f"{out}: expected a name that ends in .svg")
  with plt.rc_context(STYLE):
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.8), width_ratios=[1.15, 1], layout="constrained")
    draw_model(left)
    draw_landscape(right)
    figure.savefig(out, metadata={"Date": None}, facecolor="white")


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
