"""Arrays as wide as the vocabulary: computed for a chunk of positions at a time, sharded over `model`, and padded.

In `map_chunks` and `sum_chunks`, `arrays` is a pytree of `[b, s, ...]` that is cut along `s`; `shared` is a pytree that
every chunk sees whole, such as the table. On a mesh each device works on its own rows `b`, and the gradient of `shared`
is summed over devices once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float

from ebt_jax import parallel, trees

WHOLE_BYTES = 2**28  # arrays up to this size on each device are computed whole
CHUNK_BYTES = 2**26  # size of a chunk of larger ones


def chunk_positions(rows: int, length: int, width: int, shards: int, wanted: int = 0) -> int:
  """Positions per chunk of an array `[rows, length, width]` of float32.

  Args:
    rows: of the batch, over all devices.
    width: the size of the vocabulary.
    shards: parts that the mesh cuts rows into; see `parallel.shards_of`.
    wanted: at most this many; 0: `length` where the array is small enough, else as many as `CHUNK_BYTES` hold.

  Returns:
    At most `length`, so that all chunks are of nearly equal size.
  """
  if not wanted:
    position_bytes = 4 * width * _ceil(rows, shards)
    wanted = length if position_bytes * length <= WHOLE_BYTES else max(1, CHUNK_BYTES // position_bytes)
  return _ceil(length, _ceil(length, wanted))


def row_groups(rows: int, row_bytes: int, shards: int) -> int:
  """Groups to split rows into, so that one group is small enough to be computed whole; divides `rows`.

  Args:
    rows: of the batch, over all devices.
    row_bytes: of what is computed for one row.
    shards: parts that the mesh cuts rows into; each keeps an equal part of every group.
  """
  own = _ceil(rows, shards)
  for groups in range(1, own + 1):
    if rows % (groups * shards) == 0 and row_bytes * own // groups <= WHOLE_BYTES:
      return groups
  return own if rows % shards == 0 else 1


def map_chunks(f: Callable[[Any, Any], Any], shared: Any, arrays: Any, size: int) -> Any:
  """`f(shared, arrays)`, for an `f` whose results `[b, s, ...]` depend on `arrays` position by position.

  The backward pass recomputes `f` of each chunk.

  Args:
    size: positions per chunk; the last chunk may be shorter.
  """
  if size >= _length(arrays):
    return f(shared, arrays)

  def local(shared, arrays):
    of_chunk = jax.checkpoint(lambda part: f(shared, part))
    chunks, rest = _cut(arrays, size)
    return _join(jax.lax.map(of_chunk, chunks), None if rest is None else of_chunk(rest))

  return _on_own_rows(local, (P(), parallel.BATCH), parallel.BATCH)(shared, arrays)


def sum_chunks(
  f: Callable[[Any, Any], tuple[jax.Array, Any]], shared: Any, arrays: Any, size: int
) -> tuple[jax.Array, Any]:
  """`f(shared, arrays)`, for an `f` that returns a scalar and a pytree of scalars to log, all sums over positions.

  Only the first has a gradient. It is made in the forward pass, chunk by chunk, while the widest arrays are there.

  Args:
    size: positions per chunk; the last chunk may be shorter.
  """
  if size >= _length(arrays):
    total, seen = f(shared, arrays)
    return total, jax.lax.stop_gradient(seen)
  float_shared, other_shared, join_shared = trees.split_floats(shared)
  float_arrays, other_arrays, join_arrays = trees.split_floats(arrays)

  def run(differentiate, *args):
    def local(float_shared, other_shared, float_arrays, other_arrays):
      def at(float_shared, floats, others):
        return f(join_shared(float_shared, other_shared), join_arrays(floats, others))

      def one(part):
        if not differentiate:
          return (at(float_shared, *part), ()), ()
        out, (d_shared, d_arrays) = jax.value_and_grad(at, (0, 1), has_aux=True)(float_shared, *part)
        return (out, d_shared), d_arrays

      def add(total, part):
        now, d_arrays = one(part)
        return jax.tree.map(jnp.add, total, now), d_arrays

      chunks, rest = _cut((float_arrays, other_arrays), size)
      shapes, _ = jax.eval_shape(one, jax.tree.map(lambda a: a[0], chunks))
      total, d_arrays = jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), chunks)
      d_rest = None
      if rest is not None:
        total, d_rest = add(total, rest)
      return _sum_over_rows(total), _join(d_arrays, d_rest)

    rows = parallel.BATCH
    return _on_own_rows(local, (P(), P(), rows, rows), (P(), rows))(*args)

  @jax.custom_vjp
  def summed(*args):
    return run(False, *args)[0][0]

  def forward(*args):
    (out, d_shared), d_arrays = run(True, *args)
    return out, (d_shared, d_arrays)

  def backward(gradients, cotangents):
    d_shared, d_arrays = jax.tree.map(lambda g: cotangents[0] * g, gradients)
    return d_shared, None, d_arrays, None

  summed.defvjp(forward, backward)
  total, seen = summed(float_shared, other_shared, float_arrays, other_arrays)
  return total, jax.lax.stop_gradient(seen)


def slice_table(table: Float[Array, "..."], axis: int) -> Float[Array, "..."]:
  """A table as a step uses it: whole over `data`, sharded over `model` along its vocabulary axis.

  Padded with zeros there where `model` does not divide the vocabulary; see `mask_padding`. No mesh, no effect.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return table
  pad = [(0, -n % mesh.shape["model"] if i == axis else 0) for i, n in enumerate(table.shape)]
  spec = P(*("model" if i == axis else None for i in range(table.ndim)))
  return jax.lax.with_sharding_constraint(jnp.pad(table, pad), spec)


def mask_padding(logits: Float[Array, "*p w"], vocabulary: int) -> Float[Array, "*p w"]:
  """Logits of -inf beyond the vocabulary, where the table has padding."""
  if logits.shape[-1] == vocabulary:
    return logits
  return jnp.where(jnp.arange(logits.shape[-1]) < vocabulary, logits, -jnp.inf)


def gather_tables(params: Any) -> Any:
  """Parameters outside the layers as a step uses them: whole over `data`, sharded over `model` where a rule says so.

  Without this the compiler gathers the candidates `[b, s, v]` instead, which are far larger. Parameters without a rule
  in `parallel.RULES` stay as they are. No mesh, no effect.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return params

  def place(path, x):
    path = parallel.path_name(path)
    rule = parallel.rule_for(path)
    if "layers/" in path or rule is None:
      return x
    axes = (a if a == "model" and n % mesh.shape["model"] == 0 else None for a, n in zip(rule, x.shape))
    return jax.lax.with_sharding_constraint(x, P(*axes))

  return jax.tree_util.tree_map_with_path(place, params)


def _ceil(a: int, b: int) -> int:
  return -(-a // b)


def _on_own_rows(f, in_specs, out_specs):
  """`f` on each device's own rows, which keeps the compiler from summing over devices at every chunk."""
  if parallel.row_shards() == 1:
    return f
  # the `model` axis stays with the compiler
  return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, axis_names=set(parallel.ROW_AXES), check_vma=False)


def _sum_over_rows(tree):
  return tree if parallel.row_shards() == 1 else jax.lax.psum(tree, parallel.ROW_AXES)


def _length(arrays) -> int:
  return jax.tree.leaves(arrays)[0].shape[1]


def _cut(arrays, size):
  """`[b, s, ...]` -> `[s // size, b, size, ...]`, and the rest `[b, s % size, ...]` or None."""
  length = _length(arrays)
  whole = length - length % size

  def stack(a):
    return jnp.moveaxis(a[:, :whole].reshape(a.shape[0], -1, size, *a.shape[2:]), 1, 0)

  return jax.tree.map(stack, arrays), None if whole == length else jax.tree.map(lambda a: a[:, whole:], arrays)


def _join(chunks, rest):
  """Undoes `_cut`."""

  def unstack(a):
    return jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1, *a.shape[3:])

  whole = jax.tree.map(unstack, chunks)
  return whole if rest is None else jax.tree.map(lambda a, b: jnp.concatenate([a, b], axis=1), whole, rest)
