"""The stack of the Diffusion Transformer (DiT, with adaLN-Zero), which energy and denoisers of pictures share.

Every patch attends to every other one. A condition shifts, scales and gates each block; all of these start at 0, so
that blocks start as the identity. LayerNorm without gains, biases, a GELU MLP: as in the authors' image models.

Shape suffixes: B rows, S patches, D width of the stream.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebt_jax import parallel
from ebt_jax.config import ImageConfig, ModelConfig
from ebt_jax.models import attention, patches, trunk
from ebt_jax.models.layers import Linear, compute_dtype, wide

NORM_EPS = 1e-6
UNIFORM = nn.initializers.xavier_uniform()
ZERO = nn.initializers.zeros


def normed(x):
  """LayerNorm without gain and bias."""
  x = wide(x)
  x = x - jnp.mean(x, -1, keepdims=True)
  return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + NORM_EPS)


def linear(config: ModelConfig, features: int, start=UNIFORM) -> Linear:
  """With a bias that starts at 0."""
  return Linear(features, start, ZERO, compute_dtype(config))


def modulation(config: ModelConfig, parts: int) -> Linear:
  """Condition -> shifts, scales, gates; all 0 at first."""
  return Linear(parts * config.width, ZERO, ZERO)


class Attention(nn.Module):
  """Of every patch to all of them."""

  config: ModelConfig

  def setup(self):
    self.q, self.k, self.v, self.o = (linear(self.config, self.config.width) for _ in range(4))

  def __call__(self, x_BxSxD):
    c = self.config
    b, s, d = x_BxSxD.shape

    def heads(y):
      return y.reshape(b, s, c.heads, c.head_dim).swapaxes(1, 2)

    q, k, v = heads(self.q(x_BxSxD)), heads(self.k(x_BxSxD)), heads(self.v(x_BxSxD))
    y = attention.whole_attention(q * c.head_dim**-0.5, k, v, compute_dtype(c), c.attention_block)
    return self.o(y.swapaxes(1, 2).reshape(b, s, d))


class MLP(nn.Module):
  """down(gelu(up x)), the GELU by its tanh formula."""

  config: ModelConfig

  def setup(self):
    self.up, self.down = linear(self.config, self.config.hidden), linear(self.config, self.config.width)

  def __call__(self, x):
    return self.down(nn.gelu(self.up(x), approximate=True))


class Block(nn.Module):
  """x + gate attention(modulated norm(x)), then the same with the MLP."""

  config: ModelConfig

  def setup(self):
    self.attention, self.ffn = Attention(self.config), MLP(self.config)
    self.modulation = modulation(self.config, 6)

  def __call__(self, x, condition):
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = jnp.split(self.modulation(nn.silu(condition)), 6, -1)
    x = x + gate_a * self.attention(normed(x) * (1 + scale_a) + shift_a)
    return x + gate_f * self.ffn(normed(x) * (1 + scale_f) + shift_f)


def init(config: ModelConfig, image: ImageConfig, key: jax.Array) -> dict:
  """Parameters of patch embedding and blocks; leaves of blocks have a leading layer axis."""
  embed_key, key = jax.random.split(key)
  x, condition = jnp.zeros((1, 1, config.width)), jnp.zeros((1, 1, config.width))

  def one(key):
    return Block(config).init(key, x, condition)["params"]

  return {
    "patches": linear(config, config.width).init(embed_key, jnp.zeros((1, image.patch_pixels)))["params"],
    "layers": jax.vmap(one)(jax.random.split(key, config.layers)),
  }


def stream(
  config: ModelConfig,
  image: ImageConfig,
  params: dict,
  x: Float[Array, "b h w c"],
  condition: Float[Array, "#b 1 d"],
  unroll: bool = True,
) -> Float[Array, "b s d"]:
  """The patches of a picture after the last block."""
  x_BxSxD = linear(config, config.width).apply({"params": params["patches"]}, patches.cut(x, image.patch))
  x_BxSxD = x_BxSxD + jnp.asarray(patches.positions(image.side, config.width), x_BxSxD.dtype)
  return run(config, params["layers"], x_BxSxD, condition, unroll)


def run(config: ModelConfig, layers: dict, x_BxSxD, condition, unroll: bool = True):
  """All blocks, parameters stacked."""

  def apply(x, layer):
    return Block(config).apply({"params": layer[0]}, parallel.shard_rows(x), condition), ()

  return trunk.scan(config, apply, x_BxSxD, (layers,), unroll)[0]


def first_layers(model: Any, params: dict, count: int) -> tuple[Any, dict]:
  """An energy or a denoiser of pictures without the blocks after the first `count`, and its parameters."""
  shorter = dataclasses.replace(model, config=dataclasses.replace(model.config, layers=count))
  return shorter, {**params, "layers": jax.tree.map(lambda a: a[:count], params["layers"])}


def init_head(config: ModelConfig, features: int, key: jax.Array, bias: bool = True) -> dict:
  """Parameters of `head`: all 0."""
  head = Linear(features, ZERO, ZERO if bias else None)
  x = jnp.zeros((1, config.width))
  return {
    "head": head.init(key, x)["params"],
    "head_modulation": modulation(config, 2).init(key, x)["params"],
  }


def head(config: ModelConfig, params: dict, x_BxSxD, condition) -> Float[Array, "b s o"]:
  """Modulated norm and projection, in float32."""
  shift, scale = jnp.split(
    modulation(config, 2).apply({"params": params["head_modulation"]}, nn.silu(condition)), 2, -1
  )
  x_BxSxD = normed(x_BxSxD) * (1 + scale) + shift
  kernel = params["head"]["kernel"]
  bias = ZERO if "bias" in params["head"] else None
  return Linear(kernel.shape[1], ZERO, bias).apply({"params": params["head"]}, x_BxSxD)
