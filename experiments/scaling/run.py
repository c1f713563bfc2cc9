"""Runs a study of scaling: what is missing is trained, what was cut off goes on, what is done is left alone.

  python -m experiments.scaling.run --study=quick --workdir=runs/scaling_quick --jobs=2
  python -m experiments.scaling.report runs/scaling_quick

The folder of a study holds `study.json`, `runs/NAME/` (what `ebt_jax.main` leaves), `logs/NAME.log` and, whenever the
sweep ends, `points.jsonl`. It may be killed at any moment; the same command continues. A run whose last point is in
`points.jsonl` is done, whether its folder is still there or not: the two files are enough to go on in a new folder.
"""

import argparse
import ast
import collections
import dataclasses
import json
import os
import pathlib
import shlex
import signal
import subprocess
import sys
import time
from typing import Any

from ebt_jax import config as config_lib
from ebt_jax import flops, metrics, sweep
from ebt_jax.chrono import duration
from ebt_jax.config import Config, ConfigError
from ebt_jax.data.tokenizers import load_tokenizer
from experiments.scaling import launch, points, studies
from experiments.scaling.launch import Slot, Task

_TICK = 0.5  # seconds between looks at the processes
_GRACE = 120  # seconds that runs have to save when the sweep is asked to end


class Stopped(Exception):
  """The sweep has been asked to end."""


@dataclasses.dataclass
class Progress:
  """Where one run stands: waiting, running, elsewhere (another process trains it), done or failed."""

  task: Task
  cost: float  # FLOPs of the whole run
  steps: int
  state: str = "waiting"
  slot: Slot | None = None
  process: subprocess.Popen | None = None
  started: float = 0.0
  step: int = 0
  loss: float | None = None
  why: str = ""

  def look(self) -> None:
    """Reads step and loss from the end of the run's metrics."""
    path = self.task.workdir / metrics.FILE
    try:
      with open(path, "rb") as f:
        f.seek(max(0, os.path.getsize(path) - 8192))
        lines = f.read().splitlines()[1:]
    except OSError:
      return
    for line in reversed(lines):
      try:
        row = json.loads(line)
        self.step, self.loss = row["step"], row.get("train/final_loss", row.get("eval/loss"))
        return
      except (ValueError, KeyError):  # a line that is being written
        continue


def eta(all_: list[Progress], now: float, jobs: int) -> float:
  """Seconds to go: FLOPs left over the speed of what has been trained, of the same series where that is known."""
  spent: dict[str, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
  for p in all_:
    part = 1.0 if p.state == "done" else p.step / p.steps
    seconds = wall_seconds(p.task) if p.state == "done" else now - p.started if p.state == "running" else 0.0
    if part and seconds:
      for name in ("", p.task.run.config):
        spent[name][0] += seconds
        spent[name][1] += part * p.cost
  if not spent[""][1]:
    return float("nan")
  left = 0.0
  for p in all_:
    if p.state in ("waiting", "running"):
      seconds, done = spent[p.task.run.config] if spent[p.task.run.config][1] else spent[""]
      left += (1 - p.step / p.steps) * p.cost * seconds / done
  return left / jobs


def wall_seconds(task: Task) -> float:
  return json.loads((task.workdir / "final_result.json").read_text(encoding="utf-8"))["wall_seconds"]


def table(all_: list[Progress], now: float, jobs: int) -> str:
  """What is going on: one line for each run that goes or failed, and a line of counts."""
  count = collections.Counter(p.state for p in all_)
  lines = []
  for p in all_:
    if p.state in ("running", "elsewhere"):
      loss = "" if p.loss is None else f"loss {p.loss:.4f}"
      where = duration(now - p.started) if p.state == "running" else "by another process"
      lines.append(f"  {p.task.run.name:<52} step {p.step:>6}/{p.steps:<6} {loss:<12} {where}")
    elif p.state == "failed":
      lines.append(f"  {p.task.run.name:<52} FAILED: {p.why[:90]}")
  counts = ", ".join(f"{count[s]} {s}" for s in ("done", "running", "elsewhere", "waiting", "failed") if count[s])
  return "\n".join([*lines, f"{counts}; ETA {duration(eta(all_, now, jobs))}"])


class Screen:
  """Draws the table anew on a terminal; elsewhere prints it now and then, and whenever a run starts or ends."""

  def __init__(self, out=sys.stdout, every: float = 60.0):
    self._out, self._every, self._height, self._last, self._states = out, every, 0, 0.0, None

  def show(self, text: str, states: Any, now: float) -> None:
    if self._out.isatty():
      self._out.write((f"\x1b[{self._height}F\x1b[J" if self._height else "") + text + "\n")
      self._height = text.count("\n") + 1
    elif states != self._states or now - self._last >= self._every:
      self._out.write(text + "\n")
      self._last, self._states = now, states
    self._out.flush()


def train(all_: list[Progress], slots: list[Slot], screen: Screen) -> None:
  """Trains what is missing in the given slots. Raises Stopped at SIGTERM or Ctrl-C, after its runs have saved."""
  free = list(slots)
  try:
    while True:
      for p in all_:
        _advance(p, free)
      now = time.time()
      screen.show(table(all_, now, len(slots)), [p.state for p in all_], now)
      if all(p.state in ("done", "failed") for p in all_):
        return
      time.sleep(_TICK)
  except (KeyboardInterrupt, Stopped):
    _end(all_)
    raise Stopped from None


def _advance(p: Progress, free: list[Slot]) -> None:
  """One look at one run: takes note of its end, or starts it where a slot is free."""
  if p.state in ("done", "failed"):
    return
  if p.process is not None:
    code = p.process.poll()
    p.look()
    if code is None:
      return
    free.append(p.slot)
    p.process = None
    if not p.task.done:
      p.state, p.why = "failed", f"exit code {code}: {p.task.why()}"
      return
  if p.task.done:
    p.state, p.step = "done", p.steps
  elif free or p.state == "elsewhere":
    lock = p.task.lock()
    if lock is None:
      p.state = "elsewhere"
      p.look()
    elif free:
      p.slot = free.pop(0)
      p.process, p.state, p.started = p.task.start(p.slot, lock), "running", time.time()
    else:
      lock.close()
      p.state = "waiting"


def _end(all_: list[Progress]) -> None:
  """Asks running processes to save and end, and waits for them."""
  going = [p for p in all_ if p.process is not None]
  print(f"\nending: {len(going)} runs save what they have", flush=True)
  for p in going:
    p.process.terminate()
  deadline = time.time() + _GRACE
  for p in going:
    try:
      p.process.wait(max(0.1, deadline - time.time()))
    except subprocess.TimeoutExpired:
      p.process.kill()


def describe(
  study: studies.Study, series: dict[str, str], plan: dict[str, dict[str, list[sweep.Run]]]
) -> dict[str, Any]:
  """What `study.json` holds: enough for the report, and to notice a study that has changed."""
  by_name = {}
  for of_axis in plan.values():
    for label, runs in of_axis.items():
      for run in runs:
        by_name[run.name] = {"series": label, "config": run.config, "overrides": dict(run.overrides)}
  names = {axis: {s: [r.name for r in runs] for s, runs in of_axis.items()} for axis, of_axis in plan.items()}
  axes = [{"name": a.name, "title": a.title, "x": a.x, "way": a.way, "runs": names[a.name]} for a in study.axes]
  return {"study": study.name, "about": study.about, "series": series, "axes": axes, "runs": by_name}


def claim(folder: pathlib.Path, described: dict[str, Any]) -> None:
  """Writes `study.json`; refuses a folder whose runs of the same name were trained otherwise."""
  path = folder / points.STUDY
  if path.exists():
    kept = points.kept(folder)
    for name, run in points.read_study(folder)["runs"].items():
      now = described["runs"].get(name)
      if now and now != run and ((folder / "runs" / name).exists() or name in kept):
        there, here = ({"config": r["config"], **r["overrides"]} for r in (run, now))
        differ = sorted(k for k in {**there, **here} if there.get(k) != here.get(k))
        raise ConfigError(
          f"--workdir: {folder} holds run {name} with other values of {', '.join(differ)}; "
          f"give another folder, or delete {folder / 'runs' / name} and its rows in {points.FILE}"
        )
  folder.mkdir(parents=True, exist_ok=True)
  metrics.write_json(path, described)


def with_vocabulary(config: Config) -> Config:
  """The config with the tokenizer's vocabulary filled in, which FLOPs depend on."""
  size = config.model.vocab_size or load_tokenizer(config.data.tokenizer).vocab_size
  return dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_size=size))


def key_value(text: str) -> tuple[str, Any]:
  """`key=value` of a flag; what reads as a Python number or boolean is one."""
  key, equals, value = text.partition("=")
  if not equals:
    raise ConfigError(f"expected KEY=VALUE, found {text!r}")
  try:
    return key, ast.literal_eval(value)
  except (ValueError, SyntaxError):
    return key, value


def arguments(argv: list[str]) -> argparse.Namespace:
  parser = argparse.ArgumentParser(prog="experiments.scaling.run", description=__doc__.splitlines()[0])
  parser.add_argument("--study", required=True, help="tiny, quick or laptop (studies.py)")
  parser.add_argument("--workdir", required=True, type=pathlib.Path, help="folder of the study")
  parser.add_argument("--jobs", type=int, default=1, help="runs that train at once, each on its share of the cores")
  parser.add_argument("--gpus", type=int, default=0, help="GPUs that the jobs share")
  parser.add_argument("--axes", default="", help="train these axes alone, comma-separated; default: all")
  parser.add_argument(
    "--join", action="append", default=[], metavar="LABEL=FILE[:ARG]", help="a config file joins as a series"
  )
  parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a config key of all runs")
  parser.add_argument(
    "--launcher", default="", help="words before each command, e.g. tools/launch/tpu_pod.sh NAME ZONE"
  )
  parser.add_argument("--slurm", nargs="*", metavar="KEY=VALUE", help="submit an array; parameters of submitit")
  parser.add_argument("--dry_run", action="store_true", help="print what would be started, start nothing")
  return parser.parse_args(argv)


def main(argv: list[str]) -> int:
  """Exit code: 0 all is done, 1 runs have failed, 2 a mistake, 143 asked to end."""
  args = arguments(argv)
  if args.jobs < 1:
    raise ConfigError(f"--jobs: expected 1 or more, found {args.jobs}")
  study = studies.get(args.study)
  series = studies.SERIES | dict(_pair(j) for j in args.join)
  plan = study.runs(series, dict(key_value(s) for s in args.set))
  chosen = args.axes.split(",") if args.axes else list(plan)
  for name in chosen:
    if name not in plan:
      raise ConfigError(f"--axes: no axis {name!r} in study {study.name}; {config_lib.near(name, plan)}")
  runs = sweep.unique(r for name in chosen for rs in plan[name].values() for r in rs).values()
  all_, kept = [], points.kept(args.workdir)
  for run in runs:
    if run.name in kept:
      continue
    config = with_vocabulary(run.resolve())  # every mistake is found before the first run starts
    task = Task(run, args.workdir, shlex.split(args.launcher))
    all_.append(Progress(task, float(config.train.steps * flops.train_step(config)), config.train.steps))
  # a sweep that is cut short has whole curves of the first seeds
  all_.sort(key=lambda p: (p.task.run.overrides.get("seed", 0), p.cost))
  missing = [p for p in all_ if not p.task.done]
  if n := len(runs) - len(all_):
    print(f"# of {n} runs only the points are here, in {args.workdir / points.FILE}: they are done", flush=True)
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
  claim(args.workdir, describe(study, series, plan))
  if args.slurm is not None:
    parameters = dict(key_value(s) for s in args.slurm)
    jobs = launch.slurm([p.task for p in missing], args.workdir, args.jobs, parameters) if missing else []
    print(f"{len(jobs)} tasks submitted; afterwards: python -m experiments.scaling.report {args.workdir}")
    return 0
  signal.signal(signal.SIGTERM, stop)
  if args.launcher:
    slots = [Slot() for _ in slots]  # what runs elsewhere is not held to cores here
  stopped = False
  try:
    train(all_, slots, Screen())
  except Stopped:
    stopped = True
  found = points.collect(args.workdir)
  failed = [p for p in all_ if p.state == "failed"]
  for p in failed:
    print(f"failed: {p.task.run.name}: {p.why}\n  {p.task.log}")
  print(
    f"{len(found)} points in {args.workdir / points.FILE}; next: python -m experiments.scaling.report {args.workdir}"
  )
  return 128 + signal.SIGTERM if stopped else int(bool(failed))


def _pair(text: str) -> tuple[str, str]:
  label, equals, config = text.partition("=")
  if not (equals and label and config):
    raise ConfigError(f"--join: expected LABEL=FILE[:ARG], found {text!r}")
  return label, config


def stop(*_) -> None:
  raise Stopped


if __name__ == "__main__":
  try:
    sys.exit(main(sys.argv[1:]))
  except ConfigError as error:
    print(f"error: {error}", file=sys.stderr)
    sys.exit(2)
