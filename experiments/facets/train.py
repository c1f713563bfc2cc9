"""Trains the models of the study of facets that are not finished yet, `--jobs` at a time.

  python -m experiments.facets.train --workdir=runs/facets [--set=text] [--jobs=2] [--steps=N] [--dry_run]

All models of a modality see the same data in the same order, with the same trunk and optimiser. Each run is one of
`python -m ebt_jax.main`, in `WORKDIR/SET/runs/NAME`. If it is killed, the same command continues it. The models of
pictures are three of those of `experiments.denoising.train`: where these are trained, `--set=text` is enough.
"""

import sys

from ebt_jax import cli, sweep
from experiments.denoising import train as denoising
from experiments.runner.sets import train_sets
from experiments.thinking.train import FROM_CONTEXT, RESIDUAL, S1, S2

TEXT = {
  "rnn": {**S1, "model.kind": "rnn"},
  "transformer": {**S1, "model.kind": "transformer"},
  "ebt": {},
  "residual": {**S1, **RESIDUAL, **FROM_CONTEXT},
}
PICTURES = {"image_flow": "flow", "image_ebt": "ebt", "image_residual": "residual"}  # model -> its name there
MODELS = (*TEXT, *PICTURES)


def text(steps: int = 300) -> list[sweep.Run]:
  """Bytes; three seeds, seed by seed."""
  base = {
    "train.steps": steps,
    "train.warmup": max(1, steps // 10),
    "train.health_every": 0,
    "eval.max_windows": 256,
    "checkpoint.every": max(1, steps // 3),
    "checkpoint.keep": 1,
    "sample.tokens": 0,
  }

  def of_seed(name, seed):
    return sweep.runs(S2, sweep.grid({"seed": [seed]}), {**base, **TEXT[name]}, name)

  return [run for seed in range(3) for name in TEXT for run in of_seed(name, seed)]


def pictures(steps: int = denoising.STEPS) -> list[sweep.Run]:
  """Photographs in this package."""
  return [run for run in denoising.models(steps) if run.series in PICTURES.values()]


SETS = {"text": text, "pictures": pictures}


def main(argv: list[str]) -> int:
  """Exit code: 0 all runs are done, 1 runs have failed, 128 + signal asked to end."""
  return train_sets(argv, "facets", SETS, __doc__)


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
