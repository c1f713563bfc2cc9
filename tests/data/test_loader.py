import numpy as np
import pytest

from ebt_jax.config import ConfigError
from ebt_jax.data.examples import ArrayExamples, WindowExamples
from ebt_jax.data.loader import Loader, in_order
from ebt_jax.data.windows import Windows

N, C, B = 23, 4, 5


@pytest.fixture
def windows():
  tokens = np.arange(N * (C + 1), dtype=np.uint16).reshape(N, C + 1)  # row i begins with 5 i
  return Windows(tokens, np.arange(N, dtype=np.int32) % C + 1)


def examples(windows, vocab_size=1000):
  return WindowExamples(windows, np.arange(1000) % 3, vocab_size)


def drawn(loader, steps):
  return [int(r[0]) // (C + 1) for s in steps for r in loader.batch(s)["tokens"]]


def test_batch(windows):
  batch = Loader(examples(windows), B, 0).batch(3)
  assert batch["tokens"].shape == (B, C + 1) and batch["tokens"].dtype == np.int32
  assert batch["weights"].shape == (B, C) and batch["weights"].dtype == np.float32
  for row, weights in zip(batch["tokens"], batch["weights"]):
    i = row[0] // (C + 1)
    np.testing.assert_array_equal(row, windows.tokens[i])
    np.testing.assert_array_equal(weights, [1.0] * windows.lengths[i] + [0.0] * (C - windows.lengths[i]))


def test_pure_function_of_seed_and_step(windows):
  a, b = Loader(examples(windows), B, 7), Loader(examples(windows), B, 7)
  assert drawn(a, range(20)) == [i for s in reversed(range(20)) for i in reversed(drawn(b, [s]))][::-1]
  assert drawn(a, range(5)) != drawn(Loader(examples(windows), B, 8), range(5))
  Loader(examples(windows), B, -(2**40)).batch(0)  # any integer is a seed


def test_union_of_hosts(windows):
  loader = Loader(examples(windows), B, 1)
  for step in (0, 4, 1000):
    parts = [loader.batch(step, rows) for rows in (slice(0, 2), slice(2, 3), slice(3, 5))]
    for key, value in loader.batch(step).items():
      np.testing.assert_array_equal(np.concatenate([p[key] for p in parts]), value)


def test_each_epoch_has_every_window_once_in_a_new_order(windows):
  order = drawn(Loader(examples(windows), B, 1), range(N))  # N batches of B are B epochs
  epochs = [order[e * N : (e + 1) * N] for e in range(B)]
  assert all(sorted(e) == list(range(N)) for e in epochs)
  assert len({tuple(e) for e in epochs} | {tuple(range(N))}) == B + 1


def test_far_steps_cost_the_same(windows):
  Loader(examples(windows), B, 1).batch(10**12)


def test_bad_vocabulary_and_empty_split(windows):
  with pytest.raises(ConfigError, match="config.model.vocab_size.*expected ids below 3"):
    Loader(examples(windows, 3), B, 1).batch(0)
  with pytest.raises(ConfigError, match="config.data: the training split has no example"):
    Loader(examples(Windows(windows.tokens[:0], windows.lengths[:0])), B, 1)


@pytest.mark.parametrize("limit, n", [(0, N), (7, 7), (10, 10), (100, N)])
def test_every_example_comes_once_in_order_and_rows_of_zeros_fill_up(windows, limit, n):
  numbers, batches = zip(*in_order(examples(windows), B, limit))
  assert len(batches) == -(-n // B) and np.concatenate(numbers).tolist() == list(range(len(batches) * B))
  whole = {k: np.concatenate([b[k] for b in batches]) for k in ("tokens", "weights", "bytes")}
  np.testing.assert_array_equal(whole["tokens"][:n], windows.tokens[:n])
  np.testing.assert_array_equal(whole["weights"][:n].sum(1), windows.lengths[:n])
  assert not whole["weights"][n:].any() and not whole["bytes"][n:].any()


def test_bytes_are_those_of_the_targets_that_count(windows):
  batch = examples(windows).rows(np.arange(N))
  for row, length, found in zip(windows.tokens, windows.lengths, batch["bytes"]):
    assert found == sum(int(t) % 3 for t in row[1 : 1 + length])


def test_arrays_are_examples_of_any_shape():
  images = np.arange(24.0).reshape(3, 2, 4)
  found = ArrayExamples(image=images)
  assert len(found) == 3
  (_, batch), (numbers, last) = in_order(found, 2)
  np.testing.assert_array_equal(batch["image"], images[:2])
  np.testing.assert_array_equal(last["weights"], [1, 0])
  assert last["image"].shape == (2, 2, 4) and numbers.tolist() == [2, 3]
  with pytest.raises(ConfigError, match="same number of rows, found {'a': 2, 'b': 3}"):
    ArrayExamples(a=np.zeros(2), b=np.zeros(3))
