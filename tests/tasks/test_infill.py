"""Infilling: what is asked, what it weighs, and what is counted."""

import dataclasses
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.config import Config, ConfigError, DataConfig, EvalConfig, MaskConfig, ModelConfig, ThinkingConfig, resolve
from ebt_jax.data.examples import WindowExamples
from ebt_jax.data.windows import Windows
from ebt_jax.tasks import registry

B, S, V = 3, 6, 7
BASE = Config(
  task="infill",
  model=ModelConfig(layers=1, heads=1, width=8, vocab_size=V),
  thinking=ThinkingConfig(steps=2, step_size=2.0),
  data=DataConfig(context_length=S),
)
DIFFUSION = MaskConfig(weighting="row", unmasking="ancestral")
LENGTHS = np.array([6, 6, 4])


def task_of(kind="ebt", mask=MaskConfig(), **inference):
  model = dataclasses.replace(BASE.model, kind=kind)
  return registry.make(dataclasses.replace(BASE, model=model, mask=mask, eval=EvalConfig(**inference)))


def batch_of(rows=B):
  tokens = np.asarray(jax.random.randint(jax.random.key(1), (rows, S + 1), 0, V), np.int32)
  weights = (np.arange(S) < np.resize(LENGTHS, rows)[:, None]).astype(np.float32)
  return {"tokens": jnp.asarray(tokens), "weights": jnp.asarray(weights), "bytes": jnp.asarray(tokens[:, 1:] * weights)}


def value(mean):
  return np.asarray(mean.value())


def test_a_blank_counts_once_or_its_row_does():
  asked = jnp.array([[1, 0, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0.0]])
  batch = {**batch_of(), "asked": asked, "seed": jnp.zeros(B, jnp.uint32)}
  place, row = (task_of("transformer", mask).problem for mask in (MaskConfig(), DIFFUSION))
  assert np.array_equal(place.weights(batch), asked)
  np.testing.assert_allclose(row.weights(batch), asked * np.array([[2.0], [6.0], [2.0]]))
  assert np.array_equal(place.weights(batch_of()), batch["weights"])  # before blanks are drawn
  size = np.sum(batch["bytes"] * asked) / np.sum(asked)
  np.testing.assert_allclose(value(place.counts(batch)["bytes_per_token"]), size, rtol=1e-6)
  known = place.inputs(batch).known
  assert not np.any(known.tokens * asked) and np.array_equal(
    known.tokens * (1 - asked), batch["tokens"][:, 1:] * (1 - asked)
  )


def test_the_mean_over_numbers_of_blanks_is_the_bound_of_masked_diffusion():
  """With blanks drawn one by one with probability t that bound has the weights 1 / t, and an integral over t."""
  n = 3
  subsets = [np.array(a, np.float32) for a in itertools.product([0, 1], repeat=n) if any(a)]
  nats = {tuple(a): np.random.default_rng(i).uniform(0.5, 3, n) for i, a in enumerate(subsets)}
  t, share = np.polynomial.legendre.leggauss(4)
  t, share = (t + 1) / 2, share / 2
  integral = sum(
    np.sum(share * t ** a.sum() * (1 - t) ** (n - a.sum()) / t) * np.sum(a * nats[tuple(a)]) for a in subsets
  )
  weigh = task_of("transformer", DIFFUSION).problem.weights
  rows = {"weights": jnp.ones((len(subsets), n)), "asked": jnp.array(subsets)}
  ours = 0.0
  for asked, weights in zip(subsets, np.asarray(weigh(rows))):
    chance = 1 / (n * math.comb(n, int(asked.sum())))
    ours += chance * np.sum(weights * nats[tuple(asked)])
  np.testing.assert_allclose(ours, integral, rtol=1e-6)


def test_the_bound_of_uniform_predictions_is_the_logarithm_of_the_vocabulary():
  task = task_of("transformer", DIFFUSION)
  params = jax.tree.map(jnp.zeros_like, task.init(jax.random.key(0)))
  batch, keys = batch_of(), jax.random.split(jax.random.key(5), B)
  means = jax.jit(task.evaluate)(params, batch, keys)
  numbers = task.problem.numbers({name: float(np.ravel(value(mean))[-1]) for name, mean in means.items()})
  np.testing.assert_allclose(numbers["nelbo"], math.log(V), rtol=1e-6)
  assert float(means["loss"].weight) == pytest.approx(LENGTHS.sum())  # every token counts, whatever was drawn
  assert "nelbo" not in task_of("transformer").problem.numbers({"loss": 1.0})
  fixed = dataclasses.replace(DIFFUSION, rate_max=0.5)
  assert "nelbo" not in task_of("transformer", fixed).problem.numbers({"loss": 1.0})


def test_spans_are_right_as_a_whole_or_not_at_all():
  problem = task_of(mask=MaskConfig(weighting="row")).problem
  asked = jnp.array([[1, 0, 1, 1, 0, 0], [0, 1, 1, 1, 0, 1], [0, 0, 0, 0, 0, 0.0]])
  batch = {**batch_of(), "weights": jnp.ones((B, S)), "asked": asked, "seed": jnp.zeros(B, jnp.uint32)}
  wrong = jnp.array([[1, 1, 0, 0, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1]])
  found = problem.measures(jax.nn.one_hot((problem.target(batch) + wrong) % V, V), batch)
  sums = {name: float(jnp.sum(a * problem.weights(batch))) for name, a in found.items()}  # as means are taken
  want = {"right": 2, "spans": 4, "right_1": 1, "spans_1": 2, "right_2": 1, "spans_2": 1, "right_3": 0, "spans_3": 1}
  assert {name: a for name, a in sums.items() if a or name in want} == pytest.approx(want)
  numbers = problem.numbers({"loss": 1.0, **sums})
  wanted = {"exact_match": 0.5, "exact_match_1": 0.5, "exact_match_2": 1, "exact_match_3": 0}
  assert numbers == pytest.approx({**wanted, "nelbo": 1.0})


def test_candidates_at_given_places_do_not_matter():
  task = task_of()
  params, key = task.init(jax.random.key(0)), jax.random.key(2)
  batch = task.problem.corrupt(batch_of(), jax.random.key(3))
  start = task.problem.start(task.space, key, batch)
  loss = jax.jit(lambda start: task.loss(params, batch, key, start=start)[0].total)
  given = (1 - batch["asked"])[..., None]
  assert loss(start + 3.0 * given * jax.random.normal(key, start.shape)) == loss(start)
  assert loss(start + (1 - given) * jax.random.normal(key, start.shape)) != loss(start)
  for by_place, shape in ((False, (B,)), (True, (B, S))):
    task = task_of(mask=MaskConfig(by_place=by_place))
    found = jax.eval_shape(lambda: task.scores(params, batch, jax.random.split(key, B)))
    assert found.final_energy.shape == shape and found.measures["right"].shape == (2, B, S)


@pytest.mark.parametrize("kind, mask", [("ebt", MaskConfig()), ("transformer", DIFFUSION)])
def test_an_answer_depends_on_its_own_row_alone(kind, mask):
  task, batch, keys = task_of(kind, mask, steps=3), batch_of(), jax.random.split(jax.random.key(4), 2 * B)
  params, score = task.init(jax.random.key(0)), jax.jit(task.scores)
  before = score(params, batch, keys[:B])
  other = {**batch, "tokens": batch["tokens"].at[1:].set((batch["tokens"][1:] + 1) % V)}
  after = score(params, other, jnp.concatenate([keys[:1], keys[B + 1 :]]))
  assert before.error.shape == (3, B, S)
  np.testing.assert_allclose(after.error[:, 0], before.error[:, 0], rtol=1e-5, atol=1e-6)
  assert np.array_equal(after.measures["spans"][:, 0], before.measures["spans"][:, 0])
  assert np.all(np.any(after.error[:, 1:] != before.error[:, 1:], (0, 2)))


def test_blanks_change_from_step_to_step_and_stay_where_they_are_drawn_already():
  problem, batch = task_of().problem, batch_of()
  first, second = (problem.corrupt(batch, jax.random.key(i)) for i in (0, 1))
  assert np.any(first["asked"] != second["asked"]) and np.all(first["asked"] <= batch["weights"])
  assert problem.corrupt(first, jax.random.key(1)) is first


def test_bytes_of_each_place_are_kept_apart():
  tokens = np.arange(14, dtype=np.uint16).reshape(2, 7) % V
  found = Windows(tokens, np.array([6, 4], np.int32))
  size = np.arange(V) % 3
  rows = WindowExamples(found, size, V, by_place=True).rows(np.arange(2))
  assert rows["bytes"].tolist() == [[1, 2, 0, 1, 2, 0], [1, 2, 0, 1, 0, 0]] and rows["bytes"].dtype == np.float32
  assert WindowExamples(found, size, V).rows(np.arange(2))["bytes"].tolist() == [6, 4]
  assert problem_spec() == {name: (a.shape[1:], a.dtype) for name, a in rows.items()}


def problem_spec():
  return {name: (a.shape, a.dtype) for name, a in task_of().problem.spec().items()}


@pytest.mark.parametrize(
  "keys, words",
  [
    ({"model": {"residual": True}}, "config.model.residual: infilling has no residual energy"),
    ({"thinking": {"start": "context"}}, "config.thinking.start: infilling has no residual energy"),
    ({"model": {"kind": "transformer", "passes": 2}}, "config.model.passes: 2, but task 'infill' loops by eval.steps"),
    ({"model": {"vocab_chunk": 8}}, "config.model.vocab_chunk: 8, but infilling holds answers whole"),
    ({"model": {"kind": "dit"}}, "config.model.kind: no choice 'dit'"),
    (
      {"model": {"kind": "transformer"}, "eval": {"candidates": 2}},
      "config.eval.candidates: 2 candidates need energies",
    ),
    (
      {"thinking": {"start": "zeros"}, "eval": {"candidates": 2}},
      "config.eval.candidates: 2 candidates that start alike",
    ),
  ],
)
def test_what_masked_rows_do_not_have_is_refused(keys, words):
  with pytest.raises(ConfigError) as e:
    resolve({"task": "infill", **keys})
  assert words in str(e.value)
