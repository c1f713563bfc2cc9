"""Building blocks of every model: projections, norms, rotary positions, the gated FFN, what the backward pass saves.

Shape suffixes: B rows, S positions, H heads, K width of a head, D width of the stream, N rows times positions.
"""

from flax import linen as nn
import jax
import jax.numpy as jnp

from ebt_jax.config import ModelConfig

NORM_EPS = 1e-5  # sets the scale of the first gradients: near-zero candidate embeddings are smaller than it


def initializer(config: ModelConfig) -> nn.initializers.Initializer:
  """Normal initialisation of linear weights (paper: Xavier), kernel `[in, out]`."""
  scale, mode = (1.0, "fan_avg") if config.init == "xavier" else (2.0, "fan_in")
  base = nn.initializers.variance_scaling(scale, mode, "normal")

  def init(*args, **kwargs):
    return config.init_gain * base(*args, **kwargs)

  return init


def compute_dtype(config: ModelConfig) -> jnp.dtype | None:
  """Type of matrix products; None leaves the parameters' own, so that float64 stays float64."""
  return jnp.dtype("bfloat16") if config.dtype == "bfloat16" else None


def wide(x: jax.Array) -> jax.Array:
  """At least float32: norms, softmax, energies."""
  return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def einsum(spec: str, a: jax.Array, b: jax.Array, dtype=None) -> jax.Array:
  """A product in `dtype` whose result has the type of `a`, so that derivatives of any order are in `dtype` too."""
  if dtype is None:
    return jnp.einsum(spec, a, b)
  return jnp.einsum(spec, a.astype(dtype), b.astype(dtype)).astype(a.dtype)


class Linear(nn.Module):
  """`x @ kernel`, and `+ bias` where `bias_init` is given."""

  features: int
  kernel_init: nn.initializers.Initializer
  bias_init: nn.initializers.Initializer | None = None
  dtype: jnp.dtype | None = None  # of the product

  @nn.compact
  def __call__(self, x):
    kernel = self.param("kernel", self.kernel_init, (x.shape[-1], self.features))
    x_NxD = x.reshape(-1, x.shape[-1])  # the kernel's gradient sums over one axis: CPUs need no transposed copy of x
    y = einsum("ni,io->no", x_NxD, kernel, self.dtype).reshape(*x.shape[:-1], self.features)
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


def modulation(config: ModelConfig, parts: int) -> Linear:
  """adaLN: landscape embedding -> shifts, scales, gates. It starts uniform (`adaln`, as the authors') or at 0."""
  if config.variant == "adaln_zero":
    init = nn.initializers.zeros
  else:
    bound = config.width**-0.5

    def init(key, shape, dtype=jnp.float32):
      return jax.random.uniform(key, shape, dtype, -bound, bound)

  return Linear(parts * config.width, init, init)


def energy_head(config: ModelConfig, params: dict, x_BxSxD: jax.Array, condition: jax.Array | None) -> jax.Array:
  """An energy of each position, `[b, s]`: norm, modulated by a condition where there is one, and a product."""
  x_BxSxD = Norm(config.norm, config.dyt_scale).apply({"params": params["norm"]}, x_BxSxD)
  if condition is not None:
    parts = modulation(config, 2).apply({"params": params["head_modulation"]}, nn.silu(condition))
    shift, scale = jnp.split(parts, 2, -1)
    x_BxSxD = x_BxSxD * (1 + scale) + shift
  return jnp.einsum("bsd,do->bs", wide(x_BxSxD), params["head"]["kernel"])


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


def rotate(x_BxHxSxK: jax.Array, angles: tuple[jax.Array, jax.Array] | None) -> jax.Array:
  """Rotates pairs (j, j + k/2); None: by nothing. The authors pair neighbours: `interop` reorders their weights."""
  x = wide(x_BxHxSxK)
  if angles is None:
    return x
  cos, sin = angles
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)


def _gelu(x):
  return nn.gelu(x, approximate=False)


ACTIVATIONS = {"silu": nn.silu, "relu": nn.relu, "gelu": _gelu, "elu": nn.elu}


class GatedFFN(nn.Module):
  """SwiGLU: `down(act(gate x) * up x)`, no biases. Kernels may be fused (`cache.fuse_projections`)."""

  config: ModelConfig

  @nn.compact
  def __call__(self, x):
    c = self.config

    def project(x, features, name):
      return Linear(features, initializer(c), dtype=compute_dtype(c), name=name)(x)

    if self.has_variable("params", "gate_up"):
      gate, up = jnp.split(project(x, 2 * c.hidden, "gate_up"), 2, axis=-1)
    else:
      gate, up = project(x, c.hidden, "gate"), project(x, c.hidden, "up")
    return project(ACTIVATIONS[c.activation](gate) * up, c.width, "down")


def mark_saved(x):
  """Marks arrays for `save_policy`; unlike `checkpoint_name`, their tangents too."""
  return jax.lax.optimization_barrier(x)


def save_policy(primitive, *args, **params) -> bool:
  """Checkpoint policy of a layer: save the outputs of projections and what is marked; recompute the rest."""
  dots = jax.checkpoint_policies.dots_with_no_batch_dims_saveable
  return primitive.name == "optimization_barrier" or dots(primitive, *args, **params)
