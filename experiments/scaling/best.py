"""Each series of a study at its best learning rate, and the differences between them, paired by seed.

  python -m experiments.scaling.best experiments/scaling/results/optimizers

The last evaluations of runs that differ in their learning rate alone. Of the rates that were trained with the most
seeds, that of the lowest mean loss is taken. Intervals are Student's, 95%.
"""

import itertools
import pathlib
import sys
from typing import Any, NamedTuple

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


def main(argv: list[str]) -> None:
  parser = cli.Parser(prog="experiments.scaling.best", description=__doc__.split("\n")[0])
  parser.add_argument("folder", type=pathlib.Path, help="of a study, with its study.json and points.jsonl")
  folder = parser.parse_args(argv).folder
  points.read_study(folder)
  rows = [row for row in points.read(folder) if row["end"]]
  sizes = {(row["layers"], row["width"], row["batch_items"], row["items"]) for row in rows}
  if len(sizes) != 1:
    raise ConfigError(f"{folder}: expected runs of one size and length, found {len(sizes)}; give one of rates alone")
  print(table(best(rows)))


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
