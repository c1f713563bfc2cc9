"""Runs a scaling study: trains missing runs, continues interrupted ones, and leaves finished ones alone.

  python -m experiments.scaling.run --study=quick --workdir=runs/scaling_quick --jobs=2
  python -m experiments.scaling.report runs/scaling_quick

The folder of a study holds `study.json`, `runs/NAME/` (written by `ebt_jax.main`), `logs/NAME.log` and, whenever the
sweep ends, `points.jsonl`. The sweep may be killed at any moment; the same command continues it. A run whose last point
is in `points.jsonl` is done, even where its folder is not there: with `study.json` and `points.jsonl` alone a study
can be continued in a new folder.
"""

import argparse
import ast
from collections.abc import Iterable, Sequence
import pathlib
import shlex
import shutil
import sys
from typing import Any

from ebt_jax import cli, files, metrics, sweep
from ebt_jax import config as config_lib
from ebt_jax.config import ConfigError
from ebt_jax.errors import together
from experiments.runner import launch, pool
from experiments.runner.launch import Slot, Task
from experiments.runner.screen import Screen
from experiments.scaling import points, studies


def describe(
  study: studies.Study, series: dict[str, str], plan: dict[str, dict[str, list[sweep.Run]]]
) -> dict[str, Any]:
  """The content of `study.json`: all that the report needs, and enough to notice that a study has changed."""
  by_name = {}
  for of_axis in plan.values():
    for run in (run for runs in of_axis.values() for run in runs):
      overrides = dict(run.overrides)
      by_name[run.name] = {
        "series": run.series,
        "config": run.config,
        "overrides": overrides,
        "level": run.level,
        "seed": overrides["seed"],
      }
  axes = [
    {
      "name": a.name,
      "title": a.title,
      "x": a.x,
      "y": a.y,
      "curve": a.curve,
      "runs": {label: [r.name for r in runs] for label, runs in plan[a.name].items()},
    }
    for a in study.axes
  ]
  return {"study": study.name, "about": study.about, "series": series, "axes": axes, "runs": by_name}


def claim_study(folder: pathlib.Path, described: dict[str, Any]) -> None:
  """Writes `study.json`. Refuses a folder that holds a run of the same name but with other values."""
  path = folder / points.STUDY
  if path.exists():
    archived = points.archived(folder)
    for name, run in points.read_study(folder)["runs"].items():
      now = described["runs"].get(name)
      if now and now != run and ((folder / "runs" / name).exists() or name in archived):
        there, here = ({**r, **r["overrides"]} for r in (run, now))
        differ = sorted(k for k in {**there, **here} if k != "overrides" and there.get(k) != here.get(k))
        raise ConfigError(
          f"--workdir: {folder} holds run {name} with other values of {', '.join(differ)}; "
          f"give another folder, or delete {folder / 'runs' / name} and its rows in {points.FILE}"
        )
  folder.mkdir(parents=True, exist_ok=True)
  files.write_json(path, described)


def overrides(assignments: Iterable[str]) -> dict[str, Any]:
  """Key -> value of `--set`, typed as the keys are. Raises ConfigError about all that are wrong at once."""
  out = {}

  def put(assignment):
    key, value = config_lib.key_value(assignment)
    out[key] = value

  together(ConfigError, put, assignments)
  return out


def slurm_parameter(text: str) -> tuple[str, Any]:
  """`KEY=VALUE` of `--slurm`. A value that reads as a Python literal, such as a number or a boolean, becomes one."""
  key, equals, value = text.partition("=")
  if not equals:
    raise ConfigError(f"--slurm: expected KEY=VALUE, found {text!r}")
  try:
    return key, ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return key, value


def joined(study: studies.Study, flags: Sequence[str]) -> dict[str, str]:
  """The series of the study and those of `--join`: label -> config file. Raises ConfigError where a label is taken."""
  series = dict(study.series)
  for text in flags:
    label, equals, config = text.partition("=")
    if not (equals and label and config):
      raise ConfigError(f"--join: expected LABEL=FILE[:ARG], found {text!r}")
    if label in series:
      raise ConfigError(
        f"--join: the label {label!r} is taken by {series[label]}; give another label, such as {label}2={config}"
      )
    if label.startswith("_") or "$" in label:
      raise ConfigError(f"--join: the label {label!r} begins with _ or holds $, which figures read as a command")
    if not label.isprintable() or label != label.strip():
      raise ConfigError(
        f"--join: the label {label!r} begins or ends with a space, or holds a character without a shape"
      )
    series[label] = files.local(config, "--join")
  return series


def arguments(argv: list[str]) -> argparse.Namespace:
  parser = cli.Parser(prog="experiments.scaling.run", description=__doc__.splitlines()[0])
  parser.add_argument(
    "--study", required=True, help="tiny, quick, laptop (studies.py), or your own: package.module:function"
  )
  parser.add_argument("--workdir", required=True, type=cli.path, help="folder of the study")
  parser.add_argument(
    "--jobs", type=cli.at_least(1), default=1, help="runs that train at once, each on its share of the cores"
  )
  parser.add_argument(
    "--gpus", type=cli.at_least(0), default=0, help="GPUs that the jobs share: the first of CUDA_VISIBLE_DEVICES"
  )
  parser.add_argument("--axes", default="", help="train the runs of these axes only, comma-separated; default: all")
  parser.add_argument(
    "--join", action="append", default=[], metavar="LABEL=FILE[:ARG]", help="add a config file as a series"
  )
  parser.add_argument(
    "--set", action="append", default=[], metavar="KEY=VALUE", help="set a config key of all runs, not one of an axis"
  )
  parser.add_argument(
    "--launcher", default="", help="words before each command, e.g. tools/launch/tpu_pod.sh NAME ZONE"
  )
  parser.add_argument("--slurm", nargs="*", metavar="KEY=VALUE", help="submit a Slurm array; parameters of submitit")
  parser.add_argument("--dry_run", action="store_true", help="print what would be started, and start nothing")
  return parser.parse_args(argv)


def check_flags(args: argparse.Namespace) -> None:
  """Raises ConfigError about flags of which one would have no effect beside the other."""
  if args.launcher and args.slurm is not None:
    raise ConfigError("--slurm: tasks of an array have no --launcher; leave one of the two out")
  if args.gpus and (args.launcher or args.slurm is not None):
    other = "--launcher" if args.launcher else "--slurm"
    raise ConfigError(f"--gpus: shares the GPUs of this machine, and {other} runs elsewhere; leave one of the two out")


def launcher_words(text: str) -> list[str]:
  """The words of `--launcher`. Raises ConfigError where a quote is open, or the first word is no program."""
  try:
    words = shlex.split(text)
  except ValueError as e:
    raise ConfigError(f"--launcher: {text!r} cannot be split into words ({e})") from e
  if words and not shutil.which(words[0]):
    raise ConfigError(f"--launcher: no program {words[0]!r} is found; give its path, and make it executable")
  return words


def main(argv: list[str]) -> int:
  """Exit code: 0 all runs are done, 1 runs have failed, 2 wrong flags or config, 128 + signal asked to end."""
  args = arguments(argv)
  check_flags(args)
  study = studies.get(args.study)
  series = joined(study, args.join)
  extra = overrides(args.set)
  plan = study.runs(series, extra)
  chosen = args.axes.split(",") if args.axes else list(plan)
  for name in chosen:
    if name not in plan:
      raise ConfigError(f"--axes: no axis {name!r} in study {study.name}; {config_lib.near(name, plan)}")
  study.check_extra(extra, chosen)
  runs = sweep.unique(r for name in chosen for rs in plan[name].values() for r in rs).values()
  archived, launcher = points.archived(args.workdir), launcher_words(args.launcher)
  # every mistake in a config is found here, before the first run starts
  all_ = pool.progress([Task(run, args.workdir, launcher) for run in runs if run.name not in archived])
  # seed by seed, so that a sweep that is stopped early has whole curves of the first seeds
  all_.sort(key=lambda p: (p.task.run.overrides["seed"], p.cost))
  missing = [p for p in all_ if not p.task.done]
  if n := len(runs) - len(all_):
    print(f"# {n} runs have their points, but no folder, in {args.workdir / points.FILE}: they are done", flush=True)
  slots = launch.slots(args.jobs, args.gpus)
  if args.dry_run:
    where = (
      f"Slurm array, {args.jobs} at once: {' '.join(args.slurm)}" if args.slurm is not None else f"{args.jobs} at once"
    )
    left = metrics.si(sum(p.cost for p in missing))
    print(f"# {len(runs) - len(missing)} of {len(runs)} runs are done; {left}FLOPs to go; {where}")
    for i, p in enumerate(missing):
      print(p.task.shown(slots[i % len(slots)] if args.slurm is None and not args.launcher else Slot()))
    return 0
  with launch.own(args.workdir):
    claim_study(args.workdir, describe(study, series, plan))
    if args.slurm is not None:
      parameters = dict(map(slurm_parameter, args.slurm))
      jobs = launch.slurm([p.task for p in missing], args.workdir, args.jobs, parameters) if missing else []
      then = f"python -m experiments.scaling.points {args.workdir}, then report"
      print(f"{len(jobs)} tasks submitted; afterwards: {then}")
      return 0
    if args.launcher:
      slots = [Slot() for _ in slots]  # runs on other machines are not confined to cores of this one
    stopped = 0
    try:
      pool.train(all_, slots, Screen().show)
    except pool.Stopped as e:
      stopped = e.number
    found = points.collect(args.workdir)
  failed = [p for p in all_ if p.state == "failed"]
  for p in failed:
    print(f"failed: {p.task.run.name}: {p.failure}\n  {p.task.log}")
  print(
    f"{len(found)} points in {args.workdir / points.FILE}; next: python -m experiments.scaling.report {args.workdir}"
  )
  return 128 + stopped if stopped else int(bool(failed))


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
