"""One update: microbatches, token weights, the guard against non-finite steps."""

import dataclasses
import itertools

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
from tests import bowl

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


def test_a_batch_in_which_nothing_counts_is_no_mistake(run):
  step, state = run
  after, metrics = step(state, {**batch_of(), "weights": np.zeros((ROWS, S), np.float32)})
  assert metrics["loss"] == metrics["gradient_norm"] == metrics["items"] == metrics["skipped"] == 0
  assert after.step == 1 and after.skipped == 0


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
    self.config, self.problem, self.rows = config, registry.make(config).problem, set()

  def init(self, key):
    return {"model": {"w": jnp.zeros(4)}}

  def tables(self):
    return ()

  def loss(self, params, batch, key):
    self.rows.add(len(batch["weights"]))
    count = jnp.sum(batch["weights"])
    loss = Mean(count * jnp.vdot(params["model"]["w"], jax.random.uniform(key, (4,))), count)
    return loss, Output({"final_loss": loss})


def test_randomness_follows_the_seed_the_step_and_the_microbatch():
  norms = {}
  for seed, n in ((0, 1), (1, 1), (0, 4)):
    config = dataclasses.replace(with_train(TRANSFORMER, microbatches=n), seed=seed)
    task = Dice(config)
    step, state = jax.jit(make_train_step(task)), state_lib.fresh(task)
    for at in (0, 5):
      runs = [step(state._replace(step=jnp.int32(at)), batch_of())[1]["gradient_norm"] for _ in range(2)]
      assert runs[0] == runs[1]
      norms[seed, n, at] = float(runs[0])
    assert task.rows == {ROWS // n}  # no more is held at once
  assert len(set(norms.values())) == len(norms)


def test_the_replay_buffer_is_filled_and_trained_on():
  """Rows with their own finished candidates; two of them beside each later batch; nothing of a step that is skipped."""
  train = TrainConfig(batch_size=4, microbatches=2, learning_rate=1e-9, warmup=0, steps=9)
  size = 0.25
  task = bowl.ebt(train=train, thinking=ThinkingConfig(steps=2, step_size=size, gradient="last", replay_rows=8))
  step, state, batch = jax.jit(make_train_step(task)), state_lib.fresh(task), bowl.batch_of(4)
  weigh = lambda batch: batch["weights"].sum()
  errors = lambda batch, n: np.sum(batch["weights"] * (bowl.after(batch, n, size) - batch["target"]) ** 2, 1)
  state, metrics = step(state, batch)
  assert int(state.replay.added) == 4 and metrics["replayed"] == 0 and metrics["items"] == weigh(batch)
  np.testing.assert_allclose(metrics["loss"], errors(batch, 2).sum() / weigh(batch), rtol=1e-5)
  kept = jax.tree.map(lambda a: np.asarray(a[:4]), state.replay.rows)
  order = [np.flatnonzero((batch["first"] == row).all(1)).item() for row in kept["first"]]  # by microbatch
  assert sorted(order) == [0, 1, 2, 3]
  for name in batch:
    np.testing.assert_array_equal(kept[name], batch[name][order])
  np.testing.assert_allclose(kept["start"], bowl.after(batch, 2, size)[order], rtol=1e-5)

  skipped, _ = step(state, {**batch, "weights": batch["weights"] * np.nan})
  assert_same(skipped.replay, state.replay)
  other = bowl.batch_of(4, seed=1)
  _, metrics = step(state, other)
  of_pairs = []  # which two rows are drawn, is chance; they have thought for two steps, and think for two more
  for pair in itertools.combinations(range(4), 2):
    weight = weigh(batch | {"weights": batch["weights"][list(pair)]})
    loss = (errors(other, 2).sum() + errors(batch, 4)[list(pair)].sum()) / (weigh(other) + weight)
    of_pairs.append((loss, weight / (weigh(other) + weight)))
  found = [float(metrics[name]) for name in ("loss", "replayed")]
  assert any(found == pytest.approx(pair, rel=1e-4) for pair in of_pairs), (found, of_pairs)
  assert metrics["items"] == weigh(other)
