"""The controls of residual energies change what they say, and nothing else."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax.config import Config, DataConfig, ModelConfig, ThinkingConfig
from ebt_jax.tasks import registry
from experiments.thinking import controls

V, S, B = 7, 5, 3
CONFIG = Config(
  model=ModelConfig(layers=1, heads=1, width=8, vocab_size=V, residual=True),
  thinking=ThinkingConfig(steps=1, step_size=5.0, start="context"),
  data=DataConfig(context_length=S),
)


def test_start_gain_step_size_and_context_are_what_is_changed():
  task = registry.make(CONFIG)
  params = task.init(jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (B, S + 1), 0, V)
  batch = {"tokens": tokens, "weights": jnp.ones((B, S)), "bytes": jnp.full(B, float(S))}
  keys = jax.random.split(jax.random.key(2), B)
  answer = task.model.direct_answer(params["model"], task.context(params, batch)) @ task.model.table(params["model"]).T

  def nats(x):
    return float(-jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), tokens[:, 1:, None], -1)))

  def found(task=task, params=params, shuffled=False):
    start, after, weight = controls.error_sums(task, params, batch, keys, shuffled)
    assert weight == B * S
    return float(start / weight), float(after / weight)

  start, after = found()
  np.testing.assert_allclose(start, nats(answer), rtol=1e-5)
  off = registry.make(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, energy_gain=0.0)))
  np.testing.assert_allclose(found(off)[1], nats(jax.nn.softmax(answer) + answer), rtol=1e-5)
  still = {**params, "thinking": {**params["thinking"], "step_size": 0.0}}
  np.testing.assert_allclose(found(params=still)[1], nats(jax.nn.softmax(answer)), rtol=1e-5)
  moved_start, moved = found(shuffled=True)
  assert moved_start == start and abs(moved - after) > 1e-3
  assert abs(after - found(off)[1]) > 1e-3
