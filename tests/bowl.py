"""A task whose every number can be worked out by hand: the energy is half the squared distance to what is known.

A step of size a leaves 1 - a of the distance, so after n steps a candidate is `known + (1 - a)^n (first - known)`.
"""

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import thinking
from ebt_jax.config import Config
from ebt_jax.models.base import Energy, Predictor
from ebt_jax.tasks.base import Data, Mean, Problem
from ebt_jax.tasks.direct import DirectTask
from ebt_jax.tasks.ebt import EBTTask


class Bowl(Problem):
  """Rows of two numbers, each with its own error and weight, and one energy for the row; starts are known."""

  def data(self):
    return Data(None, {})

  def spec(self):
    return {name: jax.ShapeDtypeStruct((2,), jnp.float32) for name in ("inputs", "target", "weights", "first")}

  def start(self, space, key, batch):
    """Of several candidates the k-th starts k to the right of the first."""
    if key.ndim < 2:
      return batch["first"]
    return batch["first"] + jnp.arange(key.shape[0], dtype=float)[:, None, None]

  def error(self, x, target, smoothing=0.0):
    return (1 - smoothing) * (x - target) ** 2

  def measures(self, x, batch):
    return {"far": jnp.sum(jnp.abs(x - batch["target"]), -1)}

  def counts(self, batch):
    return {"known": Mean.of(batch["inputs"], jnp.ones_like(batch["inputs"]))}


class BowlEnergy(Energy):
  def init(self, key):
    return {"stiffness": jnp.float32(1)}

  def energy(self, params, context, y, landscape=0):
    return 0.5 * params["stiffness"] * jnp.sum((y - context) ** 2, -1)


class Double(Predictor):
  def init(self, key):
    return {"factor": jnp.float32(2)}

  def predict(self, params, inputs):
    return params["factor"] * inputs


def ebt(**settings) -> EBTTask:
  return EBTTask(Config(**settings), Bowl(), BowlEnergy(), thinking.Euclidean())


def direct(**settings) -> DirectTask:
  return DirectTask(Config(**settings), Bowl(), Double())


def batch_of(rows: int, seed: int = 0) -> dict[str, np.ndarray]:
  """Weights differ within a row, and are 0 for the whole second row."""
  known, target, first = np.random.default_rng(seed).normal(size=(3, rows, 2)).astype(np.float32)
  weights = np.resize(np.array([[1, 0.5], [0, 0], [2, 0]], np.float32), (rows, 2))
  return {"inputs": known, "target": target, "weights": weights, "first": first}


def after(batch, steps: int, size: float, first=None) -> np.ndarray:
  """The candidates after so many steps."""
  first = batch["first"] if first is None else first
  return batch["inputs"] + (1 - size) ** steps * (first - batch["inputs"])


def energy_of(batch, x) -> np.ndarray:
  return 0.5 * np.sum((x - batch["inputs"]) ** 2, -1)
