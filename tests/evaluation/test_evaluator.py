"""The held-out means are exact, however the examples are batched."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import parallel, streams
from ebt_jax.config import Config, EvalConfig, MeshConfig, TrainConfig, resolve
from ebt_jax.data.examples import WindowExamples
from ebt_jax.data.windows import Windows
from ebt_jax.evaluation.evaluator import Evaluator, results_table
from ebt_jax.tasks import registry
from ebt_jax.tasks.base import Mean, Problem, Task
from ebt_jax.tasks.text import TextProblem

N, S, V = 11, 5, 7
TOKEN_BYTES = np.array([1, 2, 1, 4, 3, 1, 0], np.int32)


@dataclasses.dataclass
class Known(Task):
  """Losses and energies that are written in the tokens, so that the mean can be taken by hand."""

  config: Config
  problem: Problem

  def evaluate(self, params, batch, keys):
    value = batch["tokens"][:, 1:] * params + batch["tokens"][:, :-1]
    loss, weight = jnp.sum(value * batch["weights"]), jnp.sum(batch["weights"])
    rows = jnp.sum(batch["weights"][:, 0]) / 1024  # one energy for each row; of small weight, which changes no mean
    return {
      "loss": Mean(jnp.stack([2 * loss, loss]), weight),
      "energy": Mean(rows * jnp.array([1.0, -1.0, -3.0]), rows),
      "steps": Mean(1.5 * rows, rows),
      "luck": Mean(jnp.stack([weight, 3 * weight]), weight),
      **self.problem.counts(batch),
    }


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
  examples = WindowExamples(windows, TOKEN_BYTES, V)
  return functools.partial(Evaluator(Known(config, TextProblem(config)), mesh), examples=examples)


@pytest.mark.parametrize("rows, devices", [(0, 1), (1, 1), (3, 1), (11, 1), (64, 1), (3, 8)])
def test_the_mean_is_exact_whatever_the_batch(windows, rows, devices):
  loss, tokens, n_bytes = by_hand(windows)
  seen = []
  result = evaluator(windows, devices, batch_size=rows)(jnp.float32(0.25), progress=lambda *p: seen.append(p))
  assert result["loss"] == pytest.approx(loss, rel=1e-9)
  assert result["loss_by_step"] == pytest.approx([2 * loss, loss], rel=1e-9)
  assert result["energy_by_step"] == [1.0, -1.0, -3.0]  # means over rows, not over tokens
  assert result["steps_used"] == pytest.approx(1.5)
  assert (result["items"], result["examples"]) == (tokens, N)
  assert result["perplexity"] == pytest.approx(math.exp(loss), rel=1e-9)
  bits = loss * tokens / n_bytes / math.log(2)
  assert result["bits_per_byte"] == pytest.approx(bits, rel=1e-9)
  assert result["bits_per_byte_by_step"] == pytest.approx([2 * bits, bits], rel=1e-9)
  batch = {0: 4, 3: 3 if devices == 1 else 8}.get(rows, rows)
  assert seen == [(min(n, N), N) for n in range(batch, N + batch, batch)]


def test_the_first_examples_only(windows):
  result = evaluator(windows, batch_size=3, max_windows=4)(jnp.float32(0.25))
  loss, tokens, _ = by_hand(windows, 4)
  assert (result["items"], result["examples"]) == (tokens, 4)
  assert result["loss"] == pytest.approx(loss, rel=1e-9)
  assert evaluator(windows, max_windows=100)(jnp.float32(0.25))["examples"] == N


def test_a_hopeless_loss_is_no_overflow(windows):
  result = evaluator(windows)(jnp.float32(1e6))
  assert result["loss"] > 700 and math.isfinite(result["perplexity"])


@pytest.mark.parametrize("kind", ["ebt", "transformer"])
def test_a_result_does_not_depend_on_batch_size_nor_devices(windows, kind):
  """With noise in the starts and in the steps: every window draws by its own number."""
  config = Config().to_dict()
  config["model"] |= {"kind": kind, "layers": 1, "heads": 2, "width": 8, "vocab_size": V, "head_gain": 1.0}
  config["thinking"] |= {"noise": 0.5, "authors": {"eval_noise": True}, "step_size": 1.0}
  config["data"] |= {"context_length": S}
  found = []
  for rows, devices in ((2, 1), (5, 1), (11, 1), (4, 2)):
    task = registry.make(resolve({**config, "eval": {"batch_size": rows}}), devices)
    mesh = parallel.make_mesh(MeshConfig(), jax.devices()[:devices])
    with jax.set_mesh(mesh):
      params = task.init(jax.random.key(0))
      found.append(Evaluator(task, mesh)(params, WindowExamples(windows, TOKEN_BYTES, V)))
  for result in found[1:]:
    assert result["loss_by_step"] == pytest.approx(found[0]["loss_by_step"], rel=1e-5)


class Draws(Known):
  """The loss of a row is a number that its key draws."""

  def evaluate(self, params, batch, keys):
    drawn = jax.vmap(jax.random.uniform)(keys) * (batch["weights"][:, 0] > 0)
    return {"loss": Mean(jnp.sum(drawn)[None], jnp.sum(batch["weights"][:, 0])), **self.problem.counts(batch)}


def test_each_example_draws_by_its_own_number(windows):
  config = Config(train=TrainConfig(batch_size=4))
  mesh = parallel.make_mesh(MeshConfig(), jax.devices()[:1])
  examples = WindowExamples(windows, TOKEN_BYTES, V)
  result = Evaluator(Draws(config, TextProblem(config)), mesh)({}, examples)
  key = streams.key_for(config.eval.seed, streams.EVALUATE)
  drawn = [float(jax.random.uniform(jax.random.fold_in(key, n))) for n in range(N)]
  assert result["loss"] == pytest.approx(np.mean(drawn), rel=1e-5)


def test_table_has_a_row_for_each_step():
  result = {"loss": 1.0, "bits_per_byte_by_step": [6.0, 2.0], "loss_by_step": [3.0, 1.0]}
  found = results_table(
    {**result, "energy_by_step": [2.0, 0.5, -7.25], "steps_used": 1.5}, "bits_per_byte", "nats/token"
  )
  lines = [line.split() for line in found.splitlines()]
  assert lines[0] == ["step", "nats/token", "bits/byte", "energy"]
  assert lines[1:4] == [["0", "2.0000"], ["1", "3.0000", "6.0000", "0.5000"], ["2", "1.0000", "2.0000", "-7.2500"]]
  assert lines[4:] == ["steps used, on average: 1.50".split()]
  without = [line.split() for line in results_table(result).splitlines()]
  assert without == [["step", "loss", "energy"], ["1", "3.0000", "-"], ["2", "1.0000", "-"]]
