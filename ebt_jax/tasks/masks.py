"""Which places of a row are blanks, by the layouts of `config.mask`.

Shape suffixes: b rows, s places. The valid places of a row come first; the rest is padding and is never blank.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from ebt_jax import streams
from ebt_jax.config import MaskConfig


class Words(NamedTuple):
  """Which tokens words are made of."""

  inside: Bool[Array, " v"]  # the token is (a part of) a word
  begins: Bool[Array, " v"]  # it begins one whatever stands before it, as with a space in front


def draw(
  config: MaskConfig, key: Array, valid: Float[Array, "b s"], tokens: Int[Array, "b s"], words: Words | None = None
) -> Float[Array, "b s"]:
  """1 at blanks, at least one in each row that has a valid place.

  Args:
    key: one key, then the rates of the rows are spread evenly, so that every batch has seen low and high ones (MDLM's
      antithetic t); or an array of keys `[b]`, then a row depends on its own key alone.
    words: of the vocabulary; for layout `word`.
  """
  rows, count = len(valid), jnp.sum(valid, -1).astype(jnp.int32)
  keys = key if key.ndim else streams.split(key, rows)
  rate_keys, place_keys = streams.split(keys, 2)
  u = jax.vmap(jax.random.uniform)(rate_keys)
  if not key.ndim:
    u = (jnp.arange(rows) + u) / rows
  rate = config.rate_max - u * (config.rate_max - config.rate_min)
  blanks = jnp.ceil(rate * count - 1e-4).astype(jnp.int32)  # 0.15 of 20 is 3, however it is rounded
  blanks = jnp.clip(blanks, jnp.minimum(count, 1), count)
  valid = valid > 0
  if config.layout == "random":
    asked = jax.vmap(_random)(place_keys, valid, blanks)
  elif config.layout == "spans":
    asked = jax.vmap(lambda *a: _spans(*a, config.span_min, config.span_max))(place_keys, count, blanks, valid)
  elif config.layout == "word":
    inside = words.inside[tokens] & valid
    asked = jax.vmap(_word)(place_keys, inside, words.begins[tokens], valid)
  else:
    asked = jnp.arange(valid.shape[1]) >= (count - blanks)[:, None]
  return (asked & valid).astype(jnp.float32)


def spans(asked: Float[Array, "b s"]) -> tuple[Int[Array, "b s"], Bool[Array, "b s"]]:
  """Of each place the length of the blanks from the first of its run up to it, and whether a run ends there."""
  on = asked > 0
  place = jnp.arange(asked.shape[1])
  last_given = jax.lax.cummax(jnp.where(on, -1, place), axis=1)
  after = jnp.pad(on[:, 1:], ((0, 0), (0, 1)))
  return jnp.where(on, place - last_given, 0), on & ~after


def _lots(key, allowed):
  """Uniform numbers at allowed places, infinity at others."""
  return jnp.where(allowed, jax.random.uniform(key, allowed.shape), jnp.inf)


def _least(lots, count):
  """Whether each is one of the `count` least."""
  return jnp.argsort(jnp.argsort(lots)) < count


def _random(key, valid, blanks):
  return _least(_lots(key, valid), blanks)


def _spans(key, count, blanks, valid, span_min, span_max):
  """All arrangements of so many spans with a given place between them are as likely.

  Without its span, and the given place behind it, each span is a slot, and so is each given place that is left: any
  choice of slots is an arrangement.
  """
  length_key, slot_key = jax.random.split(key)
  length = jnp.clip(jax.random.randint(length_key, (), span_min, span_max + 1), 1, jnp.maximum(count, 1))
  number = jnp.clip(jnp.round(blanks / length).astype(jnp.int32), 1, (count + 1) // (length + 1))
  slots = jnp.arange(len(valid) + 1) <= count - number * length
  chosen = _least(_lots(slot_key, slots), number)
  start = jnp.arange(len(slots)) + (jnp.cumsum(chosen) - 1) * length
  edges = jnp.zeros(len(valid) + 1, jnp.int32)
  edges = edges.at[jnp.where(chosen, start, len(valid))].add(jnp.where(chosen, 1, 0))
  edges = edges.at[jnp.where(chosen, start + length, len(valid))].add(jnp.where(chosen, -1, 0))
  return jnp.cumsum(edges)[:-1] > 0


def _word(key, inside, begins, valid):
  """One of the words of the row, or one of its places where it has none."""
  before = jnp.pad(inside[:-1], (1, 0))
  starts = inside & (begins | ~before)
  lots = _lots(key, starts)
  chosen = jnp.cumsum(starts)[jnp.argmin(lots)]
  of_word = inside & (jnp.cumsum(starts) == chosen)
  return jnp.where(jnp.any(starts), of_word, _least(_lots(key, valid), 1))
