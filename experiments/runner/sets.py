"""Trains the runs of a study that are given as named sets, and not finished yet."""

from collections.abc import Callable, Mapping
import contextlib
import pathlib

from ebt_jax import cli
from ebt_jax.config import ConfigError, near
from ebt_jax.sweep import Run
from experiments.runner import launch, pool
from experiments.runner.screen import Screen


def train_sets(argv: list[str], study: str, sets: Mapping[str, Callable[..., list[Run]]], about: str) -> int:
  """Exit code: 0 all runs are done, 1 runs have failed, 128 + signal asked to end.

  Args:
    study: the folder below `experiments/`.
    sets: name -> a function of the number of training steps (with a default) that makes its runs.
  """
  parser = cli.Parser(prog=f"experiments.{study}.train", description=about.split("\n")[0])
  parser.add_argument("--set", default=",".join(sets))
  parser.add_argument("--workdir", type=cli.path, default=pathlib.Path(f"runs/{study}"))
  parser.add_argument("--jobs", type=cli.at_least(1), default=2)
  parser.add_argument("--steps", type=cli.at_least(0), default=0, help="of training of every run; 0: as the set says")
  parser.add_argument("--dry_run", action="store_true")
  args = parser.parse_args(argv)
  chosen, waiting = dict.fromkeys(args.set.split(",")), []
  for name in chosen:
    if name not in sets:
      parser.error(f"--set: no set {name!r}; {near(name, sets)}")
    for run in sets[name](args.steps) if args.steps else sets[name]():
      waiting.append(launch.Task(run, args.workdir / name))
  for task in waiting:
    task.check()
  try:
    waiting = pool.progress(waiting)
  except ConfigError as e:
    raise ConfigError(f"--steps={args.steps}: {e}") from e
  slots = launch.slots(args.jobs)
  if args.dry_run:
    print(*(p.task.shown(slots[i % len(slots)]) for i, p in enumerate(waiting) if not p.task.done), sep="\n")
    return 0
  try:
    with contextlib.ExitStack() as owned:
      for name in chosen:
        owned.enter_context(launch.own(args.workdir / name))
      pool.train(waiting, slots, Screen().show)
  except pool.Stopped as e:
    return 128 + e.number
  failed = [p for p in waiting if p.state == "failed"]
  for p in failed:
    print(f"failed: {p.task.run.name}: {p.failure}\n  {p.task.log}")
  return int(bool(failed))
