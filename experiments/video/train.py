"""Trains the models of the video study that are not finished yet, `--jobs` at a time.

  python -m experiments.video.train --workdir=runs/video [--set=shapes,futures,clips] [--jobs=2] [--steps=N] [--dry_run]

All models of a set see the same frames. Each run is one of `python -m ebt_jax.main`, in `WORKDIR/SET/runs/NAME`. If it
is killed, the same command continues it.
"""

import sys

from ebt_jax import cli, sweep
from experiments.runner.sets import train_sets

STEPS = 300  # of 16 windows of 16 frames
SEEDS = 3
EBT, DIRECT = "configs/video_ebt.py", "configs/video_transformer.py"
MODELS = {
  "transformer": (DIRECT, {}),
  "rnn": (f"{DIRECT}:rnn", {}),
  "ebt": (EBT, {}),
  "residual": (f"{EBT}:residual", {}),
}
# where two futures are as likely
FUTURES = {
  "transformer": (DIRECT, {"data.source": "futures"}),
  "ebt": (f"{EBT}:futures", {"thinking.explore": 1}),
  "ebt_explore": (f"{EBT}:futures", {}),
}
# a real film, in colour: patches share what they learn over places, without which so few shots are learnt by heart
CLIPS = {
  "data.source": "embedded", "video.channels": 3, "video.size": 32, "video.patch": 8, "video.rank": 24,
  "data.context_length": 8, "train.batch_size": 8, "train.learning_rate": 2e-3,
}  # fmt: skip


def runs_of(models: dict, steps: int, **more) -> list[sweep.Run]:
  """Seed by seed."""
  base = {"train.steps": steps, "train.warmup": max(1, steps // 12), "checkpoint.every": max(1, steps // 3)}
  base |= {"sample.pictures": 0, **more}

  def of_seed(name, seed):
    config, changes = models[name]
    return sweep.runs(config, sweep.grid({"seed": [seed]}), {**base, **changes}, name)

  return [run for seed in range(SEEDS) for name in models for run in of_seed(name, seed)]


def shapes(steps: int = STEPS) -> list[sweep.Run]:
  """Moving shapes."""
  return runs_of(MODELS, steps)


def futures(steps: int = STEPS) -> list[sweep.Run]:
  """A disc that turns up or down."""
  return runs_of(FUTURES, steps)


def clips(steps: int = 400) -> list[sweep.Run]:
  """Shots of the film in this package."""
  models = {name: (MODELS[name][0], CLIPS) for name in ("transformer", "ebt", "residual")}
  return runs_of(models, steps)


SETS = {"shapes": shapes, "futures": futures, "clips": clips}


def main(argv: list[str]) -> int:
  """Exit code: 0 all runs are done, 1 runs have failed, 128 + signal asked to end."""
  return train_sets(argv, "video", SETS, __doc__)


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
