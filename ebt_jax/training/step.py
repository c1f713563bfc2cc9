"""One update: gradient over microbatches weighted by what counts, clip, AdamW, guard against non-finite steps."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from ebt_jax import parallel, streams
from ebt_jax.tasks.base import Task
from ebt_jax.thinking import replay
from ebt_jax.training import optimizer
from ebt_jax.training.state import TrainState

_REPLAY = 2**20  # folded into a step's key for the replay's draw; microbatches have the numbers below


def make_train_step(task: Task) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
  """`(state, batch) -> (state, metrics)`, to be jitted with the state donated.

  Metrics are float32 scalars: `loss`, what the task's `Output` names, `items` (the weight of the batch),
  `gradient_norm`, `learning_rate`, `skipped`, `skipped_in_row`.
  """
  config = task.config
  tx, rates, replayed = optimizer.make(config, task.tables()), optimizer.rates(config), config.replayed_rows

  def loss_and_gradient(params, batch, key):
    def total(params):
      mean, output = task.loss(params, batch, key)
      return mean.total, (jax.lax.stop_gradient(mean), output)

    (_, (mean, output)), gradient = jax.value_and_grad(total, has_aux=True)(params)
    return (mean, output.metrics, gradient), output.finished

  def accumulate(params, batch, key):
    """Sums over the batch, one microbatch at a time, and the rows that the replay buffer is to keep."""
    n = config.train.microbatches
    if n == 1:
      return loss_and_gradient(params, batch, key)
    parts = parallel.split_microbatches(batch, n)

    def body(sums, part):
      i, batch = part
      more, finished = loss_and_gradient(params, batch, jax.random.fold_in(key, i))
      return jax.tree.map(jnp.add, sums, more), finished

    shapes, _ = jax.eval_shape(loss_and_gradient, params, jax.tree.map(lambda a: a[0], parts), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    sums, finished = jax.lax.scan(body, zeros, (jnp.arange(n), parts))
    return sums, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), finished)

  def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    key = jax.random.fold_in(streams.key_for(config.seed, streams.TRAIN), state.step)
    fresh = jnp.sum(task.problem.weights(batch))
    if replayed:
      rows, there = replay.draw(state.replay, jax.random.fold_in(key, _REPLAY), replayed)
      rows["weights"] = jax.vmap(jnp.multiply)(rows["weights"], there.astype(rows["weights"].dtype))
      batch = {**batch, "replayed": jax.tree.map(parallel.shard_rows, rows)}
    (mean, means, gradient), finished = accumulate(state.params, batch, key)
    count = jnp.where(mean.weight == 0, 1, mean.weight)
    gradient = jax.tree.map(lambda g: g / count, gradient)
    norm = optimizer.gradient_norm(config, gradient)
    updates, new_optimizer = tx.update(gradient, state.optimizer, state.params)
    new_params = jax.tree.map(jnp.add, state.params, updates)

    finite = jnp.isfinite(mean.value()) & jnp.isfinite(norm)

    def keep(new, old):
      return jax.tree.map(lambda n, o: jnp.where(finite, n, o), new, old)

    bad = 1 - finite.astype(jnp.int32)
    new_state = TrainState(
      step=state.step + 1,
      params=keep(new_params, state.params),
      optimizer=keep(new_optimizer, state.optimizer),
      skipped=state.skipped + bad,
      skipped_in_row=(state.skipped_in_row + 1) * bad,
      replay=replay.add(state.replay, finished, finite) if replayed else (),
    )
    metrics = {"loss": mean.value(), **{name: m.value() for name, m in means.items()}}
    metrics |= {"gradient_norm": norm, "learning_rate": rates["weights"](state.step), "items": fresh}
    metrics |= {"skipped": new_state.skipped, "skipped_in_row": new_state.skipped_in_row}
    return new_state, jax.tree.map(lambda a: a.astype(jnp.float32), metrics)

  return train_step


def compiled_step(task: Task, abstract: TrainState, mesh: jax.sharding.Mesh):
  """The jitted training step whose new state lies where `abstract` says, in place of the old one."""
  shardings = jax.tree.map(lambda s: s.sharding, abstract)
  return jax.jit(make_train_step(task), donate_argnums=0, out_shardings=(shardings, parallel.replicated(mesh)))
