"""Trains the models of the denoising study that are not finished yet, `--jobs` at a time.

  python -m experiments.denoising.train --workdir=runs/denoising [--jobs=2] [--steps=N] [--dry_run]

All see the same pictures. Each run is one of `python -m ebt_jax.main`, in `WORKDIR/models/runs/NAME`. If it is killed,
the same command continues it.
"""

import sys

from ebt_jax import cli, sweep
from experiments.runner.sets import train_sets

MODELS = {
  "ebt": ("configs/image_ebt.py", {}),
  "ebt_1_step": ("configs/image_ebt.py", {"thinking.steps": 1}),
  "residual": ("configs/image_ebt.py:residual", {}),
  "dit": ("configs/image_dit.py", {}),
  "dit_authors": ("configs/image_dit.py:authors", {}),
  "flow": ("configs/image_dit.py:flow", {}),
}


def models(steps: int = 0) -> list[sweep.Run]:
  """Three seeds, seed by seed; `steps` 0: as the configs say."""
  base = {"sample.pictures": 0}
  if steps:
    base |= {"train.steps": steps, "train.warmup": max(1, steps // 10), "checkpoint.every": max(1, steps // 3)}

  def of_seed(name, seed):
    config, changes = MODELS[name]
    return sweep.runs(config, sweep.grid({"seed": [seed]}), {**base, **changes}, name)

  return [run for seed in range(3) for name in MODELS for run in of_seed(name, seed)]


SETS = {"models": models}


def main(argv: list[str]) -> int:
  """Exit code: 0 all runs are done, 1 runs have failed, 128 + signal asked to end."""
  return train_sets(argv, "denoising", SETS, __doc__)


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
