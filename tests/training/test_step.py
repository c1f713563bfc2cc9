"""One update: microbatches, token weights, the guard against non-finite steps."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.config import Config, DataConfig, ModelConfig, ThinkingConfig, TrainConfig
from ebt_jax.tasks import registry
from ebt_jax.tasks.base import Mean, Output, Task
from ebt_jax.training import state as state_lib
from ebt_jax.training.step import make_train_step

ROWS, S, V = 8, 6, 12
EBT = Config(
  model=ModelConfig(layers=2, heads=2, width=16, vocab_size=V),
  thinking=ThinkingConfig(start="zeros"),  # no randomness that microbatches could change
  train=TrainConfig(batch_size=ROWS, learning_rate=0.01, warmup=2, steps=50),
  data=DataConfig(context_length=S),
)
TRANSFORMER = dataclasses.replace(EBT, model=dataclasses.replace(EBT.model, kind="transformer"))


def batch_of(seed=0, rows=ROWS):
  """Rows count from no token to all of theirs."""
  rng = np.random.default_rng(seed)
  weights = np.arange(S)[None] < np.resize([0, 1, 3, S], rows)[:, None]
  return {"tokens": rng.integers(0, V, (rows, S + 1), np.int32), "weights": weights.astype(np.float32)}


def with_train(config, **train):
  return dataclasses.replace(config, train=dataclasses.replace(config.train, **train))


@pytest.fixture(scope="module")
def run():
  """A Transformer++ step, traced once for all tests of this module, and a state."""
  step = jax.jit(chex.assert_max_traces(make_train_step(registry.make(TRANSFORMER)), 1))
  return step, state_lib.fresh(registry.make(TRANSFORMER))


def assert_same(a, b):
  jax.tree.map(np.testing.assert_array_equal, a, b)


def test_steps_are_traced_once_count_and_learn(run):
  step, state = run
  losses = []
  for i in range(3):
    assert int(state.step) == i
    state, metrics = step(state, batch_of())
    losses.append(float(metrics["loss"]))
  assert losses[2] < losses[1] < losses[0]
  assert {a.dtype for a in metrics.values()} == {jnp.dtype("float32")} and all(a.shape == () for a in metrics.values())


def test_loss_and_gradient_are_means_over_the_tokens_that_count(run):
  step, state = run
  batch = batch_of()
  _, metrics = step(state, batch)
  task = registry.make(TRANSFORMER)
  count = batch["weights"].sum()
  assert metrics["items"] == count

  def mean(params):
    log_p = jax.nn.log_softmax(task.model.predict(params["model"], jnp.asarray(batch["tokens"][:, :-1])))
    nll = -jnp.take_along_axis(log_p, batch["tokens"][:, 1:, None], -1)[..., 0]
    return jnp.mean(nll[batch["weights"] > 0])

  loss, gradient = jax.value_and_grad(mean)(state.params)
  norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
  np.testing.assert_allclose(metrics["loss"], loss, rtol=1e-6)
  np.testing.assert_allclose(metrics["gradient_norm"], norm, rtol=1e-5)


def test_four_microbatches_equal_one():
  """Of unequal token counts: the mean is over tokens, not over microbatches."""
  config, batch = with_train(EBT, clip=0.0, eps=1.0), batch_of()  # no division of small by small
  results = []
  for n in (1, 4):
    config = with_train(config, microbatches=n)
    task = registry.make(config)
    step = jax.jit(make_train_step(task))
    state, metrics = step(state_lib.fresh(task), batch)
    results.append((state.params, metrics))
  (params, metrics), (again, same) = results
  for name in metrics:
    np.testing.assert_allclose(same[name], metrics[name], rtol=1e-5, err_msg=name)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-6, atol=1e-6), params, again)


@pytest.mark.parametrize("poison", ["weights", "params", "infinity"])
def test_a_step_that_is_not_finite_changes_nothing_but_the_counters(run, poison):
  step, state = run
  state, _ = step(state, batch_of())  # an optimiser that has seen something
  bad_state, bad_batch = state, batch_of()
  if poison == "weights":
    bad_batch["weights"][3, 0] = np.nan
  else:
    value = {"params": jnp.nan, "infinity": jnp.inf}[poison]
    kernel = state.params["model"]["output"]["kernel"]
    params = {"model": {**state.params["model"], "output": {"kernel": kernel.at[0, 0].set(value)}}}
    bad_state = state._replace(params=params)
  for i in (1, 2):
    after, metrics = step(bad_state, bad_batch)
    assert_same((after.params, after.optimizer), (bad_state.params, bad_state.optimizer))
    assert after.step == bad_state.step + 1 and after.skipped == after.skipped_in_row == i
    assert metrics["skipped"] == metrics["skipped_in_row"] == i
    bad_state = after
  healthy = after._replace(params=state.params)
  after, metrics = step(healthy, batch_of())
  assert (after.skipped, after.skipped_in_row) == (2, 0) and metrics["skipped_in_row"] == 0
  moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), after.params, state.params)
  assert np.isfinite(metrics["loss"]) and all(jax.tree.leaves(moved))


class Dice(Task):
  """A task whose gradient shows what its key draws: uniform numbers, weighted by token counts."""

  def __init__(self, config):
    self.config, self.problem = config, registry.make(config).problem

  def init(self, key):
    return {"model": {"w": jnp.zeros(4)}}

  def tables(self):
    return ()

  def loss(self, params, batch, key):
    count = jnp.sum(batch["weights"])
    loss = Mean(count * jnp.vdot(params["model"]["w"], jax.random.uniform(key, (4,))), count)
    return loss, Output({"final_loss": loss})


def test_randomness_follows_the_seed_the_step_and_the_microbatch():
  norms = {}
  for seed, n in ((0, 1), (1, 1), (0, 4)):
    config = dataclasses.replace(with_train(TRANSFORMER, microbatches=n), seed=seed)
    step, state = jax.jit(make_train_step(Dice(config))), state_lib.fresh(Dice(config))
    for at in (0, 5):
      runs = [step(state._replace(step=jnp.int32(at)), batch_of())[1]["gradient_norm"] for _ in range(2)]
      assert runs[0] == runs[1]
      norms[seed, n, at] = float(runs[0])
  assert len(set(norms.values())) == len(norms)
