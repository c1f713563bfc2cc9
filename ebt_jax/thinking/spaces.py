"""Candidate spaces: how a candidate starts, is read before the energy, and is left after a step.

`Space` says what the inner optimiser asks of a space. A new one needs `start`, and what differs from the identity of
`perceive` (before the gradient), `embed` (what the energy is given) and `settle` (after a step).
"""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
from jax.extend import random as jex_random
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from ebt_jax import chunks, few, losses


class Space:
  """A step is x_new = settle(p - step_size * dE/dp) with p = perceive(x), and the energy sees embed(p)."""

  def start(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Any:
    """The first candidate."""
    raise NotImplementedError

  def perceive(self, x: jax.Array, landscape) -> jax.Array:
    """p, what the gradient is taken with respect to."""
    return x

  def embed(self, params: Any, p: jax.Array) -> jax.Array:
    """What the energy is given."""
    return p

  def pull(self, params: Any, p: jax.Array, slope: jax.Array) -> jax.Array:
    """dE/dp from `slope`, dE/dy at y = embed(p)."""
    return jax.vjp(lambda p: self.embed(params, p), p)[1](slope)[0]

  def settle(self, x: jax.Array) -> jax.Array:
    """The candidate after a step."""
    return x

  def decode(self, params: Any, x: Any) -> jax.Array:
    """What a finished candidate says."""
    return x

  # what `think` calls; a space that does not hold its candidates as arrays has its own

  def prepare(self, params: Any, x: Any, steps: int) -> Any:
    """The start as thinking carries it, with room for so many steps."""
    return x

  def disturb(self, x: Any, key: PRNGKeyArray, scale: jax.Array, noise: jax.Array | None = None) -> Any:
    """Adds Langevin noise, drawn from `key` unless it is given."""
    return x + scale * (self.draw(key, x.shape, x.dtype) if noise is None else noise)

  def draw(self, keys: PRNGKeyArray, shape: tuple[int, ...], dtype=float) -> jax.Array:
    """`noise` from one key; from an array of keys, one for each index of the leading axes that the array has."""
    if not keys.ndim:
      return self.noise(keys, shape, dtype)
    drawn = jax.vmap(lambda key: self.noise(key, shape[keys.ndim :], dtype))(keys.reshape(-1))
    return drawn.reshape(shape)

  def noise(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype=float) -> jax.Array:
    """Standard normal."""
    return jax.random.normal(key, shape, dtype)

  def read(self, params: Any, x: Any, landscape: Any) -> jax.Array:
    """What the energy is given."""
    return self.embed(params, self.perceive(x, landscape))

  def step(self, params: Any, x: Any, landscape: Any, slope: jax.Array, size: jax.Array, bound=None) -> Any:
    """One step of descent.

    Args:
      slope: dE/dy at y = `read(params, x, landscape)`.
      size: broadcasts against x.
      bound: largest magnitude of an entry of dE/dp, if any.
    """
    p = self.perceive(x, landscape)
    gradient = self.pull(params, p, slope)
    if bound is not None:
      gradient = jnp.clip(gradient, -bound, bound)
    return self.settle(p - size * gradient)

  def summed(self, params: Any, x: Any, f: Callable, arrays: Any) -> tuple[jax.Array, Any]:
    """`f(x, arrays)`: a sum over positions of a stepped candidate, and sums to log. `arrays` are `[b, s, ...]`."""
    return f(x, arrays)


@dataclasses.dataclass(frozen=True)
class Euclidean(Space):
  """Candidates are plain vectors: pixels, features, points of a plane."""

  embedding: Callable[[Any, jax.Array], jax.Array] | None = None  # (params, x) -> what the energy is given
  start_scale: float = 1.0  # of the normal start; 0 starts at the origin
  bound: float = 0.0  # b > 0: candidates stay in [-b, b]

  def start(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "..."]:
    return self.start_scale * self.draw(key, shape) if self.start_scale else jnp.zeros(shape)

  def embed(self, params: Any, p: jax.Array) -> jax.Array:
    return self.embedding(params, p) if self.embedding else p

  def settle(self, x: jax.Array) -> jax.Array:
    return jnp.clip(x, -self.bound, self.bound) if self.bound else x


@dataclasses.dataclass(frozen=True)
class Simplex(Space):
  """Candidates are logits, read as probabilities (text; facts 1.2).

  The gradient is with respect to the probabilities, and the step starts from them: x_new = softmax(x) - a dE/dp.
  """

  table: Callable[[Any], Float[Array, "v d"]]  # of the parameters; the energy is given p @ table
  start_scale: float = 1.0
  normalize: str = "every"  # every | first (landscape 0 only) | never
  clip: float = 0.0
  sharpen: float = 0.0

  def start(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "*p v"]:
    return self.start_scale * self.draw(key, shape) if self.start_scale else jnp.zeros(shape)

  def noise(self, key: PRNGKeyArray, shape: tuple[int, ...], dtype=float) -> Float[Array, "*p v"]:
    """Standard normal; each position has a key of its own, so that any of them can be drawn alone."""
    return wide_normal(jax.random.split(key, shape[:-1]), shape[-1], dtype)

  def perceive(self, x: Float[Array, "*p v"], landscape) -> Float[Array, "*p v"]:
    if self.normalize == "never":
      return x
    p = jax.nn.softmax(x, axis=-1)
    return p if self.normalize == "every" else jnp.where(landscape == 0, p, x)

  def embed(self, params: Any, p: Float[Array, "*p v"]) -> Float[Array, "*p d"]:
    return p @ self.table(params)

  def pull(self, params: Any, p: Float[Array, "*p v"], slope: Float[Array, "*p d"]) -> Float[Array, "*p v"]:
    table = self.table(params)
    if few.applies(slope.size // slope.shape[-1]):
      return few.by_transpose(slope.reshape(-1, slope.shape[-1]), table).reshape(*slope.shape[:-1], -1)
    return slope @ table.T

  def settle(self, x: Float[Array, "*p v"]) -> Float[Array, "*p v"]:
    if self.clip:
      x = jnp.clip(x, -self.clip, self.clip)
    return x / self.sharpen if self.sharpen else x

  def decode(self, params: Any, x: Float[Array, "*p v"]) -> Int[Array, "*p"]:
    return jnp.argmax(x, axis=-1)


class Trail(NamedTuple):
  """A candidate `[b, s, v]` as what made it: the keys of its start, and the slopes it went down.

  As dE/dp = slope @ table.T, positions can be rebuilt a few at a time. `n` is the number of steps there is room for.
  """

  start: PRNGKeyArray  # [b, s]
  slopes: Float[Array, "b s n d"]
  sizes: Float[Array, "b s n 1"]
  noise: PRNGKeyArray  # [b, s, n]; Langevin noise before each step
  scales: Float[Array, " n"]  # of that noise
  count: Int[Array, ""]  # steps made


@dataclasses.dataclass(frozen=True)
class ChunkedSimplex(Simplex):
  """The same space for large vocabularies: `[b, s, v]` is computed `chunk` positions at a time and never held.

  Rebuilding step i costs i products with the table. Needs `normalize="every"`. Rows of the table beyond `vocabulary`
  are padding.
  """

  vocabulary: int = 0
  chunk: int = 1  # positions
  noisy: bool = False  # whether there is Langevin noise
  # what earlier steps are to the gradient: constant | path (their sizes matter, the table in them does not) | live
  history: str = "constant"

  def start(self, key: PRNGKeyArray, shape: tuple[int, ...]) -> PRNGKeyArray:
    return jax.random.split(key, shape[:-1])

  def prepare(self, params: Any, x: PRNGKeyArray, steps: int) -> Trail:
    width, dtype = self.table(params).shape[1], self.table(params).dtype

    def steps_of(*shape):
      return jnp.zeros((*x.shape, steps, *shape), dtype)

    noise = jnp.broadcast_to(x[..., None], (*x.shape, steps)) if self.noisy else x[..., None]
    return Trail(x, steps_of(width), steps_of(1), noise, jnp.zeros(steps, dtype), jnp.zeros((), jnp.int32))

  def disturb(self, x: Trail, key: PRNGKeyArray, scale: jax.Array, noise=None) -> Trail:
    if noise is not None:
      raise ValueError("noise from outside needs candidates that are held whole: use Simplex")
    keys = jax.random.split(key, x.start.shape)
    return x._replace(noise=x.noise.at[:, :, x.count].set(keys), scales=x.scales.at[x.count].set(scale))

  def read(self, params: Any, x: Trail, landscape: Any) -> Float[Array, "b s d"]:
    def f(shared, trail):
      table, scales, count = shared
      logits = self._logits(table, scales, count, trail, fresh=False)
      if self.noisy:
        logits = logits + scales[count] * self._normal(trail["noise"][:, :, count], table)
      return jax.nn.softmax(logits, axis=-1) @ table

    return chunks.mapped(f, (self.table(params), x.scales, x.count), _positional(x), self.chunk)

  def step(self, params: Any, x: Trail, landscape: Any, slope: jax.Array, size: jax.Array, bound=None) -> Trail:
    size = jnp.broadcast_to(size, (*slope.shape[:-1], 1))
    return x._replace(
      slopes=x.slopes.at[:, :, x.count].set(slope), sizes=x.sizes.at[:, :, x.count].set(size), count=x.count + 1
    )

  def summed(self, params: Any, x: Trail, f: Callable, arrays: Any) -> tuple[jax.Array, Any]:
    def of_chunk(shared, both):
      table, scales, count = shared
      trail, arrays = both
      return f(self._logits(table, scales, count, trail, fresh=True), arrays)

    shared = (self.table(params), x.scales, x.count)
    return chunks.summed(of_chunk, shared, (_positional(x), arrays), self.chunk)

  def decode(self, params: Any, x: Trail) -> Int[Array, "b s"]:
    def f(shared, trail):
      return jnp.argmax(self._logits(*shared, trail, fresh=True), axis=-1)

    return chunks.mapped(f, (self.table(params), x.scales, x.count), _positional(x), self.chunk)

  def _logits(self, table, scales, count, trail, fresh: bool):
    """x after `count` steps; `fresh`: the last of them has a derivative whatever `history` says."""

    def one(j, x, table, scales, trail):
      if self.noisy:
        x = x + scales[j] * self._normal(trail["noise"][:, :, j], table)
      p = jax.nn.softmax(x, axis=-1)
      x = self.settle(p - trail["sizes"][:, :, j] * (trail["slopes"][:, :, j] @ table.T))
      return losses.without_padding(x, self.vocabulary)

    if self.start_scale:
      x = self.start_scale * self._normal(trail["start"], table)
    else:
      x = jnp.zeros((*trail["start"].shape, table.shape[0]), table.dtype)
    x = losses.without_padding(x, self.vocabulary)
    earlier = count - 1 if fresh else count
    old = table if self.history == "live" else jax.lax.stop_gradient(table)
    if self.history == "constant":
      fixed = jax.lax.stop_gradient((scales, {k: v for k, v in trail.items() if k in ("slopes", "sizes")}))
      fixed = (fixed[0], {**trail, **fixed[1]})
      x = jax.lax.fori_loop(0, earlier, lambda j, x: one(j, x, old, *fixed), x)
    else:  # a loop of known length has a reverse derivative

      def body(x, j):
        return (jnp.where(j < earlier, one(j, x, old, scales, trail), x), None)

      x, _ = jax.lax.scan(body, x, jnp.arange(scales.shape[0]))
    return one(count - 1, x, table, scales, trail) if fresh else x

  def _normal(self, keys, table):
    """The numbers do not depend on the padding."""
    x = wide_normal(keys, self.vocabulary, table.dtype)
    return jnp.pad(x, ((0, 0), (0, 0), (0, table.shape[0] - self.vocabulary)))


def _positional(x: Trail) -> dict[str, jax.Array]:
  return {"start": x.start, "slopes": x.slopes, "sizes": x.sizes, "noise": x.noise}


def wide_normal(keys: PRNGKeyArray, width: int, dtype=float) -> Float[Array, "*k width"]:
  """Standard normal numbers of 16 bits for each key, so that four come out of one block of the generator."""
  dtype = jax.dtypes.canonicalize_dtype(dtype)
  counters = jnp.arange(-(-width // 2), dtype=jnp.uint32)
  pairs = jax.random.key_data(keys)[..., :2].reshape(-1, 2)
  words = jax.vmap(lambda pair: jex_random.threefry_2x32(pair, counters))(pairs)
  halves = jnp.concatenate([words & 0xFFFF, words >> 16], axis=-1)[:, :width]
  uniform = (halves.astype(dtype) + 0.5) * 2.0**-16
  return (2**0.5 * jax.lax.erf_inv(2 * uniform - 1)).reshape(*keys.shape, width)
