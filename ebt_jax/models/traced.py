"""FLOPs of any function, from its trace: what models cost that do not say it themselves."""

from collections.abc import Callable
import math
from typing import Any

import jax
from jax.extend import core


def flops(f: Callable, *args: Any, trips: int = 1) -> int:
  """FLOPs of the matrix products and convolutions of a function; nothing is computed.

  Args:
    args: arrays or `jax.ShapeDtypeStruct`.
    trips: how often the body of a loop of unknown length runs.
  """
  return _products(jax.make_jaxpr(f)(*args).jaxpr, trips)


def _products(jaxpr: Any, trips: int) -> int:
  total = 0
  for equation in jaxpr.eqns:
    name = equation.primitive.name
    if name == "dot_general":
      (contracted, _), _ = equation.params["dimension_numbers"]
      shape = equation.invars[0].aval.shape
      total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
    elif name == "conv_general_dilated":
      kernel = equation.invars[1].aval.shape
      outputs = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
      total += 2 * math.prod(equation.outvars[0].aval.shape) * math.prod(kernel) // outputs
    times = {"scan": equation.params.get("length"), "while": trips}.get(name, 1)
    total += times * sum(_products(inner, trips) for inner in core.jaxprs_in_params(equation.params))
  return total
