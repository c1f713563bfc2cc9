"""Trains the models of the denoising study that are not finished yet, `--jobs` at a time.

  python -m experiments.denoising.train --workdir=runs/denoising [--models=ebt,dit] [--seeds=3] [--steps=600]

All see the same number of pictures. Runs are `WORKDIR/runs/MODEL,seed=N`; if the command is killed, it goes on.
"""

import pathlib
import sys

from ebt_jax import cli, sweep
from ebt_jax.config import near
from experiments.runner import launch, pool
from experiments.runner.screen import Screen

MODELS = {
  "ebt": ("configs/image_ebt.py", {}),
  "ebt_1_step": ("configs/image_ebt.py", {"thinking.steps": 1}),
  "residual": ("configs/image_ebt.py:residual", {}),
  "dit": ("configs/image_dit.py", {}),
  "dit_authors": ("configs/image_dit.py:authors", {}),
  "flow": ("configs/image_dit.py:flow", {}),
}


def runs(models: list[str], seeds: int, steps: int = 0) -> list[sweep.Run]:
  """The runs of some models; `steps` 0: as their configs say."""
  out, base = [], {"sample.pictures": 0}
  if steps:
    base |= {"train.steps": steps, "train.warmup": max(1, steps // 10), "checkpoint.every": max(1, steps // 3)}
  for name in models:
    config, changes = MODELS[name]
    out += sweep.runs(config, sweep.grid({"seed": list(range(seeds))}), {**base, **changes}, name)
  return out


def main(argv: list[str]) -> int:
  """Exit code: 0 all runs are done, 1 runs have failed, 128 + signal asked to end."""
  parser = cli.Parser(prog="experiments.denoising.train", description=__doc__.split("\n")[0])
  parser.add_argument("--models", default=",".join(MODELS))
  parser.add_argument("--seeds", type=cli.at_least(1), default=3)
  parser.add_argument("--steps", type=cli.at_least(0), default=0, help="of training; 0: as the configs say")
  parser.add_argument("--workdir", type=cli.path, default=pathlib.Path("runs/denoising"))
  parser.add_argument("--jobs", type=cli.at_least(1), default=2)
  args = parser.parse_args(argv)
  models = args.models.split(",")
  for name in models:
    if name not in MODELS:
      parser.error(f"--models: no model {name!r}; {near(name, MODELS)}")
  waiting = [launch.Task(run, args.workdir) for run in runs(models, args.seeds, args.steps)]
  for task in waiting:
    task.check()
  waiting = pool.progress(waiting)
  try:
    with launch.own(args.workdir):
      pool.train(waiting, launch.slots(args.jobs), Screen().show)
  except pool.Stopped as e:
    return 128 + e.number
  failed = [p for p in waiting if p.state == "failed"]
  for p in failed:
    print(f"failed: {p.task.run.name}: {p.failure}\n  {p.task.log}")
  return int(bool(failed))


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
