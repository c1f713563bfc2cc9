"""One update: gradient over microbatches weighted by tokens, clip, AdamW, and the guard against non-finite steps."""

from typing import Any, Callable

import jax
import jax.numpy as jnp

from ebt_jax import parallel
from ebt_jax.config import Config
from ebt_jax.training import optimizer
from ebt_jax.training.state import TrainState


def make_train_step(task: Any, config: Config) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
  """`(state, batch) -> (state, metrics)`, to be jitted with the state donated. Metrics are float32 scalars."""
  tx = optimizer.make(config)
  rates = optimizer.rates(config)

  def gradient_sum(params, batch, key):
    (loss, log), gradient = jax.value_and_grad(task.loss, has_aux=True)(params, batch, key)
    return {"loss": loss, **log}, gradient

  def accumulate(params, batch, key):
    """Sums over the batch, one microbatch at a time."""
    n = config.train.microbatches
    if n == 1:
      return gradient_sum(params, batch, key)
    parts = parallel.deal_rows(batch, n)

    def body(total, part):
      i, batch = part
      return jax.tree.map(jnp.add, total, gradient_sum(params, batch, jax.random.fold_in(key, i))), None

    shapes = jax.eval_shape(gradient_sum, params, jax.tree.map(lambda a: a[0], parts), key)
    zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
    return jax.lax.scan(body, zeros, (jnp.arange(n), parts))[0]

  def train_step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    key = jax.random.fold_in(jax.random.key(config.seed + 1), state.step)
    sums, gradient = accumulate(state.params, batch, key)
    tokens = jnp.maximum(jnp.sum(batch["weights"]), 1)
    sums, gradient = jax.tree.map(lambda a: a / tokens, (sums, gradient))
    norm = optimizer.gradient_norm(config, gradient)
    updates, new_optimizer = tx.update(gradient, state.optimizer, state.params)
    new_params = jax.tree.map(jnp.add, state.params, updates)

    ok = jnp.isfinite(sums["loss"]) & jnp.isfinite(norm)
    keep = lambda new, old: jax.tree.map(lambda n, o: jnp.where(ok, n, o), new, old)
    bad = 1 - ok.astype(jnp.int32)
    new_state = TrainState(
        step=state.step + 1,
        params=keep(new_params, state.params),
        optimizer=keep(new_optimizer, state.optimizer),
        skipped=state.skipped + bad,
        skipped_in_row=(state.skipped_in_row + 1) * bad,
    )
    metrics = dict(sums, gradient_norm=norm, learning_rate=rates["weights"](state.step), tokens=tokens)
    if "first_energy" in metrics:
      metrics["energy_gap"] = metrics.pop("first_energy") - metrics.pop("last_energy")
      metrics["step_size"] = state.params["thinking"]["step_size"]
    metrics["skipped"], metrics["skipped_in_row"] = new_state.skipped, new_state.skipped_in_row
    return new_state, jax.tree.map(lambda a: a.astype(jnp.float32), metrics)

  return train_step
