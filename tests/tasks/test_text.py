"""A few positions at a time give what the whole vocabulary gives: loss, logs and gradients, on any devices."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import losses, parallel, sweep, thinking, vocabulary
from ebt_jax.config import (
  AuthorsConfig,
  Config,
  ConfigError,
  EvalConfig,
  MeshConfig,
  ModelConfig,
  ThinkingConfig,
  resolve,
  set_keys,
)
from ebt_jax.tasks import registry
from tests import plain
from tests.helpers import REPOSITORY

KEYS = jax.random.split(jax.random.key(0), 4)  # one for each row
MODEL = ModelConfig(layers=1, heads=2, width=8, vocab_size=19)
RANDOM = {"noise": 0.3, "random_step_size": 2.0, "random_steps_min": 1, "steps": 3}
EACH = ({"variant": "time_embed"}, {"landscapes": 2, "authors": AuthorsConfig(soften_targets=0.2, contrastive=0.1)})
CASES = {
  "transformer": ({"kind": "transformer"}, {}),
  "rnn": ({"kind": "rnn"}, {}),
  "each": (EACH[0], {**EACH[1], **RANDOM, "random_steps_of": "final"}),
  "last with path": ({"embedder": "tied"}, {"gradient": "last", "learn_noise": True, **RANDOM}),
  "residual each": ({"residual": True}, {"steps": 2, "start": "context"}),
  "residual from its context": (
    {"residual": True},
    {
      "start": "context",
      "gradient": "last",
      "learn_step_size": False,
      **RANDOM,
      "authors": AuthorsConfig(clip_candidate=2.0),
    },
  ),
  "unrolled": ({}, {"gradient": "unrolled", **RANDOM, "start": "zeros"}),
}


@functools.cache
def initial(config, double):
  """Parameters in double precision, or not."""
  return jax.tree.map(lambda a: a.astype(float), registry.make(config).init(jax.random.key(0)))


def problem(model, thinking, **changes):
  config = Config(
    model=dataclasses.replace(MODEL, **model, **changes), thinking=ThinkingConfig(**{"step_size": 0.8, **thinking})
  )
  task = registry.make(config)
  whole = dataclasses.replace(config, model=dataclasses.replace(config.model, vocab_chunk=0))
  params = initial(whole, jax.config.jax_enable_x64)
  k_tokens, k_weights = jax.random.split(jax.random.key(1))
  weights = (jax.random.uniform(k_weights, (4, 6)) > 0.3).astype(float)
  tokens = jax.random.randint(k_tokens, (4, 7), 0, 19)
  return task, params, {"tokens": tokens, "weights": weights, "bytes": 3.0 * weights.sum(1)}


def run(task, params, batch):
  loss = lambda params, batch: (lambda mean, output: (mean.total, output.metrics))(
    *task.loss(params, batch, jax.random.key(1))
  )
  return jax.jit(jax.value_and_grad(loss, has_aux=True))(params, batch)


def assert_close(ours, theirs, tolerance):
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs)):
    scale = max(np.abs(b).max(), 1e-3)
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale, err_msg=jax.tree_util.keystr(path))


@functools.cache
def in_chunks(case):
  return run(*problem(*CASES[case], vocab_chunk=2))


@pytest.mark.parametrize("case", CASES)
def test_chunks_of_positions_change_nothing(x64, case):
  assert_close(in_chunks(case), run(*problem(*CASES[case], vocab_chunk=6)), 1e-10)


def test_the_loss_of_text_is_that_of_a_plain_loop(x64):
  """Two landscapes, softened targets and contrast. Gradients: `thinking/test_thinking_loss.py`. A start that is given
  is whole, also where training would hold chunks."""
  task, params, batch = problem(*EACH, vocab_chunk=2)
  start = task.problem.start(task.space, jax.random.key(2), batch)
  mean, output = jax.jit(lambda params: task.loss(params, batch, jax.random.key(1), start=start))(params)
  total, sums = jax.jit(lambda params: plain.text_loss(task, params, batch, start))(params)
  np.testing.assert_allclose(mean.total, total, rtol=1e-10)
  assert mean.weight == batch["weights"].sum() and output.metrics["bytes_per_token"].value() == 3
  for name, value in sums.items():
    np.testing.assert_allclose(output.metrics[name].value(), value / mean.weight, rtol=1e-10, err_msg=name)


@pytest.mark.parametrize("case", ["transformer", "last with path"])
def test_chunks_on_a_mesh_equal_one_device(x64, case):
  task, params, batch = problem(*CASES[case], vocab_chunk=2)
  mesh = parallel.make_mesh(MeshConfig(replica=2, data=2, model=2))
  with jax.set_mesh(mesh):
    params = jax.device_put(params, parallel.shardings(params, mesh))
    batch = jax.device_put(batch, parallel.batch_sharding(mesh))
    assert_close(run(task, params, batch), in_chunks(case), 1e-10)


@pytest.mark.parametrize("case", [CASES["transformer"], EACH], ids=["transformer", "each"])
def test_chunks_are_what_is_held(case):
  """The memory of a gradient grows with the chunk, not with the context."""

  def temporary(chunk):
    task, params, batch = problem(*case, vocab_size=4096, vocab_chunk=chunk)
    batch = {"tokens": jnp.zeros((8, 129), int), "weights": jnp.zeros((8, 128)), "bytes": jnp.zeros(8)}
    loss = lambda params, batch: task.loss(params, batch, jax.random.key(1))[0].total
    return jax.jit(jax.grad(loss)).lower(params, batch).compile().memory_analysis().temp_size_in_bytes

  whole = 4 * 8 * 128 * 4096
  assert temporary(4) < whole < 2 * temporary(128)


@pytest.mark.parametrize("devices", [1, 2])
def test_evaluation_in_groups_of_rows_is_that_of_all(monkeypatch, devices):
  task, params, batch = problem({}, {"noise": 0.3, "authors": AuthorsConfig(eval_noise=True)})
  task = dataclasses.replace(task, shards=devices)
  with jax.set_mesh(parallel.make_mesh(MeshConfig(), jax.devices()[:devices])):
    evaluate = lambda: jax.jit(lambda *args: task.evaluate(*args))(params, batch, KEYS)
    whole = evaluate()
    monkeypatch.setattr(vocabulary, "WHOLE_BYTES", 4 * 6 * 19)  # one row
    assert vocabulary.row_groups(4, 4 * 6 * 19, devices) == 4 // devices
    assert_close(evaluate(), whole, 1e-6)


def test_the_best_of_several_candidates_is_what_is_evaluated():
  task, params, batch = problem({"variant": "time_embed"}, {"landscapes": 2})
  how = EvalConfig(steps=3, candidates=4)
  task = dataclasses.replace(task, config=dataclasses.replace(task.config, eval=how))
  together = jax.jit(lambda *args: (task.scores(*args), task.verified(*args), task.evaluate(*args)))
  scores, found, means = together(params, batch, KEYS)
  best = np.asarray(found.final).argmin(0)
  chosen = np.take_along_axis(np.asarray(found.candidates), best[None, ..., None], 0)[0]
  nll = losses.token_losses(jnp.asarray(chosen), batch["tokens"][:, 1:])
  np.testing.assert_allclose(scores.error[-1], nll, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(scores.final_energy, np.asarray(found.final).min(0), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(means["loss"].total[-1], np.sum(nll * batch["weights"]), rtol=1e-4)
  assert means["loss"].total.shape == (3,) and means["energy"].total.shape == (4,)
  assert {float(m.weight) for m in means.values()} == {float(batch["weights"].sum())}
  assert means["steps"].value() == 3 and means["bytes_per_token"].value() == 3


def test_thoughts_of_a_chunked_space_are_those_of_the_whole():
  task, params, batch = problem({}, {"noise": 0.3, "authors": AuthorsConfig(eval_noise=True)}, vocab_chunk=2)
  shape, keys, found = (4, 6, 19), jax.random.split(jax.random.key(2)), []
  context = task.context(params, batch)
  for space in (task.space, task.training_space):

    @jax.jit
    def think(params, context):
      start = space.start(keys[0], shape)
      thoughts = thinking.think(task.model.energy, space, params, context, start, keys[1], task.config.thinking)
      return thoughts.energies, space.decode(params["model"], thoughts.candidate)

    found.append(think(params, context))
  np.testing.assert_allclose(found[1][0], found[0][0], rtol=1e-4)
  np.testing.assert_array_equal(found[1][1], found[0][1])


def test_candidates_that_an_option_needs_whole_are_announced_and_their_chunks_refused():
  """A replay buffer at the paper's vocabulary: 192 rows of 256 x 50,277 numbers."""
  config = resolve(sweep.read_config(str(REPOSITORY / "configs/text_ebt_s2.py:xxs")))
  (note,) = registry.make(config).notes()
  assert "held whole: 9,885 MB on each device" in note
  assert "held whole: 1,236 MB on each device" in registry.make(config, shards=8).notes()[0]
  without = set_keys(config, ["thinking.replay_rows=0"])
  assert not registry.make(without).notes() and registry.make(without).training_space is not None
  for more, name in (
    ("thinking.replay_rows=192", "thinking.replay_rows"),
    ("thinking.authors.clip_gradient=1.0", "thinking.authors.clip_gradient"),
    ("thinking.explore=2", "thinking.explore"),
  ):
    keys = ["thinking.replay_rows=0", more]
    with pytest.raises(ConfigError, match=f"config.model.vocab_chunk: 8 positions at a time, but {name} needs"):
      registry.make(set_keys(config, ["model.vocab_chunk=8", *keys]))


def test_the_space_of_training_does_not_depend_on_the_mesh_around_the_caller():
  config = resolve({"model": {"layers": 1, "heads": 1, "width": 8, "vocab_size": 50277}, "train": {"batch_size": 16}})
  outside = [registry.make(config, shards) for shards in (1, 8)]
  with jax.set_mesh(parallel.make_mesh(MeshConfig())):
    inside = [registry.make(config, shards) for shards in (1, 8)]
  assert [t.saves_activations for t in outside] == [t.saves_activations for t in inside] == [False, True]
  assert outside[0].training_space.chunk == inside[0].training_space.chunk < 256
  assert outside[1].training_space is None is inside[1].training_space  # two rows on each device


@pytest.mark.parametrize("start, scale", [("noise", 0.5), ("zeros", 0.0), ("context", 0.0)])
def test_a_start_has_the_scale_that_is_asked_for(start, scale):
  task, *_ = problem({"residual": True}, {"start": start, "start_scale": 0.5}, vocab_chunk=2)
  assert task.space.start_scale == task.training_space.start_scale == scale
