"""What a training run carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ebt_jax import parallel, streams
from ebt_jax.config import ConfigError
from ebt_jax.tasks.base import Task
from ebt_jax.thinking import replay
from ebt_jax.training import optimizer


class TrainState(NamedTuple):
  """A pytree; all of it is checkpointed."""

  step: jax.Array  # updates done, skipped ones included
  params: Any  # {"model": ..., "thinking": ...}
  optimizer: Any
  skipped: jax.Array  # steps whose loss or gradient was not finite
  skipped_in_row: jax.Array
  replay: Any = ()  # thinking.replay.Replay where there is one

  def split(self) -> dict[str, Any]:
    """As a checkpoint keeps it: parameters can be read without the rest."""
    rest = self._asdict()
    return {"params": rest.pop("params"), "training": rest}

  @classmethod
  def joined(cls, parts: dict[str, Any]) -> "TrainState":
    """The state that `split` has taken apart."""
    return cls(params=parts["params"], **parts["training"])


def fresh(task: Task) -> TrainState:
  """The state of step 0, from the seed."""
  params = task.init(streams.key_for(task.config.seed, streams.INIT))
  zero = jnp.zeros((), jnp.int32)
  return TrainState(
    zero, params, optimizer.make(task.config, task.tables()).init(params), zero, zero, empty_replay(task)
  )


def empty_replay(task: Task) -> Any:
  """The replay buffer that the config asks for, as large as `thinking.replay_gb` lets it be; () for none."""
  t, drawn = task.config.thinking, task.config.replayed_rows
  if not drawn:
    return ()
  rows = replay.capacity(t.replay_rows, task.replay_row(), t.replay_gb)
  if rows < drawn:
    raise ConfigError(
      f"config.thinking.replay_gb: {t.replay_gb} holds {rows} rows, and each batch draws {drawn}; raise it, or lower "
      "config.thinking.replay_fraction or config.train.batch_size"
    )
  return replay.empty(rows, task.replay_row())


def abstract(task: Task, mesh: jax.sharding.Mesh) -> TrainState:
  """Shapes, types and shardings; computes nothing."""
  shapes = jax.eval_shape(lambda: fresh(task))

  def placed(shape, sharding):
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)

  return jax.tree.map(placed, shapes, parallel.shardings(shapes, mesh))


def create(task: Task, mesh: jax.sharding.Mesh) -> TrainState:
  """A fresh state, born sharded."""
  shardings = jax.tree.map(lambda s: s.sharding, abstract(task, mesh))
  return jax.jit(lambda: fresh(task), out_shardings=shardings)()
