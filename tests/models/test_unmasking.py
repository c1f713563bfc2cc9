"""Filling blanks in several passes: which are settled when, and that given places stay as they are."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax.config import ModelConfig
from ebt_jax.models.bidirectional import Masked, MaskedTransformer
from ebt_jax.models.unmasking import Blanks, Unmasking
from tests.models.test_autoregressive import random_like

B, S, V = 3, 8, 5
MODEL = MaskedTransformer(ModelConfig(layers=1, heads=1, width=8, vocab_size=V))
PARAMS = random_like(MODEL.init(jax.random.key(0)), 1)
ASKED = np.array([[1, 0, 1, 1, 1, 0, 1, 0], [0, 0, 1, 1, 0, 1, 1, 1], [1] * S], np.float32)
TOKENS = np.asarray(jax.random.randint(jax.random.key(1), (B, S), 0, V))
BLANKS = Blanks(Masked(jnp.asarray(TOKENS), jnp.asarray(ASKED)), jnp.arange(B, dtype=jnp.uint32))


@functools.cache
def compiled(passes, sampled):
  model = Unmasking(MODEL, sampled)
  return jax.jit(lambda blanks: model.answers(PARAMS, blanks, passes))


def answers(passes, sampled=False, blanks=BLANKS):
  return compiled(passes, sampled)(blanks)


PREDICT = jax.jit(MODEL.predict)


def test_the_surest_blanks_are_settled_first_and_read_by_later_passes():
  """Against a plain loop over rows."""
  passes = 3
  found = answers(passes)
  for row in range(B):
    tokens, left = TOKENS[row].copy(), ASKED[row].copy()
    logits = np.zeros((S, V))
    for i in range(passes):
      now = np.asarray(PREDICT(PARAMS, Masked(jnp.asarray(tokens)[None], jnp.asarray(left)[None])))[0]
      sure = np.where(left > 0, now.max(-1) - np.log(np.exp(now).sum(-1)), -np.inf)
      logits[left > 0], tokens[left > 0] = now[left > 0], now.argmax(-1)[left > 0]
      left[np.argsort(-sure)[: int(np.ceil(left.sum() / (passes - i)))]] = 0
      assert np.array_equal(found.unsettled[i, row], left) and np.array_equal(found.tokens[i, row], tokens)
      np.testing.assert_allclose(found.logits[i, row][ASKED[row] > 0], logits[ASKED[row] > 0], rtol=1e-4, atol=1e-5)
    assert not left.any()


def test_one_pass_is_the_plain_transformer():
  found, plain = answers(1), PREDICT(PARAMS, BLANKS.known)
  np.testing.assert_allclose(found.logits[0] * ASKED[..., None], plain * ASKED[..., None], rtol=1e-5, atol=1e-5)
  assert np.array_equal(found.tokens[0], np.where(ASKED > 0, plain.argmax(-1), TOKENS)) and not found.unsettled.any()


def test_given_places_stay_and_what_is_hidden_is_not_read():
  other = BLANKS._replace(known=BLANKS.known._replace(tokens=jnp.where(ASKED > 0, (TOKENS + 1) % V, TOKENS)))
  for sampled in (False, True):
    found = answers(3, sampled)
    assert np.all((found.tokens == TOKENS) | (ASKED > 0)) and np.all(found.unsettled <= ASKED)
    assert np.array_equal(found.tokens[-1], answers(3, sampled, other).tokens[-1])


def test_samples_settle_as_masked_diffusion_does_and_follow_their_seed():
  rows, passes = 1500, 3
  known = Masked(jnp.zeros((rows, 4), jnp.int32), jnp.ones((rows, 4)))
  found = answers(passes, True, Blanks(known, jnp.arange(rows, dtype=jnp.uint32)))
  left = np.asarray(found.unsettled).mean((1, 2))
  np.testing.assert_allclose(left, [2 / 3, 1 / 3, 0], atol=0.04)
  settled = np.asarray(found.unsettled[0]) == 0
  assert np.array_equal(np.asarray(found.tokens[0])[settled], np.asarray(found.tokens[-1])[settled])  # and stay so
  p = jax.nn.softmax(PREDICT(PARAMS, Masked(known.tokens[:1], known.asked[:1])))[0, 0]
  drawn = np.bincount(np.asarray(found.tokens[0])[:, 0], minlength=V) / rows
  np.testing.assert_allclose(drawn, p, atol=0.06)
  same, other = (answers(3, True, BLANKS._replace(seed=BLANKS.seed + i)).tokens for i in (0, 1))
  assert np.array_equal(same, answers(3, True).tokens) and not np.array_equal(same, other)
