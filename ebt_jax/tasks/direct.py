"""Any problem, answered directly: the baselines of EBT, in one pass (Transformer++) or in several (looped)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ebt_jax import flops as flops_lib
from ebt_jax import vocabulary
from ebt_jax.config import Config
from ebt_jax.models import traced
from ebt_jax.models.base import Predictor
from ebt_jax.tasks.base import Batch, Flops, Mean, Output, Params, Problem, Scores, corrupted, first_axes, one_row
from ebt_jax.tasks.ebt import by_step


@dataclasses.dataclass(frozen=True)
class DirectTask:
  """Predictor and problem together.

  Attributes:
    model: see `models.base.Predictor`.
      One that loops takes `thinking.steps` passes in training, with a loss after each, and `eval.steps` in evaluation.
    chunk: positions per chunk of answers that are too large to hold; 0: answers are held whole. Needs a model whose
      `predict` is `read(head(params), hidden(params, inputs))`.
  """

  config: Config
  problem: Problem
  model: Predictor
  chunk: int = 0

  @property
  def passes(self) -> int:
    """Passes of training."""
    return self.config.thinking.steps if self.model.loops else 1

  @property
  def eval_steps(self) -> int:
    return self.config.eval.steps or self.passes if self.model.loops else 1

  def tables(self) -> tuple[str, ...]:
    return self.model.tables

  def notes(self) -> list[str]:
    return []

  def init(self, key: PRNGKeyArray) -> Params:
    return {"model": self.model.init(key)}

  def loss(self, params: Params, batch: Batch, key: PRNGKeyArray) -> tuple[Mean, Output]:
    batch = corrupted(self.problem, batch, key)
    by_pass, _ = self._answered(params, batch, self.passes)
    mean = Mean(jnp.mean(by_pass.total), by_pass.weight)
    first, last = (jax.lax.stop_gradient(Mean(by_pass.total[i], by_pass.weight)) for i in (0, -1))
    more = {"first_loss": first} if self.model.loops else {}
    return mean, Output({"final_loss": last, **more, **self.problem.counts(batch)})

  def answers(self, params: Params, inputs: Any, passes: int) -> Any:
    """The answer after each pass, `[t, ...]`; `params` are those of the model."""
    if self.model.loops:
      return self.model.answers(params, inputs, passes)
    return jax.tree.map(lambda a: a[None], self.model.predict(params, inputs))

  def _errors(self, x, target):
    """Of each answer, `[t, *p]`."""
    return jax.vmap(lambda x: self.problem.error(x, target))(x)

  def _answered(self, params, batch, passes):
    """The mean error after each pass, `[t]`, and the answers where they are held whole."""
    model, inputs = vocabulary.gather_tables(params["model"]), self.problem.inputs(batch)
    target, weights = self.problem.target(batch), self.problem.weights(batch)
    if not self.chunk:
      x = self.answers(model, inputs, passes)
      return by_step(self._errors(x, target), weights), x

    def of_chunk(head, arrays):
      hidden, target, weights = arrays
      return jnp.sum(weights * self.problem.error(self.model.read(head, hidden), target)), ()

    arrays = (self.model.hidden(model, inputs), target, weights)
    total, _ = vocabulary.sum_chunks(of_chunk, self.model.head(params["model"]), arrays, self.chunk)
    return Mean(total[None], jnp.sum(weights)), None

  def evaluate(self, params: Params, batch: Batch, keys: Array) -> dict[str, Mean]:
    batch = corrupted(self.problem, batch, keys)
    by_pass, x = self._answered(params, batch, self.eval_steps)
    measures = {} if x is None else self._measures(x, batch)
    weights = self.problem.weights(batch)
    return {
      "loss": by_pass,
      **{name: by_step(a, first_axes(weights, a.ndim - 1)) for name, a in measures.items()},
      **self.problem.counts(batch),
    }

  def _measures(self, x, batch):
    return jax.vmap(lambda x: self.problem.measures(x, batch))(x)

  def scores(self, params: Params, batch: Batch, keys: Array) -> Scores:
    batch = corrupted(self.problem, batch, keys)
    x = self.answers(params["model"], self.problem.inputs(batch), self.eval_steps)
    return Scores(self._errors(x, self.problem.target(batch)), measures=self._measures(x, batch))

  def flops(self) -> Flops:
    row = flops_lib.training_in_one_pass(self._cost())
    once = flops_lib.one_pass(self._cost(single=True))
    row, prediction = ({k: n * v for k, v in f.items()} for n, f in ((self.passes, row), (self.eval_steps, once)))
    least = 6.0 * self.passes * self.model.uses
    return Flops(row, prediction, least=least, paper=least)

  def _cost(self, single: bool = False) -> flops_lib.PredictorCost:
    """What the model says, or what a trace of it counts."""
    inputs = jax.eval_shape(self.problem.inputs, one_row(self.problem))
    params = jax.eval_shape(self.init, jax.random.key(0))["model"]
    found = self.model.flops(inputs, single)
    return found or flops_lib.PredictorCost(flops_lib.Pass(traced.flops(self.model.predict, params, inputs)))
