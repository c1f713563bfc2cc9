"""One thinking step and its second-order rule.

Training needs the derivative of a step, and the step holds a gradient of the energy. Differentiating `jax.grad` a
second time works and stores the activations of both passes. For a cotangent v of the slope dE/dy the backward pass of
the slope is the gradient of the scalar v . dE/dy, and that scalar is one `jax.jvp` of the energy along v: reverse over
forward, storing nothing but the inputs. `second_order` chooses.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Energy = Callable[..., jax.Array]  # (params, context, y, landscape) -> one scalar for each independent candidate


def double_reverse(energy: Energy):
  """`(params, context, y, landscape) -> (energies, dE/dy)`, differentiated by plain autodiff. The oracle."""

  def slope(params, context, y, landscape):
    def total(y):
      energies = energy(params, context, y, landscape)
      return jnp.sum(energies), energies  # the sum's gradient is exact for each: candidates do not interact

    (_, energies), dy = jax.value_and_grad(total, has_aux=True)(y)
    return energies, dy

  return slope


def reverse_over_forward(energy: Energy):
  """The same function as `double_reverse(energy)`, with the backward pass described above."""
  slope = jax.custom_vjp(double_reverse(energy))

  def forward(params, context, y, landscape):
    return slope(params, context, y, landscape), (params, context, y, landscape)

  def backward(saved, cotangents):
    params, context, y, landscape = saved
    d_energies, v = cotangents

    def scalar(params, context, y):
      energies, along_v = jax.jvp(lambda y: energy(params, context, y, landscape), (y,), (v,))
      return jnp.sum(along_v) + jnp.sum(d_energies * energies)

    _, pull = jax.vjp(scalar, params, context, y)
    return (*pull(jnp.ones((), v.dtype)), None)

  slope.defvjp(forward, backward)
  return slope


def second_order(lean: bool = False):
  """The rule that training uses: the fastest on this backend, or where memory is short the `lean` one.

  On CPUs storing beats recomputing by about a tenth, for half as much memory again (measured: tools/README.md).
  """
  return double_reverse if jax.default_backend() == "cpu" and not lean else reverse_over_forward


def constant(energy: Energy):
  """The same function with no derivative at all: the slopes of steps that are not trained."""
  slope = double_reverse(energy)
  stop = jax.lax.stop_gradient
  return lambda params, context, y, landscape: stop(slope(stop(params), stop(context), stop(y), landscape))


def step(
  slope: Callable,
  space: Any,
  params: Any,
  context: Any,
  x: Any,
  landscape: Any,
  step_size: Callable[[jax.Array], jax.Array],
  bound: Float[Array, ""] | None = None,
) -> tuple[Any, Float[Array, "..."]]:
  """x_new = settle(p - step_size * dE/dp) with p = perceive(x), as `space` does it.

  Args:
    slope: `double_reverse(energy)` or `reverse_over_forward(energy)`.
    params: parameters of the energy.
    x: the candidate, as the space keeps it.
    step_size: of y, what the energy is given, to a number or an array that broadcasts against it.
    bound: largest magnitude of a gradient's entry, if any.

  Returns:
    The stepped candidate and the energies before the step.
  """
  y = space.read(params, x, landscape)
  energies, dy = slope(params, context, y, landscape)
  return space.step(params, x, landscape, dy, step_size(y), bound), energies
