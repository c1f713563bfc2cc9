"""Which task a config names: one of this package, or a function of the user's own."""

import importlib

from ebt_jax import modules
from ebt_jax.config import Config, ConfigError
from ebt_jax.tasks.base import Kept, Task


def make(config: Config, shards: int = 1, kept: Kept | None = None) -> Task:
  """The task of a config; `task.config` has everything filled in that the data decide.

  Args:
    config: `config.task` is a known name, or `package.module:function`, a function of the config that returns a task.
    shards: parts that a mesh cuts the rows of a batch into, which decides how much one device has to hold.
    kept: what a run remembers, for a task of that run: its own copies of files count, not what the config points at.

  Raises:
    ConfigError: there is no such task, or what the function returns is no `tasks.base.Task`.
  """
  if ":" in config.task:
    return _own(config)
  module = importlib.import_module(f"ebt_jax.tasks.{config.task}")  # the config's checks refuse other names
  return module.make(config, shards, kept)


def _own(config: Config) -> Task:
  module, _, function = config.task.partition(":")
  try:
    found = getattr(modules.imported(module, "config.task"), function)
  except ModuleNotFoundError as e:
    raise ConfigError(
      f"config.task: no module {e.name!r} ({config.task}); start python where {module.split('.')[0]!r} can be imported"
    ) from e
  except AttributeError as e:
    raise ConfigError(f"config.task: {module} has no function {function!r}") from e
  task = found(config)
  missing = [name for name in ("config", "problem", "eval_steps", "init", "loss", "evaluate", "scores", "flops",
                               "tables", "notes") if not hasattr(task, name)]  # fmt: skip
  if missing:
    raise ConfigError(
      f"config.task: {config.task} returned {type(task).__name__}, which lacks {', '.join(missing)}; return an "
      "EBTTask, a DirectTask, or what ebt_jax/tasks/base.py calls a Task"
    )
  return task
