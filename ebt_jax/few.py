"""Products of a few rows on CPUs, whose compiler is slow where it has to transpose the matrix.

While text is written the candidates of a position are such rows, and how the matrix is read is what a product costs: of 8
rows and 256 x 684 entries `x @ w.T` takes 137 us; with w on the left and the few rows transposed in its place, 70.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

ROWS = 32  # beyond, both ways take the same time (measured: tools/README.md)


def applies(rows: int) -> bool:
  """Whether so many rows are few on this backend. One row is read in the matrix's own order anyway."""
  return jax.default_backend() == "cpu" and 1 < rows <= ROWS


def by_transpose(x: Float[Array, "*b n o"], w: Float[Array, "*b i o"]) -> Float[Array, "*b n i"]:
  """x @ w.T. Barriers keep the compiler from moving the transpositions back to w."""
  y = w @ jax.lax.optimization_barrier(x.swapaxes(-1, -2))
  return jax.lax.optimization_barrier(y).swapaxes(-1, -2)


def _outer(x, dy):
  return jnp.einsum("...ni,...no->...io", x, dy)


@jax.custom_vjp
def product(x: Float[Array, "*b n i"], w: Float[Array, "*b i o"]) -> Float[Array, "*b n o"]:
  """x @ w, whose gradient is a product `by_transpose`. Not for derivatives in forward mode."""
  return x @ w


@jax.custom_vjp
def scores(x: Float[Array, "*b n o"], w: Float[Array, "*b i o"]) -> Float[Array, "*b n i"]:
  """`by_transpose`, whose gradient is `x @ w`. Not for derivatives in forward mode."""
  return by_transpose(x, w)


def _forward(form):
  """`form` and what its gradient needs: x only where w is differentiated too."""
  return lambda x, w: (form(x.value, w.value), (x.value if w.perturbed else None, w.value))


def _product_backward(xw, dy):
  x, w = xw
  return by_transpose(dy, w), jnp.zeros_like(w) if x is None else _outer(x, dy)


def _scores_backward(xw, dy):
  x, w = xw
  return dy @ w, jnp.zeros_like(w) if x is None else _outer(dy, x)


product.defvjp(_forward(jnp.matmul), _product_backward, symbolic_zeros=True)
scores.defvjp(_forward(by_transpose), _scores_backward, symbolic_zeros=True)
