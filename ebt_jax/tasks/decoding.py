"""Generation of tokens or frames: what is given is encoded once, then each costs one thought and one append."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from ebt_jax import thinking
from ebt_jax.tasks.base import Batch, Decoding, Params, Proposal, Task, Thought, Writes
from ebt_jax.tasks.direct import DirectTask
from ebt_jax.tasks.ebt import EBTTask


def writer(task: Task) -> Writes:
  """How a text task generates."""
  return EBTWriter(task) if isinstance(task, EBTTask) else DirectWriter(task)


def trace(task: Task, params: Params) -> None:
  """Traces generation without computing, to find what does not fit."""
  write, capacity = writer(task), task.config.data.context_length
  params = jax.eval_shape(write.prepare, params)
  prompt = jax.ShapeDtypeStruct((1, capacity), jnp.int32)
  lengths = jax.ShapeDtypeStruct((1,), jnp.int32)
  state = jax.eval_shape(lambda p, t, n: write.prefill(p, t, n, capacity), params, prompt, lengths)

  def one(params, state):
    found = write.propose(params, state, jax.random.split(jax.random.key(0), 1))
    return write.append(params, state, jnp.argmax(found.logits, -1))

  jax.eval_shape(one, params, state)


def thoughts(task: Task, params: Params, batch: Batch, keys: Array, top: int) -> tuple[Array, Array, Array, Thought]:
  """How a text task finds the token at every place of a batch `[b, s]`, as `eval` says.

  Returns:
    Logits `[b, s, v]`, energies `[b, s]` (direct models: entropies), thinking steps `[b, s]`, and the thoughts.
  """
  if not isinstance(task, EBTTask):
    return _direct(task.answers(params["model"], task.problem.inputs(batch), task.eval_steps)[-1], top)
  context = task.context(params, batch)
  found, thought = _watched(task, params, context, *task.starts(params, context, keys, batch), top)
  return *(found.best(a) for a in (found.candidates, found.final, found.steps_used)), thought


def _direct(logits: Array, top: int) -> tuple[Array, Array, Array, Thought]:
  log_p = jax.nn.log_softmax(logits)
  entropy = -jnp.sum(jnp.exp(log_p) * log_p, -1)
  one = jnp.ones(entropy.shape, jnp.int32)
  p, tokens = jax.lax.top_k(jnp.exp(log_p), top)
  return logits, entropy, one, Thought(tokens[..., None, :], p[..., None, :], 0 * one)


def _watched(task: EBTTask, params: Params, context: Any, start: Any, keys: Array, top: int):
  """What thinking finds, and how."""

  def likeliest(logits):
    return jax.lax.top_k(jax.nn.softmax(logits), top)

  found = task.think(params, context, start, keys, observe=likeliest)
  p, tokens = found.best(found.observed, 1)
  y = task.space.embed_target(params["model"], jnp.moveaxis(tokens[-1], -1, 0))
  alone = task.energy(params, context, y, task.model.energies)
  energies = jnp.concatenate([found.energies, found.final[None]])
  places = range(found.kept.ndim)

  def places_first(a, axis):
    return jnp.moveaxis(a, [axis + i for i in places], list(places))

  seen = (places_first(a, axis) for a, axis in ((tokens, 1), (p, 1), (found.kept, 0), (energies, 2), (alone, 1)))
  return found, Thought(*seen)


@dataclasses.dataclass(frozen=True)
class DirectWriter:
  """One pass for each token; in place of an energy the entropy of the prediction, in nats."""

  task: DirectTask
  quantity = "entropy"
  row_axis = 0

  def prepare(self, params: Params) -> Params:
    return {**params, "model": self.task.model.unstacked(params["model"])}

  def prefill(
    self, params: Params, tokens: Shaped[Array, "b s ..."], lengths: Int[Array, " b"], capacity: int
  ) -> Decoding:
    model = self.task.model
    cache = model.empty_cache(params["model"], tokens.shape[0], capacity)
    return Decoding(*model.extend(params["model"], cache, tokens, lengths))

  def propose(self, params: Params, state: Decoding, keys: Array) -> Proposal:
    return self.explain(params, state, keys, 1)[0]

  def explain(self, params: Params, state: Decoding, keys: Array, top: int) -> tuple[Proposal, Thought]:
    *found, thought = _direct(state.logits, top)
    return Proposal(*found), thought

  def append(self, params: Params, state: Decoding, tokens: Shaped[Array, "b ..."]) -> Decoding:
    one = jnp.ones(len(tokens), jnp.int32)
    return Decoding(*self.task.model.extend(params["model"], state.context, tokens[:, None], one))


@dataclasses.dataclass(frozen=True)
class EBTWriter:
  """Each token is a thought at one position; `eval.candidates` thoughts share the cache, `eval.choose` picks one.

  The cache is stacked over the landscapes that need contexts of their own.
  """

  task: EBTTask
  quantity = "energy"
  row_axis = 1  # after the landscapes

  @property
  def _landscapes(self):
    return jnp.arange(1 if self.task.model.shared_context else self.task.config.thinking.landscapes)

  def prepare(self, params: Params) -> Params:
    return {**params, "model": self.task.model.unstacked(params["model"])}

  def prefill(
    self, params: Params, tokens: Shaped[Array, "b s ..."], lengths: Int[Array, " b"], capacity: int
  ) -> Decoding:
    model = self.task.model

    def one(landscape):
      cache = model.empty_cache(params["model"], tokens.shape[0], capacity, landscape)
      return model.extend(params["model"], cache, tokens, lengths, landscape)

    return Decoding(jax.vmap(one)(self._landscapes))

  def propose(self, params: Params, state: Decoding, keys: Array) -> Proposal:
    found = self.think(params, state, keys)
    return Proposal(*(found.best(a)[:, 0] for a in (found.candidates, found.final, found.steps_used)))

  def explain(self, params: Params, state: Decoding, keys: Array, top: int) -> tuple[Proposal, Thought]:
    context, start, think_keys = self._start(params, state, keys)
    found, thought = _watched(self.task, params, context, start, think_keys, top)
    thought = jax.tree.map(lambda a: a[:, 0], thought)  # of the one place of a row
    return Proposal(*(found.best(a)[:, 0] for a in (found.candidates, found.final, found.steps_used))), thought

  def think(
    self, params: Params, state: Decoding, keys: Array, observe: Any = None, rows: Batch | None = None
  ) -> thinking.Verified:
    """How what comes next in each row is found; candidates are `[n, b, 1, ...]`.

    Args:
      rows: of one position each, from which the problem starts; None: tokens.
    """
    context, start, think_keys = self._start(params, state, keys, rows)
    return self.task.think(params, context, start, think_keys, observe=observe)

  def _start(self, params, state, keys, rows=None):
    """Context, starts and keys of one position of each row."""
    rows = rows or {"tokens": jnp.zeros((len(keys), 2), jnp.int32)}
    context = thinking.PerLandscape(state.context)
    if self.task.model.shared_context:
      context = jax.tree.map(lambda a: a[0], state.context)
    return context, *self.task.starts(params, context, keys, rows)

  def append(self, params: Params, state: Decoding, tokens: Shaped[Array, "b ..."]) -> Decoding:
    def one(context, landscape):
      lengths = jnp.ones(len(tokens), jnp.int32)
      return self.task.model.extend(params["model"], context, tokens[:, None], lengths, landscape)

    return Decoding(jax.vmap(one)(state.context, self._landscapes))
