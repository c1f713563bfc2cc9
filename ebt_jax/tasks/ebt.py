"""Any problem, answered by descending an energy: the training loss of thinking, and thinking at inference."""

from collections.abc import Callable
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, PRNGKeyArray

from ebt_jax import flops as flops_lib
from ebt_jax import losses, parallel, streams, thinking, vocabulary
from ebt_jax.config import Config
from ebt_jax.models import traced
from ebt_jax.models.base import Energy
from ebt_jax.tasks.base import Batch, Flops, Mean, Output, Params, Problem, Scores, corrupted, first_axes, one_row


@dataclasses.dataclass(frozen=True)
class EBTTask:
  """Energy, space and problem together.

  Attributes:
    model: the energy; see `models.base.Energy`.
    space: of candidates, held whole.
    training_space: of candidates that training computes in chunks where they are too large to hold; None: `space`.
    shards: parts that a mesh cuts the rows of a batch into.
  """

  config: Config
  problem: Problem
  model: Energy
  space: thinking.Space
  training_space: thinking.Space | None = None
  shards: int = 1

  @property
  def eval_steps(self) -> int:
    return self.config.eval.steps or self.config.thinking.steps

  @property
  def save_memory(self) -> bool:
    """Whether training saves memory rather than time."""
    return self.config.model.remat or self.training_space is not None

  @property
  def saves_activations(self) -> bool:
    """Whether training stores activations for the second order on this backend, rather than recomputing them."""
    return thinking.second_order(self.save_memory) is thinking.double_reverse

  def tables(self) -> tuple[str, ...]:
    return self.model.tables

  def notes(self) -> list[str]:
    c = self.config.train
    candidates = self._candidate_bytes() * (c.batch_size // c.microbatches + self.config.replayed_rows) / self.shards
    if self.training_space is not None or candidates < vocabulary.WHOLE_BYTES:
      return []
    return [f"candidates of a microbatch are held whole: {candidates / 1e6:,.0f} MB on each device"]

  def init(self, key: PRNGKeyArray) -> Params:
    t = self.config.thinking
    inner = {"step_size": jnp.float32(t.step_size), "noise": jnp.float32(t.noise)}
    return {"model": self.model.init(key), "thinking": inner}

  def context(self, params: Params, batch: Batch, model: Energy | None = None) -> Any:
    """What the energy knows of a batch, for all landscapes; `model`: another form of it, such as that of training."""
    encode = (model or self.model).encode
    tables, inputs = vocabulary.gather_tables(params["model"]), self.problem.inputs(batch)
    if self.model.shared_context:
      return encode(tables, inputs, 0)
    each = [encode(tables, inputs, k) for k in jnp.arange(self.config.thinking.landscapes)]
    return thinking.PerLandscape(jax.tree.map(lambda *a: jnp.stack(a), *each))

  @property
  def starts_at_context(self) -> bool:
    return self.config.thinking.start == "context"

  def _direct(self, params: Params, context: Any) -> Any:
    """What the context alone predicts, without a derivative."""
    return jax.lax.stop_gradient(self.model.direct_answer(params["model"], thinking.at_landscape(context, 0)))

  def loss(
    self,
    params: Params,
    batch: Batch,
    key: PRNGKeyArray,
    *,
    training: bool = True,
    start: Any = None,
    randomness: thinking.Randomness = thinking.Randomness(),
    rule: Any = None,
  ) -> tuple[Mean, Output]:
    """The loss of thinking as `thinking.gradient` says.

    A batch may have `replayed`, rows of `replay_row`, which are thought about beside the fresh ones; then
    `Output.finished` is what the buffer is to keep of the fresh rows.

    Args:
      start: candidates to start from; None: as the problem starts.
      randomness: draws from outside; see `thinking.thinking_loss`.
      rule: second-order rule; None: `thinking.second_order`.
    """
    start_key, think_key = jax.random.split(key)
    replayed = batch.get("replayed")
    fresh = corrupted(self.problem, {name: a for name, a in batch.items() if name != "replayed"}, key)
    space = self.space if start is not None or replayed else self.training_space or self.space
    batch, rows = fresh, len(jax.tree.leaves(fresh)[0])
    if replayed:
      batch = {name: _joined(a, replayed[name]) for name, a in fresh.items()}
    rule = rule or thinking.second_order(self.save_memory)
    model = self.model.for_training(save_memory=rule is not thinking.double_reverse)
    context = self.context(params, batch, model)
    if start is None and training and self.config.thinking.explore > 1:
      start = self._explored(space, params, context, start_key, fresh)
    elif start is None:
      start = self.problem.start(space, start_key, fresh)
      if self.starts_at_context:
        start = space.start_at(params["model"], start, jax.tree.map(lambda a: a[:rows], self._direct(params, context)))
    if replayed:
      start = _joined(start, replayed["start"])
    start = jax.tree.map(parallel.shard_rows, start)
    target, weights = self.problem.target(batch), self.problem.weights(batch)
    t = self.config.thinking

    def measure(params, context, x, energies, i, count):
      total = self._error_sum(space, params, x, target, weights, i, count)
      seen = {"loss": jax.lax.stop_gradient(total), "energy": jnp.sum(first_axes(weights, energies.ndim) * energies)}
      loss = total if t.gradient == "last" else total / count
      if t.authors.contrastive:
        contrast = self._contrast(params, context, target, weights, energies)
        loss = loss + t.authors.contrastive * jnp.where(i == count - 1, contrast, 0.0)
      return loss, seen

    total, aux = thinking.thinking_loss(
      model.energy, space, measure, params, context, start, think_key, t,
      training=training, randomness=randomness, rule=rule,
    )  # fmt: skip
    if t.contrast:
      wrong = self.problem.wrong(streams.fold(key, streams.WRONG), batch, aux.candidate)
      energies = [self.energy_of(params, context, answer, model.energy) for answer in (target, wrong)]
      total = total + t.contrast * self._contrast_of(*energies, weights)
    finished, metrics = (), self._metrics(params, batch, weights, aux)
    if replayed:
      finished = {**fresh, "start": jax.tree.map(lambda a: a[:rows], aux.candidate)}
      metrics["replayed"] = Mean(jnp.sum(weights[rows:]), jnp.sum(weights))  # the buffer's share of the weight
    return Mean(total, jnp.sum(weights)), Output(metrics, finished)

  def _explored(self, space, params, context, key, batch):
    """The best of `thinking.explore` starts of each answer."""
    target, weights = self.problem.target(batch), self.problem.weights(batch)
    start_key, key = jax.random.split(key)
    start_keys = jax.random.split(start_key, (self.config.thinking.explore, len(jax.tree.leaves(batch)[0])))
    starts = self.problem.start(space, start_keys, batch)

    def error(x):  # of each candidate
      return jax.vmap(lambda x: weights * self.problem.error(x, target))(x)

    several = self.model.for_inference().energies
    return thinking.best_start(several, space, params, context, starts, key, error, self.config.thinking)

  def _error_sum(self, space, params, x, target, weights, i, count):
    """Weighted sum of the errors of a stepped candidate."""
    arrays = (target, weights)
    smoothing = self.config.thinking.authors.soften_targets
    if smoothing:  # falls to 0 at the last step
      arrays += (jnp.broadcast_to(smoothing * (count - 1 - i) / jnp.maximum(count - 1, 1), weights.shape),)

    def weighted(x, arrays):
      target, weights, *smoothing = arrays
      total = jnp.sum(weights * self.problem.error(x, target, *smoothing))
      return total, ()

    return space.reduce_loss(params["model"], x, weighted, arrays)[0]

  def energy_of(
    self, params: Params, context: Any, answer: Any, energy: Callable[..., Array] | None = None
  ) -> Float[Array, "*e"]:
    """Energies at the last landscape of answers like the target; `energy` as in `energy`."""
    return self.energy(params, context, self.space.embed_target(params["model"], answer), energy)

  def energy(
    self, params: Params, context: Any, y: Any, energy: Callable[..., Array] | None = None
  ) -> Float[Array, "*e"]:
    """Energies at the last landscape of y, which is what the energy is given of a candidate.

    Args:
      energy: of a model, such as `energies` of n candidates `[n, b, ...]`; None: `model.energy`.
    """
    last = self.config.thinking.landscapes - 1
    return (energy or self.model.energy)(params["model"], thinking.at_landscape(context, last), y, last)

  def _contrast_of(self, right, wrong, weights):
    """Of the energies of right and wrong answers, as `thinking.contrast_of` says."""
    contrast = losses.energy_judgement if self.config.thinking.contrast_of == "each" else losses.energy_contrast
    return contrast(right, wrong, first_axes(weights, right.ndim))

  def _contrast(self, params, context, target, weights, energies):
    """Energy of the truth against that of the last prediction."""
    true = self.energy_of(params, context, target)
    return losses.energy_contrast(true, energies, first_axes(weights, energies.ndim))

  def _metrics(self, params, batch, weights, aux) -> dict[str, Mean]:
    count = jnp.sum(weights)
    several = aux.seen["loss"].shape[0] > 1
    last = aux.steps - 1 if several else 0  # mode `last` measures the last step alone
    metrics = {
      "final_loss": Mean(aux.seen["loss"][last], count),
      "step_size": Mean(params["thinking"]["step_size"], jnp.float32(1)),
      **self.problem.counts(batch),
    }
    if self.config.thinking.steps > 1:  # both are before a step
      of_energies = first_axes(weights, aux.first_energies.ndim)
      fall = jnp.sum(of_energies * aux.first_energies) - aux.seen["energy"][last]
      metrics["energy_gap"] = Mean(fall, jnp.sum(of_energies))
    if self.config.thinking.gradient != "last":
      metrics["first_loss"] = Mean(aux.seen["loss"][0], count)
    return metrics

  def replay_row(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Candidates are kept whole. A trail of slopes would be some hundred times smaller, but dE/dp = slope W.T holds for
    the table W of its own training step, which later steps change: it would rebuild another candidate."""
    rows = {**one_row(self.problem), "start": self._start_shape()}
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), rows)

  def _start_shape(self):
    """Of one row, `[1, ...]`."""
    return jax.eval_shape(lambda b: self.problem.start(self.space, jax.random.key(0), b), one_row(self.problem))

  def _candidate_bytes(self) -> int:
    """Of one row, in float32."""
    return sum(4 * math.prod(a.shape) for a in jax.tree.leaves(self._start_shape()))

  def starts(self, params: Params, context: Any, keys: Array, batch: Batch) -> tuple[Any, Array]:
    """Starts of `eval.candidates` `[n, b, ...]`, and keys `[n, b]` to think with; `keys` `[b]`.

    With `thinking.start=context` the first candidate is the context's prediction, and the others have noise added.
    """
    n = self.config.eval.candidates
    start_keys, think_keys = (streams.split(k, n) for k in streams.split(keys, 2))
    if not self.starts_at_context:
      return self.problem.start(self.space, start_keys, batch), think_keys
    space = self.space if n == 1 else dataclasses.replace(self.space, start_scale=self.config.thinking.start_scale)
    noise = jax.tree.map(lambda a: a.at[0].set(0), self.problem.start(space, start_keys, batch))
    return self.space.start_at(params["model"], noise, self._direct(params, context)), think_keys

  def verified(self, params: Params, batch: Batch, keys: Array, observe=None, **options) -> thinking.Verified:
    """Thinks as `eval` says, with `eval.candidates` candidates for each prediction; `keys` `[b]`, one for each row."""
    batch = corrupted(self.problem, batch, keys)
    context = self.context(params, batch)
    start, think_keys = self.starts(params, context, keys, batch)
    return self.think(params, context, start, think_keys, observe=observe, **options)

  def think(self, params: Params, context: Any, start: Any, keys: Array, **options) -> thinking.Verified:
    """`verified` over a context that is encoded already."""
    model = self.model.for_inference()
    options["several"] = model.energies
    how = (self.config.thinking, self.config.eval)
    return thinking.think_and_verify(model.energy, self.space, params, context, start, keys, *how, **options)

  def scores(self, params: Params, batch: Batch, keys: Array) -> Scores:
    batch = corrupted(self.problem, batch, keys)
    target = self.problem.target(batch)

    def observe(candidates):  # [n, b, ...]
      error = jax.vmap(lambda x: self.problem.error(x, target))(candidates)
      return error, jax.vmap(lambda x: self.problem.measures(x, batch))(candidates)

    found = self.verified(params, batch, keys, observe)
    error, measures = jax.tree.map(lambda a: found.best(a, 1), found.observed)
    energy, final = found.best(found.energies, 1), found.best(found.final)
    return Scores(error, energy, final, found.best(found.steps_used), measures)

  def evaluate(self, params: Params, batch: Batch, keys: Array) -> dict[str, Mean]:
    """A few rows at a time where the candidates of all are too large to hold."""
    rows, batch = len(keys), corrupted(self.problem, batch, keys)
    groups = vocabulary.row_groups(rows, self._candidate_bytes() * self.config.eval.candidates, self.shards)
    if groups == 1:
      return self._evaluate(params, batch, keys)
    parts = parallel.split_microbatches((batch, keys), groups)
    means = jax.lax.map(lambda part: self._evaluate(params, *part), parts)
    return jax.tree.map(lambda a: jnp.sum(a, 0), means)

  def _evaluate(self, params, batch, keys):
    found, weights = self.scores(params, batch, keys), self.problem.weights(batch)
    of_energies = first_axes(weights, found.final_energy.ndim)
    energies = jnp.concatenate([found.energy, found.final_energy[None]])
    return {
      "loss": by_step(found.error, weights),
      "energy": by_step(energies, of_energies),
      "steps": Mean.of(found.steps.astype(of_energies.dtype), of_energies),
      **{name: by_step(a, first_axes(weights, a.ndim - 1)) for name, a in found.measures.items()},
      **self.problem.counts(batch),
    }

  def diagnose(self, params: Params, batch: Batch, key: PRNGKeyArray) -> dict[str, Float[Array, ""]]:
    """On some of the rows where candidates are large."""
    batch = corrupted(self.problem, batch, key)
    rows = len(jax.tree.leaves(batch)[0])
    groups = vocabulary.row_groups(rows, self._candidate_bytes(), self.shards)
    if groups > 1:
      batch = jax.tree.map(lambda a: a[0], parallel.split_microbatches(batch, groups))
    start_key, think_key = jax.random.split(key)
    start, context = self.problem.start(self.space, start_key, batch), self.context(params, batch)
    if self.starts_at_context:
      start = self.space.start_at(params["model"], start, self._direct(params, context))
    energies = jax.eval_shape(
      lambda y: self.model.energy(params["model"], thinking.at_landscape(context, 0), y, 0),
      jax.eval_shape(lambda x: self.space.energy_input(params["model"], x, 0), start),
    )
    weights = first_axes(self.problem.weights(batch), energies.ndim)
    return thinking.diagnose(
      self.model.energy, self.space, params, context, start, weights, think_key, self.config.thinking
    )

  def flops(self) -> Flops:
    t, c = self.config.thinking, self.config
    contexts = 1 if self.model.shared_context else t.landscapes
    share = c.train.microbatches / (c.train.batch_size + c.replayed_rows)
    cost = self._cost()
    row = flops_lib.training_by_thinking(cost, t, contexts, share, self.saves_activations, c.model.remat)
    prediction = flops_lib.one_thought(self._cost(single=True), t, c.eval, c.eval.candidates, contexts)
    return Flops(row, prediction, flops_lib.least_by_thinking(t, contexts), flops_lib.paper_by_thinking(t))

  def _cost(self, single: bool = False) -> flops_lib.EnergyCost:
    """What the model says, or what a trace of it counts."""
    batch = one_row(self.problem)
    inputs = jax.eval_shape(self.problem.inputs, batch)
    if found := self.model.flops(inputs, single):
      return found
    params, x = jax.eval_shape(self.init, jax.random.key(0))["model"], self._start_shape()

    def embed(params, x):
      return self.space.energy_input(params, x, 0)

    def encode(params, inputs):
      return self.model.encode(params, inputs, 0)

    def energy(params, context, y):
      return self.model.energy(params, context, y, 0)

    context, y = jax.eval_shape(encode, params, inputs), jax.eval_shape(embed, params, x)
    of_context, of_energy = traced.flops(encode, params, inputs), traced.flops(energy, params, context, y)
    embedding = traced.flops(embed, params, x)
    return flops_lib.EnergyCost(flops_lib.Pass(of_context), flops_lib.Pass(of_energy), embedding)


def by_step(values: Float[Array, " t *p"], weights: Float[Array, "*p"]) -> Mean:
  """The mean at each step, `[t]`."""
  return Mean(jnp.einsum("tp,p->t", values.reshape(len(values), -1), weights.reshape(-1)), jnp.sum(weights))


def _joined(fresh, replayed):
  """Fresh rows, then replayed ones."""

  def join(a, b):
    return parallel.shard_rows(jnp.concatenate([a, b.astype(a.dtype)]))

  return jax.tree.map(join, fresh, replayed)
