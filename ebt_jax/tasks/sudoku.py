"""Sudoku: the blanks of a puzzle from its givens, answered by EBT, or directly in one pass or several.

A batch is `target` int32 `[b, cells]`, digits from 0; `asked` float32 `[b, cells]`, 1 for blanks; `weights` `[b]`.
A board is solved where all its cells are right: a puzzle has one solution.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int
import numpy as np

from ebt_jax import losses
from ebt_jax.config import Config, ConfigError
from ebt_jax.data import sudoku, sudoku_rules
from ebt_jax.data.examples import ArrayExamples
from ebt_jax.models.bidirectional import LoopedTransformer, Masked, MaskedEBT, MaskedTransformer
from ebt_jax.tasks import text
from ebt_jax.tasks.base import Batch, Data, Kept, Problem, data_as_meant
from ebt_jax.tasks.direct import DirectTask
from ebt_jax.tasks.ebt import EBTTask

HARDER = "out_of_distribution"  # the held-out set of puzzles with fewer givens
WRONG = 0.05  # of the blanks have another digit in a wrong answer; at least one has


def make(config: Config, shards: int = 1, kept: Kept | None = None) -> EBTTask | DirectTask:
  """The Sudoku task that `config.model.kind` names; see `registry.make`.

  Raises:
    ConfigError: the model has options that masked rows do not have.
  """
  size, m, t = config.sudoku.size, config.model, config.thinking
  if m.vocab_size not in (0, size):
    raise ConfigError(f"config.model.vocab_size: {m.vocab_size}, but sudoku.size={size} has {size} digits; set it to 0")
  if m.residual or t.start == "context":
    raise ConfigError("config.model.residual: Sudoku has no residual energy; set it to False, and thinking.start=noise")
  config = dataclasses.replace(config, model=dataclasses.replace(m, vocab_size=size))
  problem, cells = SudokuProblem(config, kept), size * size
  alike = tuple(zip(*sudoku_rules.places(size))) if config.sudoku.units else ()
  if m.kind == "ebt":
    model = MaskedEBT(config.model, cells, alike, t.landscapes)
    return EBTTask(config, problem, model, text.whole_space(config, model), shards=shards)
  direct = LoopedTransformer if m.kind == "looped" else MaskedTransformer
  return DirectTask(config, problem, direct(config.model, cells, alike))


@dataclasses.dataclass(frozen=True)
class SudokuProblem(Problem):
  """Find the digits of the blanks; errors are nats."""

  config: Config
  kept: Kept | None = None  # of the run that this is a problem of

  item, headline, unit = "cell", "boards", "nats/cell"

  @property
  def size(self) -> int:
    return self.config.sudoku.size

  def data(self) -> Data:
    c, d = self.config.sudoku, data_as_meant(self.config, self.kept)
    if d.source == "embedded":
      base, held = sudoku.made(c.folder, c.size, c.boards, c.held_out, d.held_out)
      train = sudoku.Variants(base, c.size, (c.givens_min, c.givens_max), 0, d.held_out)
      sets = {"held_out": sudoku.puzzles_with(held, (c.givens_min, c.givens_max), 1)}
      sets[HARDER] = sudoku.puzzles_with(held, (c.harder_min, c.harder_max), 2)
    else:
      base, held = self._split(sudoku_rules.read(d.source, c.size))
      train, sets = sudoku.Variants(base, c.size, None, 0, d.held_out), {"held_out": held}
    sets |= {n: sudoku_rules.read(s, c.size, "config.data.held_out_sources") for n, s in d.more_held_out.items()}
    summary = {"train_puzzles": len(base.grids), **{f"{name}_puzzles": len(p.grids) for name, p in sets.items()}}
    lines = [f"data: variants of {len(base.grids):,} puzzles; held out: {', '.join(map(_described, sets.items()))}"]
    prints = {"train": sudoku.fingerprint(base), **{name: sudoku.fingerprint(p) for name, p in sets.items()}}
    return Data(train, {n: sudoku.examples(p) for n, p in sets.items()}, summary, lines, fingerprint=prints)

  def _split(self, found: sudoku_rules.Puzzles) -> tuple[sudoku_rules.Puzzles, sudoku_rules.Puzzles]:
    """By the grids. Raises ConfigError where one part has no puzzle."""
    held = np.array([sudoku.is_held_out(g, self.config.data.held_out) for g in found.grids])
    if held.all() or not held.any():
      raise ConfigError(
        f"config.data.held_out: {self.config.data.held_out} of the grids of {len(held)} puzzles leaves no puzzle to "
        f"{'train' if held.all() else 'evaluate'} on; give more puzzles, or another share"
      )
    return tuple(sudoku_rules.Puzzles(found.grids[which], found.given[which]) for which in (~held, held))

  def examples_of(self, source: str) -> ArrayExamples:
    return sudoku.examples(sudoku_rules.read(source, self.size, "--source"))

  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    cells = (self.size**2,)
    return {
      "target": jax.ShapeDtypeStruct(cells, jnp.int32),
      "asked": jax.ShapeDtypeStruct(cells, jnp.float32),
      "weights": jax.ShapeDtypeStruct((), jnp.float32),
    }

  def inputs(self, batch: Batch) -> Masked:
    asked = batch["asked"]
    return Masked(jnp.where(asked > 0, 0, batch["target"]), asked)

  def weights(self, batch: Batch) -> Float[Array, "b s"]:
    return batch["asked"] * batch["weights"][:, None]

  def start(self, space: Any, key: Array, batch: Batch) -> Any:
    return space.start(key, (*key.shape[:-1], *batch["target"].shape, self.size))

  def error(self, x: Float[Array, "b s v"], target: Int[Array, "b s"], smoothing: Any = None) -> Float[Array, "b s"]:
    return losses.token_losses(x, target, smoothing)

  def wrong(self, key: Array, batch: Batch, x: Float[Array, "b s v"]) -> Int[Array, "b s"]:
    """The model's own board x where it is wrong. Else one blank, and `WRONG` of the others, have another digit."""
    where, digit = jax.random.split(key)
    lots = jnp.where(batch["asked"] > 0, jax.random.uniform(where, batch["asked"].shape), -1.0)
    changed = (lots > 1 - WRONG) | ((lots == jnp.max(lots, -1, keepdims=True)) & (lots >= 0))
    by = jax.random.randint(digit, lots.shape, 1, self.size)
    made = jnp.where(changed, (batch["target"] + by) % self.size, batch["target"])
    own = jnp.where(batch["asked"] > 0, jnp.argmax(x, -1), batch["target"])
    return jnp.where(jnp.any(own != batch["target"], -1, keepdims=True), own, made)

  def measures(self, x: Float[Array, "b s v"], batch: Batch) -> dict[str, Array]:
    """`cells`: of the blanks; `boards`: all blanks of a board right."""
    right = (jnp.argmax(x, -1) == batch["target"]) | (batch["asked"] == 0)
    return {"boards": jnp.all(right, -1).astype(jnp.float32), "cells": right.astype(jnp.float32)}


def _described(item: tuple[str, sudoku_rules.Puzzles]) -> str:
  name, puzzles = item
  givens = puzzles.given.sum(1)
  return f"{name} {len(givens):,} with {givens.min()} to {givens.max()} givens"
