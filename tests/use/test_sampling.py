"""Which tokens can be drawn, and how often."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.config import ConfigError
from ebt_jax.use.sampling import Sampling, sample

P = np.array([[0.4, 0.05, 0.3, 0.15, 0.1], [0.02, 0.9, 0.03, 0.04, 0.01]])


def frequencies(how, n=20_000):
  keys = jax.random.split(jax.random.key(0), n)
  tokens = jax.jit(jax.vmap(lambda key: sample(jnp.log(jnp.asarray(P, jnp.float32)), jax.random.split(key), how)))(keys)
  return np.stack([np.bincount(row, minlength=5) for row in tokens.T]) / n


def expected(keep, temperature=1.0):
  p = np.where(keep, P ** (1 / temperature), 0)
  return p / p.sum(-1, keepdims=True)


ALL = np.ones_like(P, bool)
TOP_3 = np.array([[1, 0, 1, 1, 0], [0, 1, 1, 1, 0]], bool)


@pytest.mark.parametrize(
  "how, wanted",
  [
    (Sampling(), expected(ALL)),
    (Sampling(temperature=0.5), expected(ALL, 0.5)),
    (Sampling(temperature=2.0, top_k=3), expected(TOP_3, 2.0)),
    (Sampling(top_k=9), expected(ALL)),
    (Sampling(top_p=0.69), expected(np.array([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0]], bool))),
    (Sampling(top_p=0.71), expected(np.array([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0]], bool))),
    # of the three likeliest, not of all
    (Sampling(top_k=3, top_p=0.8), expected(np.array([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0]], bool))),
    (Sampling(top_k=1, temperature=9.0), expected(np.array([[1, 0, 0, 0, 0], [0, 1, 0, 0, 0]], bool))),
  ],
)
def test_draws_come_from_the_kept_tokens_in_proportion(how, wanted):
  got = frequencies(how)
  np.testing.assert_array_equal(got > 0, wanted > 0)
  assert np.all(np.abs(got - wanted) <= 4.5 * np.sqrt(wanted * (1 - wanted) / 20_000))


@pytest.mark.parametrize(
  "flag, value",
  [
    ("temperature", 0.0),
    ("temperature", -1.0),
    ("temperature", float("nan")),
    ("top_k", -1),
    ("top_p", 0.0),
    ("top_p", 1.1),
  ],
)
def test_impossible_choices_name_their_flag(flag, value):
  with pytest.raises(ConfigError, match=f"--{flag}"):
    Sampling(**{flag: value})
