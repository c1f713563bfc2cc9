"""Trains the models of the study of reasoning that are not finished yet, `--jobs` at a time.

  python -m experiments.reasoning.train --set=4x4 --workdir=runs/reasoning [--jobs=2] [--dry_run]

Each run is one of `python -m ebt_jax.main`, in `WORKDIR/SET/runs/NAME`. If it is killed, the same command continues it.
"""

import sys

from ebt_jax import cli, sweep
from experiments.runner.sets import train_sets

SEEDS = [0, 1, 2]


def sudoku(size: str, steps: int, seeds: list[int], equal_flops: bool) -> list[sweep.Run]:
  """EBT, one pass and several passes with the same number of steps, and the rivals also with the FLOPs of EBT.

  Of a forward pass, EBT with k thinking steps takes 6 k for each row, one pass 3, and k passes of a loop 3 k: so a
  rival in one pass is given 2 k times as many steps for the same FLOPs, and one that loops twice as many.
  """
  file = f"configs/sudoku.py:{size}"
  k = sweep.read_config(file).thinking.steps
  plan = [("ebt", "ebt", 1), ("feedforward", "feedforward", 1), ("looped", "looped", 1)]
  if equal_flops:
    plan += [("feedforward_flops", "feedforward", 2 * k), ("looped_flops", "looped", 2)]
  out = []
  for seed in seeds:  # all models of one seed first
    for series, kind, times in plan:
      base = {"train.steps": steps * times, "train.log_every": 100, "eval.max_windows": 128}
      out += sweep.runs(f"{file},{kind}", [sweep.Variant({}, "")], base, series, [seed])
  return out


def four(steps: int = 800) -> list[sweep.Run]:
  """4x4, three seeds."""
  return sudoku("4x4", steps, SEEDS, equal_flops=True)


def nine(steps: int = 2000) -> list[sweep.Run]:
  """9x9, one seed: a hint."""
  return sudoku("9x9", steps, SEEDS[:1], equal_flops=False)


SETS = {"4x4": four, "9x9": nine}


def main(argv: list[str]) -> int:
  """Exit code: 0 all runs are done, 1 runs have failed, 128 + signal asked to end."""
  return train_sets(argv, "reasoning", SETS, __doc__)


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
