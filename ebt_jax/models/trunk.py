"""The stack of pre-norm blocks that all transformers here share.

A block is used in four ways, with the same weights: `context` (causal, over a whole sequence), `cached` (causal, over
new entries and those of a cache), `candidates` (over a context and themselves) and `whole` (every position sees all).
A position may have several entries (`group`), such as the patches of a frame, which see each other.

Shape suffixes: B rows, S positions, D width of the stream.
"""

import functools

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebt_jax import parallel
from ebt_jax.config import ModelConfig
from ebt_jax.flops import Pass
from ebt_jax.models import attention, cache, fused, layers
from ebt_jax.models.cache import Context

MAX_UNROLLED = 12  # unroll up to this many layers; a scan would stack and slice every layer's saved activations


def _whole(x: jax.Array) -> jax.Array:
  return x


class Block(nn.Module):
  """h = x + attention(norm(x)); y = h + ffn(norm(h)). `modulated`: a condition shifts, scales and gates (adaLN)."""

  config: ModelConfig
  modulated: bool = False
  group: int = 1  # entries of a position

  def setup(self):
    c = self.config
    self.attention_norm, self.ffn_norm = (layers.Norm(c.norm, c.dyt_scale) for _ in range(2))
    self.attention, self.ffn = attention.Attention(c), layers.GatedFFN(c)
    if self.modulated:
      self.modulation = layers.modulation(c, 6)

  def _around(self, x, condition, attend, of=_whole):
    """The block around `attend(normed x) -> (attention output before projection, extra)`.

    Args:
      of: x -> the part of x that `attend` answers for.
    """
    if not self.modulated:
      y, extra = attend(self.attention_norm(x))
      x = of(x) + self.attention.merge(y)
      return x + self.ffn(self.ffn_norm(x)), extra
    shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = jnp.split(self.modulation(nn.silu(condition)), 6, -1)
    y, extra = attend(self.attention_norm(x) * (1 + scale_a) + shift_a)
    x = of(x) + gate_a * self.attention.merge(y)
    return x + gate_f * self.ffn(self.ffn_norm(x) * (1 + scale_f) + shift_f), extra

  def context(self, x, angles, positions, condition):
    """Extra: keys and values."""

    def attend(x):
      c = self.config
      q, k, v = self.attention.heads(x, angles)
      dtype = layers.compute_dtype(c)
      if c.attention == "fused" and x.shape[1] > 1:
        return fused.context_attention(q, k, v, dtype), (k, v)
      return attention.context_attention(q, k, v, self._last(positions), dtype, c.attention_block), (k, v)

    return self._around(x, condition, attend)

  def _last(self, positions):
    """The entry that each query sees last: that of its position, or of several the last."""
    if self.group == 1:
      return positions
    return jnp.repeat(jnp.atleast_2d(positions) * self.group + self.group - 1, self.group, -1)

  def cached(self, x, angles, positions, condition, keys, values, lengths=None):
    """Extra: the cache's keys and values with those of x written in. `lengths`: see `cached` below."""

    def of_last(x):
      return x if lengths is None else cache.at_last(x, lengths, self.group)

    def attend(x):
      c = self.config
      q, k, v = self.attention.heads(x, angles)
      at, dtype = positions[:, 0] * self.group, layers.compute_dtype(c)
      k, v = cache.write(keys, k, at), cache.write(values, v, at)
      q, last = of_last(q.swapaxes(1, 2)).swapaxes(1, 2), of_last(self._last(positions))
      return attention.context_attention(q, k, v, last, dtype, c.attention_block), (k, v)

    return self._around(x, condition, attend, of_last)

  def candidates(self, x, angles, positions, condition, keys, values):
    """No extra."""

    def attend(x):
      c = self.config
      q, k, v = self.attention.heads(x, angles)
      dtype = layers.compute_dtype(c)
      if self.group > 1:
        return attention.group_candidate_attention(q, k, v, keys, values, positions, self.group, dtype), None
      if c.attention == "fused" and positions.ndim == 1:
        return fused.candidate_attention(q, k, v, keys, values, dtype), None
      return attention.candidate_attention(q, k, v, keys, values, positions, dtype, c.attention_block), None

    return self._around(x, condition, attend)

  def whole(self, x, angles, condition):
    """No extra."""

    def attend(x):
      c = self.config
      return attention.whole_attention(
        *self.attention.heads(x, angles), layers.compute_dtype(c), c.attention_block
      ), None

    return self._around(x, condition, attend)


def init(config: ModelConfig, key: jax.Array, modulated: bool = False) -> dict:
  """Parameters of all blocks, each leaf with a leading layer axis."""
  x = jnp.zeros((1, 1, config.width))
  positions = jnp.zeros((1,), jnp.int32)
  condition = jnp.zeros(config.width) if modulated else None
  block = Block(config, modulated)

  def one(key):
    return block.init(key, x, layers.rope(positions, config.head_dim), positions, condition, method="context")

  return jax.vmap(one)(jax.random.split(key, config.layers))["params"]


def context(
  config: ModelConfig, params, x_BxSxD, positions, condition=None, group: int = 1, recompute_last: bool = False
):
  """Causal pass over a whole sequence.

  Args:
    params: of all layers, stacked.
    positions: `[s]`, or `[s / group]`.
    condition: `[d]`, of the adaLN variants.
    group: entries of each position.
    recompute_last: the backward pass computes the last block again; needs two layers, and no condition.

  Returns:
    The stream `[b, s, d]`, and keys and values `[l, b, h, s, k]`.
  """
  apply = _layer(config, "context", x_BxSxD, positions, condition, group)
  if not recompute_last:
    return scan(config, apply, x_BxSxD, (params,), unroll=True)
  first, last = jax.tree.map(lambda a: a[:-1], params), jax.tree.map(lambda a: a[-1], params)
  x_BxSxD, above = scan(config, apply, x_BxSxD, (first,), unroll=True)
  x_BxSxD, of_last = recomputed(apply)(x_BxSxD, (last,))
  return x_BxSxD, jax.tree.map(lambda a, b: jnp.concatenate([a, b[None]]), above, of_last)


def recomputed(f):
  """`f(x, layer)`, whose backward pass computes f again, and not before its cotangents are known."""
  again = jax.custom_vjp(f)

  def forward(x, layer):
    return f(x, layer), (x, layer)

  def backward(args, cotangents):
    x, layer = args
    of_stream = cotangents[0]
    known = jnp.isfinite(of_stream[(0,) * of_stream.ndim])
    x = jnp.where(known, x, jnp.nan)  # a dependency: else the compiler computes f again at once, and keeps all of it
    return jax.vjp(f, x, layer)[1](cotangents)

  again.defvjp(forward, backward)
  return again


def cached(
  config: ModelConfig, params, x_BxSxD, positions_BxS, old: Context, condition=None, group: int = 1, lengths=None
):
  """Causal pass over new entries; row i of them is written to the cache from position `positions_BxS[i, 0]` on.

  Args:
    params: of all layers, stacked or unstacked.
    old: a cache.
    group: entries of each position, as in `context`.
    lengths: `[b]`; the stream is wanted after so many of the new positions of each row, where the last block computes
      it alone. None: of all.

  Returns:
    The stream `[b, s, d]` or, with lengths, `[b, group, d]`; keys and values of the cache with the new entries.
  """
  apply = _layer(config, "cached", x_BxSxD, positions_BxS, condition, group)
  below, above = zip(*[(a[:-1], a[-1:]) for a in (cache.unstack(params), old.keys, old.values)])
  x, entries = _loop(apply, x_BxSxD, below)
  x, of_last = _loop(functools.partial(apply, lengths=lengths), x, above)
  return x, tuple(zip(*entries, *of_last))


def candidates(
  config: ModelConfig, params, x_BxSxD, where: Context, condition=None, unroll: bool = False, group: int = 1
) -> Float[Array, "b s d"]:
  """The stream of candidates after the last block.

  Args:
    where: the context, or a cache.
    unroll: unroll the layers over a context, up to `MAX_UNROLLED`: faster, and may take more memory.
    group: entries of each candidate, as in `context`.
  """
  apply = _layer(config, "candidates", x_BxSxD, where.positions, condition, group)
  if where.is_cache:
    return _loop(apply, x_BxSxD, (cache.unstack(params), where.keys, where.values))[0]
  return scan(config, apply, x_BxSxD, (params, where.keys, where.values), unroll)[0]


def whole(
  config: ModelConfig, params, x_BxSxD, positions=None, condition=None, unroll: bool = False
) -> Float[Array, "b s d"]:
  """The stream after the last block, where every position sees all positions of its row.

  Args:
    params: of all layers, stacked.
    positions: `[s]` or `[b, s]`, by which keys and queries are rotated; None: they are not.
    condition: `[d]`, or one for each row, `[b, 1, d]`, of the adaLN variants.
    unroll: as in `candidates`.
  """
  apply = _layer(config, "whole", x_BxSxD, positions, condition)
  return scan(config, apply, x_BxSxD, (params,), unroll)[0]


def _layer(config, method, x, positions, condition, group=1):
  """`(x, (params, ...)) -> (x, extra)` of one layer."""
  block = Block(config, modulated=condition is not None, group=group)
  dtype = jnp.promote_types(x.dtype, jnp.float32)
  turned = positions if group == 1 else jnp.repeat(positions, group, -1)
  angles = None if positions is None else layers.rope(turned, config.head_dim, dtype)
  where = () if method == "whole" else (positions,)

  def apply(x, layer, **more):
    params, *rest = layer
    x = parallel.shard_rows(x)  # without this, XLA shards the activations along their width on large meshes
    return block.apply({"params": params}, x, angles, *where, condition, *rest, method=method, **more)

  return apply


def scan(config: ModelConfig, apply, x: jax.Array, stacked, unroll: bool):
  """All layers, stacked; the backward pass recomputes what `layers.save_policy` does not save.

  Args:
    apply: `(x, layer) -> (x, extra)`, a layer being a slice of `stacked`.
    unroll: unroll the layers, up to `MAX_UNROLLED`.
  """
  apply = jax.checkpoint(apply, prevent_cse=False, policy=None if config.remat else layers.save_policy)
  return jax.lax.scan(apply, x, stacked, unroll=config.layers if unroll and config.layers <= MAX_UNROLLED else 1)


def _loop(apply, x, unstacked):
  """All layers, one tree for each."""
  extras = []
  for layer in zip(*unstacked, strict=True):
    x, extra = apply(x, layer)
    extras.append(extra)
  return x, extras


def pass_cost(config: ModelConfig, tokens: int, entries: int, recompute_last: bool = False) -> Pass:
  """FLOPs of one stream of `tokens` through all blocks, attention over `entries` counted over the full square.

  Args:
    recompute_last: as in `context`.
  """
  m = config
  last, attention = m.width * m.hidden, 2 * m.width * entries
  rest = 4 * m.width**2 + 2 * m.width * m.hidden
  # a layer saves the outputs of its projections, with remat nothing; that of its last product is not needed again
  again = rest + attention if m.remat else attention
  per_layer = (rest + last + attention, again, last)
  cost = Pass(*(2 * tokens * m.layers * n for n in per_layer))
  return cost._replace(again=cost.again + 2 * tokens * (rest + last + attention - again)) if recompute_last else cost
