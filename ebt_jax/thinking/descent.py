"""One thinking step and the derivative of its slope.

Training needs the derivative of a step, and a step holds the slope dE/dy of the energy. Differentiating `jax.grad` a
second time works and stores the activations of both passes. For a cotangent v of the slope, its backward pass is the
gradient of the scalar v . dE/dy, and that scalar is one `jax.jvp` of the energy along v: reverse over forward, which
stores nothing but the inputs. `second_order` chooses between the two.
"""

from collections.abc import Callable
import functools
import inspect
from typing import Any

import jax
import jax.numpy as jnp

from ebt_jax.thinking.spaces import Space

# (model_params, context, y, landscape) -> energies [*e], one for each independent candidate; y is [*e, ...]
Energy = Callable[..., jax.Array]
# (model_params, context, y, landscape) -> (energies, dE/dy)
Slope = Callable[..., tuple[jax.Array, Any]]


def with_landscape(energy: Callable[..., jax.Array]) -> Energy:
  """`energy` as a function of four arguments, for an energy that may leave out `landscape`.

  Raises:
    TypeError: `energy` takes neither `(params, context, y)` nor `(params, context, y, landscape)`.
  """
  try:
    parameters = inspect.signature(energy).parameters.values()
  except (TypeError, ValueError):  # a builtin without a signature
    return energy
  if any(p.kind is p.VAR_POSITIONAL for p in parameters):
    return energy
  count = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in parameters)
  if count >= 4:
    return energy
  if count < 3:
    raise TypeError(
      f"energy: expected (params, context, y) or (params, context, y, landscape), found {count} arguments"
    )

  @functools.wraps(energy)
  def of_four(params, context, y, landscape):
    return energy(params, context, y)

  return of_four


def double_reverse(energy: Energy) -> Slope:
  """Energies and slope of an energy of four arguments, differentiated by plain autodiff. The oracle of tests."""

  def slope(params, context, y, landscape):
    def total(y):
      energies = energy(params, context, y, landscape)
      return jnp.sum(energies), energies  # the gradient of the sum is exact for each, as candidates do not interact

    (_, energies), dy = jax.value_and_grad(total, has_aux=True)(y)
    return energies, dy

  return slope


def reverse_over_forward(energy: Energy) -> Slope:
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

    total, pull = jax.vjp(scalar, params, context, y)
    return (*pull(jnp.ones((), total.dtype)), None)

  slope.defvjp(forward, backward)
  return slope


def second_order(save_memory: bool = False) -> Callable[[Energy], Slope]:
  """The rule that training uses: the fastest on this backend, or where memory is short the one that recomputes.

  On CPUs storing beats recomputing by about a tenth, for half as much memory again (measured: tools/RESULTS.md).
  """
  return double_reverse if jax.default_backend() == "cpu" and not save_memory else reverse_over_forward


def constant(energy: Energy) -> Slope:
  """The same function without a derivative: the slopes of steps that are not trained."""
  slope = double_reverse(energy)
  stop = jax.lax.stop_gradient

  def stopped(params, context, y, landscape):
    return stop(slope(stop(params), stop(context), stop(y), landscape))

  return stopped


def step(
  slope: Slope,
  space: Space,
  params: Any,
  context: Any,
  x: Any,
  landscape: Any,
  step_size: Callable[[jax.Array], jax.Array],
  bound: Any = None,
) -> tuple[Any, jax.Array]:
  """x_new = project(p - step_size * dE/dp) with p = read(x), as `space` does it.

  Args:
    slope: `double_reverse(energy)` or `reverse_over_forward(energy)`.
    params: parameters of the energy.
    x: the candidate, as the space keeps it.
    step_size: of the energies `[*e]`, to one number or to one for each of them.
    bound: largest magnitude of an entry of dE/dp; None: no bound.

  Returns:
    The stepped candidate and the energies `[*e]` before the step.
  """
  y = space.energy_input(params, x, landscape)
  energies, dy = slope(params, context, y, landscape)
  return space.step(params, x, landscape, dy, step_size(energies), bound), energies
