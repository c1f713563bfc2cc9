"""What candidates look at: keys and values of every layer. As the cache of decoding, each layer has its own array.

Slices of stacked arrays are copies, so decoding stacks neither the cache nor the parameters (`unstack`).
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped

from ebt_jax import parallel
from ebt_jax.config import ModelConfig

Layers = tuple[Float[Array, "b h t k"], ...]


class Context(NamedTuple):
  """Keys and values of every layer, and the positions of the candidates.

  A context of a whole sequence is stacked, `[l, b, h, t, k]`; a cache is a tuple of `[b, h, t, k]`, one a layer.
  """

  keys: Float[Array, "l b h t k"] | Layers
  values: Float[Array, "l b h t k"] | Layers
  positions: Int[Array, "*b s"]  # of the candidates, `[s]` or `[b, s]`; each sees the entries before its own position
  state: Float[Array, "b s d"] | None = None  # of residual energies: the normed stream at the entry before a candidate
  level: Float[Array, "b s"] | None = None  # of residual energies of text: makes those of different contexts compare

  @property
  def is_cache(self) -> bool:
    return isinstance(self.keys, tuple)


def empty(config: ModelConfig, rows: int, capacity: int, dtype=jnp.float32) -> Context:
  """A cache without entries and with room for `capacity`."""
  shape = (rows, config.heads, capacity, config.head_dim)

  def make():
    return tuple(jnp.zeros(shape, dtype) for _ in range(config.layers))

  return Context(make(), make(), jnp.zeros((rows, 1), jnp.int32))


def write(old: Float[Array, "b h t k"], new: Float[Array, "b h s k"], at: Int[Array, " b"]) -> Float[Array, "b h t k"]:
  """`old` with row i of `new` written from entry `at[i]` on.

  As a scatter with one index for each row and head, XLA does this in place. With one index in all it becomes a
  dynamic_update_slice, which the CPU compiler fuses into each of its readers, copying `old` for each.
  """
  one = jax.vmap(jax.vmap(lambda old, new, at: jax.lax.dynamic_update_slice_in_dim(old, new, at, axis=0)))
  return one(old, new, jnp.broadcast_to(at[:, None], old.shape[:2]))


def at_last(x: Shaped[Array, "b e ..."], lengths: Int[Array, " b"], group: int = 1) -> Shaped[Array, "b g ..."]:
  """The entries of the last of `lengths` positions of each row, of which each has `group` entries."""
  if x.shape[1] == group:
    return x
  entries = (lengths[:, None] - 1) * group + jnp.arange(group)
  return jnp.take_along_axis(x, entries.reshape(*entries.shape, *[1] * (x.ndim - 2)), axis=1)


def unstack(layers: Any) -> tuple[Any, ...]:
  """Stacked parameters of the layers as one tree for each layer, so that decoding a token does not slice them.

  Projections are fused too, unless a mesh shards them over `model`, where heads would have to move.
  """
  if isinstance(layers, tuple):
    return layers
  each = tuple(jax.tree.map(lambda a: a[i], layers) for i in range(jax.tree.leaves(layers)[0].shape[0]))
  return each if parallel.model_shards() > 1 else tuple(map(fuse_projections, each))


def fuse_projections(layer: dict) -> dict:
  """Parameters of one layer with the kernels that read the same input as one kernel, which makes decoding faster."""
  attention, ffn = dict(layer["attention"]), dict(layer["ffn"])

  def fuse(tree, *names):
    return {"kernel": jnp.concatenate([tree.pop(n)["kernel"] for n in names], axis=1)}

  attention["qkv"], ffn["gate_up"] = fuse(attention, "q", "k", "v"), fuse(ffn, "gate", "up")
  return {**layer, "attention": attention, "ffn": ffn}
