"""What a training run carries from step to step."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ebt_jax import parallel
from ebt_jax.config import Config
from ebt_jax.training import optimizer


class TrainState(NamedTuple):
  """A pytree; all of it is checkpointed."""

  step: jax.Array  # updates done, skipped ones included
  params: Any  # {"model": ..., "thinking": ...}
  optimizer: Any
  skipped: jax.Array  # steps whose loss or gradient was not finite
  skipped_in_row: jax.Array


def fresh(task: Any, config: Config) -> TrainState:
  """The state of step 0, from the seed."""
  params = task.init(jax.random.key(config.seed))
  zero = jnp.zeros((), jnp.int32)
  return TrainState(zero, params, optimizer.make(config).init(params), zero, zero)


def abstract(task: Any, config: Config, mesh: jax.sharding.Mesh) -> TrainState:
  """Shapes, types and shardings; computes nothing."""
  shapes = jax.eval_shape(lambda: fresh(task, config))
  add = lambda s, sharding: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=sharding)
  return jax.tree.map(add, shapes, parallel.shardings(shapes, mesh))


def create(task: Any, config: Config, mesh: jax.sharding.Mesh) -> TrainState:
  """A fresh state, born sharded."""
  shardings = jax.tree.map(lambda s: s.sharding, abstract(task, config, mesh))
  return jax.jit(lambda: fresh(task, config), out_shardings=shardings)()
