"""Trains the models of the study of infilling that are not finished yet, `--jobs` at a time.

  python -m experiments.infilling.train --workdir=runs/infilling [--jobs=2] [--steps=N] [--dry_run]

Each run is one of `python -m ebt_jax.main`, in `WORKDIR/models/runs/NAME`. If it is killed, the same command continues
it.
"""

import sys

from ebt_jax import cli, sweep
from experiments.runner.sets import train_sets

KINDS = ("ebt", "transformer", "diffusion")
SMALL = {"model.layers": 2, "train.batch_size": 16, "eval.max_windows": 256, "sample.tokens": 0}


def models(steps: int = 1500) -> list[sweep.Run]:
  """One trunk, the same rows in the same order, blanks at random places at all rates; three seeds, seed by seed."""
  base = {**SMALL, "train.steps": steps}

  def of_seed(kind, seed):
    return sweep.runs(f"configs/infill.py:{kind}", sweep.grid({"seed": [seed]}), base, kind)

  return [run for seed in range(3) for kind in KINDS for run in of_seed(kind, seed)]


SETS = {"models": models}


def main(argv: list[str]) -> int:
  """Exit code: 0 all runs are done, 1 runs have failed, 128 + signal asked to end."""
  return train_sets(argv, "infilling", SETS, __doc__)


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
