"""Each series of a study at its best learning rate, and the differences between them, paired by seed.

  python -m experiments.scaling.best experiments/scaling/results/optimizers

The last evaluations of runs that differ in their learning rate alone. Of the rates that were trained with the most
seeds, that of the lowest mean loss is taken. Intervals are Student's, 95%.

Runs at a best rate that go on for longer are compared with the other series at equal FLOPs and at equal time: their
loss is interpolated over the logarithm of steps. The time of a series is that of its fastest run, since other programs
may have slowed the others.
"""

import itertools
import math
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np

from ebt_jax import cli
from ebt_jax.config import ConfigError
from experiments.scaling import points
from experiments.thinking.common import mean_interval


class Best(NamedTuple):
  """A learning rate of a series, and the loss of each seed at it."""

  rate: float
  losses: dict[int, float]


def best(rows: list[dict[str, Any]]) -> dict[str, Best]:
  """By series, of the last points of runs."""
  rates: dict[tuple[str, float], dict[int, float]] = {}
  for row in rows:
    rates.setdefault((row["series"], row["learning_rate"]), {})[row["seed"]] = row["loss"]
  found: dict[str, list[Best]] = {}
  for (series, rate), losses in rates.items():
    found.setdefault(series, []).append(Best(rate, losses))
  return {series: min(several, key=_order) for series, several in found.items()}


def _order(one: Best) -> tuple[int, float]:
  return -len(one.losses), sum(one.losses.values()) / len(one.losses)


def table(found: dict[str, Best]) -> str:
  """Losses with the spread of their seeds, then the difference of each to those before it."""
  lines = []
  for series, (rate, losses) in found.items():
    mean, half = mean_interval(list(losses.values()))
    spread = max(losses.values()) - min(losses.values())
    lines.append(f"{series:18} rate {rate:.4g}: {mean:.4f} ± {half:.4f} ({len(losses)} seeds, {spread:.4f} apart)")
  for b, a in itertools.combinations(found, 2):
    shared = sorted(found[a].losses.keys() & found[b].losses.keys())
    if shared:
      mean, half = mean_interval([found[a].losses[s] - found[b].losses[s] for s in shared])
      lines.append(f"{a} less {b}: {mean:+.4f} ± {half:.4f}")
  return "\n".join(lines)


def at_equal_cost(rows: list[dict[str, Any]], found: dict[str, Best], cost: str) -> str:
  """Each series less those that were trained for longer, after as many FLOPs, or as much time, as it took itself.

  Args:
    rows: all points.
    found: `best` of the shortest runs.
    cost: "flops" or "device_seconds", the field of a point.
  """
  ends = shortest(rows)
  steps, items = ends[0]["step"], ends[0]["items"]
  spent: dict[str, float] = {}
  for row in ends:
    spent[row["series"]] = min(row[cost], spent.get(row["series"], math.inf))
  lines = []
  for long in dict.fromkeys(row["series"] for row in rows if row["step"] > steps and row["series"] in found):
    curves = {}
    for row in rows:
      if row["series"] == long and row["learning_rate"] == found[long].rate:
        curves.setdefault(row["seed"], {})[row["step"]] = row["loss"]
    for series in (one for one in found if spent[one] > spent[long]):
      times = spent[series] / spent[long]
      shared = sorted(s for s in found[series].losses if max(curves.get(s, [0])) >= times * steps)
      if shared:
        there = [_between(curves[s], times * steps) for s in shared]
        mean, half = mean_interval([found[series].losses[s] - loss for s, loss in zip(shared, there)])
        after = f"{times * items / 1e6:.2f} M items, {sum(there) / len(there):.4f}"
        lines.append(f"{series} less {long} at equal {cost} ({after}): {mean:+.4f} ± {half:.4f} ({len(shared)} seeds)")
  return "\n".join(lines)


def shortest(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
  """The last points of the runs with the fewest steps."""
  ends = [row for row in rows if row["end"]]
  return [row for row in ends if row["step"] == min(one["step"] for one in ends)]


def _between(curve: dict[int, float], step: float) -> float:
  known = sorted(curve)
  return float(np.interp(math.log(step), np.log(known), [curve[n] for n in known]))


def main(argv: list[str]) -> None:
  parser = cli.Parser(prog="experiments.scaling.best", description=__doc__.split("\n")[0])
  parser.add_argument("folder", type=pathlib.Path, help="of a study, with its study.json and points.jsonl")
  folder = parser.parse_args(argv).folder
  points.read_study(folder)
  rows = points.read(folder)
  sizes = {(row["layers"], row["width"], round(row["batch_items"])) for row in rows}  # a mean: some windows are short
  if len(sizes) != 1:
    raise ConfigError(f"{folder}: expected runs of one size, found {len(sizes)}; give a study of learning rates alone")
  found = best(shortest(rows))
  print(table(found))
  for cost in ("flops", "device_seconds"):
    if compared := at_equal_cost(rows, found, cost):
      print(compared)


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
