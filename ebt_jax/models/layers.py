"""Building blocks of every model: projections, norms, rotary positions, attention, SwiGLU.

Shape suffixes: B rows, S queries, T context entries, H heads, K head width, D width.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from ebt_jax import few
from ebt_jax.config import ModelConfig

LONG = 256  # so many queries attend in blocks, which leave out half of what causality hides (measured: tools/README.md)
BLOCK = 256  # queries at once, at most: scores of a block are 256 / (head width) times as large as the stream
GROUPS = 4  # of blocks; with 4 of them 5/8 of the scores are computed
NORM_EPS = 1e-5  # sets the scale of the first gradients: near-zero candidate embeddings are smaller than it


def initializer(config: ModelConfig) -> nn.initializers.Initializer:
  """Normal initialisation of linear weights (paper: Xavier), kernel `[in, out]`."""
  scale, mode = (1.0, "fan_avg") if config.init == "xavier" else (2.0, "fan_in")
  base = nn.initializers.variance_scaling(scale, mode, "normal")
  return lambda *args, **kwargs: config.init_gain * base(*args, **kwargs)


def compute_dtype(config: ModelConfig):
  """Type of matrix products; None leaves the parameters' own, so that float64 stays float64."""
  return jnp.bfloat16 if config.dtype == "bfloat16" else None


def wide(x: jax.Array) -> jax.Array:
  """At least float32: norms, softmax, energies."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def einsum(spec: str, a: jax.Array, b: jax.Array, dtype=None) -> jax.Array:
  """A product in `dtype` whose result has the type of `a`, so that derivatives of any order run in `dtype` too."""
  if dtype is None:
    return jnp.einsum(spec, a, b)
  return jnp.einsum(spec, a.astype(dtype), b.astype(dtype)).astype(a.dtype)


class Linear(nn.Module):
  features: int
  kernel_init: nn.initializers.Initializer
  bias_init: nn.initializers.Initializer | None = None
  dtype: jnp.dtype | None = None
  decoding: bool = False

  @nn.compact
  def __call__(self, x):
    kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
    rows = x.reshape(
      -1, x.shape[-1]
    )  # the kernel's gradient sums over one dimension: CPUs need no transposed copy of x
    if self.decoding and self.dtype is None and few.applies(len(rows)):
      y = few.product(rows, kernel)
    else:
      y = einsum("ni,io->no", rows, kernel, self.dtype)
    y = y.reshape(*x.shape[:-1], self.features)
    if self.bias_init is not None:
      y = y + self.param("bias", self.bias_init, (self.features,))
    return y


class Norm(nn.Module):
  """RMSNorm (default), LayerNorm, DyT (`tanh(a x) w + b`) or nothing; in float32."""

  kind: str = "rms"
  dyt_scale: float = 0.5

  @nn.compact
  def __call__(self, x):
    if self.kind == "none":
      return x
    x = wide(x)
    width = x.shape[-1:]
    scale = self.param("scale", nn.initializers.ones, width)
    if self.kind == "rms":
      return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + NORM_EPS) * scale
    bias = self.param("bias", nn.initializers.zeros, width)
    if self.kind == "dyt":
      slope = self.param("slope", nn.initializers.constant(self.dyt_scale), (1,))
      return jnp.tanh(slope * x) * scale + bias
    x = x - jnp.mean(x, -1, keepdims=True)
    return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + NORM_EPS) * scale + bias


def rope(positions: jax.Array, head_dim: int, dtype=jnp.float32) -> tuple[jax.Array, jax.Array]:
  """Cosines and sines of rotary angles, base 10000.

  Args:
    positions: `[s]` or `[b, s]` integers.

  Returns:
    Two arrays `[s, k/2]` or `[b, 1, s, k/2]` that broadcast against `[b, h, s, k/2]`.
  """
  frequency = 10000.0 ** (-jnp.arange(0, head_dim, 2, dtype=dtype) / head_dim)
  angle = positions[..., None].astype(dtype) * frequency
  if positions.ndim == 2:
    angle = angle[:, None]
  return jnp.cos(angle), jnp.sin(angle)


def rotate(x_BxHxSxK: jax.Array, table) -> jax.Array:
  """Rotates pairs (j, j + k/2). The authors pair neighbours; `interop` reorders their weights, the model is the same."""
  cos, sin = table
  x = wide(x_BxHxSxK)
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def context_attention(q_BxHxSxK, k_BxHxTxK, v_BxHxTxK, positions, dtype=None, block=0):
  """Causal attention: the query at position p sees entries 0..p.

  Args:
    positions: index of each query's own entry: `[b, s]`, or `[s]`, where query i's is at most t - s + i.
    block: queries computed at once; 0: chosen by their number.

  Returns:
    `[b, h, s, k]`.
  """

  def attend(queries, entries):
    (q, last), (k, v) = queries, entries
    scores = _masked_scores(q, k, last, dtype)
    top = jax.lax.stop_gradient(jnp.max(scores, -1, keepdims=True))
    weights = jnp.exp(scores - top)
    return einsum("bhst,bhtk->bhsk", weights, v, dtype), jnp.sum(weights, -1, keepdims=True)

  return _in_blocks(attend, (q_BxHxSxK,), (k_BxHxTxK, v_BxHxTxK), positions, block)


def candidate_attention(
    q_BxHxSxK, k_BxHxSxK, v_BxHxSxK, context_k_BxHxTxK, context_v_BxHxTxK,
    positions, dtype=None, block=0, decoding=False,
):  # fmt: skip
  """A candidate at position p sees context entries 0..p-1 and itself, and no other candidate (facts: paper section 3).

  The self term joins the softmax through its sum of exponentials, so no row is widened by one column. `positions` are
  one more than those of `context_attention`, `block` is the same. Where `decoding`, gradients are of first order.
  """
  products = few if decoding and dtype is None and few.applies(q_BxHxSxK.shape[2]) else None

  def attend(queries, entries):
    (q, k, v, last), (context_k, context_v) = queries, entries
    scores = _masked_scores(q, context_k, last, dtype, products)
    own = jnp.sum(q * k, -1, keepdims=True)
    top = jax.lax.stop_gradient(jnp.maximum(jnp.max(scores, -1, keepdims=True), own))
    weights, own = jnp.exp(scores - top), jnp.exp(own - top)
    y = products.product(weights, context_v) if products else einsum("bhst,bhtk->bhsk", weights, context_v, dtype)
    return y + own * v, jnp.sum(weights, -1, keepdims=True) + own

  queries, entries = (q_BxHxSxK, k_BxHxSxK, v_BxHxSxK), (context_k_BxHxTxK, context_v_BxHxTxK)
  return _in_blocks(attend, queries, entries, positions - 1, block)


def _masked_scores(q_BxHxSxK, k_BxHxTxK, last_Bx1xSx1, dtype, products=None):
  """Scores `[b, h, s, t]`, -inf after the last entry that a query sees."""
  if products:
    scores = products.scores(q_BxHxSxK, k_BxHxTxK)
  else:
    scores = wide(einsum("bhsk,bhtk->bhst", q_BxHxSxK, k_BxHxTxK, dtype))
  return jnp.where(jnp.arange(k_BxHxTxK.shape[2]) <= last_Bx1xSx1, scores, -jnp.inf)


def _in_blocks(attend, queries, entries, last, block):
  """Softmax attention, for a block of queries at a time.

  Scores are held for one block only, in derivatives of any order too: its backward pass starts from its inputs. Blocks
  form a few groups, each of which leaves out the entries that causality hides from all of it.

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
  size = -(-s // blocks)  # of more equal blocks
  group, whole = size * -(-blocks // GROUPS), s // size * size
  stops = sorted({*range(group, whole, group), whole, s})
  parts = []
  for start, stop in zip([0, *stops], stops):
    seen = [a[:, :, : t - s + stop] if last.ndim == 1 else a for a in entries]

    def cut(a):
      return a[:, :, start:stop].reshape(*a.shape[:2], -1, min(size, stop - start), a.shape[3])

    out = jax.lax.map(jax.checkpoint(lambda part: attend(part, seen)), [jnp.moveaxis(cut(a), 2, 0) for a in queries])
    parts.append([jnp.moveaxis(a, 0, 2).reshape(*a.shape[1:3], stop - start, -1) for a in out])
  # kept by the layer's own checkpoint, so that its backward pass computes each block once more and not twice
  y, total = kept([jnp.concatenate(a, axis=2) for a in zip(*parts)])
  return y / total


def kept(x):
  """Marks what a layer keeps for the backward pass; unlike `checkpoint_name`, tangents too."""
  return jax.lax.optimization_barrier(x)


def is_kept(primitive, *args, **params) -> bool:
  """Checkpoint policy of a layer: what its projections gave and what is marked; the rest is cheaper to compute anew."""
  dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return primitive.name == "optimization_barrier" or dots(primitive, *args, **params)


def joined(layer: dict) -> dict:
  """Parameters of one layer with the kernels that read the same input in one, which writing text is faster with."""
  attention, ffn = dict(layer["attention"]), dict(layer["ffn"])

  def join(tree, *names):
    return {"kernel": jnp.concatenate([tree.pop(n)["kernel"] for n in names], axis=1)}

  attention["qkv"], ffn["gate_up"] = join(attention, "q", "k", "v"), join(ffn, "gate", "up")
  return {**layer, "attention": attention, "ffn": ffn}


class Attention(nn.Module):
  config: ModelConfig
  decoding: bool = False

  def setup(self):
    c = self.config

    def make(n=1):
      return Linear(n * c.width, initializer(c), dtype=compute_dtype(c), decoding=self.decoding)

    self.q, self.k, self.v, self.o = make(), make(), make(), make()
    self.qkv = make(3)  # in place of the three where parameters are `joined`

  def heads(self, x_BxSxD, table):
    """Queries (scaled), keys (both rotated) and values, each `[b, h, s, k]`."""
    c = self.config

    def split(y):
      return y.reshape(*y.shape[:2], c.heads, c.head_dim).transpose(0, 2, 1, 3)

    if self.has_variable("params", "qkv"):
      q, k, v = jnp.split(self.qkv(x_BxSxD), 3, axis=-1)
    else:
      q, k, v = self.q(x_BxSxD), self.k(x_BxSxD), self.v(x_BxSxD)
    return rotate(split(q), table) * c.head_dim**-0.5, rotate(split(k), table), split(v)

  def merge(self, y_BxHxSxK):
    b, h, s, k = y_BxHxSxK.shape
    return self.o(y_BxHxSxK.transpose(0, 2, 1, 3).reshape(b, s, h * k))


ACTIVATIONS = {"silu": nn.silu, "relu": nn.relu, "gelu": lambda x: nn.gelu(x, approximate=False), "elu": nn.elu}


class GatedFFN(nn.Module):
  """SwiGLU: `down(act(gate x) * up x)`, no biases."""

  config: ModelConfig
  decoding: bool = False

  @nn.compact
  def __call__(self, x):
    c = self.config

    def make(n, name):
      return Linear(n, initializer(c), dtype=compute_dtype(c), decoding=self.decoding, name=name)

    if self.has_variable("params", "gate_up"):
      gate, up = jnp.split(make(2 * c.hidden, "gate_up")(x), 2, axis=-1)
    else:
      gate, up = make(c.hidden, "gate")(x), make(c.hidden, "up")(x)
    return make(c.width, "down")(ACTIVATIONS[c.activation](gate) * up)
