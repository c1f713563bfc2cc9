"""Pytrees: what of them can be differentiated."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def split_floats(tree: Any) -> tuple[list, list, Callable[[list, list], Any]]:
  """Leaves of float types, the other leaves, and `join(floats, others)`, which puts the tree together again."""
  leaves, structure = jax.tree.flatten(tree)
  is_float = [jnp.issubdtype(a.dtype, jnp.inexact) for a in leaves]

  def pick(wanted):
    return [a for a, f in zip(leaves, is_float) if f == wanted]

  def join(floats, others):
    floats, others = iter(floats), iter(others)
    return jax.tree.unflatten(structure, [next(floats) if f else next(others) for f in is_float])

  return pick(True), pick(False), join
