"""What a training run carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ebt_jax import parallel, streams, thinking
from ebt_jax.config import Config, ConfigError
from ebt_jax.training import optimizer


class TrainState(NamedTuple):
  """A pytree; all of it is checkpointed."""

  step: jax.Array  # updates done, skipped ones included
  params: Any  # {"model": ..., "thinking": ...}
  optimizer: Any
  skipped: jax.Array  # steps whose loss or gradient was not finite
  skipped_in_row: jax.Array
  replay: Any = ()  # thinking.Replay where there is one


def fresh(task: Any, config: Config) -> TrainState:
  """The state of step 0, from the seed."""
  params = task.init(streams.key_for(config.seed, streams.INIT))
  zero = jnp.zeros((), jnp.int32)
  return TrainState(zero, params, optimizer.make(config).init(params), zero, zero, empty_replay(task, config))


def empty_replay(task: Any, config: Config) -> Any:
  """The replay buffer that the config asks for, as large as `thinking.replay_gb` lets it be; () for none."""
  t, drawn = config.thinking, config.replayed_rows
  if not drawn:
    return ()
  rows = thinking.replay_capacity(t.replay_rows, task.replay_row(), t.replay_gb)
  if rows < drawn:
    raise ConfigError(
      f"config.thinking.replay_gb: {t.replay_gb} holds {rows} rows, and each batch draws {drawn}; raise it, or lower "
      "config.thinking.replay_fraction or config.train.batch_size"
    )
  return thinking.empty_replay(rows, task.replay_row())


def abstract(task: Any, config: Config, mesh: jax.sharding.Mesh) -> TrainState:
  """Shapes, types and shardings; computes nothing."""
  shapes = jax.eval_shape(lambda: fresh(task, config))

  def add(s, sharding):
    return jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding)

  return jax.tree.map(add, shapes, parallel.shardings(shapes, mesh))


def create(task: Any, config: Config, mesh: jax.sharding.Mesh) -> TrainState:
  """A fresh state, born sharded."""
  shardings = jax.tree.map(lambda s: s.sharding, abstract(task, config, mesh))
  return jax.jit(lambda: fresh(task, config), out_shardings=shardings)()
