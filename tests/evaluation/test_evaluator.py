"""The held-out loss is the exact mean over the tokens that count, however the windows are batched."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import parallel
from ebt_jax.config import Config, EvalConfig, MeshConfig, TrainConfig
from ebt_jax.data.windows import Windows
from ebt_jax.evaluation.evaluator import Evaluator, table

N, S, V = 11, 5, 7
TOKEN_BYTES = np.array([1, 2, 1, 4, 3, 1, 0], np.int32)


class Known:
  """Losses and energies that are written in the tokens, so that the mean can be taken by hand."""

  def evaluate(self, params, batch, key):
    value = batch["tokens"][:, 1:] * params + batch["tokens"][:, :-1]
    loss, weight = jnp.sum(value * batch["weights"]), jnp.sum(batch["weights"])[None]
    return {"loss": jnp.stack([2 * loss, loss]), "energy": jnp.stack([loss, -loss, -3 * loss]), "steps": 1.5 * weight}


@pytest.fixture
def windows():
  rng = np.random.default_rng(0)
  lengths = rng.permutation(np.resize([1, 2, S, 3], N)).astype(np.int32)
  return Windows(rng.integers(0, V, (N, S + 1)).astype("<u2"), lengths)


def by_hand(windows, count=N):
  total = tokens = n_bytes = 0
  for row, length in zip(windows.tokens[:count].astype(int), windows.lengths):
    for t in range(length):
      total += 0.25 * row[t + 1] + row[t]
      tokens += 1
      n_bytes += TOKEN_BYTES[row[t + 1]]
  return total / tokens, tokens, n_bytes


def evaluator(windows, devices=1, **settings):
  config = dataclasses.replace(Config(train=TrainConfig(batch_size=4)), eval=EvalConfig(**settings))
  mesh = parallel.make_mesh(MeshConfig(), jax.devices()[:devices])
  return Evaluator(Known(), config, mesh, windows, TOKEN_BYTES)


@pytest.mark.parametrize("rows, devices", [(0, 1), (1, 1), (3, 1), (11, 1), (64, 1), (3, 8)])
def test_the_mean_is_exact_whatever_the_batch(windows, rows, devices):
  loss, tokens, n_bytes = by_hand(windows)
  seen = []
  result = evaluator(windows, devices, batch_size=rows)(jnp.float32(0.25), lambda *p: seen.append(p))
  assert result["loss"] == pytest.approx(loss, rel=1e-9)
  assert result["loss_by_step"] == pytest.approx([2 * loss, loss], rel=1e-9)
  assert result["energy_by_step"] == pytest.approx([loss, -loss, -3 * loss], rel=1e-9)
  assert result["steps_used"] == pytest.approx(1.5)
  assert (result["tokens"], result["bytes"], result["windows"]) == (tokens, n_bytes, N)
  assert result["perplexity"] == pytest.approx(math.exp(loss), rel=1e-9)
  assert result["bits_per_byte"] == pytest.approx(loss * tokens / n_bytes / math.log(2), rel=1e-9)
  assert seen[-1] == (N, N) and len(seen) == math.ceil(N / {0: 4, 3: 3 if devices == 1 else 8}.get(rows, rows))


def test_the_first_windows_only(windows):
  result = evaluator(windows, batch_size=3, max_windows=4)(jnp.float32(0.25))
  loss, tokens, n_bytes = by_hand(windows, 4)
  assert (result["tokens"], result["bytes"], result["windows"]) == (tokens, n_bytes, 4)
  assert result["loss"] == pytest.approx(loss, rel=1e-9)
  assert evaluator(windows, max_windows=100)(jnp.float32(0.25))["windows"] == N


def test_a_hopeless_loss_is_no_overflow(windows):
  result = evaluator(windows)(jnp.float32(1e6))
  assert result["loss"] > 700 and math.isfinite(result["perplexity"])


def test_table_has_a_row_for_each_step():
  result = {"loss": 1.0, "bits_per_byte": 2.0, "loss_by_step": [3.0, 1.0], "energy_by_step": [2.0, 0.5, -7.25]}
  rows = [line.split() for line in table({**result, "steps_used": 1.5}).splitlines()[1:]]
  assert rows[:3] == [["0", "2.0000"], ["1", "3.0000", "6.0000", "0.5000"], ["2", "1.0000", "2.0000", "-7.2500"]]
  assert rows[3:] == ["steps used, on average: 1.50".split()]
  del result["energy_by_step"]
  assert table(result).split()[-1] == "-"
