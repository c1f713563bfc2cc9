"""Transformer++: causal, and the cache gives the logits of the whole sequence; two passes are twice the depth, tied."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.config import ModelConfig
from ebt_jax.models.transformer import Transformer

B, S, V = 3, 6, 11
MODEL = Transformer(ModelConfig(kind="transformer", layers=2, heads=2, width=16, vocab_size=V))


@pytest.fixture(scope="module")
def case():
  params = MODEL.init(jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(1), (B, S), 0, V)
  return params, tokens, jax.jit(MODEL.predict)


def test_a_logit_depends_on_the_tokens_up_to_its_own_and_no_later_one(case):
  params, tokens, logits = case
  before = logits(params, tokens)
  assert before.shape == (B, S, V)
  for t in range(S):
    after = logits(params, tokens.at[1, t].set((tokens[1, t] + 1) % V))
    moved = np.argwhere(np.any(after != before, axis=-1))
    np.testing.assert_array_equal(moved, [[1, later] for later in range(t, S)])


def test_a_cache_filled_in_ragged_parts_gives_the_logits_of_the_whole(case):
  params, tokens, logits = case
  whole, done = logits(params, tokens), np.zeros(B, int)
  extend = jax.jit(MODEL.extend)
  context = MODEL.empty_cache(params, B, S + 2)
  for lengths in ([2, 4, 1], [2, 1, 3], [1, 1, 2]):
    part = np.full((B, max(lengths)), 7)
    for row, n in enumerate(lengths):
      part[row, :n] = tokens[row, done[row] : done[row] + n]
    (context, last), done = extend(params, context, jnp.asarray(part), jnp.array(lengths)), done + lengths
    np.testing.assert_allclose(last, whole[jnp.arange(B), done - 1], rtol=1e-4, atol=1e-5)


def test_two_passes_are_twice_the_blocks_with_the_same_weights_in_the_cache_too(case):
  params, tokens, _ = case
  twice = Transformer(dataclasses.replace(MODEL.config, passes=2))
  deep = Transformer(dataclasses.replace(MODEL.config, layers=4))
  assert jax.tree.map(jnp.shape, twice.init(jax.random.key(0))) == jax.tree.map(jnp.shape, params)
  repeated = {**params, "layers": jax.tree.map(lambda a: jnp.concatenate([a, a]), params["layers"])}
  found, one_row = jax.jit(twice.predict)(params, tokens), jax.ShapeDtypeStruct((1, S), jnp.int32)
  np.testing.assert_array_equal(found, jax.jit(deep.predict)(repeated, tokens))
  assert twice.flops(one_row) == deep.flops(one_row)
  _, last = jax.jit(twice.extend)(twice.unstacked(params), twice.empty_cache(params, B, S), tokens, jnp.full(B, S))
  np.testing.assert_allclose(last, found[:, -1], rtol=1e-4, atol=1e-5)
