"""Generation of tokens or frames: what is given is encoded once, then each costs one thought and one append."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Shaped

from ebt_jax import thinking
from ebt_jax.tasks.base import Batch, Decoding, Params, Proposal, Task, Writes
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
    log_p = jax.nn.log_softmax(state.logits)
    entropy = -jnp.sum(jnp.exp(log_p) * log_p, -1)
    return Proposal(state.logits, entropy, jnp.ones(entropy.shape, jnp.int32))

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

  def think(
    self, params: Params, state: Decoding, keys: Array, observe: Any = None, rows: Batch | None = None
  ) -> thinking.Verified:
    """How what comes next in each row is found; candidates are `[n, b, 1, ...]`.

    Args:
      rows: of one position each, from which the problem starts; None: tokens.
    """
    rows = rows or {"tokens": jnp.zeros((len(keys), 2), jnp.int32)}
    context = thinking.PerLandscape(state.context)
    if self.task.model.shared_context:
      context = jax.tree.map(lambda a: a[0], state.context)
    start, think_keys = self.task.starts(params, context, keys, rows)
    return self.task.think(params, context, start, think_keys, observe=observe)

  def append(self, params: Params, state: Decoding, tokens: Shaped[Array, "b ..."]) -> Decoding:
    def one(context, landscape):
      lengths = jnp.ones(len(tokens), jnp.int32)
      return self.task.model.extend(params["model"], context, tokens[:, None], lengths, landscape)

    return Decoding(jax.vmap(one)(state.context, self._landscapes))
