"""A noised picture, answered by a denoiser in several passes: the rivals of EBT, DiT and flow matching."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ebt_jax import diffusion
from ebt_jax import flops as flops_lib
from ebt_jax.config import Config
from ebt_jax.models import traced
from ebt_jax.models.denoiser import Denoiser
from ebt_jax.tasks.base import (
  Batch,
  Flops,
  Mean,
  Output,
  Params,
  Problem,
  Scores,
  corrupted,
  first_axes,
  one_row,
)
from ebt_jax.tasks.ebt import by_step


@dataclasses.dataclass(frozen=True)
class DenoisingTask:
  """Denoiser, process and problem together; the problem also says `step(batch)` and `steps_asked`.

  Training draws its own noise, of all steps below `steps_asked`; evaluation takes away the problem's. An answer is the
  clean picture as it looks from a pass, so that the last one is what the sampler ends with.
  """

  config: Config
  problem: Problem
  model: Denoiser
  process: diffusion.Diffusion | diffusion.Flow

  @property
  def passes(self) -> int:
    return self.config.eval.steps or self.config.image.passes

  @property
  def eval_steps(self) -> int:
    start = jnp.zeros(1, jnp.int32)
    times = jax.eval_shape(
      lambda t: self.process.times(self.process.start(jnp.zeros((1, 1)), t)[1], self.passes), start
    )
    return times.shape[0] - 1

  def tables(self) -> tuple[str, ...]:
    return self.model.tables

  def notes(self) -> list[str]:
    return [f"trained on the noise of the diffusion's steps below {self.problem.steps_asked}"]

  def init(self, key: PRNGKeyArray) -> Params:
    return {"model": self.model.init(key)}

  def _network(self, params):
    return lambda x, time: self.model.predict(params["model"], (x, time))

  def loss(self, params: Params, batch: Batch, key: PRNGKeyArray) -> tuple[Mean, Output]:
    batch = corrupted(self.problem, batch, key)
    clean, weights = self.problem.target(batch), self.problem.weights(batch)
    errors, parts = self.process.loss(self._network(params), clean, self.problem.steps_asked, key)
    mean = Mean.of(errors, weights)
    seen = {name: Mean.of(a, weights) for name, a in {"final_loss": errors, **parts}.items()}
    return mean, Output({**jax.lax.stop_gradient(seen), **self.problem.counts(batch)})

  def answers(self, params: Params, batch: Batch, keys: Array) -> Float[Array, "t b ..."]:
    """The clean picture as it looks from each pass."""
    return self._denoised(params, corrupted(self.problem, batch, keys), keys, lambda x: x)

  def _denoised(self, params, batch, keys, observe) -> Any:
    noised, step = self.problem.inputs(batch), self.problem.step(batch)
    return diffusion.denoise(self.process, self._network(params), noised, step, self.passes, keys, observe)[1]

  def scores(self, params: Params, batch: Batch, keys: Array) -> Scores:
    batch = corrupted(self.problem, batch, keys)
    target = self.problem.target(batch)

    def observe(x):
      return self.problem.error(x, target), self.problem.measures(x, batch)

    error, measures = self._denoised(params, batch, keys, observe)
    return Scores(error, measures=measures)

  def evaluate(self, params: Params, batch: Batch, keys: Array) -> dict[str, Mean]:
    batch = corrupted(self.problem, batch, keys)
    found, weights = self.scores(params, batch, keys), self.problem.weights(batch)
    return {
      "loss": by_step(found.error, weights),
      **{name: by_step(a, first_axes(weights, a.ndim - 1)) for name, a in found.measures.items()},
      **self.problem.counts(batch),
    }

  def flops(self) -> Flops:
    x = jax.eval_shape(self.problem.inputs, one_row(self.problem))
    params = jax.eval_shape(self.init, jax.random.key(0))["model"]
    one = traced.flops(self.model.predict, params, (x, jax.ShapeDtypeStruct((1,), jnp.float32)))
    cost = flops_lib.PredictorCost(flops_lib.Pass(one))
    prediction = {name: self.passes * n for name, n in flops_lib.one_pass(cost).items()}
    return Flops(flops_lib.training_in_one_pass(cost), prediction, least=6.0, paper=6.0)
