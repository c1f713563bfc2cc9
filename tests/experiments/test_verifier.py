"""The numbers of the verifier study, against values worked out by hand."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from ebt_jax.config import Config, DataConfig, ModelConfig, ThinkingConfig
from ebt_jax.tasks import registry
from ebt_jax.tasks.base import Task
from experiments.thinking import verifier

WRONG = np.array([0.0, 1.0, 0.0, 1.0])


def test_auroc_is_the_share_of_pairs_in_order_and_ties_count_half():
  assert verifier.auroc(np.array([1.0, 4.0, 2.0, 3.0]), WRONG) == 1.0
  assert verifier.auroc(np.array([1.0, 0.0, 2.0, 3.0]), WRONG) == 0.5  # 0 < 1, 0 < 2; 3 > 1, 3 > 2
  assert verifier.auroc(np.array([1.0, 1.0, 2.0, 3.0]), WRONG) == (0.5 + 0 + 1 + 1) / 4
  assert np.isnan(verifier.auroc(np.arange(4.0), np.zeros(4)))


def test_risk_is_of_the_predictions_of_least_signal():
  wrong = np.repeat(WRONG[[0, 2, 1, 3]], 10)  # the first half right, the second wrong
  found = verifier.risks(np.arange(40.0), wrong)
  assert verifier.LEVELS[9] == pytest.approx(0.5) and found[9] == 0
  assert found[-1] == 0.5 and found[14] == pytest.approx(10 / 30)
  assert verifier.risks(-np.arange(40.0), wrong)[9] == 1


def test_numbers_of_energies_that_are_known():
  """Four predictions over three candidates: the truth is least twice, second once, third once."""
  energies = np.array([[0.0, 1.0, 2.0, 0.0], [1.0, 0.0, 1.0, 2.0], [2.0, 2.0, 0.0, 1.0]])
  target = np.array([0, 1, 0, 2])
  p = np.exp(-2 * energies) / np.exp(-2 * energies).sum(0)
  nats = -np.log(p[target, np.arange(4)])
  assert verifier.likelihood(energies, target, 2.0) == pytest.approx(nats.mean())
  loss = np.array([0.1, 0.2, 0.9, 0.3])
  found = {"one_hot": energies, "target": target, "wrong": WRONG, "loss": loss, "energy": loss**2, "entropy": -loss}
  found["normalised"] = np.where(WRONG, 2.0, 1.0)
  numbers = verifier.numbers_of(found, 2.0)
  assert numbers["truth_is_least"] == 0.5 and numbers["truth_in_5"] == 1 and numbers["accuracy"] == 0.5
  assert numbers["one_hot_nats"] == pytest.approx(nats.mean()) and numbers["loss"] == pytest.approx(0.375)
  assert numbers["spearman"] == pytest.approx(1.0)
  assert numbers["auroc_energy"] == 0.5 and numbers["auroc_entropy"] == 0.5
  assert numbers["auroc_normalised"] == 1 and numbers["entropy_less_normalised"] == -0.5
  text = verifier.table({"s1": [numbers, numbers]})
  assert "System 1, 2 seeds" in text and "0.3750 ± 0.0000" in text


def test_the_best_beta_is_that_of_the_energies_own_distribution():
  rng = np.random.default_rng(0)
  energies = rng.normal(size=(5, 20_000))
  p = np.exp(-3 * energies) / np.exp(-3 * energies).sum(0)
  target = (rng.random(20_000) < np.cumsum(p, 0)).argmax(0)
  assert verifier.best_beta(energies, target, 0.7) == pytest.approx(3, rel=0.05)
  assert verifier.best_beta(20 * energies, target, 0.7) == pytest.approx(3 / 20, rel=0.05)


def test_energies_of_one_hot_candidates_are_those_of_the_model_and_a_thought_is_known_by_its_signals():
  config = Config(
    model=ModelConfig(layers=1, heads=2, width=8, vocab_size=19, residual=True, variant="time_embed"),
    thinking=ThinkingConfig(steps=2, landscapes=2, start="zeros", step_size=0.5),
    data=DataConfig(context_length=4),
  )
  task = registry.make(config)
  params = task.init(jax.random.key(0))
  batch = {"tokens": jax.random.randint(jax.random.key(1), (3, 5), 0, 19), "weights": jnp.ones((3, 4))}

  @jax.jit
  def run(params):
    context, table = task.context(params, batch), params["model"]["to_embed"]["kernel"]
    here = lambda i: verifier.at_landscape(context, i)
    of = lambda y, i: task.model.energy(params["model"], here(i), jnp.broadcast_to(y, (3, 4, 8)), i)
    some, first = [of(table[v], 1) for v in (0, 7, 18)], of(table.mean(0), 0)  # an even start
    keys = jax.random.split(jax.random.key(2), 3)
    x = task.verified(params, batch, keys).candidates[0]
    return verifier.one_hot_energies(task, params, context), verifier.thought(task, params, batch, keys), some, first, x

  one_hot, thought, some, first, x = run(params)
  assert one_hot.shape == (19, 3, 4)
  np.testing.assert_allclose(one_hot[jnp.array([0, 7, 18])], some, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(thought["one_hot"], one_hot, rtol=1e-5, atol=1e-6)
  p = np.asarray(jax.nn.softmax(x))
  np.testing.assert_allclose(thought["entropy"], stats.entropy(p, axis=-1), rtol=1e-5)
  np.testing.assert_allclose(thought["fall"], thought["energy"] - first, rtol=1e-4, atol=1e-5)
  free = 0.5 * thought["energy"] - thought["entropy"] - (p**2).sum(-1) / 2
  np.testing.assert_allclose(thought["free_energy"], free, rtol=1e-4, atol=1e-5)
  likeliest = jax.nn.softmax(-0.5 * one_hot, 0).max(0)
  np.testing.assert_allclose(thought["normalised"], -np.log(likeliest), rtol=1e-4, atol=1e-5)
  target = np.asarray(batch["tokens"][:, 1:])
  np.testing.assert_array_equal(thought["wrong"], x.argmax(-1) != target)
  np.testing.assert_allclose(thought["loss"], -np.log(np.take_along_axis(p, target[..., None], -1)[..., 0]), rtol=1e-4)


class Row(NamedTuple):
  """A model of a run."""

  params: dict
  work: Task

  def task(self):
    return self.work


def test_predictions_that_count_stand_in_the_order_of_the_windows():
  """Ten windows in batches of eight: the second target of each counts, and the last batch is filled up."""

  class Windows:
    def __len__(self):
      return 10

    def rows(self, index):
      tokens = np.stack([index, index + 1, index + 3], 1).astype(np.int32) % 19
      return {"tokens": tokens, "weights": np.tile(np.float32([0, 1]), (len(index), 1))}

  config = Config(model=ModelConfig(kind="transformer", layers=1, heads=2, width=8, vocab_size=19),
                  data=DataConfig(context_length=2))  # fmt: skip
  task = registry.make(config)
  found = verifier.collect(Row(task.init(jax.random.key(0)), task), Windows(), 10)
  assert set(found) == {"entropy", "loss", "wrong", "target"}
  assert found["target"].tolist() == [(i + 3) % 19 for i in range(10)] and found["loss"].shape == (10,)
