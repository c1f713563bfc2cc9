"""Trains the models of the study of reasoning that are not finished yet, `--jobs` at a time.

  python -m experiments.reasoning.train --set=4x4 --workdir=runs/reasoning [--jobs=2] [--dry_run]

Each run is one of `python -m ebt_jax.main`, in `WORKDIR/SET/runs/NAME`. If it is killed, the same command continues it.
"""

import sys

from ebt_jax import cli, sweep
from ebt_jax.config import resolve
from ebt_jax.tasks import registry
from experiments.runner.sets import train_sets

SEEDS = [0, 1, 2]


def sudoku(size: str, steps: int, seeds: list[int], equal_flops: bool) -> list[sweep.Run]:
  """EBT, its judge, one pass and several passes with the same number of steps; the rivals also with its FLOPs."""
  files = {kind: f"configs/sudoku.py:{size},{kind}" for kind in ("ebt", "judge", "feedforward", "looped")}
  plan = [(kind, kind, steps) for kind in files]
  if equal_flops:
    cost = {k: registry.make(resolve(sweep.read_config(file))).flops().row["total"] for k, file in files.items()}
    plan += [(f"{k}_flops", k, round(steps * cost["ebt"] / cost[k])) for k in ("feedforward", "looped")]
  out = []
  for seed in seeds:  # all models of one seed first
    for series, kind, count in plan:
      base = {"train.steps": count, "train.log_every": 100, "eval.max_windows": 128}
      out += sweep.runs(files[kind], [sweep.Variant({}, "")], base, series, [seed])
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
