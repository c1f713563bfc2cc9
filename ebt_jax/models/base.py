"""What a model is: an energy to descend, or a predictor in one pass. Subclass one, in plain JAX or with flax.

A model is a frozen object of pure functions of a parameter dict. Shapes: b rows, *e energies, n candidates.
"""

import abc
from typing import Any

import jax
from jaxtyping import Array, Float, Int

from ebt_jax.flops import EnergyCost, PredictorCost

Landscape = Int[Array, ""] | int  # the number of an energy landscape


class Energy(abc.ABC):
  """Scores a (context, candidate) pair; lower is better. Rows, and energies of one row, do not interact."""

  tables: tuple[str, ...] = ()  # names in the parameters that are look-up tables and not blocks
  shared_context: bool = True  # whether one context serves all landscapes

  @abc.abstractmethod
  def init(self, key: Array) -> dict[str, Any]:
    """Initial parameters."""

  def encode(self, params: Any, inputs: Any, landscape: Landscape = 0) -> Any:
    """The context: all that does not depend on the candidate, computed once. The inputs themselves by default."""
    return inputs

  @abc.abstractmethod
  def energy(self, params: Any, context: Any, y: Any, landscape: Landscape = 0) -> Float[Array, "*e"]:
    """Energies of embedded candidates y `[*e, ...]`."""

  def direct_answer(self, params: Any, context: Any) -> Any | None:
    """What the context alone predicts, in the space of y: where thinking may start. None where there is none."""
    return None

  def energies(self, params: Any, context: Any, y: Any, landscape: Landscape = 0) -> Float[Array, " n *e"]:
    """`energy` of n candidates over one context, y `[n, *e, ...]`."""
    return jax.vmap(lambda y: self.energy(params, context, y, landscape))(y)

  def flops(self, inputs: Any, single: bool = False) -> EnergyCost | None:
    """What a forward pass costs for one row; None: it is counted from a trace.

    Args:
      inputs: shapes of one row, `[1, ...]`.
      single: of one more position over a context of that length, as in generation from a cache.
    """
    return None

  def for_training(self, save_memory: bool = False) -> "Energy":
    """The same energy, in the form that training differentiates twice."""
    return self

  def for_inference(self) -> "Energy":
    """The same energy, in the form that is differentiated once."""
    return self


class Predictor(abc.ABC):
  """Answers directly: in one pass, or in several with an answer after each."""

  tables: tuple[str, ...] = ()  # names in the parameters that are look-up tables and not blocks
  loops: bool = False  # whether it may go through its blocks several times; then it has `answers`
  uses: int = 1  # times that one answer uses each block

  @abc.abstractmethod
  def init(self, key: Array) -> dict[str, Any]:
    """Initial parameters."""

  @abc.abstractmethod
  def predict(self, params: Any, inputs: Any) -> Any:
    """The answer, as the problem's `error` takes it."""

  def flops(self, inputs: Any, single: bool = False) -> PredictorCost | None:
    """As `Energy.flops`."""
    return None
