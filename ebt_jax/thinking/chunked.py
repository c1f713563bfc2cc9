"""The simplex for large vocabularies: candidates `[b, s, v]` are computed some positions at a time, not held whole."""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ebt_jax import vocabulary
from ebt_jax.thinking.shapes import expand
from ebt_jax.thinking.spaces import Space, project_logits, wide_normal


class Trail(NamedTuple):
  """A candidate `[b, s, v]` as what made it: the keys of its start, and the slopes and sizes of its steps.

  As dE/dp = slope @ table.T, any positions can be computed from it again. `n` is the number of steps there is room for.
  """

  start: Key[Array, "b s"]
  answer: Float[Array, "b s d"] | None  # the start is moved by answer @ table.T
  slopes: Float[Array, "b s n d"]
  sizes: Float[Array, "b s n 1"]
  noise: Key[Array, "b s n"]  # of the Langevin noise before each step
  scales: Float[Array, " n"]  # standard deviations of that noise
  count: Int[Array, ""]  # steps made


class Answered(NamedTuple):
  """A start at an answer: the keys of its noise, and the answer."""

  start: Key[Array, "b s"]
  answer: Float[Array, "b s d"]


@dataclasses.dataclass(frozen=True)
class ChunkedSimplex(Space):
  """`Simplex(normalize="every")` whose candidates are trails, computed `chunk` positions at a time.

  A candidate after i steps costs i products with the table. Rows of the table from `vocabulary` on are padding.
  """

  table: Callable[[Any], Float[Array, "v d"]]  # of the parameters; the energy is given p @ table
  vocabulary: int
  chunk: int = 1  # positions
  start_scale: float = 1.0  # standard deviation of the normal start; 0 starts at the origin
  clip: float = 0.0  # as in `Simplex`
  sharpen: float = 0.0
  noisy: bool = False  # whether there is Langevin noise
  # derivatives of the steps before the last one: constant (none) | path (those of step sizes, not of the table) | live
  history: str = "constant"

  def start(self, key: Key[Array, ""], shape: tuple[int, ...]) -> Key[Array, "b s"]:
    return jax.random.split(key, shape[:-1])

  def start_at(self, params: Any, x: Key[Array, "b s"], answer: Float[Array, "b s d"]) -> "Answered":
    return Answered(x, answer)

  def prepare(self, params: Any, x: "Key[Array, 'b s'] | Answered", steps: int) -> Trail:
    x, answer = x if isinstance(x, Answered) else (x, None)
    width, dtype = self.table(params).shape[1], self.table(params).dtype

    def steps_of(*shape):
      return jnp.zeros((*x.shape, steps, *shape), dtype)

    noise = jnp.broadcast_to(x[..., None], (*x.shape, steps)) if self.noisy else x[..., None]
    return Trail(x, answer, steps_of(width), steps_of(1), noise, jnp.zeros(steps, dtype), jnp.zeros((), jnp.int32))

  def add_noise(self, x: Trail, key: Key[Array, ""], scale: Any, noise: Any = None) -> Trail:
    if noise is not None:
      raise ValueError("noise from outside needs candidates that are held whole: use Simplex")
    keys = jax.random.split(key, x.start.shape)
    return x._replace(noise=x.noise.at[:, :, x.count].set(keys), scales=x.scales.at[x.count].set(scale))

  def energy_input(self, params: Any, x: Trail, landscape: Any) -> Float[Array, "b s d"]:
    def f(shared, trail):
      table, scales, count = shared
      logits = self._logits(table, scales, count, trail, fresh=False)
      if self.noisy:
        logits = logits + scales[count] * self._normal(trail["noise"][:, :, count], table)
      return jax.nn.softmax(logits, axis=-1) @ table

    return vocabulary.map_chunks(f, self._shared(params, x), _positional(x), self.chunk)

  def step(
    self, params: Any, x: Trail, landscape: Any, slope: Float[Array, "b s d"], size: Any, bound: Any = None
  ) -> Trail:
    if bound is not None:
      raise ValueError("thinking.authors.clip_gradient needs candidates that are held whole: use Simplex")
    size = jnp.broadcast_to(expand(size, slope), (*slope.shape[:-1], 1))
    return x._replace(
      slopes=x.slopes.at[:, :, x.count].set(slope), sizes=x.sizes.at[:, :, x.count].set(size), count=x.count + 1
    )

  def reduce_loss(
    self, params: Any, x: Trail, f: Callable[[Any, Any], tuple[jax.Array, Any]], arrays: Any
  ) -> tuple[jax.Array, Any]:
    def of_chunk(shared, both):
      trail, arrays = both
      return f(self._logits(*shared, trail, fresh=True), arrays)

    return vocabulary.sum_chunks(of_chunk, self._shared(params, x), (_positional(x), arrays), self.chunk)

  def embed_target(self, params: Any, target: Int[Array, "*p"]) -> Float[Array, "*p d"]:
    return self.table(params)[target]

  def decode(self, params: Any, x: Trail) -> Int[Array, "b s"]:
    def f(shared, trail):
      return jnp.argmax(self._logits(*shared, trail, fresh=True), axis=-1)

    return vocabulary.map_chunks(f, self._shared(params, x), _positional(x), self.chunk)

  def _shared(self, params, x):
    """What every chunk needs whole."""
    return self.table(params), x.scales, x.count

  def _logits(self, table, scales, count, trail, fresh: bool):
    """x after `count` steps; `fresh`: the last of them has all derivatives, whatever `history` says."""

    def one(j, x, table, scales, trail):
      if self.noisy:
        x = x + scales[j] * self._normal(trail["noise"][:, :, j], table)
      p = jax.nn.softmax(x, axis=-1)
      x = project_logits(p - trail["sizes"][:, :, j] * (trail["slopes"][:, :, j] @ table.T), self.clip, self.sharpen)
      return vocabulary.mask_padding(x, self.vocabulary)

    if self.start_scale:
      x = self.start_scale * self._normal(trail["start"], table)
    else:
      x = jnp.zeros((*trail["start"].shape, table.shape[0]), table.dtype)
    if "answer" in trail:
      answer, fixed = jax.lax.stop_gradient((trail["answer"], table))
      x = x + answer @ fixed.T
    x = vocabulary.mask_padding(x, self.vocabulary)
    earlier = count - 1 if fresh else count
    old = table if self.history == "live" else jax.lax.stop_gradient(table)
    if self.history == "constant":
      fixed = jax.lax.stop_gradient((scales, {k: v for k, v in trail.items() if k in ("slopes", "sizes")}))
      fixed = (fixed[0], {**trail, **fixed[1]})
      x = jax.lax.fori_loop(0, earlier, lambda j, x: one(j, x, old, *fixed), x)
    else:  # only a loop of known length has a reverse derivative

      def body(x, j):
        return (jnp.where(j < earlier, one(j, x, old, scales, trail), x), None)

      x, _ = jax.lax.scan(body, x, jnp.arange(scales.shape[0]))
    return one(count - 1, x, table, scales, trail) if fresh else x

  def _normal(self, keys, table):
    """Numbers of the vocabulary, which do not depend on the padding, and zeros for the padding."""
    x = wide_normal(keys, self.vocabulary, table.dtype)
    return jnp.pad(x, ((0, 0), (0, 0), (0, table.shape[0] - self.vocabulary)))


def _positional(x: Trail) -> dict[str, jax.Array]:
  found = {"start": x.start, "slopes": x.slopes, "sizes": x.sizes, "noise": x.noise}
  return found if x.answer is None else {**found, "answer": x.answer}
