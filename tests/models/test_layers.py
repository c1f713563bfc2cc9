"""Building blocks against their formulas, and the scale of initial weights."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.config import ModelConfig
from ebt_jax.models import layers
from ebt_jax.models.autoregressive import AutoregressiveEBT

X = np.random.default_rng(0).normal(1.0, 2.0, (2, 3, 8)).astype(np.float32)


@pytest.mark.parametrize("kind", ["rms", "layer", "dyt", "none"])
def test_norms_are_their_formulas(kind):
  norm = layers.Norm(kind, dyt_scale=0.7)
  params = norm.init(jax.random.key(0), jnp.asarray(X)).get("params", {})
  rng = np.random.default_rng(1)
  scale, bias = rng.normal(size=(2, 8)).astype(np.float32)
  given = {name: {"scale": scale, "bias": bias}.get(name, value) for name, value in params.items()}
  centred = X - X.mean(-1, keepdims=True)
  root = lambda a: np.sqrt((a**2).mean(-1, keepdims=True) + 1e-5)
  expected = {
    "rms": X / root(X) * scale,
    "layer": centred / root(centred) * scale + bias,
    "dyt": np.tanh(0.7 * X) * scale + bias,
    "none": X,
  }[kind]
  np.testing.assert_allclose(norm.apply({"params": given}, jnp.asarray(X)), expected, rtol=1e-5, atol=1e-6)


def test_rms_norm_does_not_blow_up_what_is_smaller_than_its_epsilon():
  tiny = jnp.asarray(1e-4 * X)
  y = layers.Norm("rms").apply({"params": {"scale": np.ones(8, np.float32)}}, tiny)
  np.testing.assert_allclose(y, tiny / np.sqrt((tiny**2).mean(-1, keepdims=True) + 1e-5), rtol=1e-5)


@pytest.mark.parametrize("activation", ["silu", "relu", "gelu", "elu"])
def test_the_gated_ffn_is_its_formula(activation):
  ffn = layers.GatedFFN(ModelConfig(width=8, heads=2, layers=1, activation=activation, ffn_multiplier=1.5))
  params = ffn.init(jax.random.key(0), jnp.asarray(X))["params"]
  gate, up, down = (np.asarray(params[name]["kernel"]) for name in ("gate", "up", "down"))
  assert gate.shape == up.shape == (8, 12) and down.shape == (12, 8)
  act = {
    "silu": lambda x: x / (1 + np.exp(-x)),
    "relu": lambda x: np.maximum(x, 0),
    "gelu": np.vectorize(lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
  }[activation]
  expected = (act(X @ gate) * (X @ up)) @ down
  np.testing.assert_allclose(ffn.apply({"params": params}, jnp.asarray(X)), expected, rtol=1e-4, atol=1e-5)


def test_rotary_scores_depend_on_the_distance_alone():
  q, k = np.random.default_rng(2).normal(size=(2, 8)).astype(np.float32)
  at = lambda x, p: layers.rotate(jnp.asarray(x)[None, None, None], layers.rope(jnp.array([p]), 8))[0, 0, 0]
  score = lambda i, j: float(at(q, i) @ at(k, j))
  assert score(7, 4) == pytest.approx(score(103, 100), rel=1e-4)
  assert abs(score(7, 4) - score(7, 5)) > 1e-2
  np.testing.assert_allclose(at(q, 0), q, rtol=1e-6)


@pytest.mark.parametrize(
  "init, std", [("xavier", lambda i, o: (2 / (i + o)) ** 0.5), ("he", lambda i, o: (2 / i) ** 0.5)]
)
def test_initial_weights_have_the_scale_of_the_config(init, std):
  c = ModelConfig(layers=2, heads=2, width=64, vocab_size=500, ffn_multiplier=2.0, variant="time_embed")
  c = dataclasses.replace(c, init=init, init_gain=0.5, head_gain=0.1)
  params = AutoregressiveEBT(c, 200).init(jax.random.key(0))
  near = lambda a, expected: (
    np.std(a) == pytest.approx(expected, rel=4 / np.sqrt(2 * a.size))
    and abs(np.mean(a)) < 4 * expected / np.sqrt(a.size)
  )
  blocks = params["layers"]
  assert near(params["to_embed"]["kernel"], 0.5 * std(500, 64))
  for name in "qkvo":
    assert near(blocks["attention"][name]["kernel"], 0.5 * std(64, 64)), name
  assert near(blocks["ffn"]["up"]["kernel"], 0.5 * std(64, 128)) and near(
    blocks["ffn"]["down"]["kernel"], 0.5 * std(128, 64)
  )
  assert near(params["head"]["kernel"], 0.1 * (2 / 65) ** 0.5)  # neither the kind nor the gain of the others
  assert near(params["embed"]["embedding"], 1.0) and near(params["time"]["embedding"], 1.0)
  first, second = blocks["attention"]["q"]["kernel"]
  assert abs(np.corrcoef(first.ravel(), second.ravel())[0, 1]) < 0.1  # layers do not share their draws
