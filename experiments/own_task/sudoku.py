"""4x4 Sudoku, a task of one's own in one file: problem, energy, a predictor to compare with, config. See README.md."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import losses, thinking
from ebt_jax.config import defaults
from ebt_jax.data.examples import ArrayExamples
from ebt_jax.models.base import Energy, Predictor
from ebt_jax.tasks.base import Data, Problem
from ebt_jax.tasks.direct import DirectTask
from ebt_jax.tasks.ebt import EBTTask

CELLS, DIGITS, CLUES = 16, 4, 6


class Sudoku(Problem):
  """A batch is `target` int32 [b, 16], the board; `asked` float32 [b, 16], 1 for cells to be found; `weights` [b]."""

  item, headline, unit = "cell", "boards", "nats/cell"
  error = staticmethod(losses.token_losses)

  def data(self):
    grids = np.array(list(itertools.product(itertools.permutations(range(DIGITS)), repeat=4)), np.int32)
    units = [grids.swapaxes(1, 2), grids.reshape(-1, 2, 2, 2, 2).swapaxes(2, 3).reshape(-1, 4, 4)]  # columns, blocks
    valid = np.all([np.all(np.sort(u) == range(DIGITS), (1, 2)) for u in units], 0)  # 288 of them
    grids = np.random.default_rng(0).permutation(grids[valid].reshape(-1, CELLS))

    def puzzles(boards, seed):
      known = np.random.default_rng(seed).random(boards.shape).argsort(1) < CLUES
      return ArrayExamples(target=boards, asked=(~known).astype(np.float32))

    return Data(puzzles(np.tile(grids[:240], (64, 1)), 1), {"held_out": puzzles(np.tile(grids[240:], (8, 1)), 2)})

  def inputs(self, batch):
    return batch["target"] * (batch["asked"] == 0), batch["asked"]

  def weights(self, batch):
    return batch["asked"] * batch["weights"][:, None]

  def start(self, space, key, batch):
    return space.start(key, (*key.shape[:-1], len(batch["target"]), CELLS, DIGITS))

  def measures(self, x, batch):
    right = (jnp.argmax(x, -1) == batch["target"]) | (batch["asked"] == 0)
    return {"boards": jnp.all(right, -1).astype(float), "cells": right.astype(float)}


@dataclasses.dataclass(frozen=True)
class Mixer:
  """Cells and features are mixed in turn; what is known is put in its place."""

  layers: int
  width: int
  outputs: int

  def init(self, key):
    n, d = self.layers, self.width
    shapes = {"known": (DIGITS, d), "place": (CELLS, d), "to": (DIGITS, d), "head": (d, self.outputs)}
    shapes |= {"cells": (n, CELLS, CELLS), "features": (n, d, d)}
    pairs = zip(jax.random.split(key, len(shapes)), shapes.items())
    return {name: jax.random.normal(key, shape) * shape[-2] ** -0.5 for key, (name, shape) in pairs}

  def mix(self, params, inputs, y):
    board, asked = inputs
    x = jnp.where(asked[..., None] > 0, y, params["known"][board]) + params["place"]
    for cells, features in zip(params["cells"], params["features"]):
      x = x + jnp.einsum("bsd,st->btd", jnp.tanh(x), cells)
      x = x + jnp.tanh(x) @ features
    return jnp.tanh(x) @ params["head"]


class BoardEnergy(Mixer, Energy):
  def energy(self, params, context, y, landscape):
    return jnp.mean(self.mix(params, context, y), (-2, -1))  # one energy for a board, [b]


class BoardPredictor(Mixer, Predictor):
  def predict(self, params, inputs):
    return self.mix(params, inputs, 0.0)


def make(config):
  size = config.model.layers, config.model.width
  if config.model.kind == "ebt":
    return EBTTask(config, Sudoku(), BoardEnergy(*size, 1), thinking.Simplex(table=lambda params: params["to"]))
  return DirectTask(config, Sudoku(), BoardPredictor(*size, DIGITS))


def get_config(arg=""):
  config = defaults()
  config.task = "experiments.own_task.sudoku:make"
  config.model.update(kind=arg or "ebt", layers=3, heads=1, width=64)
  config.thinking.update(steps=4, step_size=5.0)
  config.train.update(steps=1500, batch_size=64, learning_rate=3e-3, warmup=50, log_every=100, health_every=0)
  return config
