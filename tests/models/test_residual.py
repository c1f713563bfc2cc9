"""Residual energies contain Transformer++: its logits, its gradients, its training; and they see no future."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import losses
from ebt_jax.config import Config, ConfigError, DataConfig, ModelConfig, ThinkingConfig, TrainConfig, resolve
from ebt_jax.tasks import registry
from ebt_jax.training import state as state_lib
from ebt_jax.training.step import make_train_step

V, S, B = 11, 6, 4
CONTROL = Config(
  model=ModelConfig(layers=2, heads=2, width=16, vocab_size=V, residual=True, energy_gain=0.0),
  thinking=ThinkingConfig(steps=1, step_size=5.0, learn_step_size=False, start="zeros"),
  train=TrainConfig(batch_size=B, learning_rate=0.01, warmup=2, steps=50),
  data=DataConfig(context_length=S),
)
BASELINE = dataclasses.replace(
  CONTROL, model=dataclasses.replace(CONTROL.model, kind="transformer", residual=False, energy_gain=1.0)
)


def with_energy(**thinking):
  return dataclasses.replace(
    CONTROL,
    model=dataclasses.replace(CONTROL.model, energy_gain=1.0),
    thinking=dataclasses.replace(CONTROL.thinking, **thinking),
  )


def batch_of(seed):
  tokens = np.random.default_rng(seed).integers(0, V, (B, S + 1), np.int32)
  return {"tokens": jnp.asarray(tokens), "weights": jnp.ones((B, S)), "bytes": jnp.full(B, float(S))}


def as_transformer(model):
  """Transformer++ with the parameters of a residual EBT's context."""
  return {
    "embed": model["embed"],
    "layers": model["layers"],
    "norm": model["context_norm"],
    "output": {"kernel": model["to_embed"]["kernel"].T},
  }


@pytest.fixture(scope="module")
def pair():
  control, baseline = registry.make(CONTROL), registry.make(BASELINE)
  params = control.init(jax.random.key(0))
  return control, baseline, params, {"model": as_transformer(params["model"])}


def test_without_a_learnt_energy_a_step_gives_the_logits_of_the_transformer(pair):
  control, baseline, params, plain = pair
  batch = batch_of(0)
  found = control.verified(params, batch, jax.random.split(jax.random.key(0), B)).candidates[0]
  expected = baseline.model.predict(plain["model"], batch["tokens"][:, :-1])
  np.testing.assert_allclose(found, expected + 1 / V, rtol=1e-5, atol=1e-5)  # the start's probabilities
  np.testing.assert_allclose(
    losses.token_losses(found, batch["tokens"][:, 1:]), losses.token_losses(expected, batch["tokens"][:, 1:]), rtol=1e-4
  )


def test_without_a_learnt_energy_training_is_that_of_the_transformer(pair):
  control, baseline, params, plain = pair
  states = [
    state_lib.fresh(task)._replace(params=jax.tree.map(jnp.copy, p))
    for task, p in ((control, params), (baseline, plain))
  ]
  steps = [jax.jit(make_train_step(task)) for task in (control, baseline)]
  curves = []
  for i in range(6):
    found = [step(state, batch_of(i)) for step, state in zip(steps, states)]
    states = [state for state, _ in found]
    curves.append([float(metrics["final_loss"]) for _, metrics in found])
  ours, theirs = np.transpose(curves)
  np.testing.assert_allclose(ours, theirs, rtol=1e-5)
  assert np.ptp(theirs) > 0.01  # it learns
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4),
    as_transformer(states[0].params["model"]),
    states[1].params["model"],
  )


def test_the_first_candidate_starts_at_what_the_context_predicts_and_others_around_it(pair):
  task, (_, _, params, plain) = registry.make(with_energy(start="context")), pair
  task = dataclasses.replace(
    task, config=dataclasses.replace(task.config, eval=dataclasses.replace(task.config.eval, candidates=3))
  )
  batch, keys = batch_of(0), jax.random.split(jax.random.key(0), B)
  start, _ = task.starts(params, task.context(params, batch), keys, batch)
  logits = pair[1].model.predict(plain["model"], batch["tokens"][:, :-1])
  np.testing.assert_allclose(start[0], logits, rtol=1e-5, atol=1e-5)
  noise = np.asarray(start[1:] - start[:1])
  assert noise.std() == pytest.approx(1.0, abs=0.1) and not np.allclose(noise[0], noise[1])


def test_without_a_learnt_energy_that_of_a_token_is_the_negative_log_of_its_probability(pair):
  control, baseline, params, plain = pair
  batch = batch_of(0)
  logits = baseline.model.predict(plain["model"], batch["tokens"][:, :-1])
  energies = control.energy_of(params, control.context(params, batch), batch["tokens"][:, 1:])
  expected = losses.token_losses(logits, batch["tokens"][:, 1:])
  np.testing.assert_allclose(5.0 * energies, expected, rtol=1e-4, atol=1e-5)  # times the step size


@pytest.mark.parametrize("start", ["noise", "context"])
def test_a_thought_does_not_see_the_token_that_it_predicts(start):
  task = registry.make(with_energy(start=start, steps=2))
  params, batch = task.init(jax.random.key(0)), batch_of(0)
  keys = jax.random.split(jax.random.key(1), B)
  think = jax.jit(lambda batch: task.verified(params, batch, keys).candidates[0])
  thought = think(batch)
  for t in range(1, S + 1):
    moved = think({**batch, "tokens": batch["tokens"].at[1, t].set((batch["tokens"][1, t] + 1) % V)})
    changed = np.unique(np.argwhere(np.asarray(moved != thought))[:, :2], axis=0)
    np.testing.assert_array_equal(changed, np.array([[1, later] for later in range(t, S)]).reshape(-1, 2))


@pytest.mark.parametrize(
  "keys, words",
  [
    (
      {"model": {"residual": True, "kind": "transformer"}},
      "config.model.residual: model.kind=transformer has no energy",
    ),
    ({"model": {"residual": True, "energy_gain": -1.0}}, "config.model.energy_gain: expected at least 0"),
    ({"model": {"energy_gain": 0.0}}, "config.model.energy_gain: 0.0 is for residual energies; set model.residual"),
    ({"thinking": {"start": "context"}}, "config.thinking.start: context is the start of residual energies"),
  ],
)
def test_what_is_not_residual_is_refused(keys, words):
  with pytest.raises(ConfigError) as error:
    registry.make(resolve(keys))
  assert words in str(error.value)
