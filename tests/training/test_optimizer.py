"""Learning rates, parameter groups and the global clip."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.config import Config, ConfigError, ModelConfig, ThinkingConfig, TrainConfig
from ebt_jax.training import optimizer

PEAK, FLOOR, WARMUP, HORIZON = 0.8, 0.2, 4, 12
PARAMS = {
  "model": {"w": jnp.array([3.0, -2.0]), "norm": {"scale": jnp.ones(2), "bias": jnp.ones(2)}},
  "thinking": {"step_size": jnp.asarray(5.0), "noise": jnp.asarray(0.5)},
}
LOUD = jax.tree.map(lambda p: 100.0 * p, PARAMS)


def config_of(thinking=None, model=None, **train):
  train = {"learning_rate": 0.1, "warmup": 0, "schedule": "constant", "weight_decay": 0.0, "clip": 0.0, **train}
  return Config(
    model=ModelConfig(**(model or {})), thinking=ThinkingConfig(**(thinking or {})), train=TrainConfig(**train)
  )


def updates_of(config, *gradients):
  """The update that the last of some gradients causes."""
  tx = optimizer.make(config)
  state, params = tx.init(PARAMS), PARAMS
  for gradient in gradients:
    updates, state = tx.update(gradient, state, params)
    params = jax.tree.map(jnp.add, params, updates)
  return updates


def test_the_learning_rate_rises_to_its_peak_falls_to_its_floor_and_stays():
  rate = optimizer.schedule(PEAK, FLOOR, WARMUP, HORIZON)
  got = [float(rate(i)) for i in range(HORIZON + 20)]
  np.testing.assert_allclose(got[:WARMUP], PEAK * np.arange(1, WARMUP + 1) / WARMUP, rtol=1e-6)
  assert got[WARMUP - 1] == pytest.approx(PEAK) and got[HORIZON - 2] > FLOOR * 1.01
  np.testing.assert_allclose(got[HORIZON - 1 :], FLOOR, rtol=1e-6)
  middle = WARMUP - 1 + (HORIZON - WARMUP) // 2
  assert got[middle] == pytest.approx((PEAK + FLOOR) / 2)
  assert np.all(np.diff(got[WARMUP - 1 : HORIZON]) < 0)
  assert float(optimizer.schedule(PEAK, FLOOR, WARMUP, HORIZON, start=0.4)(0)) == pytest.approx(0.4 + 0.4 / WARMUP)
  assert [float(optimizer.schedule(PEAK, FLOOR, 2, 0)(i)) for i in (0, 1, 2, 999)] == pytest.approx(
    [0.4, 0.8, 0.8, 0.8]
  )
  assert float(optimizer.schedule(PEAK, FLOOR, 0, HORIZON)(0)) == pytest.approx(PEAK, rel=0.02)


def test_each_group_follows_its_own_peak_to_its_own_floor():
  config = config_of(
    {"step_size_lr_multiplier": 15.0}, learning_rate=0.01, warmup=5, steps=50, schedule="cosine", final_ratio=0.25
  )
  rates = optimizer.rates(config)
  for i in (0, 4, 20, 49, 80):
    assert float(rates["step_size"](i)) == pytest.approx(15 * float(rates["weights"](i)))
  assert float(rates["weights"](49)) == pytest.approx(0.0025) and float(rates["step_size"](80)) == pytest.approx(0.0375)
  longer = dataclasses.replace(config, train=dataclasses.replace(config.train, schedule_steps=100))
  assert float(optimizer.rates(longer)["weights"](49)) > 0.005


def test_the_first_update_of_each_group_is_its_rate():
  """Adam's first step has the size of the learning rate and the sign of the gradient, whatever its size."""
  updates = updates_of(config_of({"step_size_lr_multiplier": 15.0, "learn_noise": True}), LOUD)
  np.testing.assert_allclose(updates["model"]["w"], [-0.1, 0.1], rtol=1e-4)
  np.testing.assert_allclose(updates["thinking"]["step_size"], -1.5, rtol=1e-4)  # the square root's rounding
  np.testing.assert_allclose(updates["thinking"]["noise"], -0.1, rtol=1e-4)


def test_weights_decay_and_the_step_size_does_not():
  zero = jax.tree.map(jnp.zeros_like, PARAMS)
  updates = updates_of(config_of(weight_decay=0.5), zero)
  np.testing.assert_allclose(updates["model"]["w"], -0.1 * 0.5 * PARAMS["model"]["w"], rtol=1e-6)
  assert updates["thinking"]["step_size"] == 0


@pytest.mark.parametrize("learnt", [True, False])
def test_what_is_not_learnt_stays(learnt):
  config = config_of({"learn_step_size": learnt, "learn_noise": learnt}, {"norm": "dyt"}, weight_decay=0.5)
  updates = updates_of(config, LOUD, LOUD)
  assert bool(updates["thinking"]["step_size"]) == bool(updates["thinking"]["noise"]) == learnt
  assert not updates["model"]["norm"]["bias"].any() and updates["model"]["norm"]["scale"].all()


@pytest.mark.parametrize(
  "thinking, clip, factor",
  [
    ({}, 2.0, 2 / 5),
    ({}, 6.0, 1.0),
    ({"learn_step_size": False}, 2.0, 2 / 3),  # what is not learnt has no say
  ],
)
def test_the_clip_uses_the_norm_of_everything_learnt_the_step_size_included(thinking, clip, factor):
  gradient = jax.tree.map(jnp.zeros_like, PARAMS)
  gradient["model"]["w"], gradient["thinking"]["step_size"] = jnp.array([3.0, 0.0]), jnp.asarray(4.0)
  # a huge epsilon makes Adam linear: update = -rate / 1e6 x gradient
  config = config_of({"step_size_lr_multiplier": 1.0, **thinking}, clip=clip, beta1=0.0, beta2=0.0, eps=1e6)
  updates = updates_of(config, gradient)
  assert -1e7 * float(updates["model"]["w"][0]) == pytest.approx(3 * factor, rel=1e-4)
  if config.thinking.learn_step_size:
    assert -1e7 * float(updates["thinking"]["step_size"]) == pytest.approx(4 * factor, rel=1e-4)


def test_muon_is_for_matrices_in_blocks():
  """Its update is orthogonal, with the root mean square of one of AdamW's; all else is AdamW's."""
  rng = np.random.default_rng(0)
  model = {
    "layers": {"ffn": {"kernel": rng.normal(size=(2, 6, 4))}, "norm": {"scale": np.ones((2, 6))}},
    "embed": {"embedding": rng.normal(size=(5, 4))},
    "to_embed": {"kernel": rng.normal(size=(5, 4))},
    "head": {"kernel": rng.normal(size=(4, 1))},
  }
  params = {**PARAMS, "model": jax.tree.map(jnp.asarray, model)}
  gradient = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
  updates = {}
  for name in ("adamw", "muon"):
    tx = optimizer.make(config_of(optimizer=name), tables=("embed", "to_embed"))
    updates[name] = tx.update(gradient, tx.init(params), params)[0]
  ours = updates["muon"]["model"]["layers"]["ffn"].pop("kernel")
  updates["adamw"]["model"]["layers"]["ffn"].pop("kernel")
  jax.tree.map(np.testing.assert_array_equal, updates["muon"], updates["adamw"])
  for layer in range(2):
    sizes = np.linalg.svd(np.asarray(ours[layer]) / 0.1, compute_uv=False)
    np.testing.assert_allclose(sizes, 0.2 * np.sqrt(6), rtol=0.35)  # five iterations come this near
    assert np.vdot(ours[layer], gradient["model"]["layers"]["ffn"]["kernel"][layer]) < 0
  with pytest.raises(ConfigError, match="config.train.optimizer: muon is for matrices"):
    optimizer.make(config_of(optimizer="muon")).init(PARAMS)


def test_adamw_is_its_formula():
  b1, b2, eps, decay, rate = 0.9, 0.99, 1e-3, 0.1, 0.1
  config = config_of(beta1=b1, beta2=b2, eps=eps, weight_decay=decay)
  w, m, v = np.array([3.0, -2.0]), 0.0, 0.0
  gradients = []
  for t in (1, 2, 3):
    g = np.array([0.3 * t, -0.2])
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    update = -rate * (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + eps) + decay * w)
    w = w + update
    gradients.append({**LOUD, "model": {**LOUD["model"], "w": jnp.asarray(g)}})
  np.testing.assert_allclose(updates_of(config, *gradients)["model"]["w"], update, rtol=1e-4)
