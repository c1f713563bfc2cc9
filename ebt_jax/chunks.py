"""Functions of many positions, computed a few at a time, so that what is as wide as the vocabulary is never held whole.

`arrays` is a pytree of `[b, s, ...]`, cut along `s`; `shared` is a pytree that every chunk sees whole, such as the
vocabulary table. On a mesh each device keeps its rows `b`, and the gradient of `shared` is summed over devices once.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P

from ebt_jax import parallel

WHOLE_BYTES = 2**28  # arrays up to this size on each device are not cut
CHUNK_BYTES = 2**26


def positions(rows: int, length: int, width: int, wanted: int = 0) -> int:
  """How many positions make a chunk; always a divisor of `length`.

  Args:
    rows: over all devices of the mesh in use.
    width: of the widest array, the vocabulary.
    wanted: at most so many; 0 chooses by the bytes of a float32 `[rows, length, width]`.
  """
  if not wanted:
    position_bytes = 4 * width * -(-rows // parallel.row_ways())
    if position_bytes * length <= WHOLE_BYTES:
      return length
    wanted = max(1, CHUNK_BYTES // position_bytes)
  return max(n for n in range(1, length + 1) if length % n == 0 and n <= wanted)


def row_groups(rows: int, length: int, width: int) -> int:
  """Into how many equal groups to cut rows so that a float32 `[group, length, width]` is not too large to hold."""
  ways = parallel.row_ways()
  own = -(-rows // ways)
  fits = (n for n in range(1, own + 1) if rows % (n * ways) == 0 and 4 * width * length * own // n <= WHOLE_BYTES)
  return next(fits, own if rows % ways == 0 else 1)


def mapped(f: Callable[[Any, Any], Any], shared: Any, arrays: Any, size: int) -> Any:
  """`f(shared, arrays)`, for an `f` whose results `[b, s, ...]` depend on `arrays` position by position.

  The backward pass computes `f` of each chunk anew.
  """
  if size >= _length(arrays):
    return f(shared, arrays)

  def local(shared, arrays):
    return _join(jax.lax.map(jax.checkpoint(lambda part: f(shared, part)), _cut(arrays, size)))

  return _on_own_rows(local, (P(), parallel.BATCH), parallel.BATCH)(shared, arrays)


def summed(
  f: Callable[[Any, Any], tuple[jax.Array, Any]], shared: Any, arrays: Any, size: int
) -> tuple[jax.Array, Any]:
  """`f(shared, arrays)`, for an `f` that returns a scalar and a pytree of scalars to log, all sums over positions.

  The first has a gradient; it is made in the forward pass, chunk by chunk, where the widest arrays are at hand anyway.
  """
  if size >= _length(arrays):
    loss, seen = f(shared, arrays)
    return loss, jax.lax.stop_gradient(seen)
  float_shared, other_shared, join_shared = split(shared)
  float_arrays, other_arrays, join_arrays = split(arrays)

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

      parts = _cut((float_arrays, other_arrays), size)
      shapes, _ = jax.eval_shape(one, jax.tree.map(lambda a: a[0], parts))
      total, d_arrays = jax.lax.scan(add, jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes), parts)
      return _sum_over_rows(total), _join(d_arrays)

    rows = parallel.BATCH
    return _on_own_rows(local, (P(), P(), rows, rows), (P(), rows))(*args)

  @jax.custom_vjp
  def total(*args):
    return run(False, *args)[0][0]

  def forward(*args):
    (out, d_shared), d_arrays = run(True, *args)
    return out, (d_shared, d_arrays)

  def backward(gradients, cotangents):
    d_shared, d_arrays = jax.tree.map(lambda g: cotangents[0] * g, gradients)
    return d_shared, None, d_arrays, None

  total.defvjp(forward, backward)
  loss, seen = total(float_shared, other_shared, float_arrays, other_arrays)
  return loss, jax.lax.stop_gradient(seen)


def split(tree: Any) -> tuple[list, list, Callable[[list, list], Any]]:
  """Float leaves, the others, and `join(floats, others)`: only floats have derivatives."""
  leaves, structure = jax.tree.flatten(tree)
  is_float = [jnp.issubdtype(a.dtype, jnp.inexact) for a in leaves]

  def pick(wanted):
    return [a for a, f in zip(leaves, is_float) if f == wanted]

  def join(floats, others):
    floats, others = iter(floats), iter(others)
    return jax.tree.unflatten(structure, [next(floats) if f else next(others) for f in is_float])

  return pick(True), pick(False), join


def _on_own_rows(f, in_specs, out_specs):
  """`f` on each device's own rows, which is what keeps the compiler from summing over devices at every chunk."""
  if parallel.row_ways() == 1:
    return f
  # the `model` axis stays with the compiler
  return jax.shard_map(f, in_specs=in_specs, out_specs=out_specs, axis_names=set(parallel.ROW_AXES), check_vma=False)


def _sum_over_rows(tree):
  return tree if parallel.row_ways() == 1 else jax.lax.psum(tree, parallel.ROW_AXES)


def _length(arrays) -> int:
  return jax.tree.leaves(arrays)[0].shape[1]


def _cut(arrays, size):
  """`[b, s, ...]` -> `[s / size, b, size, ...]`."""
  return jax.tree.map(lambda a: jnp.moveaxis(a.reshape(a.shape[0], -1, size, *a.shape[2:]), 1, 0), arrays)


def _join(parts):
  """Undoes `_cut`."""
  return jax.tree.map(lambda a: jnp.moveaxis(a, 0, 1).reshape(a.shape[1], -1, *a.shape[3:]), parts)
