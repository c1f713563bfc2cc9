"""Any problem, answered in one pass: the baselines of EBT (Transformer++ on text)."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, PRNGKeyArray

from ebt_jax import flops as flops_lib
from ebt_jax import vocabulary
from ebt_jax.config import Config
from ebt_jax.models import traced
from ebt_jax.models.base import Predictor
from ebt_jax.tasks.base import Batch, Flops, Mean, Output, Params, Problem, Scores, first_axes
from ebt_jax.tasks.ebt import by_step, one_row


@dataclasses.dataclass(frozen=True)
class DirectTask:
  """Predictor and problem together.

  Attributes:
    model: see `models.base.Predictor`.
    chunk: positions per chunk of answers that are too large to hold; 0: answers are held whole. Needs a model whose
      `predict` is `read(head(params), hidden(params, inputs))`.
  """

  config: Config
  problem: Problem
  model: Predictor
  chunk: int = 0

  @property
  def eval_steps(self) -> int:
    return 1

  def tables(self) -> tuple[str, ...]:
    return self.model.tables

  def notes(self) -> list[str]:
    return []

  def init(self, key: PRNGKeyArray) -> Params:
    return {"model": self.model.init(key)}

  def loss(self, params: Params, batch: Batch, key: PRNGKeyArray) -> tuple[Mean, Output]:
    mean, _ = self._answered(params, batch)
    seen = jax.tree.map(jax.lax.stop_gradient, mean)
    return mean, Output({"final_loss": seen, **self.problem.counts(batch)})

  def _answered(self, params, batch):
    """The mean error, and the answer where it is held whole."""
    model, inputs = vocabulary.gather_tables(params["model"]), self.problem.inputs(batch)
    target, weights = self.problem.target(batch), self.problem.weights(batch)
    if not self.chunk:
      x = self.model.predict(model, inputs)
      return Mean.of(self.problem.error(x, target), weights), x

    def of_chunk(head, arrays):
      hidden, target, weights = arrays
      return jnp.sum(weights * self.problem.error(self.model.read(head, hidden), target)), ()

    arrays = (self.model.hidden(model, inputs), target, weights)
    total, _ = vocabulary.sum_chunks(of_chunk, self.model.head(params["model"]), arrays, self.chunk)
    return Mean(total, jnp.sum(weights)), None

  def evaluate(self, params: Params, batch: Batch, keys: Array) -> dict[str, Mean]:
    mean, x = self._answered(params, batch)
    measures = {} if x is None else self.problem.measures(x, batch)
    weights = self.problem.weights(batch)
    return {
      "loss": Mean(mean.total[None], mean.weight),
      **{name: by_step(a[None], first_axes(weights, a.ndim)) for name, a in measures.items()},
      **self.problem.counts(batch),
    }

  def scores(self, params: Params, batch: Batch, keys: Array) -> Scores:
    x = self.model.predict(params["model"], self.problem.inputs(batch))
    measures = {name: a[None] for name, a in self.problem.measures(x, batch).items()}
    return Scores(self.problem.error(x, self.problem.target(batch))[None], measures=measures)

  def flops(self) -> Flops:
    row, least = flops_lib.training_in_one_pass(self._cost()), 6.0 * self.model.passes
    return Flops(row, flops_lib.one_pass(self._cost(single=True)), least=least, paper=least)

  def _cost(self, single: bool = False) -> flops_lib.PredictorCost:
    """What the model says, or what a trace of it counts."""
    inputs = jax.eval_shape(self.problem.inputs, one_row(self.problem))
    params = jax.eval_shape(self.init, jax.random.key(0))["model"]
    found = self.model.flops(inputs, single)
    return found or flops_lib.PredictorCost(flops_lib.Pass(traced.flops(self.model.predict, params, inputs)))
