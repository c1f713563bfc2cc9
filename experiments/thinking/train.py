"""Trains the models of the studies of thinking: what is missing, two at a time; what is done is left alone.

  python -m experiments.thinking.train --set=settings,models,ablation --workdir=runs/thinking [--jobs=2] [--dry_run]

Each run is what `python -m ebt_jax.main` leaves in `WORKDIR/SET/NAME`; killed, the same command continues.
"""

import argparse
import dataclasses
import os
import pathlib
import subprocess
import sys
import time

from ebt_jax import sweep
from ebt_jax.chrono import duration
from ebt_jax.config import ConfigError, near

S2 = "configs/text_ebt_s2.py:laptop"
SEEDS = sweep.grid({"seed": [0, 1, 2]})
LEFT_OUT = {
    "full": {},
    "no_random_step_size": {"thinking.random_step_size": 1.0},
    "no_random_number_of_steps": {"thinking.random_steps_min": 0},
    "no_Langevin_noise": {"thinking.noise": 0.0},
    "no_replay_buffer": {"thinking.replay_rows": 0},
}


def settings() -> list[sweep.Run]:
  """Which step size, noise and numbers of steps make longer thinking pay; one seed, 400 steps."""
  several = sweep.chain(
      sweep.grid({"thinking.step_size": [1.0, 5.0, 20.0], "thinking.noise": [1.0]}),
      sweep.grid({"thinking.step_size": [5.0], "thinking.noise": [0.0, 3.0]}),
      sweep.grid({"thinking.step_size": [1.0, 5.0], "thinking.steps": [5], "thinking.noise": [1.0]}),
      sweep.grid({"thinking.step_size": [1.0], "thinking.steps": [6], "thinking.random_steps_min": [3], "thinking.noise": [0.3]}),
      sweep.grid({"thinking.random_steps_min": [1]}),
      sweep.grid({"thinking.replay_rows": [0]}),
  )
  return sweep.runs(S2, several, base={"train.steps": 400})


def models() -> list[sweep.Run]:
  """System 2, System 1 and Transformer++, three seeds, with checkpoints on the way."""
  keep = {"checkpoint.keep_every": 300}
  s1 = {
      "thinking.steps": 2, "thinking.random_steps_min": 0, "thinking.random_step_size": 1.0, "thinking.gradient": "each",
      "thinking.learn_step_size": True, "thinking.noise": 0.0, "thinking.replay_rows": 0,
  }  # fmt: skip
  return [
      *sweep.runs(S2, SEEDS, keep, "s2"),
      *sweep.runs(S2, SEEDS, {**keep, **s1}, "s1"),
      *sweep.runs(S2, SEEDS, {**keep, **s1, "model.kind": "transformer"}, "transformer"),
  ]


def ablation() -> list[sweep.Run]:
  """Table 2: each regulariser of System 2 left out, three seeds, 600 steps."""
  return sweep.runs(S2, sweep.product(sweep.named(LEFT_OUT), SEEDS), {"train.steps": 600})


SETS = {"settings": settings, "models": models, "ablation": ablation}


def train(names: list[str], workdir: pathlib.Path, jobs: int, dry_run: bool, steps: int = 0) -> int:
  """Runs the sets in order, with so many training steps if given; returns how many runs failed."""
  waiting = [(workdir / name / run.name, run) for name in names for run in SETS[name]()]
  if steps:
    shorter = lambda run: dataclasses.replace(run, overrides={**run.overrides, "train.steps": steps})
    waiting = [(folder, shorter(run)) for folder, run in waiting]
  waiting = [(folder, run) for folder, run in waiting if not (folder / "final_result.json").exists()]
  print(f"{len(waiting)} runs to train")
  cores = sorted(os.sched_getaffinity(0))
  free = [set(cores[i::jobs]) or {cores[0]} for i in range(jobs)]
  running, failed, start, total = [], 0, time.time(), len(waiting)
  while waiting or running:
    while waiting and free and not dry_run:
      folder, run = waiting.pop(0)
      mine = free.pop()
      folder.mkdir(parents=True, exist_ok=True)
      log = open(folder / "log.txt", "a", encoding="utf-8")
      command = [sys.executable, "-m", "ebt_jax.main", *run.flags(), f"--workdir={folder}"]
      pin = lambda mine=mine: os.sched_setaffinity(0, mine)
      running.append((folder, mine, log, subprocess.Popen(command, stdout=log, stderr=log, preexec_fn=pin)))
    if dry_run:
      print(*(" ".join(["python -m ebt_jax.main", *run.flags(), f"--workdir={folder}"]) for folder, run in waiting), sep="\n")
      return 0
    time.sleep(0.5)
    for item in [r for r in running if r[3].poll() is not None]:
      folder, mine, log, process = item
      running.remove(item)
      free.append(mine)
      log.close()
      failed += process.returncode != 0
      done = total - len(waiting) - len(running)
      left = duration((time.time() - start) / done * (total - done))
      how = "done" if not process.returncode else f"failed with exit code {process.returncode}, see {folder / 'log.txt'}"
      print(f"{done}/{total}  {folder.name}: {how}  ETA {left}", flush=True)
  return failed


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--set", default=",".join(SETS))
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/thinking"))
  parser.add_argument("--jobs", type=int, default=2)
  parser.add_argument("--steps", type=int, default=0, help="training steps of every run; 0: as the set says")
  parser.add_argument("--dry_run", action="store_true")
  args = parser.parse_args()
  names = args.set.split(",")
  for name in names:
    if name not in SETS:
      raise ConfigError(f"--set: no set {name!r}; {near(name, SETS)}")
  sys.exit(train(names, args.workdir, args.jobs, args.dry_run, args.steps) > 0)


if __name__ == "__main__":
  main()
