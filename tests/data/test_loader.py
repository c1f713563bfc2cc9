import numpy as np
import pytest

from ebt_jax.config import ConfigError
from ebt_jax.data.loader import TextLoader, eval_batches
from ebt_jax.data.windows import Windows

N, C, B = 23, 4, 5


@pytest.fixture
def windows():
  tokens = np.arange(N * (C + 1), dtype=np.uint16).reshape(N, C + 1)  # row i begins with 5 i
  return Windows(tokens, np.arange(N, dtype=np.int32) % C + 1)


def drawn(loader, steps):
  return [int(r[0]) // (C + 1) for s in steps for r in loader.batch(s)["tokens"]]


def test_batch(windows):
  batch = TextLoader(windows, B, 0, 1000).batch(3)
  assert batch["tokens"].shape == (B, C + 1) and batch["tokens"].dtype == np.int32
  assert batch["weights"].shape == (B, C) and batch["weights"].dtype == np.float32
  for row, weights in zip(batch["tokens"], batch["weights"]):
    i = row[0] // (C + 1)
    np.testing.assert_array_equal(row, windows.tokens[i])
    np.testing.assert_array_equal(weights, [1.0] * windows.lengths[i] + [0.0] * (C - windows.lengths[i]))


def test_pure_function_of_seed_and_step(windows):
  a, b = TextLoader(windows, B, 7, 1000), TextLoader(windows, B, 7, 1000)
  assert drawn(a, range(20)) == [i for s in reversed(range(20)) for i in reversed(drawn(b, [s]))][::-1]
  assert drawn(a, range(5)) != drawn(TextLoader(windows, B, 8, 1000), range(5))
  TextLoader(windows, B, -(2**40), 1000).batch(0)  # any integer is a seed


def test_union_of_hosts(windows):
  loader = TextLoader(windows, B, 1, 1000)
  for step in (0, 4, 1000):
    parts = [loader.batch(step, rows) for rows in (slice(0, 2), slice(2, 3), slice(3, 5))]
    for key, value in loader.batch(step).items():
      np.testing.assert_array_equal(np.concatenate([p[key] for p in parts]), value)


def test_each_epoch_has_every_window_once_in_a_new_order(windows):
  order = drawn(TextLoader(windows, B, 1, 1000), range(N))  # N batches of B are B epochs
  epochs = [order[e * N : (e + 1) * N] for e in range(B)]
  assert all(sorted(e) == list(range(N)) for e in epochs)
  assert len({tuple(e) for e in epochs} | {tuple(range(N))}) == B + 1


def test_epoch_and_len(windows):
  loader = TextLoader(windows, B, 1, 1000)
  assert len(loader) == N and loader.epoch(0) == 0 and loader.epoch(N) == B


def test_far_steps_cost_the_same(windows):
  TextLoader(windows, B, 1, 1000).batch(10**12)


def test_bad_vocabulary_and_empty_split(windows):
  with pytest.raises(ConfigError, match="config.model.vocab_size.*expected ids below 3"):
    TextLoader(windows, B, 1, 3).batch(0)
  with pytest.raises(ConfigError, match="config.data.source.*more text"):
    TextLoader(Windows(windows.tokens[:0], windows.lengths[:0]), B, 1, 1000)


@pytest.mark.parametrize("max_windows, n", [(0, N), (7, 7), (10, 10), (100, N)])
def test_eval_batches(windows, max_windows, n):
  batches = list(eval_batches(windows, B, max_windows))
  assert all(b["tokens"].shape == (B, C + 1) and b["weights"].shape == (B, C) for b in batches)
  assert len(batches) == -(-n // B)
  tokens, weights = (np.concatenate([b[k] for b in batches]) for k in ("tokens", "weights"))
  np.testing.assert_array_equal(tokens[:n], windows.tokens[:n])
  np.testing.assert_array_equal(weights[:n].sum(1), windows.lengths[:n])
  assert not weights[n:].any()
