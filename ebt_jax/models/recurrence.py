"""Cells of recurrent models: RG-LRU (Griffin and Hawk, arXiv 2402.19427, section 2.4) and LSTM, over whole rows.

A cell reads a sequence from a state of fixed size and returns the state after it, so that the same function serves a
whole row in training, a prompt, and one token in decoding.

Shape suffixes: B rows, S positions, D width, G blocks of a block-diagonal kernel, W width of the convolution.
"""

from typing import Any, NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ebt_jax.config import ModelConfig
from ebt_jax.models import layers

CONV_WIDTH = 4  # positions that the temporal convolution sees, its own included
GATE_BLOCKS = 2  # of the kernels of both gates: a mixing block then has 4 D^2 weights, as attention has
SHARPNESS = 8.0  # the paper's c
DECAY = (0.9, 0.999)  # of a state at a gate that is open, uniform at first: the paper's a^c


def recurrence(
  decay_BxSxD: Float[Array, "b s d"], inputs_BxSxD: Float[Array, "b s d"], reverse: bool = False
) -> Float[Array, "b s d"]:
  """h[t] = decay[t] h[t - 1] + inputs[t] from h[-1] = 0; reversed, from the last position to the first.

  An associative scan, in log(s) rounds of parallel work. CPUs run the plain loop, there three to six times as fast.
  """
  return (in_a_loop if jax.default_backend() == "cpu" else in_parallel)(decay_BxSxD, inputs_BxSxD, reverse)


def in_parallel(decay_BxSxD: jax.Array, inputs_BxSxD: jax.Array, reverse: bool = False) -> jax.Array:
  """`recurrence` by an associative scan."""

  def after(first, second):
    return first[0] * second[0], second[0] * first[1] + second[1]

  return jax.lax.associative_scan(after, (decay_BxSxD, inputs_BxSxD), reverse=reverse, axis=1)[1]


def in_a_loop(decay_BxSxD: jax.Array, inputs_BxSxD: jax.Array, reverse: bool = False) -> jax.Array:
  """`recurrence` position by position."""

  def one(h, now):
    h = now[0] * h + now[1]
    return h, h

  by_time = [jnp.swapaxes(a, 0, 1) for a in (decay_BxSxD, inputs_BxSxD)]
  _, found = jax.lax.scan(one, jnp.zeros_like(by_time[1][0]), tuple(by_time), reverse=reverse)
  return jnp.swapaxes(found, 0, 1)


@jax.custom_vjp
def linear_recurrence(decay_BxSxD: Float[Array, "b s d"], inputs_BxSxD: Float[Array, "b s d"]) -> Float[Array, "b s d"]:
  """`recurrence` whose gradient is one more recurrence, backwards, and saves nothing but its output."""
  return recurrence(decay_BxSxD, inputs_BxSxD)


def _forward(decay, inputs):
  states = layers.mark_saved(recurrence(decay, inputs))
  return states, (decay, states)


def _backward(saved, slope_BxSxD):
  decay, states = saved
  following = jnp.concatenate([decay[:, 1:], jnp.zeros_like(decay[:, :1])], 1)  # what carries h[t] to h[t + 1]
  of_inputs = recurrence(following, slope_BxSxD, reverse=True)
  before = jnp.concatenate([jnp.zeros_like(states[:, :1]), states[:, :-1]], 1)
  return of_inputs * before, of_inputs


linear_recurrence.defvjp(_forward, _backward)


class BlockLinear(nn.Module):
  """`x @ kernel + bias` with a block-diagonal kernel `[g, d / g, d / g]`."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BxSxD):
    c = self.config
    side = c.width // GATE_BLOCKS

    def init(key, shape):  # each block as a kernel of its own
      return jax.vmap(lambda k: layers.initializer(c)(k, shape[1:]))(jax.random.split(key, shape[0]))

    kernel_GxIxO = self.param("kernel", init, (GATE_BLOCKS, side, side))
    bias = self.param("bias", nn.initializers.zeros, (c.width,))
    x_NxGxI = x_BxSxD.reshape(-1, GATE_BLOCKS, side)
    y = layers.mark_saved(layers.einsum("ngi,gio->ngo", x_NxGxI, kernel_GxIxO, layers.compute_dtype(c)))
    return y.reshape(x_BxSxD.shape) + bias


class TemporalConv(nn.Module):
  """A causal convolution over `CONV_WIDTH` positions, of each channel by itself."""

  @nn.compact
  def __call__(self, x_BxSxD, recent_BxWxD):
    """`recent`: the `CONV_WIDTH` - 1 entries before x, which comes with them as the second result."""
    kernel = self.param("kernel", nn.initializers.normal(CONV_WIDTH**-0.5), (CONV_WIDTH, x_BxSxD.shape[-1]))
    bias = self.param("bias", nn.initializers.zeros, x_BxSxD.shape[-1:])
    seen, length = jnp.concatenate([recent_BxWxD, x_BxSxD], 1), x_BxSxD.shape[1]
    return sum(kernel[i] * seen[:, i : i + length] for i in range(CONV_WIDTH)) + bias, seen


class Hidden(NamedTuple):
  """The state of RG-LRU: what the convolution and the recurrence know of the past."""

  recent: Float[Array, "b w d"]  # the last `CONV_WIDTH` - 1 inputs of the convolution
  state: Float[Array, "b d"]


class RGLRU(nn.Module):
  """The paper's recurrent block: projection, temporal convolution and RG-LRU, times a gated branch, and back.

  h[t] = a[t] h[t - 1] + sqrt(1 - a[t]^2) i[t] x[t] with a[t] = sigmoid(decay)^(c r[t]), gates r and i of x[t]; float32.
  """

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BxSxD, before: Hidden, lengths: Int[Array, " b"] | None = None):
    """`lengths`: entries of each row that count for the state after them; None: all."""
    c = self.config

    def project(x, name):
      return layers.Linear(c.width, layers.initializer(c), dtype=layers.compute_dtype(c), name=name)(x)

    branch, x = nn.gelu(project(x_BxSxD, "branch")), layers.wide(project(x_BxSxD, "x"))
    x, seen = TemporalConv(name="conv")(x, before.recent)
    open_, let_in = (nn.sigmoid(BlockLinear(c, name=name)(x)) for name in ("recurrence_gate", "input_gate"))
    decay = self.param("decay", initial_decay, (c.width,))
    log_a = -SHARPNESS * open_ * nn.softplus(-decay)
    # a state that keeps all would have a root of 0, whose slope is not finite
    scale = jnp.sqrt(jnp.maximum(-jnp.expm1(2 * log_a), jnp.finfo(x.dtype).tiny))
    a, inputs = jnp.exp(log_a), scale * let_in * x
    h = linear_recurrence(a, inputs.at[:, 0].add(a[:, 0] * before.state))
    y = project((branch * h).astype(x_BxSxD.dtype), "out")
    if lengths is None:
      return y, Hidden(seen[:, -(CONV_WIDTH - 1) :], h[:, -1])
    last = (lengths - 1)[:, None, None]
    recent = jnp.take_along_axis(seen, (lengths[:, None] + jnp.arange(CONV_WIDTH - 1))[..., None], axis=1)
    return y, Hidden(recent, jnp.take_along_axis(h, last, axis=1)[:, 0])

  @staticmethod
  def empty(config: ModelConfig, rows: int, dtype: Any) -> Hidden:
    """The state before the first entry."""
    return Hidden(jnp.zeros((rows, CONV_WIDTH - 1, config.width), dtype), jnp.zeros((rows, config.width), dtype))

  @staticmethod
  def products(config: ModelConfig) -> int:
    """Weights of matrix products, for each of which a position costs two FLOPs."""
    return 3 * config.width**2 + 2 * config.width**2 // GATE_BLOCKS


def initial_decay(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
  """What makes sigmoid(decay)^c uniform in `DECAY`."""
  a = jax.random.uniform(key, shape, minval=DECAY[0], maxval=DECAY[1]) ** (1 / SHARPNESS)
  return jnp.log(a) - jnp.log1p(-a)


class LSTM(nn.Module):
  """An LSTM (flax's) and a projection back; 9/16 as wide as the stream: 4.08 D^2 weights, where attention has 4."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x_BxSxD, before, lengths: Int[Array, " b"] | None = None):
    """As `RGLRU`; the state is flax's carry."""
    c, dtype = self.config, layers.compute_dtype(self.config)
    cell = nn.OptimizedLSTMCell(self.width(c), kernel_init=layers.initializer(c), name="cell")
    after, y = nn.RNN(cell, return_carry=True)(layers.wide(x_BxSxD), initial_carry=before, seq_lengths=lengths)
    return layers.Linear(c.width, layers.initializer(c), dtype=dtype, name="out")(y.astype(x_BxSxD.dtype)), after

  @staticmethod
  def width(config: ModelConfig) -> int:
    """Of the state."""
    return 9 * config.width // 16

  @classmethod
  def empty(cls, config: ModelConfig, rows: int, dtype: Any) -> tuple[jax.Array, jax.Array]:
    """The state before the first entry: flax's carry (c, h)."""
    zeros = jnp.zeros((rows, cls.width(config)), dtype)
    return zeros, zeros

  @classmethod
  def products(cls, config: ModelConfig) -> int:
    """As `RGLRU.products`."""
    return cls.width(config) * (5 * config.width + 4 * cls.width(config))


CELLS = {"rg_lru": RGLRU, "lstm": LSTM}  # model.cell
