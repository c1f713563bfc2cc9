"""Attention: causal of a context to itself, of candidates to a context and themselves, and of a whole row to itself.

The two `reference_` functions say what is computed; tests hold the blocked ones to them in value and gradients of both
orders. Keys are rotated and queries rotated and scaled before they come here.

Shape suffixes: B rows, S queries, T context entries, H heads, K width of a head, D width of the stream.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from ebt_jax.config import ModelConfig
from ebt_jax.models.layers import Linear, compute_dtype, einsum, initializer, mark_saved, rotate, wide

LONG = 256  # from this many queries on, attend in blocks, which skips masked scores (measured: tools/RESULTS.md)
BLOCK = 256  # most queries of a block: its scores are 256 / (head width) times as large as the stream
GROUPS = 4  # groups of blocks; with 4 of them 5/8 of the scores are computed


def reference_context_attention(q_BxHxSxK, k_BxHxTxK, v_BxHxTxK, positions):
  """Causal attention: the query at position p sees entries 0..p.

  Args:
    positions: of the queries, `[s]` or `[b, s]`.

  Returns:
    `[b, h, s, k]`.
  """
  scores_BxHxSxT = jnp.einsum("bhsk,bhtk->bhst", q_BxHxSxK, k_BxHxTxK)
  last = positions.reshape(-1, 1, positions.shape[-1], 1)
  seen = jnp.arange(k_BxHxTxK.shape[2]) <= last
  weights_BxHxSxT = jax.nn.softmax(jnp.where(seen, scores_BxHxSxT, -jnp.inf), axis=-1)
  return jnp.einsum("bhst,bhtk->bhsk", weights_BxHxSxT, v_BxHxTxK)


def reference_candidate_attention(
  q_BxHxSxK, k_BxHxSxK, v_BxHxSxK, context_k_BxHxTxK, context_v_BxHxTxK, positions
):  # fmt: skip
  """A candidate at position p sees context entries 0..p-1 and itself, and no other candidate (paper section 3).

  Args:
    positions: of the candidates, `[s]` or `[b, s]`.

  Returns:
    `[b, h, s, k]`.
  """
  scores_BxHxSxT = jnp.einsum("bhsk,bhtk->bhst", q_BxHxSxK, context_k_BxHxTxK)
  before = jnp.arange(context_k_BxHxTxK.shape[2]) < positions.reshape(-1, 1, positions.shape[-1], 1)
  own_BxHxSx1 = jnp.sum(q_BxHxSxK * k_BxHxSxK, axis=-1, keepdims=True)
  scores = jnp.concatenate([jnp.where(before, scores_BxHxSxT, -jnp.inf), own_BxHxSx1], axis=-1)
  weights = jax.nn.softmax(scores, axis=-1)
  return jnp.einsum("bhst,bhtk->bhsk", weights[..., :-1], context_v_BxHxTxK) + weights[..., -1:] * v_BxHxSxK


def context_attention(q_BxHxSxK, k_BxHxTxK, v_BxHxTxK, positions, dtype=None, block=0):
  """`reference_context_attention`, for a block of queries at a time where there are many.

  Args:
    positions: `[b, s]`, or `[s]`, where that of query i is at most t - s + i.
    dtype: of products; None: of the arrays.
    block: queries per block; 0: automatic.
  """

  def attend(queries, entries):
    (q, last), (k, v) = queries, entries
    return _weighted(_masked_scores(q, k, last, dtype), v, dtype)

  return _in_blocks(attend, (q_BxHxSxK,), (k_BxHxTxK, v_BxHxTxK), positions, block)


def whole_attention(q_BxHxSxK, k_BxHxTxK, v_BxHxTxK, dtype=None, block=0):
  """Every query sees every entry; `dtype` and `block` as in `context_attention`. Returns `[b, h, s, k]`."""

  def attend(queries, entries):
    (q, _), (k, v) = queries, entries
    return _weighted(wide(einsum("bhsk,bhtk->bhst", q, k, dtype)), v, dtype)

  last = jnp.zeros((1, q_BxHxSxK.shape[2]), jnp.int32)  # of each query: not in use, and no group leaves entries out
  return _in_blocks(attend, (q_BxHxSxK,), (k_BxHxTxK, v_BxHxTxK), last, block)


def candidate_attention(
  q_BxHxSxK, k_BxHxSxK, v_BxHxSxK, context_k_BxHxTxK, context_v_BxHxTxK, positions, dtype=None, block=0
):  # fmt: skip
  """`reference_candidate_attention`, for a block of queries at a time where there are many.

  A candidate's own score joins the softmax through its sum of exponentials, so that scores need no further column.

  Args:
    positions: `[b, s]`, or `[s]`, where that of query i is at most t - s + i + 1.
    dtype, block: as in `context_attention`.
  """

  def attend(queries, entries):
    (q, k, v, last), (context_k, context_v) = queries, entries
    scores = _masked_scores(q, context_k, last, dtype)
    own = jnp.sum(q * k, -1, keepdims=True)
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, -1, keepdims=True), own))
    weights, own = jnp.exp(scores - top), jnp.exp(own - top)
    y = einsum("bhst,bhtk->bhsk", weights, context_v, dtype)
    return y + own * v, jnp.sum(weights, -1, keepdims=True) + own

  queries, entries = (q_BxHxSxK, k_BxHxSxK, v_BxHxSxK), (context_k_BxHxTxK, context_v_BxHxTxK)
  return _in_blocks(attend, queries, entries, positions - 1, block)


def group_candidate_attention(
  q_BxHxSxK, k_BxHxSxK, v_BxHxSxK, context_k_BxHxTxK, context_v_BxHxTxK, positions, group, dtype=None
):  # fmt: skip
  """Candidates of `group` entries each: an entry sees those of its own candidate, and the context before it.

  Args:
    positions: of the candidates, `[s / group]` or `[b, s / group]`; one at position p sees context entries below
      p * group.
    dtype: of products; None: of the arrays.
  """
  b, h, s, k = q_BxHxSxK.shape

  def apart(a):
    return a.reshape(b, h, s // group, group, k)

  last = jnp.repeat(jnp.atleast_2d(positions) * group - 1, group, -1)
  scores = _masked_scores(q_BxHxSxK, context_k_BxHxTxK, last[:, None, :, None], dtype)
  own = wide(einsum("bhgpk,bhgqk->bhgpq", apart(q_BxHxSxK), apart(k_BxHxSxK), dtype)).reshape(b, h, s, group)
  top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, -1, keepdims=True), jnp.max(own, -1, keepdims=True)))
  weights, own = jnp.exp(scores - top), jnp.exp(own - top)
  of_own = einsum("bhgpq,bhgqk->bhgpk", own.reshape(b, h, s // group, group, group), apart(v_BxHxSxK), dtype)
  y = einsum("bhst,bhtk->bhsk", weights, context_v_BxHxTxK, dtype) + of_own.reshape(b, h, s, k)
  return y / (jnp.sum(weights, -1, keepdims=True) + jnp.sum(own, -1, keepdims=True))


def _weighted(scores_BxHxSxT, v_BxHxTxK, dtype):
  """Values summed with weights exp(scores), and the sum of the weights; a common factor of both is left out."""
  weights = jnp.exp(scores_BxHxSxT - jax.lax.stop_gradient(jnp.max(scores_BxHxSxT, -1, keepdims=True)))
  return einsum("bhst,bhtk->bhsk", weights, v_BxHxTxK, dtype), jnp.sum(weights, -1, keepdims=True)


def _masked_scores(q_BxHxSxK, k_BxHxTxK, last_Bx1xSx1, dtype):
  """Scores `[b, h, s, t]`, -inf after the last entry that a query sees."""
  scores = wide(einsum("bhsk,bhtk->bhst", q_BxHxSxK, k_BxHxTxK, dtype))
  return jnp.where(jnp.arange(k_BxHxTxK.shape[2]) <= last_Bx1xSx1, scores, -jnp.inf)


def _in_blocks(attend, queries, entries, last, block):
  """Softmax attention, for a block of queries at a time.

  Only the scores of one block are held, in derivatives of any order too, as its backward pass starts from its inputs.
  Blocks form a few groups, and each group leaves out the entries that causality hides from all its queries.

  Args:
    attend: `((*queries, last), entries)` -> weighted sum of values `[b, h, s, k]`, sum of weights `[b, h, s, 1]`.
    last: entry that each query sees last, `[s]` or `[b, s]`; see `context_attention`.
  """
  s, t = queries[0].shape[2], entries[0].shape[2]
  queries = (*queries, last.reshape(-1, 1, s, 1))
  size = block or (min(BLOCK, s // 2) if s >= LONG else s)
  if size >= s:
    y, total = attend(queries, entries)
    return y / total
  blocks = -(-s // size)
  size = -(-s // blocks)  # spread the remainder: blocks of nearly equal size
  group, whole = size * -(-blocks // GROUPS), s // size * size
  stops = sorted({*range(group, whole, group), whole, s})
  parts = []
  for start, stop in zip([0, *stops], stops):
    seen = [a[:, :, : t - s + stop] if last.ndim == 1 else a for a in entries]

    def cut(a):
      return a[:, :, start:stop].reshape(*a.shape[:2], -1, min(size, stop - start), a.shape[3])

    out = jax.lax.map(jax.checkpoint(lambda part: attend(part, seen)), [jnp.moveaxis(cut(a), 2, 0) for a in queries])
    parts.append([jnp.moveaxis(a, 0, 2).reshape(*a.shape[1:3], stop - start, -1) for a in out])
  # saved by the layer's own checkpoint, so that its backward pass recomputes each block once and not twice
  y, total = mark_saved([jnp.concatenate(a, axis=2) for a in zip(*parts)])
  return y / total


class Attention(nn.Module):
  """The projections around attention, no biases. Kernels may be fused (`cache.fuse_projections`)."""

  config: ModelConfig

  def setup(self):
    c = self.config

    def project(features):
      return Linear(features, initializer(c), dtype=compute_dtype(c))

    self.q, self.k, self.v, self.o = (project(c.width) for _ in range(4))
    self.qkv = project(3 * c.width)  # in place of the three where they are fused

  def heads(self, x_BxSxD, angles):
    """Queries (scaled), keys (both rotated) and values, each `[b, h, s, k]`; `angles` of `layers.rope`, None: none."""
    c = self.config

    def split(y):
      return y.reshape(*y.shape[:2], c.heads, c.head_dim).transpose(0, 2, 1, 3)

    if self.has_variable("params", "qkv"):
      q, k, v = jnp.split(self.qkv(x_BxSxD), 3, axis=-1)
    else:
      q, k, v = self.q(x_BxSxD), self.k(x_BxSxD), self.v(x_BxSxD)
    return rotate(split(q), angles) * c.head_dim**-0.5, rotate(split(k), angles), split(v)

  def merge(self, y_BxHxSxK):
    """Heads -> the stream, `[b, s, d]`."""
    b, h, s, k = y_BxHxSxK.shape
    return self.o(y_BxHxSxK.transpose(0, 2, 1, 3).reshape(b, s, h * k))
