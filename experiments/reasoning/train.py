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


PAIR = {"thinking.contrast": 1.0, "thinking.contrast_of": "pair"}  # what the judge has, but for its zero


def sudoku(size: str, steps: int, seeds: list[int], whole: bool) -> list[sweep.Run]:
  """EBT, its judge, one pass and several passes, with the same number of training steps.

  Args:
    whole: the rivals also with the training FLOPs of EBT, and the judge with a contrast of pairs.
  """
  files = {kind: f"configs/sudoku.py:{size},{kind}" for kind in ("ebt", "judge", "feedforward", "looped", "recursive")}
  plan = [(kind, kind, {"train.steps": steps}) for kind in files]
  if whole:
    cost = {k: registry.make(resolve(sweep.read_config(file))).flops().row["total"] for k, file in files.items()}
    for kind in ("looped", "feedforward", "recursive"):
      plan.append((f"{kind}_flops", kind, {"train.steps": round(steps * cost["ebt"] / cost[kind])}))
  of_pairs = [("pair", "ebt", {"train.steps": steps, **PAIR})] if whole else []
  out = []
  for part in (plan, of_pairs):
    for seed in seeds:  # all models of one seed first
      for series, kind, keys in part:
        base = {**keys, "train.log_every": 100, "eval.max_windows": 128}
        out += sweep.runs(files[kind], [sweep.Variant({}, "")], base, series, [seed])
  return out


def four(steps: int = 800) -> list[sweep.Run]:
  """4x4, three seeds."""
  return sudoku("4x4", steps, SEEDS, whole=True)


def nine(steps: int = 2000) -> list[sweep.Run]:
  """9x9, one seed: a hint."""
  return sudoku("9x9", steps, SEEDS[:1], whole=False)


SETS = {"4x4": four, "9x9": nine}


def main(argv: list[str]) -> int:
  """Exit code: 0 all runs are done, 1 runs have failed, 128 + signal asked to end."""
  return train_sets(argv, "reasoning", SETS, __doc__)


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
