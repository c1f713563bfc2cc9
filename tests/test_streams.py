"""No random stream is another's, and rows draw by their own numbers."""

import itertools

import jax
import numpy as np

from ebt_jax import streams


def data(key):
  return tuple(np.asarray(jax.random.key_data(key)).tolist())


def test_no_stream_of_a_seed_is_a_stream_of_the_next():
  keys = [data(streams.key_for(seed, purpose)) for seed, purpose in itertools.product(range(8), range(5))]
  assert len(set(keys)) == len(keys) == 40


def test_a_row_draws_the_same_whatever_stands_beside_it():
  key = jax.random.key(3)
  whole, part = streams.each(key, np.arange(6)), streams.each(key, np.arange(2, 4))
  for f in (lambda k: k, lambda k: streams.fold(k, 7), lambda k: streams.split(k, 3)[1]):
    np.testing.assert_array_equal(jax.random.key_data(f(whole))[2:4], jax.random.key_data(f(part)))
  assert streams.split(whole, 3).shape == (3, 6)
  assert data(streams.split(whole, 3)[1, 4]) == data(jax.random.split(whole[4], 3)[1])
  assert data(streams.fold(whole, 7)[4]) == data(jax.random.fold_in(whole[4], 7))


def test_what_is_folded_into_a_key_is_not_what_start_and_thinking_have_of_it():
  key = jax.random.key(3)
  parts = [data(k) for k in streams.split(key, 2)]
  assert parts == [data(streams.fold(key, number)) for number in (0, 1)]
  numbers = (streams.WRONG, streams.SAMPLE, streams.CORRUPT)
  assert len({*parts, *(data(streams.fold(key, number)) for number in numbers)}) == 5
