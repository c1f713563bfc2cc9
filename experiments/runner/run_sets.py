"""The command line that trains named sets of runs: what is not finished yet, in a pool, resumable."""

from collections.abc import Callable, Mapping
import contextlib
import pathlib

from ebt_jax import cli, sweep
from ebt_jax.config import ConfigError, near
from experiments.runner import launch, pool
from experiments.runner.screen import Screen


def train(
  argv: list[str], sets: Mapping[str, Callable[..., list[sweep.Run]]], program: str, about: str, workdir: str
) -> int:
  """Trains the runs of the sets that `argv` names, each in `WORKDIR/SET/runs/NAME`.

  Args:
    sets: functions of the number of training steps, with a default.
    program, about: name and description of the command.
    workdir: default of its flag.

  Returns:
    Exit code: 0 all runs are done, 1 runs have failed, 128 + signal asked to end.
  """
  parser = cli.Parser(prog=program, description=about.split("\n")[0])
  parser.add_argument("--set", default=",".join(sets))
  parser.add_argument("--workdir", type=cli.path, default=pathlib.Path(workdir))
  parser.add_argument("--jobs", type=cli.at_least(1), default=2)
  parser.add_argument("--steps", type=cli.at_least(0), default=0, help="of training of every run; 0: as the set says")
  parser.add_argument("--dry_run", action="store_true")
  args = parser.parse_args(argv)
  named, waiting = dict.fromkeys(args.set.split(",")), []
  for name in named:
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
      for name in named:
        owned.enter_context(launch.own(args.workdir / name))
      pool.train(waiting, slots, Screen().show)
  except pool.Stopped as e:
    return 128 + e.number
  failed = [p for p in waiting if p.state == "failed"]
  for p in failed:
    print(f"failed: {p.task.run.name}: {p.failure}\n  {p.task.log}")
  return int(bool(failed))
