"""Fused attention where one derivative is enough: `config.model.attention = "fused"`.

One library kernel for each backend: cuDNN through `jax.nn.dot_product_attention` on GPUs, splash attention on TPUs.
They never hold the scores and have no second derivative, which only the candidates' attention in training needs.
Neither has a derivative of its log-sum-exp; `_attend_lse` makes it from the derivative of the output.

They have not run on an accelerator yet: tests run the splash kernel interpreted on a CPU and, as cuDNN has no
interpreter, the same call with JAX's plain implementation in its place.

Shape suffixes: B rows, S queries, T context entries, H heads, K width of a head.
"""

import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ebt_jax import parallel
from ebt_jax.config import ConfigError

INTERPRETED = ""  # gpu | tpu: the backend whose kernel a test runs on a CPU


def context_attention(q_BxHxTxK, k_BxHxTxK, v_BxHxTxK, dtype=None):
  """`attention.context_attention` of one query for each entry, query i at entry i.

  Returns:
    `[b, h, t, k]`. Differentiable once, in reverse.

  Raises:
    ConfigError: no kernel for this backend, or none that takes these arrays.
    TypeError: a second derivative.
  """
  arrays = [a if dtype is None else a.astype(dtype) for a in (q_BxHxTxK, k_BxHxTxK, v_BxHxTxK)]
  return _over_devices(_attend, *arrays).astype(q_BxHxTxK.dtype)


def candidate_attention(q_BxHxSxK, k_BxHxSxK, v_BxHxSxK, context_k_BxHxTxK, context_v_BxHxTxK, dtype=None):
  """`attention.candidate_attention` where the last candidate sees all entries: candidate i sees 0..t-s+i and itself.

  Softmax over entries and self is the mean of what both give alone, weighted by their sums of exponentials.

  Returns:
    `[b, h, s, k]`. Differentiable once, in reverse, in every argument.

  Raises:
    As `context_attention`.
  """
  front = context_k_BxHxTxK.shape[2] - q_BxHxSxK.shape[2]
  aligned = jnp.pad(q_BxHxSxK, ((0, 0), (0, 0), (front, 0), (0, 0)))  # kernels let query i see entries 0..i
  arrays = [a if dtype is None else a.astype(dtype) for a in (aligned, context_k_BxHxTxK, context_v_BxHxTxK)]
  y, lse = (a[:, :, front:].astype(q_BxHxSxK.dtype) for a in _over_devices(_attend_lse, *arrays))
  own = jax.nn.sigmoid(jnp.sum(q_BxHxSxK * k_BxHxSxK, -1) - lse)[..., None]
  return y + own * (v_BxHxSxK - y)


@jax.custom_vjp
def _attend(q, k, v):
  """Causal attention `[b, h, t, k]`."""
  return _kernel(q, k, v)


def _attend_forward(q, k, v):
  return jax.vjp(_kernel, *_once((q, k, v)))


def _attend_backward(vjp, d_y):
  return vjp(_once(d_y))


_attend.defvjp(_attend_forward, _attend_backward)


@jax.custom_vjp
def _attend_lse(q, k, v):
  """Causal attention `[b, h, t, k]` and the logarithm of its sum of exponentials `[b, h, t]`."""
  return _kernel(q, k, v, lse=True)


def _attend_lse_forward(q, k, v):
  q, k, v = _once((q, k, v))
  return _kernel(q, k, v, lse=True), (q, k, v)


def _attend_lse_backward(saved, cotangents):
  """With the attention weight p of query s and entry t: d lse_s / d q_s = sum_t p k_t, which is attention with the keys
  as values; d (sum_s c_s lse_s) / d k_t = sum_s p c_s q_s, the gradient of the values for the cotangent c q."""
  q, k, v = saved
  d_y, d_lse = _once(cotangents)
  scale = d_lse[..., None].astype(q.dtype)
  _, vjp = jax.vjp(_kernel, q, k, v)
  d_q, d_k, d_v = vjp(d_y)
  return d_q + scale * _kernel(q, k, k), d_k + vjp(scale * q)[2], d_v


_attend_lse.defvjp(_attend_lse_forward, _attend_lse_backward)


@jax.custom_jvp
def _once(x):
  """The identity, which refuses a further derivative."""
  return x


@_once.defjvp
def _once_again(primals, tangents):
  raise TypeError(
    "config.model.attention: fused attention has a first derivative only, and a second was asked for; set it to plain"
  )


def _kernel(q, k, v, lse=False):
  """The kernel of this backend: outputs, and where `lse` the log-sum-exp, which has no derivative."""
  backend = INTERPRETED or jax.default_backend()
  if backend not in KERNELS:
    raise ConfigError(f"config.model.attention: fused needs a gpu or tpu, found backend {backend}; set it to plain")
  t, (kernel, multiple) = q.shape[2], KERNELS[backend]
  padding = ((0, 0), (0, 0), (0, -t % multiple), (0, 0))  # behind all queries, so that none sees it
  q, k, v = (jnp.pad(a, padding) for a in (q, k, v))
  found = kernel(q, k, v, lse, interpret=bool(INTERPRETED))
  return jax.tree.map(lambda a: a[:, :, :t], found)


def _cudnn(q, k, v, lse, interpret):
  """cuDNN's flash attention; its log-sum-exp comes in the type of the arrays."""
  if not interpret and q.dtype != jnp.bfloat16:
    raise ConfigError(
      f"config.model.dtype: fused attention on GPUs takes bfloat16, found {q.dtype}; set it to bfloat16, or "
      "config.model.attention to plain"
    )
  if q.shape[-1] % 8 or q.shape[-1] > 128:
    raise ConfigError(
      f"config.model.heads: fused attention on GPUs takes heads of a multiple of 8 up to 128, found {q.shape[-1]}; "
      "change width or heads, or set config.model.attention to plain"
    )

  def swap(a):
    return a.swapaxes(1, 2)  # [b, h, t, ...] <-> [b, t, h, ...]

  found = jax.nn.dot_product_attention(
      swap(q), swap(k), swap(v),
      scale=1.0, is_causal=True, return_residual=lse, implementation="xla" if interpret else "cudnn",
  )  # fmt: skip
  return jax.tree.map(swap, found)


def _splash(q, k, v, lse, interpret):
  """Splash attention; blocks of up to 512."""
  from jax.experimental.pallas.ops.tpu import splash_attention as splash  # slow to import, and needed on TPUs only

  t = q.shape[2]
  block = math.gcd(t, 512)
  kernel = splash.make_splash_mha_single_device(
    splash.MultiHeadMask([splash.CausalMask((t, t))] * q.shape[1]),
    block_sizes=splash.BlockSizes(
      block_q=block, block_kv=block, block_q_dkv=block, block_kv_dkv=block, block_q_dq=block, block_kv_dq=block
    ),
    save_residuals=lse,
    interpret=interpret,
  )
  found = jax.vmap(kernel)(q, k, v)
  return (found[0], found[1][0]) if lse else found


KERNELS = {"gpu": (_cudnn, 2), "tpu": (_splash, 128)}  # kernel, and what lengths must be multiples of for derivatives


def _over_devices(attend, q, k, v):
  """`attend` on the rows and heads of each device: the compiler does not shard kernels itself."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty or mesh.size == 1:
    return attend(q, k, v)
  rows = None if q.shape[0] % parallel.row_shards() else parallel.ROW_AXES
  spec = P(rows, None if q.shape[1] % mesh.shape["model"] else "model")
  return jax.shard_map(attend, in_specs=(spec, spec, spec), out_specs=spec, check_vma=False)(q, k, v)
