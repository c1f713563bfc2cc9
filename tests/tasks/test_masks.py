"""Blanks of a row: how many, where, and what is counted as a span."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.config import ConfigError, MaskConfig, resolve
from ebt_jax.data import words
from ebt_jax.data.tokenizers import ByteTokenizer
from ebt_jax.tasks import masks

S = 12
LENGTHS = np.array([12, 12, 7, 3, 1, 0])  # valid places of each row
VALID = (np.arange(S) < LENGTHS[:, None]).astype(np.float32)


def drawn(config, key=jax.random.key(0), valid=VALID):
  tokens = np.zeros(valid.shape, np.int32)
  return np.asarray(jax.jit(lambda key: masks.draw(config, key, jnp.asarray(valid), jnp.asarray(tokens)))(key)).astype(
    int
  )


def runs(row):
  return [len(list(g)) for on, g in itertools.groupby(row) if on]


@pytest.mark.parametrize("layout", ["random", "suffix"])
def test_a_rate_says_how_many_places_are_blank(layout):
  found = drawn(MaskConfig(layout=layout, rate_min=0.25, rate_max=0.25))
  assert found.sum(1).tolist() == [3, 3, 2, 1, 1, 0] and not np.any(found * (1 - VALID))
  if layout == "suffix":
    assert all(row[n - k : n].all() for row, n, k in zip(found, LENGTHS, found.sum(1)))


def test_random_blanks_are_any_number_of_any_places_with_equal_chances():
  rows, places = 6000, 3
  found = drawn(MaskConfig(), valid=np.ones((rows, places), np.float32))
  counts = found.sum(1)
  np.testing.assert_allclose(np.bincount(counts), [0, 2000, 2000, 2000], atol=2)  # spread evenly over a batch
  kinds = np.bincount(found @ [1, 2, 4], minlength=8)
  np.testing.assert_allclose(kinds[[1, 2, 4, 3, 5, 6]], 2000 / 3, atol=5 * np.sqrt(2000 * 2 / 9))


def test_spans_have_one_length_in_a_row_and_stand_apart():
  rows = 400
  found = drawn(
    MaskConfig(layout="spans", rate_min=0.5, rate_max=0.5, span_max=4), valid=np.ones((rows, S), np.float32)
  )
  lengths = [runs(row) for row in found]
  assert all(len(set(of_row)) == 1 for of_row in lengths)  # a run of two spans would be longer
  assert {n: {len(r) for r in lengths if r[0] == n} for n in range(1, 5)} == {1: {6}, 2: {3}, 3: {2}, 4: {2}}
  longest = drawn(MaskConfig(layout="spans", span_min=9, span_max=9))
  assert [runs(row) for row in longest] == [[9], [9], [7], [3], [1], []]


def test_all_arrangements_of_spans_are_as_likely():
  rows, config = 6000, MaskConfig(layout="spans", rate_min=0.8, rate_max=0.8, span_min=2, span_max=2)
  found = drawn(config, valid=np.ones((rows, 6), np.float32))
  kinds, counts = np.unique(found, axis=0, return_counts=True)
  assert kinds.tolist() == [[0, 1, 1, 0, 1, 1], [1, 1, 0, 0, 1, 1], [1, 1, 0, 1, 1, 0]]
  np.testing.assert_allclose(counts, rows / 3, atol=5 * np.sqrt(rows * 2 / 9))


def test_one_word_is_blank():
  text = "no, the Ünion's end"
  tokens = ByteTokenizer().encode(text)[None]
  of_words = masks.Words(*map(jnp.asarray, words.of_tokens(ByteTokenizer())))
  config, valid = MaskConfig(layout="word"), jnp.ones(tokens.shape)
  keys = jax.random.split(jax.random.key(0), 40)
  found = jax.vmap(lambda key: masks.draw(config, key[None], valid, jnp.asarray(tokens), of_words)[0])(keys)
  seen = {bytes(tokens[0][row > 0].astype(np.uint8)).decode() for row in np.asarray(found)}
  assert seen == {"no", "the", "Ünion", "s", "end"}
  spaces = masks.draw(config, keys[:1], valid, jnp.full_like(tokens, 32), of_words)
  assert spaces.sum() == 1  # no word: one place


def test_a_row_with_a_key_of_its_own_depends_on_nothing_else():
  config, keys = MaskConfig(), jax.random.split(jax.random.key(3), len(VALID))
  found = drawn(config, keys)
  assert np.array_equal(drawn(config, keys[::-1], VALID[::-1]), found[::-1])
  alone = drawn(config, keys[1:2], VALID[1:2])
  assert np.array_equal(alone[0], found[1]) and np.any(found[0] != found[1])


def test_spans_are_runs_of_blanks():
  up_to, ends = masks.spans(jnp.array([[1.0, 0, 1, 1, 1], [0, 1, 1, 0, 0]]))
  assert up_to.tolist() == [[1, 0, 1, 2, 3], [0, 1, 2, 0, 0]]
  assert ends.astype(int).tolist() == [[1, 0, 0, 0, 1], [0, 0, 1, 0, 0]]


@pytest.mark.parametrize(
  "keys, words",
  [
    ({"layout": "sufix"}, "config.mask.layout: no choice 'sufix'; did you mean suffix?"),
    ({"rate_max": 0.0}, "config.mask.rate_max: expected a share in (0, 1], found 0.0"),
    ({"rate_max": 1.5}, "config.mask.rate_max: expected a share in (0, 1], found 1.5"),
    ({"rate_max": 0.2, "rate_min": 0.3}, "config.mask.rate_min: expected a share from 0 to rate_max=0.2, found 0.3"),
    ({"span_min": 9}, "config.mask.span_max: expected at least span_min=9, found 8"),
    ({"layout": "spans", "span_max": 300}, "config.mask.span_max: expected at most data.context_length=256 places"),
    ({"weighting": "token"}, "config.mask.weighting: no choice 'token'"),
    ({"unmasking": "random"}, "config.mask.unmasking: no choice 'random'"),
  ],
)
def test_masks_that_cannot_be_are_refused(keys, words):
  with pytest.raises(ConfigError) as e:
    resolve({"task": "infill", "mask": keys})
  assert words in str(e.value)
