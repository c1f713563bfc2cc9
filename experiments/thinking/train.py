"""Trains the models of the studies of thinking that are not finished yet, `--jobs` at a time.

  python -m experiments.thinking.train --set=models,residual --workdir=runs/thinking [--jobs=2] [--dry_run]

Each run is one of `python -m ebt_jax.main`, in `WORKDIR/SET/runs/NAME`. If it is killed, the same command continues it.
"""

import sys
from typing import Any

from ebt_jax import cli, sweep
from experiments.runner.sets import train_sets

S2 = "configs/text_ebt_s2.py:laptop"
SEEDS = sweep.grid({"seed": [0, 1, 2]})
SHORT = {"eval.max_windows": 512, "sample.tokens": 0}
LEFT_OUT = {
  "full": {},
  "no_random_step_size": {"thinking.random_step_size": 1.0},
  "no_random_number_of_steps": {"thinking.random_steps_min": 0},
  "no_Langevin_noise": {"thinking.noise": 0.0},
  "no_replay_buffer": {"thinking.replay_rows": 0},
}


def recipes(steps: int = 300) -> list[sweep.Run]:
  """Step sizes, noise and numbers of steps, to find those with which thinking longer gains most; one seed."""
  one = {"thinking.steps": 3, "thinking.random_steps_min": 2, "thinking.step_size": 5.0, "thinking.noise": 1.0}

  def vary(**changed):
    return sweep.grid({k: [v] for k, v in {**one, **{f"thinking.{n}": v for n, v in changed.items()}}.items()})

  several = sweep.chain(
    vary(),
    vary(step_size=1.0),
    vary(step_size=20.0),
    vary(noise=0.0),
    vary(steps=10),
    vary(steps=10, step_size=1.0),
  )
  wide = {"train.batch_size": 32, "thinking.replay_rows": 192}
  return sweep.runs(S2, several, {**SHORT, **wide, "train.steps": steps})


S1 = {
  "thinking.steps": 2,
  "thinking.random_steps_min": 0,
  "thinking.random_step_size": 1.0,
  "thinking.gradient": "each",
  "thinking.learn_step_size": True,
  "thinking.noise": 0.0,
  "thinking.replay_rows": 0,
}


def _kept(steps: int) -> dict[str, Any]:
  """Every quarter of the training keeps its checkpoint."""
  quarter = max(1, steps // 4)
  return {**SHORT, "train.steps": steps, "checkpoint.every": quarter, "checkpoint.keep_every": quarter}


def models(steps: int = 1000) -> list[sweep.Run]:
  """System 2, System 1 and Transformer++, three seeds, with checkpoints during training."""
  keep = _kept(steps)
  return [
    *sweep.runs(S2, SEEDS, keep, "s2"),
    *sweep.runs(S2, SEEDS, {**keep, **S1}, "s1"),
    *sweep.runs(S2, SEEDS, {**keep, **S1, "model.kind": "transformer"}, "transformer"),
  ]


RESIDUAL = {"model.residual": True, "model.head_gain": 0.0}
FROM_CONTEXT = {"thinking.start": "context", "thinking.steps": 1}


def residual(steps: int = 1000) -> list[sweep.Run]:
  """Residual energies with the data and steps of `models`, three seeds."""
  keep = {**_kept(steps), **RESIDUAL}
  return [
    *sweep.runs(S2, SEEDS, {**keep, **S1, **FROM_CONTEXT}, "residual_context"),
    *sweep.runs(S2, SEEDS, {**keep, **S1}, "residual_noise"),
    *sweep.runs(S2, SEEDS, keep, "residual_s2"),
  ]


def controls(steps: int = 1000) -> list[sweep.Run]:
  """Transformer++ with the passes, and with the FLOPs, of a residual EBT, and one without E_theta; three seeds."""
  keep = {**_kept(steps), **S1}
  plain = {**keep, "model.kind": "transformer"}
  return [
    *sweep.runs(S2, SEEDS, {**plain, "model.passes": 2}, "passes_2"),
    *sweep.runs(S2, SEEDS, {**plain, "model.passes": 3}, "passes_3"),
    *sweep.runs(S2, SEEDS, {**plain, "model.layers": 6}, "layers_6"),
    *sweep.runs(S2, SEEDS, {**keep, **RESIDUAL, **FROM_CONTEXT, "model.energy_gain": 0.0}, "energy_gain_0"),
  ]


def later(steps: int = 300) -> list[sweep.Run]:
  """Ways to make the later steps of a residual EBT worth something, one seed."""

  def steps_of(n, **more):
    return {"thinking.steps": n, **{key.replace("__", "."): value for key, value in more.items()}}

  noise, unrolled = {"thinking__start": "noise"}, {"thinking__gradient": "unrolled"}
  several = {
    **{f"{n}_steps": steps_of(n) for n in (1, 2, 4, 8)},
    **{f"from_noise,{n}_steps": steps_of(n, **noise) for n in (2, 4, 8)},
    **{f"unrolled,{n}_steps": steps_of(n, **unrolled) for n in (2, 4)},
    "unrolled,from_noise,4_steps": steps_of(4, **unrolled, **noise),
    "last_step_alone,2_to_4_steps": steps_of(4, thinking__gradient="last", thinking__random_steps_min=2),
    **{f"landscapes,{n}_steps": steps_of(n, model__variant="time_embed", thinking__landscapes=n) for n in (2, 4)},
    **{f"step_size_{a:g},4_steps": steps_of(4, thinking__step_size=a) for a in (1.0, 20.0)},
    **{f"Langevin_noise_{s:g},4_steps": steps_of(4, thinking__noise=s) for s in (0.3, 1.0)},
    **{f"momentum_{b:g},4_steps": steps_of(4, thinking__momentum=b) for b in (0.5, 0.9)},
  }
  keep = {**SHORT, **S1, **RESIDUAL, "thinking.start": "context", "train.steps": steps}
  return sweep.runs(S2, sweep.named(several), keep)


def ablation(steps: int = 200) -> list[sweep.Run]:
  """Table 2: System 2 without one regulariser each, three seeds."""
  return sweep.runs(S2, sweep.product(sweep.named(LEFT_OUT), SEEDS), {**SHORT, "train.steps": steps})


def residual_ablation(steps: int = 200) -> list[sweep.Run]:
  """The same of a residual energy."""
  return sweep.runs(S2, sweep.product(sweep.named(LEFT_OUT), SEEDS), {**SHORT, **RESIDUAL, "train.steps": steps})


SETS = {make.__name__: make for make in (recipes, models, ablation, residual, controls, later, residual_ablation)}


def main(argv: list[str]) -> int:
  """Exit code: 0 all runs are done, 1 runs have failed, 128 + signal asked to end."""
  return train_sets(argv, "thinking", SETS, __doc__)


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
