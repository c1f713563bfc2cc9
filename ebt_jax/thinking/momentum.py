"""Heavy-ball momentum: a step follows m <- beta m + dE/dy, a sum over the steps so far, instead of the slope alone."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ebt_jax.config import ThinkingConfig
from ebt_jax.thinking.spaces import Space


class Moving(NamedTuple):
  """What thinking carries from step to step."""

  x: Any
  m: Any  # like the slope, dE/dy


@dataclasses.dataclass(frozen=True)
class Momentum(Space):
  """Any space, stepped with momentum; it serves inside of thinking, which gives and takes plain candidates.

  m is kept in the space of y, where it is as narrow as the model also if candidates are as wide as a vocabulary.
  """

  inner: Space
  beta: float

  def start(self, key: Any, shape: Any) -> Any:
    return self.inner.start(key, shape)

  def prepare(self, params: Any, x: Any, steps: int) -> Moving:
    x = self.inner.prepare(params, x, steps)
    y = jax.eval_shape(lambda x: self.inner.energy_input(params, x, 0), x)
    return Moving(x, jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), y))

  def candidate(self, x: Moving) -> Any:
    return self.inner.candidate(x.x)

  def add_noise(self, x: Moving, key: Any, scale: Any, noise: Any = None) -> Moving:
    return x._replace(x=self.inner.add_noise(x.x, key, scale, noise))

  def noised(self, x: Moving, key: Any, scale: Any, noise: Any = None) -> tuple["Momentum", Moving]:
    inner, now = self.inner.noised(x.x, key, scale, noise)
    return dataclasses.replace(self, inner=inner), x._replace(x=now)

  def energy_input(self, params: Any, x: Moving, landscape: Any) -> Any:
    return self.inner.energy_input(params, x.x, landscape)

  def step(self, params: Any, x: Moving, landscape: Any, slope: Any, size: Any, bound: Any = None) -> Moving:
    m = jax.tree.map(lambda old, now: self.beta * old + now, x.m, slope)
    return Moving(self.inner.step(params, x.x, landscape, m, size, bound), m)

  def reduce_loss(self, params: Any, x: Any, f: Any, arrays: Any) -> Any:
    return self.inner.reduce_loss(params, x, f, arrays)

  def embed_target(self, params: Any, target: Any) -> Any:
    return self.inner.embed_target(params, target)

  def decode(self, params: Any, x: Any) -> Any:
    return self.inner.decode(params, x)


def moving(space: Space, config: ThinkingConfig) -> Space:
  """The space as thinking steps in it: with `config.momentum`, if there is any."""
  return Momentum(space, config.momentum) if config.momentum else space
