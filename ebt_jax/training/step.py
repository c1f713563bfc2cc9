"""One update: gradient over microbatches weighted by tokens, clip, AdamW, and the guard against non-finite steps."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from ebt_jax import parallel, streams, thinking
from ebt_jax.config import Config
from ebt_jax.training import optimizer
from ebt_jax.training.state import TrainState

_REPLAY = 2**20  # key of the replay's draw; microbatches have the numbers below


def make_train_step(task: Any, config: Config) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
  """`(state, batch) -> (state, metrics)`, to be jitted with the state donated. Metrics are float32 scalars."""
  tx = optimizer.make(config)
  rates = optimizer.rates(config)
  replays = config.replayed_rows

  def gradient_sum(params, batch, key):
    (loss, log), gradient = jax.value_and_grad(task.loss, has_aux=True)(params, batch, key)
    finished = log.pop("finished", ())
    return ({"loss": loss, **log}, gradient), finished

  def accumulate(params, batch, key):
    """Sums over the batch, one microbatch at a time, and the rows that the replay buffer is to keep."""
    n = config.train.microbatches
    if n == 1:
      return gradient_sum(params, batch, key)
    parts = parallel.deal_rows(batch, n)

    def body(total, part):
      i, batch = part
      sums, finished = gradient_sum(params, batch, jax.random.fold_in(key, i))
      return jax.tree.map(jnp.add, total, sums), finished

    shapes, _ = jax.eval_shape(gradient_sum, params, jax.tree.map(lambda a: a[0], parts), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    sums, finished = jax.lax.scan(body, zeros, (jnp.arange(n), parts))
    return sums, jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), finished)

  def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    key = jax.random.fold_in(streams.key_for(config.seed, streams.TRAIN), state.step)
    fresh = counted = jnp.sum(batch["weights"])
    if replays:
      rows, there = thinking.draw_replay(state.replay, jax.random.fold_in(key, _REPLAY), replays)
      rows["weights"] = rows["weights"] * there[:, None]
      batch = {**batch, "replayed": jax.tree.map(parallel.keep_rows, rows)}
      counted = fresh + jnp.sum(rows["weights"])
    (sums, gradient), finished = accumulate(state.params, batch, key)
    tokens = jnp.maximum(counted, 1)
    sums, gradient = jax.tree.map(lambda a: a / tokens, (sums, gradient))
    norm = optimizer.gradient_norm(config, gradient)
    updates, new_optimizer = tx.update(gradient, state.optimizer, state.params)
    new_params = jax.tree.map(jnp.add, state.params, updates)

    ok = jnp.isfinite(sums["loss"]) & jnp.isfinite(norm)

    def keep(new, old):
      return jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)

    bad = 1 - ok.astype(jnp.int32)
    new_state = TrainState(
      step=state.step + 1,
      params=keep(new_params, state.params),
      optimizer=keep(new_optimizer, state.optimizer),
      skipped=state.skipped + bad,
      skipped_in_row=(state.skipped_in_row + 1) * bad,
      replay=thinking.add_replay(state.replay, finished, ok) if replays else (),
    )
    metrics = dict(sums, gradient_norm=norm, learning_rate=rates["weights"](state.step), tokens=fresh)
    if replays:
      metrics["replayed"] = 1 - fresh / tokens
    if "first_energy" in metrics:
      metrics["energy_gap"] = metrics.pop("first_energy") - metrics.pop("last_energy")
      metrics["step_size"] = state.params["thinking"]["step_size"]
    metrics["skipped"], metrics["skipped_in_row"] = new_state.skipped, new_state.skipped_in_row
    return new_state, jax.tree.map(lambda a: a.astype(jnp.float32), metrics)

  return train_step
