"""What a trained model makes of puzzles, board by board, and statistics of it."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from ebt_jax import streams
from ebt_jax.data.loader import in_order
from ebt_jax.tasks.base import Examples, Thinks
from experiments.thinking import common

ROWS = 64  # of a batch


class Boards(NamedTuple):
  """t steps, n candidates, b boards; predictors have one candidate and no energy."""

  solved: np.ndarray  # bool [t, n, b], after each step
  cells: np.ndarray  # [t, n, b], share of the blanks that are right
  energy: np.ndarray | None  # [t, n, b], after each step
  used: np.ndarray | None  # [n, b], thinking steps taken
  givens: np.ndarray  # [b]
  doubts: dict[str, np.ndarray] = {}  # `doubts_of` the distributions of the blanks, and `decoded`, each [t, n, b]

  @property
  def judges(self) -> dict[str, np.ndarray]:
    """What may tell a wrong board from a right one: name -> `[t, n, b]`, higher where a board is wrong.

    `energy` of the candidate, `decoded` of the board that is read off it, and `doubts_of` its distributions.
    """
    return {**({} if self.energy is None else {"energy": self.energy}), **self.doubts}

  def best_of(self, n: int, step: int = -1, judge: str = "energy") -> tuple[np.ndarray, np.ndarray]:
    """Whether the candidate among the first n that one of `judges` has least against is right, `[b]`, and its value."""
    values = self.judges[judge][step, :n]
    kept = np.argmin(values, 0)[None]
    return tuple(np.take_along_axis(a, kept, 0)[0] for a in (self.solved[step, :n], values))


def answer(model: common.Model, examples: Examples, count: int, **inference) -> Boards:
  """The first `count` puzzles, answered as `inference` (keys of `config.eval`) says."""
  task = model.task(**inference)
  key = streams.key_for(inference.get("seed", 0), streams.EVALUATE)

  def seen(x, batch):
    """Right blanks `[..., b, cells]`, and doubts `[..., b]`."""
    return (jnp.argmax(x, -1) == batch["target"]) & (batch["asked"] > 0), doubts_of(x, batch["asked"])

  @jax.jit
  def run(params, batch, numbers):
    if not isinstance(task, Thinks):
      x = task.answers(params["model"], task.problem.inputs(batch), task.eval_steps)
      right, doubts = jax.tree.map(lambda a: a[:, None], seen(x, batch))
      return right, doubts, None, None
    context, energies = task.context(params, batch), task.model.for_inference().energies

    def observe(x):
      right, doubts = seen(x, batch)
      return right, {**doubts, "decoded": task.energy_of(params, context, jnp.argmax(x, -1), energies)}

    start, keys = task.starts(params, context, streams.each(key, numbers), batch)
    found = task.think(params, context, start, keys, observe=observe)
    return *found.observed, jnp.concatenate([found.energies[1:], found.final[None]]), found.steps_used

  parts = []
  for numbers, batch in in_order(examples, min(ROWS, count), count):
    right, doubts, energy, used = jax.device_get(run(model.params, batch, numbers))
    rows = batch["weights"] > 0
    asked = (batch["asked"] > 0).sum(-1)
    hits = right.sum(-1)
    part = (hits == asked, hits / np.maximum(asked, 1), energy, used, batch["asked"].shape[-1] - asked, doubts)
    parts.append(jax.tree.map(lambda a: a[..., rows], part))
  return Boards(*jax.tree.map(lambda *a: np.concatenate(a, -1), *parts))


def after(model: common.Model, examples: Examples, count: int, steps: tuple[int, ...], **inference) -> Boards:
  """`answer` after these numbers of steps alone, the most last.

  They are steps of one thought, but where the landscapes share a budget of steps: then each number is a budget.
  """
  if model.config.eval.steps_of == "every" and model.config.thinking.landscapes > 1:
    found = [(answer(model, examples, count, steps=k, **inference), -1) for k in steps]
  else:
    whole = answer(model, examples, count, steps=steps[-1], **inference)
    found = [(whole, k - 1) for k in steps]
  parts = [jax.tree.map(lambda a: a[at], one._replace(used=None, givens=None)) for one, at in found]
  stacked = jax.tree.map(lambda *a: np.stack(a), *parts)
  return stacked._replace(used=found[-1][0].used, givens=found[-1][0].givens)


def doubts_of(x: jax.Array, asked: jax.Array) -> dict[str, jax.Array]:
  """How unsure distributions of the blanks are, without any energy: the honest rivals of one.

  Args:
    x: logits `[..., b, cells, digits]`.
    asked: `[b, cells]`, 1 for blanks.

  Returns:
    `entropy`: the sum over the blanks, in nats. `surprise`: -log of the probability of the board that is read off.
    `weakest`: -log of the probability of the least sure of its digits. All `[..., b]`.
  """
  log_p = jax.nn.log_softmax(x)
  entropy, surprise = -jnp.sum(jnp.exp(log_p) * log_p, -1) * asked, -jnp.max(log_p, -1) * asked
  return {"entropy": entropy.sum(-1), "surprise": surprise.sum(-1), "weakest": surprise.max(-1)}


def auroc(solved: np.ndarray, judged: np.ndarray) -> float:
  """The chance that a solved board has a lower value than one that is not; NaN where there is but one kind."""
  good, bad = judged[solved], judged[~solved]
  if not len(good) or not len(bad):
    return float("nan")
  return 1 - stats.mannwhitneyu(good, bad).statistic / (len(good) * len(bad))


def ordered(found: Boards, step: int) -> float:
  """As `auroc`, but over pairs of a right and a wrong candidate of the same puzzle; NaN without any."""
  right = pairs = 0.0
  for solved, energy in zip(found.solved[step].T, found.energy[step].T):
    differences = energy[~solved][:, None] - energy[solved]
    right, pairs = right + np.sum((np.sign(differences) + 1) / 2), pairs + differences.size
  return right / pairs if pairs else float("nan")


def by_givens(solved: np.ndarray, givens: np.ndarray) -> dict[int, float]:
  """Number of givens -> mean of `solved` `[b]`."""
  return {int(k): float(solved[givens == k].mean()) for k in np.unique(givens)}
