"""Candidate spaces: where a candidate starts, what the energy is given of it, and what a step makes of it.

`Space` is what thinking asks of a space. `ArraySpace` does it for candidates that are held as arrays; a space of your
own overrides `read`, `embed` or `project` of it. Names used throughout: x is a candidate, p = read(x) is what the
gradient is taken with respect to, y = embed(p) is what the energy is given, and the slope is dE/dy.
"""

import abc
from collections.abc import Callable
import dataclasses
from typing import Any

import jax
from jax.extend import random as jex_random
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key
import numpy as np

from ebt_jax import streams
from ebt_jax.thinking.shapes import expand


class Space(abc.ABC):
  """What thinking asks of a candidate space; `params` are those of the model, `params["model"]`."""

  @abc.abstractmethod
  def start(self, key: Key[Array, "*k"], shape: Any) -> Any:
    """The first candidate.

    Args:
      key: one key, or an array of keys, one for each index of its leading axes `*k`.
      shape: of the candidate, its axes `*k` included.
    """

  def start_at(self, params: Any, x: Any, answer: Any) -> Any:
    """The first candidate x moved by an answer in the space of y, such as what the context alone predicts."""
    raise NotImplementedError(f"{type(self).__name__} has no start at an answer")

  def potential(self, x: Any) -> Any:
    """What a E(p) lacks to be stationary where thinking rests, `[*e]`, up to a constant; 0 if nothing."""
    return 0.0

  def prepare(self, params: Any, x: Any, steps: int) -> Any:
    """The start in the form that thinking carries from step to step, with room for `steps` of them."""
    return x

  def candidate(self, x: Any) -> Any:
    """The candidate alone of what thinking carries from step to step."""
    return x

  @abc.abstractmethod
  def add_noise(self, x: Any, key: Key[Array, "*k"], scale: Any, noise: Any = None) -> Any:
    """x with Langevin noise of standard deviation `scale`; `noise`: standard normal numbers in place of the key's."""

  def noised(self, x: Any, key: Key[Array, "*k"], scale: Any, noise: Any = None) -> tuple["Space", Any]:
    """The space and the candidate of the next step, with the Langevin noise of `add_noise`."""
    return self, self.add_noise(x, key, scale, noise)

  @abc.abstractmethod
  def energy_input(self, params: Any, x: Any, landscape: Any) -> Any:
    """y, what the energy is given of x."""

  @abc.abstractmethod
  def step(self, params: Any, x: Any, landscape: Any, slope: Any, size: Any, bound: Any = None) -> Any:
    """x after one step of descent.

    Args:
      slope: dE/dy at y = `energy_input(params, x, landscape)`.
      size: step size, one number or one for each energy, `[*e]`.
      bound: largest magnitude of an entry of dE/dp; None: no bound.
    """

  @abc.abstractmethod
  def reduce_loss(
    self, params: Any, x: Any, f: Callable[[Any, Any], tuple[jax.Array, Any]], arrays: Any
  ) -> tuple[jax.Array, Any]:
    """`f(x, arrays)` of a stepped candidate: a sum over positions, and a pytree of sums to log.

    Args:
      arrays: pytree of `[b, s, ...]`, such as targets and weights; a space may call `f` on parts of the positions.
    """

  @abc.abstractmethod
  def embed_target(self, params: Any, target: Any) -> Any:
    """y of the truth, for losses that need its energy."""

  @abc.abstractmethod
  def decode(self, params: Any, x: Any) -> Any:
    """The answer that a finished candidate stands for."""


class ArraySpace(Space):
  """Candidates are an array or a pytree of arrays; x_new = project(p - step_size * dE/dp) with p = read(x)."""

  start_scale = 1.0  # standard deviation of the normal start; 0 starts at the origin

  def read(self, x: Any, landscape: Any) -> Any:
    """p, what the gradient is taken with respect to."""
    return x

  def embed(self, params: Any, p: Any) -> Any:
    """y, what the energy is given."""
    return p

  def embed_vjp(self, params: Any, p: Any, slope: Any) -> Any:
    """dE/dp from the slope dE/dy at y = embed(p)."""
    return jax.vjp(lambda p: self.embed(params, p), p)[1](slope)[0]

  def project(self, x: Any) -> Any:
    """The candidate that is left of p - step_size * dE/dp."""
    return x

  def noise(self, key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = float) -> jax.Array:
    """Standard normal numbers."""
    return jax.random.normal(key, shape, dtype)

  def signals(self, x: Any) -> dict[str, jax.Array]:
    """Further properties of a candidate that `diagnose` reports: name -> `[*e, ...]`."""
    return {}

  def start(self, key: Key[Array, "*k"], shape: Any) -> Any:
    """Normal numbers of standard deviation `start_scale`; `shape` may be a pytree of shapes."""
    zeros = jax.tree.map(jnp.zeros, shape, is_leaf=_is_shape)
    if not self.start_scale:
      return zeros
    return jax.tree.map(lambda a: self.start_scale * a, draw_like(self.noise, key, zeros))

  def add_noise(self, x: Any, key: Key[Array, "*k"], scale: Any, noise: Any = None) -> Any:
    noise = draw_like(self.noise, key, x) if noise is None else noise
    return jax.tree.map(lambda a, n: a + scale * n, x, noise)

  def energy_input(self, params: Any, x: Any, landscape: Any) -> Any:
    return self.embed(params, self.read(x, landscape))

  def step(self, params: Any, x: Any, landscape: Any, slope: Any, size: Any, bound: Any = None) -> Any:
    p = self.read(x, landscape)

    def stepped(p, gradient):
      if bound is not None:
        gradient = jnp.clip(gradient, -bound, bound)
      return p - expand(size, p) * gradient

    return self.project(jax.tree.map(stepped, p, self.embed_vjp(params, p, slope)))

  def reduce_loss(
    self, params: Any, x: Any, f: Callable[[Any, Any], tuple[jax.Array, Any]], arrays: Any
  ) -> tuple[jax.Array, Any]:
    return f(x, arrays)

  def embed_target(self, params: Any, target: Any) -> Any:
    return self.embed(params, target)

  def decode(self, params: Any, x: Any) -> Any:
    return x


@dataclasses.dataclass(frozen=True)
class Euclidean(ArraySpace):
  """Candidates are plain vectors: pixels, features, an action with several parts."""

  embedding: Callable[[Any, Any], Any] | None = None  # (params, x) -> what the energy is given
  start_scale: float = 1.0
  bound: float = 0.0  # b > 0: candidates stay in [-b, b]

  def embed(self, params: Any, p: Any) -> Any:
    return self.embedding(params, p) if self.embedding else p

  def project(self, x: Any) -> Any:
    return jax.tree.map(lambda a: jnp.clip(a, -self.bound, self.bound), x) if self.bound else x

  def start_at(self, params: Any, x: Any, answer: Any) -> Any:
    if self.embedding:
      raise NotImplementedError("a start at an answer needs candidates that the energy is given as they are")
    return jax.tree.map(jnp.add, x, answer)


@dataclasses.dataclass(frozen=True)
class NoisyEmbedding(Euclidean):
  """Plain vectors whose Langevin noise is added to y and not to x, as the authors do it for video."""

  shift: Any = None  # (key, scale, noise) of the step that is taken

  def noised(self, x: Any, key: Key[Array, "*k"], scale: Any, noise: Any = None) -> tuple[Space, Any]:
    return dataclasses.replace(self, shift=(key, scale, noise)), x

  def energy_input(self, params: Any, x: Any, landscape: Any) -> Any:
    y = super().energy_input(params, x, landscape)
    return self.add_noise(y, *self.shift) if self.shift else y


@dataclasses.dataclass(frozen=True)
class Simplex(ArraySpace):
  """Candidates are logits that are read as probabilities (text in the paper, section 3).

  The gradient is with respect to the probabilities, and a step starts from them: x_new = softmax(x) - a dE/dp.
  """

  table: Callable[[Any], Float[Array, "v d"]]  # of the parameters; the energy is given p @ table
  start_scale: float = 1.0
  normalize: str = "every"  # read by softmax in: every landscape | first (landscape 0 only) | never
  clip: float = 0.0  # c > 0: a stepped candidate is clipped at +-c
  sharpen: float = 0.0  # s != 0: a stepped candidate is divided by s

  def read(self, x: Float[Array, "*p v"], landscape: Any) -> Float[Array, "*p v"]:
    if self.normalize == "never":
      return x
    p = jax.nn.softmax(x, axis=-1)
    return p if self.normalize == "every" else jnp.where(landscape == 0, p, x)

  def embed(self, params: Any, p: Float[Array, "*p v"]) -> Float[Array, "*p d"]:
    return p @ self.table(params)

  def embed_vjp(self, params: Any, p: Float[Array, "*p v"], slope: Float[Array, "*p d"]) -> Float[Array, "*p v"]:
    return slope @ self.table(params).T

  def project(self, x: Float[Array, "*p v"]) -> Float[Array, "*p v"]:
    return project_logits(x, self.clip, self.sharpen)

  def start_at(self, params: Any, x: Float[Array, "*p v"], answer: Float[Array, "*q d"]) -> Float[Array, "*p v"]:
    """The answer's logits are its products with the table, as constants."""
    return x + answer @ jax.lax.stop_gradient(self.table(params)).T

  def potential(self, x: Float[Array, "*p v"]) -> Float[Array, "*p"]:
    """-H(p) - |p|^2 / 2.

    Thinking rests where softmax(x) - a dE/dp = x + c, that is where a E(p) - H(p) - |p|^2 / 2 is stationary.
    """
    p = jax.nn.softmax(x, axis=-1)
    return jnp.sum(p * jax.nn.log_softmax(x, axis=-1), -1) - jnp.sum(p * p, -1) / 2

  def noise(self, key: Key[Array, ""], shape: tuple[int, ...], dtype: Any = float) -> Float[Array, "*p v"]:
    """Standard normal numbers; each position has its own key, so that `ChunkedSimplex` can draw any of them alone."""
    return wide_normal(jax.random.split(key, shape[:-1]), shape[-1], dtype)

  def signals(self, x: Float[Array, "*p v"]) -> dict[str, jax.Array]:
    """`entropy` of each distribution, in nats."""
    return {"entropy": -jnp.sum(jax.nn.softmax(x) * jax.nn.log_softmax(x), -1)}

  def embed_target(self, params: Any, target: Int[Array, "*p"]) -> Float[Array, "*p d"]:
    """Rows of the table, which is what one-hot distributions embed to."""
    return self.table(params)[target]

  def decode(self, params: Any, x: Float[Array, "*p v"]) -> Int[Array, "*p"]:
    return jnp.argmax(x, axis=-1)


def project_logits(x: Float[Array, "*p v"], clip: float, sharpen: float) -> Float[Array, "*p v"]:
  """Clipped at +-`clip`, then divided by `sharpen`; 0 turns either off."""
  if clip:
    x = jnp.clip(x, -clip, clip)
  return x / sharpen if sharpen else x


def draw(
  sample: Callable[..., jax.Array], keys: Key[Array, "*k"], shape: tuple[int, ...], dtype: Any = float
) -> jax.Array:
  """`sample(key, shape, dtype)` from one key; from an array of keys, one sample for each index of its axes `*k`.

  Args:
    shape: of the result, the axes `*k` included.
  """
  if not keys.ndim:
    return sample(keys, shape, dtype)
  drawn = jax.vmap(lambda key: sample(key, shape[keys.ndim :], dtype))(keys.reshape(-1))
  return drawn.reshape(shape)


def draw_like(sample: Callable[..., jax.Array], keys: Key[Array, "*k"], tree: Any) -> Any:
  """`draw` for every leaf of a candidate: a single array by the keys themselves, each of several by keys of its own."""
  leaves, structure = jax.tree.flatten(tree)
  of_leaf = [keys] if len(leaves) == 1 else [streams.fold(keys, i) for i in range(len(leaves))]
  return structure.unflatten([draw(sample, k, a.shape, a.dtype) for k, a in zip(of_leaf, leaves)])


def wide_normal(keys: Key[Array, "*k"], width: int, dtype: Any = float) -> Float[Array, "*k width"]:
  """Standard normal numbers from 16 random bits each, four from one block of the threefry generator.

  Chunked candidates draw their noise again wherever they are computed. A training step over 50,277 tokens (4 rows of
  128 positions, two steps `each`, 2 CPU cores, jax 0.10.2, 2026-11-25) takes 1.2 times (6 layers, width 384) to 1.5
  times (2 layers, width 128) as long with `jax.random.normal`. The price: 65,536 different values, none beyond +-4.33.
  """
  dtype = jax.dtypes.canonicalize_dtype(dtype)
  counters = jnp.arange(-(-width // 2), dtype=jnp.uint32)
  pairs = jax.random.key_data(keys)[..., :2].reshape(-1, 2)
  words = jax.vmap(lambda pair: jex_random.threefry_2x32(pair, counters))(pairs)
  halves = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)[:, :width]
  uniform = (halves.astype(dtype) + 0.5) * 2.0**-16
  return (2**0.5 * jax.lax.erf_inv(2 * uniform - 1)).reshape(*keys.shape, width)


def _is_shape(shape) -> bool:
  return isinstance(shape, tuple) and all(isinstance(n, (int, np.integer)) for n in shape)
