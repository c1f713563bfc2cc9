"""What each facet is in numbers, from arrays alone."""

import numpy as np


def slope(passes: np.ndarray, loss: np.ndarray) -> float:
  """Change of the loss for each doubling of the passes, in percent: a line through ln loss over log2 passes."""
  return float(100 * np.expm1(np.polyfit(np.log2(passes), np.log(loss), 1)[0]))


def change(before: float, after: float) -> float:
  """Of a loss, in percent."""
  return float(100 * (after / before - 1))


def preferred(of_right: np.ndarray, of_wrong: np.ndarray) -> float:
  """How often the right answer of a pair has the lower cost; ties count half. NaN without pairs."""
  if not len(of_right):
    return float("nan")
  return float(np.mean((of_right < of_wrong) + 0.5 * (of_right == of_wrong)))


def verifies(costs: np.ndarray, target: np.ndarray, proposed: np.ndarray) -> tuple[float, int]:
  """How often the truth is preferred to another's wrong proposal, and the number of such pairs.

  Args:
    costs: of every possible answer, `[v, n]`.
    target: the right one of each, `[n]`.
    proposed: by another model, `[n]`; those that are right are left out.
  """
  (pairs,) = np.nonzero(proposed != target)
  return preferred(costs[target[pairs], pairs], costs[proposed[pairs], pairs]), len(pairs)


def worse_half(error: np.ndarray) -> np.ndarray:
  """1 where an error is above the median: what counts as wrong where no answer is exactly right."""
  return (error > np.median(error)).astype(float)
