"""Energies `[*e]` beside candidates `[*e, ...]`: every axis of an energy is a leading axis of its candidate."""

from typing import Any

import jax
import jax.numpy as jnp


def expand(array: jax.Array, leaf: jax.Array) -> jax.Array:
  """`array` `[*e]` with trailing axes of length 1, so that it broadcasts against `leaf` `[*e, ...]`.

  Raises:
    ValueError: the shape of `leaf` does not begin with that of `array`.
  """
  check_prefix(array, leaf)
  return array.reshape(*array.shape, *[1] * (leaf.ndim - array.ndim)) if array.ndim else array


def select(mask: jax.Array, new: Any, old: Any) -> Any:
  """`jnp.where` over pytrees, for a mask `[*e]` of energies."""

  def leaf(new, old):
    return jnp.where(expand(mask, new), new, old)

  return jax.tree.map(leaf, new, old)


def check_prefix(energies: Any, candidate: Any) -> None:
  """Raises ValueError unless the shape of every leaf of `candidate` begins with that of `energies`."""
  for leaf in jax.tree.leaves(candidate):
    if leaf.shape[: len(energies.shape)] != energies.shape:
      raise ValueError(
        f"an energy's axes must be leading axes of its candidate: found energies {list(energies.shape)} and a "
        f"candidate {list(leaf.shape)}; let the energy sum or average over the candidate's remaining axes only"
      )
