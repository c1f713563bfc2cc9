"""Trains the models of the study of facets that are not finished yet, `--jobs` at a time.

  python -m experiments.facets.train --workdir=runs/facets [--jobs=2] [--steps=N] [--dry_run]

All models of a modality see the same data in the same order, with the same trunk and optimiser. Each run is one of
`python -m ebt_jax.main`, in `WORKDIR/models/runs/NAME`. If it is killed, the same command continues it.
"""

import sys

from ebt_jax import cli, sweep
from experiments.runner.sets import train_sets
from experiments.thinking.train import FROM_CONTEXT, RESIDUAL, S1, S2

IMAGE = ("image_flow", "image_ebt", "image_residual")
MODELS = {
  "rnn": (S2, {**S1, "model.kind": "rnn"}),
  "transformer": (S2, {**S1, "model.kind": "transformer"}),
  "ebt": (S2, {}),
  "residual": (S2, {**S1, **RESIDUAL, **FROM_CONTEXT}),
  "image_flow": ("configs/image_dit.py:flow", {}),
  "image_ebt": ("configs/image_ebt.py", {}),
  "image_residual": ("configs/image_ebt.py:residual", {}),
}


def models(steps: int = 300) -> list[sweep.Run]:
  """Three seeds, seed by seed."""
  base = {
    "train.steps": steps,
    "train.warmup": max(1, steps // 10),
    "eval.max_windows": 256,
    "checkpoint.every": max(1, steps // 3),
    "checkpoint.keep": 1,
  }

  def of_seed(name, seed):
    config, changes = MODELS[name]
    silent = {"sample.pictures": 0} if name in IMAGE else {"sample.tokens": 0}
    return sweep.runs(config, sweep.grid({"seed": [seed]}), {**base, **silent, **changes}, name)

  return [run for seed in range(3) for name in MODELS for run in of_seed(name, seed)]


SETS = {"models": models}


def main(argv: list[str]) -> int:
  """Exit code: 0 all runs are done, 1 runs have failed, 128 + signal asked to end."""
  return train_sets(argv, "facets", SETS, __doc__)


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
