"""Recurrent models: the recurrence and its gradient against a plain loop, causal, and a state of fixed size."""

import dataclasses

import jax
import jax.numpy as jnp
from jax.test_util import check_grads
import numpy as np
import pytest

from ebt_jax.config import Config, ConfigError, ModelConfig, resolve
from ebt_jax.models import recurrence
from ebt_jax.models.recurrent import Recurrent
from ebt_jax.models.transformer import Transformer
from ebt_jax.tasks import registry

B, S, V, D = 3, 6, 11, 16
RG_LRU = ModelConfig(kind="rnn", layers=2, heads=2, width=D, vocab_size=V)
MODELS = {cell: Recurrent(dataclasses.replace(RG_LRU, cell=cell)) for cell in ("rg_lru", "lstm")}


def draws(dtype=jnp.float32):
  """Decays and inputs of a recurrence over 37 positions, a length that halves to odd numbers."""
  decay, inputs = jax.random.uniform(jax.random.key(0), (2, 37, 5)), jax.random.normal(jax.random.key(1), (2, 37, 5))
  return decay.astype(dtype), inputs.astype(dtype)


def by_hand(decay, inputs):
  h, out = np.zeros_like(inputs[:, 0]), []
  for t in range(inputs.shape[1]):
    h = decay[:, t] * h + inputs[:, t]
    out.append(h)
  return np.stack(out, 1)


@pytest.mark.parametrize("how", [recurrence.in_parallel, recurrence.in_a_loop])
def test_a_recurrence_is_that_of_a_plain_loop(how):
  decay, inputs = draws()
  how = jax.jit(how, static_argnames="reverse")
  np.testing.assert_allclose(how(decay, inputs), by_hand(*map(np.asarray, (decay, inputs))), rtol=1e-5, atol=1e-5)
  backwards = by_hand(*(np.asarray(a)[:, ::-1] for a in (decay, inputs)))[:, ::-1]
  np.testing.assert_allclose(how(decay, inputs, reverse=True), backwards, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["in_parallel", "in_a_loop"])
def test_its_gradient_is_that_of_the_loop_and_of_finite_differences(how, x64, monkeypatch):
  monkeypatch.setattr(recurrence, "recurrence", getattr(recurrence, how))
  arguments, weights = draws(jnp.float64), jax.random.normal(jax.random.key(2), (2, 37, 5))
  found, wanted = (
    jax.jit(jax.grad(lambda *a: jnp.sum(weights * jnp.tanh(f(*a))), argnums=(0, 1)))(*arguments)
    for f in (recurrence.linear_recurrence, recurrence.in_a_loop)
  )
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), found, wanted)
  check_grads(jax.jit(recurrence.linear_recurrence), arguments, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_rg_lru_is_its_formula_position_by_position(x64):
  cell, x = recurrence.RGLRU(RG_LRU), jax.random.normal(jax.random.key(0), (B, S, D), jnp.float64)
  empty = cell.empty(RG_LRU, B, jnp.float64)
  params = cell.init(jax.random.key(1), x, empty)["params"]
  noise = iter(jax.random.split(jax.random.key(2), 99))
  params = jax.tree.map(lambda a: a + 0.1 * jax.random.normal(next(noise), a.shape), params)  # no bias stays zero

  def gate(p, x):
    (a, b), (left, right) = jnp.split(x, 2, -1), p["kernel"]
    return jax.nn.sigmoid(jnp.concatenate([a @ left, b @ right], -1) + p["bias"])

  def one_by_one(p):
    u, branch = x @ p["x"]["kernel"], jax.nn.gelu(x @ p["branch"]["kernel"])
    h, out, decay = jnp.zeros((B, D)), [], jax.nn.sigmoid(p["decay"])
    for t in range(S):
      v = p["conv"]["bias"] + sum(p["conv"]["kernel"][3 - back] * u[:, t - back] for back in range(min(4, t + 1)))
      a = decay ** (8 * gate(p["recurrence_gate"], v))
      h = a * h + jnp.sqrt(1 - a**2) * gate(p["input_gate"], v) * v
      out.append((branch[:, t] * h) @ p["out"]["kernel"])
    return jnp.stack(out, 1), h

  found, wanted = jax.jit(lambda p: cell.apply({"params": p}, x, empty)), jax.jit(one_by_one)
  np.testing.assert_allclose(found(params)[0], wanted(params)[0], rtol=1e-5, atol=1e-8)
  np.testing.assert_allclose(found(params)[1].state, wanted(params)[1], rtol=1e-5, atol=1e-8)
  slopes = [jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(f(p)[0]))))(params) for f in (found, wanted)]
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8), *slopes)


def test_states_decay_slowly_at_first_and_a_shut_gate_has_finite_slopes():
  cell, x = recurrence.RGLRU(RG_LRU), jnp.ones((1, S, D))
  params = cell.init(jax.random.key(0), x, cell.empty(RG_LRU, 1, x.dtype))["params"]
  a = jax.nn.sigmoid(recurrence.initial_decay(jax.random.key(0), (4096,))) ** 8
  assert 0.9 < a.min() < 0.901 and 0.998 < a.max() < 0.999 and np.mean(a) == pytest.approx(0.9495, abs=2e-3)
  params["recurrence_gate"]["bias"] -= 200.0  # underflows to 0: nothing decays, nothing comes in
  total = lambda p: jnp.sum(cell.apply({"params": p}, x, cell.empty(RG_LRU, 1, x.dtype))[0])
  out, slopes = jax.jit(jax.value_and_grad(total))(params)
  assert np.isfinite(out) and all(np.isfinite(s).all() for s in jax.tree.leaves(slopes))


@pytest.fixture(scope="module", params=MODELS)
def case(request):
  model = MODELS[request.param]
  params = model.init(jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (B, S), 0, V)
  return model, params, tokens, jax.jit(model.predict)


def test_a_logit_depends_on_the_tokens_of_its_row_up_to_its_own(case):
  model, params, tokens, logits = case
  before = logits(params, tokens)
  assert before.shape == (B, S, V)
  for t in range(S):
    after = logits(params, tokens.at[1, t].set((tokens[1, t] + 1) % V))
    moved = np.argwhere(np.any(after != before, axis=-1))
    np.testing.assert_array_equal(moved, [[1, later] for later in range(t, S)])


def test_a_state_filled_in_ragged_parts_gives_the_logits_of_the_whole(case):
  model, params, tokens, logits = case
  whole, done = logits(params, tokens), np.zeros(B, int)
  extend = jax.jit(model.extend)
  params, state = model.unstacked(params), model.empty_cache(params, B, 0)
  for lengths in ([2, 4, 1], [2, 1, 3], [1, 1, 2]):
    part = np.full((B, max(lengths)), 7)
    for row, n in enumerate(lengths):
      part[row, :n] = tokens[row, done[row] : done[row] + n]
    (state, last), done = extend(params, state, jnp.asarray(part), jnp.array(lengths)), done + lengths
    np.testing.assert_allclose(last, whole[jnp.arange(B), done - 1], rtol=1e-4, atol=1e-5)


def test_the_state_is_as_large_after_4096_tokens_as_before_the_first(case):
  model, params, *_ = case
  empty = model.empty_cache(params, B, 16)
  tokens, lengths = jax.ShapeDtypeStruct((B, 4096), jnp.int32), jax.ShapeDtypeStruct((B,), jnp.int32)
  long = jax.eval_shape(model.extend, params, model.empty_cache(params, B, 4096), tokens, lengths)[0]
  assert jax.tree.map(jnp.shape, empty) == jax.tree.map(jnp.shape, long)
  assert sum(a.size for a in jax.tree.leaves(empty)) <= 2 * 4 * B * D  # two blocks, a few numbers a channel


@pytest.mark.parametrize("size", ["3xs", "small"])
def test_as_many_weights_as_the_transformer(size):
  config = ModelConfig(kind="rnn", size=size, vocab_size=V).sized()
  count = lambda m: sum(a.size for a in jax.tree.leaves(jax.eval_shape(m.init, jax.random.key(0))["layers"]))
  rnn, lstm = Recurrent(config), Recurrent(dataclasses.replace(config, cell="lstm"))
  wanted = count(Transformer(config))
  assert count(rnn) == pytest.approx(wanted, rel=0.01) and count(lstm) == pytest.approx(wanted, rel=0.02)


@pytest.mark.parametrize(
  "model, words",
  [
    ({"residual": True}, "config.model.residual: model.kind=rnn has no energy; set it to False, or kind=ebt"),
    ({"passes": 2}, "config.model.passes: model.kind=rnn has no choice of it, found 2; leave it out"),
    ({"attention": "fused"}, "config.model.attention: model.kind=rnn has no choice of it, found fused"),
    ({"attention_block": 64}, "config.model.attention_block: model.kind=rnn has no choice of it, found 64"),
    ({"variant": "time_embed"}, "config.model.variant: model.kind=rnn has no choice of it, found time_embed"),
    ({"cell": "gru"}, "config.model.cell: no choice 'gru'"),
    ({"cell": "lstm", "kind": "transformer"}, "config.model.cell: lstm is a recurrent cell; set model.kind=rnn"),
  ],
)
def test_what_a_recurrent_model_does_not_have(model, words):
  with pytest.raises(ConfigError) as e:
    resolve({"model": {"kind": "rnn", **model}})
  assert words in str(e.value)


def test_candidates_and_other_tasks_are_refused():
  with pytest.raises(ConfigError, match="eval.candidates: 2 candidates need energies .* model.kind=rnn has not"):
    resolve({"model": {"kind": "rnn"}, "eval": {"candidates": 2}})
  with pytest.raises(ConfigError, match="config.model.kind: no choice 'rnn'"):
    resolve({"model": {"kind": "rnn"}, "task": "sudoku"})
  assert isinstance(registry.make(Config(model=dataclasses.replace(RG_LRU, vocab_size=300))).model, Recurrent)
