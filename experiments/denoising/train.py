"""Trains the models of the denoising study that are not finished yet, `--jobs` at a time.

  python -m experiments.denoising.train --set=models,equal_flops,sweep --workdir=runs/denoising [--jobs=2] [--steps=N]

All but those of `sweep` see the same pictures. Each run is one of `python -m ebt_jax.main`, in `WORKDIR/SET/runs/NAME`.
If it is killed, the same command continues it.
"""

import sys

from ebt_jax import cli, sweep
from ebt_jax.tasks import registry
from experiments.runner.sets import train_sets

STEPS = 300  # of 16 pictures: less than two minutes of two cores for EBT
MODELS = {
  "ebt": ("configs/image_ebt.py", {}),
  "ebt_1_step": ("configs/image_ebt.py", {"thinking.steps": 1}),
  "residual": ("configs/image_ebt.py:residual", {}),
  "dit": ("configs/image_dit.py", {}),
  "dit_authors": ("configs/image_dit.py:authors", {}),
  "flow": ("configs/image_dit.py:flow", {}),
}

EBT_FLOPS = 3.89  # of a training step of `ebt`, over those of DiT

# what may make EBT better at its own FLOPs of training: each is trained to as many, one seed
EBT, RESIDUAL = "configs/image_ebt.py", "configs/image_ebt.py:residual"
SWEEP = {
  "steps_1": (EBT, {"thinking.steps": 1}),
  "steps_3": (EBT, {"thinking.steps": 3}),
  "step_size_300": (EBT, {"thinking.step_size": 300.0, "thinking.step_size_lr_multiplier": 900.0}),
  "step_size_3000": (EBT, {"thinking.step_size": 3000.0, "thinking.step_size_lr_multiplier": 9000.0}),
  "last_of_2": (EBT, {"thinking.gradient": "last"}),
  "rate_half": (EBT, {"train.learning_rate": 5e-4}),
  "rate_twice": (EBT, {"train.learning_rate": 2e-3}),
  "residual": (RESIDUAL, {}),
  "residual_2": (RESIDUAL, {"thinking.steps": 2}),
}

# with labels of classes, for the linear probe
CIFAR = {
  "ebt": ("configs/image_ebt.py:cifar", {}),
  "dit": ("configs/image_dit.py:cifar", {}),
  "flow": ("configs/image_dit.py:cifar", {"model.kind": "flow"}),
}


def of_configs(configs: dict, steps: int, seeds: int = 3) -> list[sweep.Run]:
  """Seed by seed; `steps` 0: as the configs say."""
  base = {"sample.pictures": 0, "train.health_every": 0, "checkpoint.keep": 1}
  if steps:
    base |= {"train.steps": steps, "train.warmup": max(1, steps // 10), "checkpoint.every": max(1, steps // 3)}

  def of_seed(name, seed):
    config, changes = configs[name]
    return sweep.runs(config, sweep.grid({"seed": [seed]}), {**base, **changes}, name)

  return [run for seed in range(seeds) for name in configs for run in of_seed(name, seed)]


def models(steps: int = STEPS) -> list[sweep.Run]:
  """Photographs in this package."""
  return of_configs(MODELS, steps)


def equal_flops(steps: int = STEPS) -> list[sweep.Run]:
  """DiT with as many FLOPs of training as `ebt` has, which are more pictures."""
  return of_configs({"dit_flops": MODELS["dit"]}, round(EBT_FLOPS * steps))


def cifar(steps: int = STEPS) -> list[sweep.Run]:
  """CIFAR-10, which `tools/fetch_data.py cifar10` fetches."""
  return of_configs(CIFAR, steps)


def options(steps: int = STEPS) -> list[sweep.Run]:
  """`SWEEP`, with as many FLOPs of training as `ebt` has."""

  def flops(run):
    return registry.make(run.resolve()).flops().row["total"]

  budget, out = steps * flops(models(steps)[0]), []
  for name, of_name in SWEEP.items():
    cost = flops(of_configs({name: of_name}, steps, seeds=1)[0])
    out += of_configs({name: of_name}, round(budget / cost), seeds=1)
  return out


SETS = {"models": models, "equal_flops": equal_flops, "sweep": options, "cifar": cifar}


def main(argv: list[str]) -> int:
  """Exit code: 0 all runs are done, 1 runs have failed, 128 + signal asked to end."""
  return train_sets(argv, "denoising", SETS, __doc__)


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
