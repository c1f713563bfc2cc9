"""Candidate spaces: how a candidate starts, is read before the energy, and is left after a step.

A space is any object with these five methods:

  start(key, shape)            the first candidate
  read(x, landscape)           -> p, what the step's gradient is taken with respect to
  embed(params, p)             -> y, what the energy is given; linear in p for text
  settle(x)                    the candidate after a step
  decode(x)                    what a finished candidate says
"""

import dataclasses
from typing import Any, Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray


def _same(params: Any, p: jax.Array) -> jax.Array:
  return p


@dataclasses.dataclass(frozen=True)
class Euclidean:
  """Candidates are plain vectors: pixels, features, points of a plane."""

  embed: Callable[[Any, jax.Array], jax.Array] = _same
  start_scale: float = 1.0  # of the normal start; 0 starts at the origin
  bound: float = 0.0  # b > 0: candidates stay in [-b, b]

  def start(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    return self.start_scale * jax.random.normal(key, shape) if self.start_scale else jnp.zeros(shape)

  def read(self, x: jax.Array, landscape) -> jax.Array:
    return x

  def settle(self, x: jax.Array) -> jax.Array:
    return jnp.clip(x, -self.bound, self.bound) if self.bound else x

  def decode(self, x: jax.Array) -> jax.Array:
    return x


@dataclasses.dataclass(frozen=True)
class Simplex:
  """Candidates are logits, read as probabilities (text; facts 1.2).

  The gradient is with respect to the probabilities, and the step starts from them: x_new = softmax(x) - a dE/dp.
  """

  embed: Callable[[Any, jax.Array], jax.Array] = _same
  start_scale: float = 1.0
  normalize: str = "every"  # every | first (landscape 0 only) | never
  clip: float = 0.0
  sharpen: float = 0.0

  def start(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "*p v"]:
    return self.start_scale * jax.random.normal(key, shape) if self.start_scale else jnp.zeros(shape)

  def read(self, x: Float[Array, "*p v"], landscape) -> Float[Array, "*p v"]:
    if self.normalize == "never":
      return x
    p = jax.nn.softmax(x, axis=-1)
    return p if self.normalize == "every" else jnp.where(landscape == 0, p, x)

  def settle(self, x: Float[Array, "*p v"]) -> Float[Array, "*p v"]:
    if self.clip:
      x = jnp.clip(x, -self.clip, self.clip)
    return x / self.sharpen if self.sharpen else x

  def decode(self, x: Float[Array, "*p v"]) -> Int[Array, "*p"]:
    return jnp.argmax(x, axis=-1)
