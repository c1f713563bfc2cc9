"""The folder of a run: who may write it, opening what it holds, starting from another's parameters, its final result.

A folder holds `config.json`, `metrics.jsonl`, `tensorboard/`, `checkpoints/`, a sample where the task has one, and
at the end `final_result.json`.
"""

import dataclasses
import math
import pathlib
import platform
import subprocess
from typing import Any, NamedTuple

import jax
import numpy as np

from ebt_jax import config as config_lib
from ebt_jax import files, metrics, parallel
from ebt_jax.checkpoint import CheckpointError, Checkpoints
from ebt_jax.config import Config, ConfigError
from ebt_jax.tasks import registry
from ebt_jax.tasks.base import Task

RESULT = "final_result.json"


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
  path = pathlib.Path(workdir).expanduser() / "config.json"
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
    workdir: folder of the run.
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
  task = registry.make(config, parallel.shards_of(mesh))
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
  folder = pathlib.Path(files.local(config.init_from, "config.init_from"))
  if not (folder / "config.json").exists():
    raise ConfigError(f"config.init_from: {folder} holds no run (no config.json); give the folder of a trained run")
  there = open_run(folder, mesh=mesh)
  mine, theirs = _by_path(params), _by_path(there.params)
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


def claim(folder: pathlib.Path, config: Config) -> dict[str, Any] | None:
  """Makes `folder`; refuses one that holds a run of another config.

  Returns:
    The final result of a run that is finished; None where there is something to train. A finished run that is asked for
    more steps is none; its result is kept as `final_result_stepN.json`.
  """
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except (FileExistsError, NotADirectoryError) as e:
    raise ConfigError(f"--workdir: {folder} is not a folder; choose another name") from e
  path, done = folder / "config.json", folder / RESULT
  if path.exists():
    found = config_lib.load(path)
    differ = config_lib.differences(found, config)
    if differ and _has_trained(folder):  # a run that failed before it saved anything does not hold its folder
      raise ConfigError(
        f"--workdir: {folder} holds a run of another config; give another folder. It differs in (there -> here):\n  "
        + "\n  ".join(differ)
      )
  if not done.exists():
    return None
  result = files.read_json(done, "a final result", "delete it: the same command then ends the run again")
  if result["steps"] == config.train.steps:
    return result
  if result["steps"] > config.train.steps:
    raise ConfigError(
      f"config.train.steps: {folder} holds a finished run of {result['steps']} steps, more than {config.train.steps}; "
      "give another folder, or more steps"
    )
  if jax.process_index() == 0:
    done.rename(folder / f"final_result_step{result['steps']}.json")
  return None


def _has_trained(folder: pathlib.Path) -> bool:
  """Whether a folder holds a row of metrics, a checkpoint or a result."""
  rows = folder / metrics.FILE
  checkpoints = (folder / "checkpoints").glob("[0-9]*")
  return (folder / RESULT).exists() or (rows.exists() and rows.stat().st_size > 0) or any(checkpoints)


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
    "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
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
  try:
    found = subprocess.run(command, cwd=here, capture_output=True, text=True)
  except OSError:  # git is not installed
    return ""
  return found.stdout.strip() if found.returncode == 0 else ""
