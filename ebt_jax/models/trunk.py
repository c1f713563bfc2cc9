"""The stack of pre-norm blocks that EBT and Transformer++ share, scanned over layers.

One block has three ways to be used: `context` (causal, whole sequence), `cached` (causal, against entries
already encoded) and `candidate` (against context entries and itself). All use the same weights.
"""

from typing import NamedTuple

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ebt_jax import parallel
from ebt_jax.config import ModelConfig
from ebt_jax.models import fused, layers

WRITTEN_OUT = (
  12  # so many layers at most; a loop over them stacks and slices what each keeps (measured: tools/README.md)
)


class Context(NamedTuple):
  """What candidates look at: keys and values of every layer, and where the candidates stand.

  Also the cache of generation, which `extend` appends to; it holds each layer apart, `[b, h, t, k]` times l, so that
  nothing is sliced out of it or put back.
  """

  keys: Float[Array, "l b h t k"] | tuple[jax.Array, ...]
  values: Float[Array, "l b h t k"] | tuple[jax.Array, ...]
  positions: Int[Array, "*b s"]  # of the candidates, `[s]` or `[b, s]`; each sees entries before its own


class Block(nn.Module):
  """h = x + attention(norm(x)); y = h + ffn(norm(h)), optionally modulated by a landscape (adaLN).

  Where `decoding`, entries are few and energies are differentiated once: products take the form that CPUs like.
  """

  config: ModelConfig
  decoding: bool = False

  def setup(self):
    c = self.config

    def norm():
      return layers.Norm(c.norm, c.dyt_scale)

    self.attention_norm, self.ffn_norm = norm(), norm()
    self.attention, self.ffn = layers.Attention(c, self.decoding), layers.GatedFFN(c, self.decoding)
    if c.kind == "ebt" and c.variant.startswith("adaln"):
      self.modulation = modulation(c, 6)

  def _around(self, x, condition, attend):
    """The block around `attend(normed x) -> (attention output before projection, extra)`."""
    if condition is None:
      y, extra = attend(self.attention_norm(x))
      x = x + self.attention.merge(y)
      return x + self.ffn(self.ffn_norm(x)), extra
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = jnp.split(self.modulation(nn.silu(condition)), 6, -1)
    y, extra = attend(self.attention_norm(x) * (1 + scale_a) + shift_a)
    x = x + gate_a * self.attention.merge(y)
    return x + gate_f * self.ffn(self.ffn_norm(x) * (1 + scale_f) + shift_f), extra

  def context(self, x, table, positions, condition):
    def attend(x):
      c = self.config
      q, k, v = self.attention.heads(x, table)
      dtype = layers.compute_dtype(c)
      if c.attention == "fused" and x.shape[1] > 1:
        return fused.context_attention(q, k, v, dtype), (k, v)
      return layers.context_attention(q, k, v, positions, dtype, c.attention_block), (k, v)

    return self._around(x, condition, attend)

  def cached(self, x, table, positions, condition, keys, values):
    def attend(x):
      c = self.config
      q, k, v = self.attention.heads(x, table)
      k, v = write(keys, k, positions[:, 0]), write(values, v, positions[:, 0])
      return layers.context_attention(q, k, v, positions, layers.compute_dtype(c), c.attention_block), (k, v)

    return self._around(x, condition, attend)

  def candidate(self, x, table, positions, condition, keys, values):
    def attend(x):
      c = self.config
      q, k, v = self.attention.heads(x, table)
      dtype = layers.compute_dtype(c)
      if c.attention == "fused" and positions.ndim == 1:
        return fused.candidate_attention(q, k, v, keys, values, dtype), None
      block, decoding = c.attention_block, self.decoding
      return layers.candidate_attention(q, k, v, keys, values, positions, dtype, block, decoding), None

    return self._around(x, condition, attend)


def modulation(config: ModelConfig, parts: int) -> layers.Linear:
  """adaLN: landscape embedding -> shifts, scales, gates. `adaln` keeps the authors' uniform start, `adaln_zero` zeros."""
  if config.variant == "adaln_zero":
    init = nn.initializers.zeros
  else:
    bound = config.width**-0.5

    def init(key, shape, dtype=jnp.float32):
      return jax.random.uniform(key, shape, dtype, -bound, bound)

  return layers.Linear(parts * config.width, init, init)


def init(config: ModelConfig, key: jax.Array) -> dict:
  """Parameters of all blocks, each leaf with a leading layer axis."""
  x = jnp.zeros((1, 1, config.width))
  positions = jnp.zeros((1,), jnp.int32)
  condition = jnp.zeros(config.width) if config.kind == "ebt" and config.variant.startswith("adaln") else None
  block = Block(config)

  def one(key):
    return block.init(key, x, layers.rope(positions, config.head_dim), positions, condition, method="context")

  return jax.vmap(one)(jax.random.split(key, config.layers))["params"]


def _run(config: ModelConfig, method: str, params, x, positions, condition, per_layer=(), written_out=True):
  """Applies every block; returns the stream and the extras of the layers, stacked unless the layers are apart."""
  decoding = bool(per_layer) and isinstance(per_layer[0], tuple)
  block = Block(config, decoding)
  table = layers.rope(positions, config.head_dim, jnp.promote_types(x.dtype, jnp.float32))

  def body(x, layer):
    layer_params, *rest = layer
    x = parallel.keep_rows(x)  # else the compiler slices the stream's width as the weights are, over many devices
    return block.apply({"params": layer_params}, x, table, positions, condition, *rest, method=method)

  if decoding:
    extras = []
    for layer in zip(apart(params), *per_layer, strict=True):
      x, extra = body(x, layer)
      extras.append(extra)
    return x, extras
  body = jax.checkpoint(body, prevent_cse=False, policy=None if config.remat else layers.is_kept)
  unroll = config.layers if written_out and config.layers <= WRITTEN_OUT else 1
  return jax.lax.scan(body, x, (params, *per_layer), unroll=unroll)


def apart(params) -> tuple:
  """Stacked parameters of the layers as one tree for each, as decoding uses them: a token repeats no slices.

  Kernels are `layers.joined` too, unless a mesh slices them over `model`, where heads would have to move.
  """
  if isinstance(params, tuple):
    return params
  each = tuple(jax.tree.map(lambda a: a[i], params) for i in range(jax.tree.leaves(params)[0].shape[0]))
  return each if parallel.model_ways() > 1 else tuple(map(layers.joined, each))


def context(config, params, x_BxSxD, positions, condition=None):
  """Causal pass over a whole sequence: the stream, and keys and values `[l, b, h, s, k]`."""
  return _run(config, "context", params, x_BxSxD, positions, condition)


def cached(config, params, x_BxSxD, positions_BxS, keys, values, condition=None):
  """Causal pass over new entries; returns the stream and the keys and values with the new entries written in."""
  x, cache = _run(config, "cached", params, x_BxSxD, positions_BxS, condition, (keys, values))
  return x, tuple(zip(*cache))


def write(old: Float[Array, "b h t k"], new: Float[Array, "b h s k"], at: Int[Array, " b"]) -> Float[Array, "b h t k"]:
  """Row i of `old` with that of `new` from entry `at[i]` on.

  As a scatter with one index for each row and head XLA does this in place. One index alone becomes a
  dynamic_update_slice, which the CPU compiler fuses with each of its readers, and copies `old` for each.
  """
  one = jax.vmap(jax.vmap(lambda old, new, at: jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=0)))
  return one(old, new, jnp.broadcast_to(at[:, None], old.shape[:2]))


def candidates(config, params, x_BxSxD, where: Context, condition=None, written_out=False):
  """Candidate stream `[b, s, d]` after the last block. Few layers `written_out` take less time, and may take more memory."""
  x, _ = _run(config, "candidate", params, x_BxSxD, where.positions, condition, (where.keys, where.values), written_out)
  return x


def empty(config: ModelConfig, rows: int, capacity: int, dtype=jnp.float32) -> tuple[tuple, tuple]:
  """Keys and values of a cache with room for `capacity` entries, for each layer."""
  shape = (rows, config.heads, capacity, config.head_dim)

  def make():
    return tuple(jnp.zeros(shape, dtype) for _ in range(config.layers))

  return make(), make()
