"""The folder of a run: who may write it, opening what it holds, starting from another's parameters, its final result.

A folder holds `config.json`, `data.json` and the problem's files (see `record`), `metrics.jsonl`, `tensorboard/`,
`checkpoints/`, `saved.json` (the step of the newest checkpoint), `tracker.json` where rows go to one, a sample where
the task has one, and at the end `final_result.json`; while it is trained also `owner.json`.
What another course of the run has left keeps another name: `*.old*`, `*_stepN.json`, `config_until_stepN.json`.
"""

from collections.abc import Callable, Iterator
import contextlib
import dataclasses
import importlib.metadata
import logging
import math
import os
import pathlib
import platform
import subprocess
from typing import Any, NamedTuple

import jax
from jax.experimental import multihost_utils
import numpy as np

from ebt_jax import config as config_lib
from ebt_jax import files, metrics, parallel, record, remote, trackers, weights
from ebt_jax.checkpoint import CheckpointError, Checkpoints
from ebt_jax.config import Config, ConfigError
from ebt_jax.errors import UserError
from ebt_jax.owner import Owner
from ebt_jax.record import CONFIG
from ebt_jax.tasks import registry
from ebt_jax.tasks.base import Task

RESULT, SAVED = "final_result.json", "saved.json"

log = logging.getLogger(__name__)


class Run(NamedTuple):
  """A trained run: `step` is that of the checkpoint that its parameters come from."""

  config: Config
  task: Task
  params: Any
  step: int
  folder: pathlib.Path


def config_of(workdir: str | pathlib.Path) -> Config:
  """The config that a run was trained with, for use on the devices that are here.

  Raises:
    ConfigError: there is no run.
  """
  path = pathlib.Path(workdir).expanduser() / CONFIG
  if not path.exists():
    raise ConfigError(f"--workdir: {workdir} holds no run (no config.json); train one there first, or name its folder")
  return dataclasses.replace(config_lib.load(path), mesh=config_lib.MeshConfig())


def open_run(
  workdir: str | pathlib.Path,
  step: int | None = None,
  config: Config | None = None,
  mesh: jax.sharding.Mesh | None = None,
) -> Run:
  """A run with the parameters of one of its checkpoints; neither optimiser nor replay buffer is read.

  Args:
    workdir: folder of the run, or one that was exported.
    step: of the checkpoint; None: the newest that is intact.
    config: how to use the run, such as with more thinking steps; None: as it was trained.
    mesh: where the parameters go; None: the first device.

  Raises:
    ConfigError: there is no run.
    CheckpointError: there is no checkpoint, none is intact, or it is of another model.
  """
  folder = pathlib.Path(workdir).expanduser()
  if config is None:
    config = config_of(folder)
  if mesh is None:
    mesh = parallel.make_mesh(config_lib.MeshConfig(data=1), jax.devices()[:1])
  task = registry.make(config, parallel.shards_of(mesh), record.kept(folder))
  if (folder / weights.FILE).exists():
    at, params = weights.read(folder, abstract_params(task, mesh))
    if step not in (None, at):
      raise CheckpointError(f"--checkpoint_step: {folder} was exported at step {at}, and has no step {step}")
    return Run(task.config, task, params, at, folder)
  with Checkpoints(folder / "checkpoints", config.checkpoint) as checkpoints:
    found = checkpoints.restore({"params": abstract_params(task, mesh)}, step)
  if found is None:
    raise CheckpointError(f"{folder / 'checkpoints'}: no checkpoint; train first, with the same --workdir")
  return Run(task.config, task, found[1]["params"], found[0], folder)


def abstract_params(task: Task, mesh: jax.sharding.Mesh) -> Any:
  """Shapes, types and shardings of a task's parameters."""
  shapes = jax.eval_shape(task.init, jax.random.key(0))

  def placed(shape, sharding):
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

  # rules of shardings go by the path within a training state
  return jax.tree.map(placed, shapes, parallel.shardings({"params": shapes}, mesh)["params"])


def warm_start(config: Config, params: Any, mesh: jax.sharding.Mesh) -> Any:
  """`params` with those of the run `config.init_from`, but for what `config.init_skip` names.

  Raises:
    ConfigError: parameters are missing, extra, or of another shape, and not named in `init_skip`.
  """
  skip = tuple(part.strip() for part in config.init_skip.split(",") if part.strip())
  there = config.init_from
  folder = remote.folder_of(there) if files.is_remote(there) else pathlib.Path(files.local(there, "config.init_from"))
  if not (folder / CONFIG).exists():
    raise ConfigError(f"config.init_from: {folder} holds no run (no config.json); give the folder of a trained run")
  run = open_run(folder, mesh=mesh)
  record.warn_of_other_files(config, run.folder)
  mine, theirs = _by_path(params), _by_path(run.params)
  unknown = [s for s in skip if not any(_within(path, s) for path in (*mine, *theirs))]
  if unknown:
    raise ConfigError(f"config.init_skip: no parameter {unknown[0]!r}; {config_lib.near(unknown[0], {*mine, *theirs})}")
  wanted = [path for path in {**mine, **theirs} if not any(_within(path, s) for s in skip)]
  problems = [line for path in wanted if (line := _mismatch(path, mine.get(path), theirs.get(path)))]
  if problems:
    shown = "\n  ".join(problems[:8]) + (f"\n  and {len(problems) - 8} more" if len(problems) > 8 else "")
    paths = ",".join(line.partition(":")[0] for line in problems[:8])
    raise ConfigError(
      f"config.init_from: {config.init_from} does not fit this model:\n  {shown}\nset "
      f"config.init_skip={paths} to leave these as they are initialised"
    )

  def choose(path, own):
    name = parallel.path_name(path)
    return own if any(_within(name, s) for s in skip) else theirs[name].astype(own.dtype)

  return jax.tree_util.tree_map_with_path(choose, params)


def _by_path(tree: Any) -> dict[str, Any]:
  return {parallel.path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _within(path: str, prefix: str) -> bool:
  return path == prefix or path.startswith(prefix.rstrip("/") + "/")


def _mismatch(path: str, mine: Any, theirs: Any) -> str:
  if theirs is None:
    return f"{path}: missing there, expected {list(mine.shape)} here"
  if mine is None:
    return f"{path}: {list(theirs.shape)} there, not in this model"
  return "" if mine.shape == theirs.shape else f"{path}: {list(theirs.shape)} there, expected {list(mine.shape)}"


@contextlib.contextmanager
def owned(folder: pathlib.Path) -> Iterator[None]:
  """Process 0 owns the folder of a run while all processes train it; all raise ConfigError if another run does."""
  with _by_main(lambda: Owner(folder), f"--workdir: {folder} cannot be written") or contextlib.nullcontext():
    yield


def begin_mirror(mirror: remote.Mirror, folder: pathlib.Path) -> None:
  """Process 0 fetches the run of a mirror where the folder holds none; all raise UserError if it is refused."""

  def begin():
    with Owner(folder):
      return mirror.begin()

  if said := _by_main(begin, "--mirror: cannot be used"):
    print(said, flush=True)


def _by_main(call: Callable[[], Any], failure: str) -> Any:
  """What a call on process 0 gives, which the others wait for; all raise UserError where it does."""
  refused, found = None, None
  if jax.process_index() == 0:
    try:
      found = call()
    except UserError as e:
      refused = e
  if jax.process_count() > 1 and multihost_utils.broadcast_one_to_all(np.int32(refused is not None)):
    refused = refused or ConfigError(f"{failure}; see what process 0 says")
  if refused:
    raise refused
  return found


def claim(folder: pathlib.Path, config: Config) -> dict[str, Any] | None:
  """Refuses a folder that holds a run of another config, or one that has been trained further.

  Returns:
    The final result of a run that is finished; None where there is something to train, as where a finished run is asked
    for more steps.
  """
  if (folder / weights.FILE).exists():
    raise ConfigError(
      f"--workdir: {folder} is an exported model, which is not trained further in place; give another folder, and "
      f"--config.init_from={folder} to start with its parameters"
    )
  result = _result(folder)
  finished = result is not None and result["steps"] == config.train.steps  # then no data are read
  if (folder / CONFIG).exists():
    found = config_lib.load(folder / CONFIG)
    differ = config_lib.differences(found, config, places=finished or not record.compares_data(folder))
    if differ and has_trained(folder):
      raise ConfigError(
        f"--workdir: {folder} holds a run of another config; give another folder. It differs in (there -> here):\n  "
        + "\n  ".join(differ)
      )
  if result is None or result["steps"] < config.train.steps:
    return None
  if result["steps"] > config.train.steps:
    raise ConfigError(
      f"config.train.steps: {folder} holds a finished run of {result['steps']} steps, more than {config.train.steps}; "
      "give another folder, or more steps"
    )
  return result


def _result(folder: pathlib.Path) -> dict[str, Any] | None:
  """What `final_result.json` holds; None where there is none."""
  path, fix = folder / RESULT, "put it back from a copy, or delete it: the same command then ends the run again"
  if not path.exists():
    return None
  result = files.read_json(path, "a final result", fix)
  if not isinstance(result.get("steps"), int):
    raise ConfigError(f"{path}: cannot be read as a final result (no number of steps); {fix}")
  return result


def note_saved(folder: pathlib.Path, step: int) -> None:
  """Remembers that there is a checkpoint, so that one that is gone is missed."""
  files.write_json(folder / SAVED, {"step": step})


def check_start(folder: pathlib.Path, config: Config, start: int | None) -> None:
  """Refuses to begin, where that would lose or confuse what a run has said.

  Args:
    folder: of the run.
    config: of the run from here on.
    start: the step of the checkpoint that it goes on from; None: it starts anew.

  Raises:
    ConfigError: the run stands at a later step than it is asked for, or its checkpoints are gone.
    MetricsError: its rows cannot be read.
  """
  if start is None and (_result(folder) or (folder / SAVED).exists()):
    raise ConfigError(
      f"{folder / 'checkpoints'}: no checkpoint, but this run has saved some; put them back, or give another folder; "
      f"to train again from step 0, delete {SAVED} and {RESULT} there"
    )
  if (start or 0) > config.train.steps:
    raise ConfigError(
      f"config.train.steps: {folder} has been trained to step {start} already, more than {config.train.steps}; give "
      "more steps, or another folder"
    )
  metrics.read_rows(folder / metrics.FILE)


def begin(folder: pathlib.Path, config: Config, start: int) -> None:
  """Writes `config.json`. What the folder has said of another course of the run gets another name.

  Args:
    folder: of the run, owned by this process, the only one that calls this.
    config: of the run from here on.
    start: the step that it goes on from.
  """
  rows = [] if start else metrics.read_rows(folder / metrics.FILE)
  if rows:
    kept = files.set_aside(folder / metrics.FILE, ".old")
    files.set_aside(folder / "tensorboard", ".old")
    files.set_aside(folder / trackers.FILE, ".old")
    log.warning(
      "%s: has rows up to step %d, but there is no checkpoint of that run: training starts at step 0, and the old rows "
      "are kept as %s", folder / metrics.FILE, rows[-1]["step"], kept.name
    )  # fmt: skip
  if result := _result(folder):  # more steps
    files.set_aside(folder / RESULT, f"_step{result['steps']}")
    files.set_aside(folder / "sample.json", f"_step{result['steps']}")
  before = folder / CONFIG
  if start and before.exists() and config_lib.load(before) != config:  # evaluated otherwise, or on other devices
    kept = files.unused(folder / f"config_until_step{start}.json")
    files.replace_text(kept, before.read_text(encoding="utf-8"))
  files.write_json(folder / CONFIG, config.to_dict())


def has_trained(folder: pathlib.Path) -> bool:
  """Whether a folder holds a row of metrics, a checkpoint or a result: a run that failed before does not hold it."""
  rows = folder / metrics.FILE
  checkpoints = (folder / "checkpoints").glob("[0-9]*")
  said = any((folder / name).exists() for name in (SAVED, RESULT))
  return said or (rows.exists() and rows.stat().st_size > 0) or any(checkpoints)


def count_parameters(task: Task, params: Any) -> tuple[int, int]:
  """All parameters, and those that are not in the task's look-up tables."""
  sizes = {k: sum(math.prod(a.shape) for a in jax.tree.leaves(v)) for k, v in params["model"].items()}
  inner = sum(math.prod(a.shape) for a in jax.tree.leaves(params.get("thinking", {})))
  total = sum(sizes.values()) + inner
  return total, total - sum(n for name, n in sizes.items() if name in task.tables())


def final_result(task: Task, params: Any, *, items: float, clock: Any, skipped: int, evals: dict, data: dict) -> dict:
  """What `final_result.json` holds.

  Args:
    items: trained on.
    clock: of the run.
    evals: the evaluator's result of each held-out set, by name; the first is `eval`, the others are in `evals`.
    data: summary of the data.
  """
  config, problem = task.config, task.problem
  total, blocks = count_parameters(task, params)
  cost = task.flops()
  name, *others = evals
  return {
    "task": config.task,
    "kind": config.model.kind,
    "model": config.to_dict()["model"],
    "params": total,
    "params_non_embedding": blocks,
    "steps": config.train.steps,
    "item": problem.item,
    "items": round(items),
    "flops": float(cost.row["total"]) * config.train.steps * rows_of_step(config),
    "flops_paper": None if cost.paper is None else cost.paper * blocks * items,
    "wall_seconds": clock.wall_seconds,
    "train_seconds": clock.train_seconds,
    "skipped_steps": skipped,
    "headline": problem.headline,
    "unit": problem.unit,
    "eval": evals[name],
    "evals": {other: evals[other] for other in others},
    "data": data,
    "versions": {
      "ebt_jax": importlib.metadata.version("ebt_jax"),
      "python": platform.python_version(),
      "jax": jax.__version__,
      "numpy": np.__version__,
    },
    "devices": jax.device_count(),
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "git": _git(),
  }


def write_result(folder: pathlib.Path, result: dict[str, Any]) -> None:
  files.write_json(folder / RESULT, result)


def rows_of_step(config: Config) -> int:
  """Rows of a training step: the batch, and what is replayed beside it."""
  return config.train.batch_size + config.replayed_rows


def _git() -> str:
  """The commit of this program; empty where it is not run from its own repository."""
  here = pathlib.Path(__file__).resolve().parent
  if not (here.parent / ".git").exists():
    return ""
  command = ["git", "describe", "--always", "--dirty"]
  env = {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}  # hooks name another repository there
  try:
    found = subprocess.run(command, cwd=here, env=env, capture_output=True, text=True)
  except OSError:  # git is not installed
    return ""
  return found.stdout.strip() if found.returncode == 0 else ""
