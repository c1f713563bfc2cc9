"""Attention by blocks of queries equals the plain reference, in value and in gradients of both orders."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.models import attention

B, H, S, K = 2, 3, 11, 4
FUNCTIONS = {
  "context": (attention.context_attention, attention.reference_context_attention, 3, 0),
  "candidates": (attention.candidate_attention, attention.reference_candidate_attention, 5, 1),
}
POSITIONS = {"[s]": np.arange(S), "[b, s]": np.maximum(np.arange(S) - np.array([[0], [4]]), 0)}


def arrays(count, seed=3):
  """Queries and entries of float64, and what they are moved along."""
  return list(np.random.default_rng(seed).normal(size=(count, B, H, S, K)))


def assert_close(ours, theirs):
  for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11 * np.abs(b).max())


@pytest.mark.parametrize("block", [1, 2, 5, S])  # groups of several blocks, a shorter last block, no blocks
@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("which", FUNCTIONS)
def test_blocks_have_the_values_and_gradients_of_the_reference(x64, which, positions, block):
  blocked, reference, count, offset = FUNCTIONS[which]
  at, *args = jnp.asarray(POSITIONS[positions] + offset), *arrays(count)

  def with_gradient(f):
    total = lambda *args: (jnp.sum(jnp.sin(y := f(*args))), y)
    return jax.jit(jax.value_and_grad(total, range(count), has_aux=True))(*args)

  assert_close(with_gradient(lambda *a: blocked(*a, at, block=block)), with_gradient(lambda *a: reference(*a, at)))


@pytest.mark.parametrize("order", ["reverse over forward", "double reverse"])
def test_blocks_of_candidates_have_the_second_derivatives_of_the_reference(x64, order):
  own, context, directions = tuple(arrays(3)), arrays(2, 4), tuple(arrays(3, 5))
  at = jnp.arange(S) + 1

  def second(f):
    def along(own, *context):
      energy = lambda own: jnp.sum(jnp.sin(f(*own, *context, at)))
      if order == "double reverse":
        return sum(jnp.vdot(g, d) for g, d in zip(jax.grad(energy)(own), directions))
      return jax.jvp(energy, (own,), (directions,))[1]

    return jax.jit(jax.value_and_grad(along, (0, 1, 2)))(own, *context)

  blocked = lambda *a: attention.candidate_attention(*a, block=2)
  assert_close(second(blocked), second(attention.reference_candidate_attention))


def test_a_candidate_sees_the_entries_before_it_and_itself():
  """With scores of 0 every value that is seen counts alike."""
  zero, entries = jnp.zeros((1, 1, 3, K)), jnp.eye(3, K)[None, None]
  own = jnp.full((1, 1, 3, K), 10.0)
  found = attention.reference_candidate_attention(zero, zero, own, zero, entries, jnp.array([0, 1, 3]))[0, 0]
  np.testing.assert_allclose(found[0], own[0, 0, 0])
  np.testing.assert_allclose(found[1], (entries[0, 0, 0] + 10) / 2)
  np.testing.assert_allclose(found[2], (jnp.sum(entries[0, 0], 0) + 10) / 4, rtol=1e-6)


def test_many_queries_attend_in_blocks():
  long = attention.LONG
  x = jax.ShapeDtypeStruct((1, 1, long, 8), jnp.float32)
  text = str(jax.make_jaxpr(lambda q, k, v: attention.context_attention(q, k, v, jnp.arange(long)))(x, x, x))
  assert f"{long // 2},{long}]" in text and f"{long},{long}]" not in text
