"""Trains the models of the study of reasoning that are not finished yet, `--jobs` at a time.

  python -m experiments.reasoning.train --set=4x4 --workdir=runs/reasoning [--jobs=2] [--dry_run]

Each run is one of `python -m ebt_jax.main`, in `WORKDIR/SET/runs/NAME`. If it is killed, the same command continues it.
"""

from collections.abc import Sequence
import sys

from ebt_jax import cli, sweep
from ebt_jax.config import resolve
from ebt_jax.tasks import registry
from experiments.runner.sets import train_sets

SEEDS = [0, 1, 2]


PAIR = {"thinking.contrast": 1.0, "thinking.contrast_of": "pair"}  # what the judge has, but for its zero
ALIKE = ("ebt", "judge", "feedforward", "looped", "recursive")  # with equal numbers of training steps
FLOPS = "_flops"  # ends the name of a series that has the training FLOPs of EBT


def sudoku(size: str, steps: int, series: Sequence[str]) -> list[sweep.Run]:
  """The runs of some series, all of one seed first.

  Args:
    steps: of training; series of equal FLOPs have as many as cost what those of EBT do.
    series: kinds of `configs/sudoku.py`; `pair`: the judge with a contrast of pairs.
  """
  plan = []
  for name in series:
    file, length = f"configs/sudoku.py:{size},{'ebt' if name == 'pair' else name.removesuffix(FLOPS)}", steps
    if name.endswith(FLOPS):
      length = round(steps * _cost(f"configs/sudoku.py:{size},ebt") / _cost(file))
    keys = {"train.steps": length, "train.log_every": 100, "eval.max_windows": 128}
    plan.append((file, keys | (PAIR if name == "pair" else {}), name))
  return [
    run
    for seed in SEEDS
    for f, keys, name in plan
    for run in sweep.runs(f, [sweep.Variant({}, "")], keys, name, [seed])
  ]


def _cost(file: str) -> float:
  """FLOPs of a row in training."""
  return registry.make(resolve(sweep.read_config(file))).flops().row["total"]


def four(steps: int = 800) -> list[sweep.Run]:
  """4x4, three seeds."""
  rivals = [kind + FLOPS for kind in ("looped", "feedforward", "recursive")]
  return sudoku("4x4", steps, [*ALIKE, *rivals]) + sudoku("4x4", steps, ["pair"])


def nine(steps: int = 5000) -> list[sweep.Run]:
  """9x9, three seeds; what takes longest and is needed least comes last."""
  parts = (["judge"], ["feedforward"], ["looped"], ["ebt"], ["looped_flops", "feedforward_flops"])
  return [run for part in parts for run in sudoku("9x9", steps, part)]


SETS = {"4x4": four, "9x9": nine}


def main(argv: list[str]) -> int:
  """Exit code: 0 all runs are done, 1 runs have failed, 128 + signal asked to end."""
  return train_sets(argv, "reasoning", SETS, __doc__)


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
