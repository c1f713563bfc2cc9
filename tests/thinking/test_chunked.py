"""Candidates computed some positions at a time are those that are held whole: thoughts, losses, gradients."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import losses, thinking
from ebt_jax.config import ThinkingConfig

SHAPE, WIDTH = (2, 6, 7), 3
RANDOM = {"step_size": 0.8, "noise": 0.3, "random_step_size": 2.0, "steps": 3, "random_steps_min": 2, "momentum": 0.5}


def energy(params, context, y):
  return jnp.sum(jnp.cos(y @ params["w"] + context), -1)


def energy_of_rows(params, context, y):
  return jnp.sum(energy(params, context, y), -1)


def spaces(history):
  """Whole, and two positions at a time with a row of padding in the table."""
  padded = lambda params: jnp.pad(params["table"], ((0, 1), (0, 0)), constant_values=3.0)
  chunked = thinking.ChunkedSimplex(padded, SHAPE[-1], chunk=2, clip=2.0, noisy=True, history=history)
  return thinking.Simplex(lambda params: params["table"], clip=2.0), chunked


def problem():
  keys = iter(jax.random.split(jax.random.key(0), 5))
  normal = lambda *shape: jax.random.normal(next(keys), shape)
  model = {"table": normal(SHAPE[-1], WIDTH), "w": normal(WIDTH, WIDTH)}
  params = {"model": model, "thinking": {"step_size": jnp.asarray(0.8), "noise": jnp.asarray(0.3)}}
  return params, normal(*SHAPE[:2], WIDTH), jax.random.randint(next(keys), SHAPE[:2], 0, SHAPE[-1])


@pytest.mark.parametrize("mode, history", [("each", "constant"), ("last", "path"), ("unrolled", "live")])
@pytest.mark.parametrize("energy", [energy, energy_of_rows], ids=["positions", "rows"])
def test_losses_and_gradients_are_those_of_whole_candidates(x64, energy, mode, history):
  params, context, targets = problem()
  config = ThinkingConfig(gradient=mode, learn_noise=True, **RANDOM)

  def loss(space, params, context):
    def of_chunk(x, targets):
      total = jnp.sum(losses.token_losses(x, targets))
      return total, total

    def measure(params, context, x, energies, i, count):
      return space.reduce_loss(params["model"], x, of_chunk, targets)

    start = space.start(jax.random.key(1), SHAPE)
    return thinking.thinking_loss(energy, space, measure, params, context, start, jax.random.key(2), config)

  run = lambda space: jax.jit(jax.value_and_grad(functools.partial(loss, space), (0, 1), has_aux=True))(params, context)
  ((whole, aux), gradient), ((chunked, chunked_aux), chunked_gradient) = map(run, spaces(history))
  np.testing.assert_allclose(chunked, whole, rtol=1e-10)
  np.testing.assert_allclose(chunked_aux.first_energies, aux.first_energies, rtol=1e-10)
  for a, b in zip(jax.tree.leaves(chunked_gradient), jax.tree.leaves(gradient)):
    np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10 * np.abs(b).max())


def test_thoughts_are_those_of_whole_candidates(x64):
  params, context, targets = problem()
  config = ThinkingConfig(**RANDOM)
  found = []
  for space in spaces("constant"):
    start = space.start(jax.random.key(1), SHAPE)
    thoughts = thinking.think(energy, space, params, context, start, jax.random.key(2), config, training=True)
    model = params["model"]
    found.append((thoughts.energies, space.decode(model, thoughts.candidate), space.embed_target(model, targets)))
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-10), *found)


def test_what_needs_whole_candidates_is_refused():
  _, space = spaces("constant")
  x = space.prepare(problem()[0]["model"], space.start(jax.random.key(0), SHAPE), 2)
  with pytest.raises(ValueError, match="noise from outside .* use Simplex"):
    space.add_noise(x, jax.random.key(0), 1.0, jnp.zeros(SHAPE))
  with pytest.raises(ValueError, match="clip_gradient .* use Simplex"):
    space.step({}, x, 0, jnp.zeros((*SHAPE[:2], WIDTH)), 1.0, bound=0.5)
  assert not hasattr(space, "read") and not hasattr(space, "project")
