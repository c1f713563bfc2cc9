"""Every number that the tasks give, for a problem whose numbers are worked out by hand."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.config import AuthorsConfig, EvalConfig, ThinkingConfig
from ebt_jax.thinking import Randomness
from tests import bowl

SIZE = 0.25
THINK = ThinkingConfig(steps=3, step_size=SIZE)
OF_ROWS = np.array([1.0, 0.0, 2.0])  # a row counts as its largest weight does


def values(means):
  return {name: np.asarray(mean.value()) for name, mean in means.items()}


def squares(batch, x, shares=1.0):
  return np.sum(batch["weights"] * shares * (x - batch["target"]) ** 2)


def loss_of(task, batch, **options):
  return jax.jit(lambda params, batch: task.loss(params, batch, jax.random.key(0), **options))(
    task.init(jax.random.key(0)), batch
  )


@pytest.mark.parametrize("mode", ["each", "unrolled", "last"])
def test_training_numbers(mode):
  batch = bowl.batch_of(3)
  mean, output = loss_of(bowl.ebt(thinking=dataclasses.replace(THINK, gradient=mode)), batch)
  xs = [bowl.after(batch, n, SIZE) for n in range(4)]
  errors, count = [squares(batch, x) for x in xs[1:]], batch["weights"].sum()
  assert count == 3.5 == mean.weight
  np.testing.assert_allclose(mean.total, errors[-1] if mode == "last" else np.mean(errors), rtol=1e-5)
  fall = bowl.energy_of(batch, xs[0]) - bowl.energy_of(batch, xs[2])  # before the first step, before the last one
  wanted = {
    "final_loss": errors[-1] / count,
    "energy_gap": np.average(fall, weights=OF_ROWS),
    "step_size": SIZE,
    "known": batch["inputs"].mean(),
  }
  if mode != "last":
    wanted["first_loss"] = errors[0] / count
  assert wanted["energy_gap"] > 0.1
  found = values(output.metrics)
  assert set(found) == set(wanted) and output.finished == ()
  for name in wanted:
    np.testing.assert_allclose(found[name], wanted[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("mode", ["each", "unrolled", "last"])
def test_of_a_random_number_of_steps_the_last_one_that_was_made_counts(mode):
  batch = jax.tree.map(jnp.asarray, bowl.batch_of(3))
  random = dataclasses.replace(THINK, random_steps_min=1, gradient=mode)
  task = bowl.ebt(thinking=random)
  params = task.init(jax.random.key(0))
  run = lambda repeats: task.loss(params, batch, jax.random.key(0), randomness=Randomness(repeats=repeats))
  mean, output = jax.jit(run)(jnp.asarray([2]))  # of at most three
  errors = [squares(batch, bowl.after(batch, n, SIZE)) for n in (1, 2)]
  found, count = values(output.metrics), batch["weights"].sum()
  np.testing.assert_allclose(mean.total, errors[-1] if mode == "last" else np.mean(errors), rtol=1e-5)
  np.testing.assert_allclose(found["final_loss"], errors[-1] / count, rtol=1e-5)
  fall = [bowl.energy_of(batch, bowl.after(batch, n, SIZE)) for n in (0, 1)]
  np.testing.assert_allclose(found["energy_gap"], np.average(fall[0] - fall[1], weights=OF_ROWS), rtol=1e-5)


def test_contrast_is_added_once_and_softening_falls_to_nothing():
  batch, weight = bowl.batch_of(3), 0.3
  options = AuthorsConfig(contrastive=weight, soften_targets=0.4)
  mean, _ = loss_of(bowl.ebt(thinking=dataclasses.replace(THINK, authors=options)), batch)
  softened = [squares(batch, bowl.after(batch, n, SIZE), 1 - s) for n, s in ((1, 0.4), (2, 0.2), (3, 0.0))]
  true, last = (bowl.energy_of(batch, x) for x in (batch["target"], bowl.after(batch, 2, SIZE)))
  contrast = np.sum(OF_ROWS * np.log1p(np.exp(true - last)))
  np.testing.assert_allclose(mean.total, np.mean(softened) + weight * contrast, rtol=1e-5)


@pytest.mark.parametrize("mode", ["each", "last"])
def test_of_several_starts_the_one_that_ends_nearest_is_learnt_from(mode):
  """Starts of the bowl lie 0, 1 and 2 to the right of the first; each row has a best one of its own."""
  batch, starts = bowl.batch_of(3), 3
  batch["first"] = batch["first"] - np.array([[-9.0], [0.0], [9.0]], np.float32)  # too far right, too far left
  task = bowl.ebt(thinking=dataclasses.replace(THINK, gradient=mode, explore=starts))
  mean, _ = loss_of(task, batch)
  ways = [[bowl.after(batch, n, SIZE, batch["first"] + k) for n in (1, 2, 3)] for k in range(starts)]
  ends = np.array([np.sum(batch["weights"] * (way[-1] - batch["target"]) ** 2, -1) for way in ways])
  best = ends.argmin(0)
  assert best[0] != best[2]  # the row between them has no weight
  steps = (2,) if mode == "last" else (0, 1, 2)
  rows = np.arange(3)
  wanted = [squares(batch, np.array([way[n] for way in ways])[best, rows]) for n in steps]
  np.testing.assert_allclose(mean.total, np.mean(wanted), rtol=1e-5)
  evaluated, _ = loss_of(task, batch, training=False)
  one, _ = loss_of(bowl.ebt(thinking=dataclasses.replace(THINK, gradient=mode)), batch)
  assert evaluated.total != mean.total and one.total == evaluated.total  # of the start that the problem makes


@pytest.mark.parametrize("mode", ["each", "last"])
def test_the_buffer_gets_each_row_with_its_own_candidate(mode):
  """Fresh rows alone are kept; replayed ones start where they were left, and count in the loss."""
  fresh, old = bowl.batch_of(3), bowl.batch_of(2, seed=1)
  old["start"] = old["first"] + 1
  task = bowl.ebt(thinking=dataclasses.replace(THINK, gradient=mode, replay_rows=6))
  mean, output = loss_of(task, {**fresh, "replayed": old})
  assert set(output.finished) == {*fresh, "start"}
  of_row = {name: (a.shape[1:], a.dtype) for name, a in output.finished.items()}
  assert of_row == {name: (a.shape, a.dtype) for name, a in task.replay_row().items()}
  for name in fresh:
    np.testing.assert_array_equal(output.finished[name], fresh[name])
  np.testing.assert_allclose(output.finished["start"], bowl.after(fresh, 3, SIZE), rtol=1e-5)
  steps = (3,) if mode == "last" else (1, 2, 3)
  wanted = [
    squares(fresh, bowl.after(fresh, n, SIZE)) + squares(old, bowl.after(old, n, SIZE, old["start"])) for n in steps
  ]
  np.testing.assert_allclose(mean.total, np.mean(wanted), rtol=1e-5)
  assert mean.weight == fresh["weights"].sum() + old["weights"].sum()


def test_evaluation_keeps_the_candidate_of_least_energy():
  batch, steps = bowl.batch_of(3), 2
  batch["first"][0] = batch["inputs"][0] - 1.2  # of this row the second start is nearer
  task = bowl.ebt(thinking=THINK, eval=EvalConfig(steps=steps, candidates=2))
  keys = jax.random.split(jax.random.key(0), 3)
  params = task.init(jax.random.key(0))
  found, scores = jax.jit(lambda *a: (task.evaluate(*a), task.scores(*a)))(params, batch, keys)
  starts = batch["first"] + np.arange(2.0)[:, None, None]
  nearest = np.array([bowl.energy_of(batch, x) for x in starts]).argmin(0)
  assert nearest[0] == 1 and 0 in nearest
  xs = [bowl.after(batch, n, SIZE, starts[nearest, np.arange(3)]) for n in range(steps + 1)]
  energies = np.array([bowl.energy_of(batch, x) for x in xs])
  count, far = batch["weights"].sum(), np.abs(xs - batch["target"]).sum(-1)
  wanted = {
    "loss": [squares(batch, x) / count for x in xs[1:]],
    "energy": energies @ OF_ROWS / OF_ROWS.sum(),
    "steps": steps,
    "far": far[1:] @ OF_ROWS / OF_ROWS.sum(),
    "known": batch["inputs"].mean(),
  }
  assert set(found) == set(wanted)
  for name in wanted:
    np.testing.assert_allclose(found[name].value(), wanted[name], rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(scores.error, [(x - batch["target"]) ** 2 for x in xs[1:]], rtol=1e-5)
  np.testing.assert_allclose(scores.energy, energies[:-1], rtol=1e-5)
  np.testing.assert_allclose(scores.final_energy, energies[-1], rtol=1e-5)
  np.testing.assert_allclose(scores.measures["far"], far[1:], rtol=1e-5)
  assert scores.steps.tolist() == [steps] * 3


def test_health_is_of_the_rows_that_count():
  batch = bowl.batch_of(3)
  task = bowl.ebt(thinking=THINK)
  found = jax.jit(task.diagnose)(task.init(jax.random.key(0)), batch, jax.random.key(0))
  for n in range(4):
    energies = bowl.energy_of(batch, bowl.after(batch, n, SIZE))
    np.testing.assert_allclose(found[f"energy_{n + 1}"], np.average(energies, weights=OF_ROWS), rtol=1e-5)
  np.testing.assert_allclose(found["growth"], 1 - SIZE, rtol=1e-5)


def test_a_direct_answer():
  batch = jax.tree.map(jnp.asarray, bowl.batch_of(3))
  task = bowl.direct()
  params, keys = task.init(jax.random.key(0)), jax.random.split(jax.random.key(0), 3)
  mean, output = loss_of(task, batch)
  error = (2 * batch["inputs"] - batch["target"]) ** 2
  count = float(batch["weights"].sum())
  np.testing.assert_allclose(mean.total, np.sum(batch["weights"] * error), rtol=1e-5)
  assert mean.weight == count
  wanted = {"final_loss": float(mean.total) / count, "known": float(batch["inputs"].mean())}
  assert {name: float(v) for name, v in values(output.metrics).items()} == pytest.approx(wanted)
  far = np.abs(2 * batch["inputs"] - batch["target"]).sum(-1)
  found, scores = task.evaluate(params, batch, keys), task.scores(params, batch, keys)
  wanted = {"loss": [wanted["final_loss"]], "far": [np.average(far, weights=OF_ROWS)], "known": wanted["known"]}
  assert set(found) == set(wanted)
  for name in wanted:
    np.testing.assert_allclose(found[name].value(), wanted[name], rtol=1e-5, err_msg=name)
  np.testing.assert_allclose(scores.error, error[None], rtol=1e-5)
  np.testing.assert_allclose(scores.measures["far"], far[None], rtol=1e-5)
  assert task.eval_steps == len(scores.error) == 1
  assert task.flops().least == task.flops().paper == 6  # 2 forward and 4 backward for each parameter
