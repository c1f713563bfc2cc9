"""Three steps of training on eight devices, sliced in several ways, are those on one device."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import parallel
from ebt_jax.config import Config, DataConfig, MeshConfig, ModelConfig, ThinkingConfig, TrainConfig
from ebt_jax.tasks import registry
from ebt_jax.training import state as state_lib
from ebt_jax.training.step import compiled_step
from tests import plain

ROWS, S, V, D = 16, 8, 64, 32
BASE = Config(
  model=ModelConfig(layers=2, heads=4, width=D, vocab_size=V, head_gain=0.1),
  thinking=ThinkingConfig(steps=2, step_size=5.0, learn_step_size=True, gradient="each", start="zeros"),
  # a large eps: Adam divides no rounding error by another
  train=TrainConfig(batch_size=ROWS, microbatches=2, learning_rate=0.01, warmup=2, steps=50, eps=1e-3),
  data=DataConfig(context_length=S),
)


def with_model(**model):
  return dataclasses.replace(BASE, model=dataclasses.replace(BASE.model, **model))


CONFIGS = {
  "ebt": BASE,
  "time_embed": dataclasses.replace(
    with_model(variant="time_embed"), thinking=dataclasses.replace(BASE.thinking, landscapes=2)
  ),
  "transformer": with_model(kind="transformer"),
  "rnn": with_model(kind="rnn"),
  "residual": dataclasses.replace(
    with_model(residual=True), thinking=dataclasses.replace(BASE.thinking, start="context")
  ),
  "replay": dataclasses.replace(
    BASE,
    thinking=ThinkingConfig(
      steps=3,
      gradient="last",
      learn_step_size=False,
      noise=0.5,
      step_size=1.0,
      replay_rows=24,
      random_step_size=2.0,
      random_steps_min=2,
    ),
  ),
}
MESHES = {"data=8": (1, 8, 1), "data=4,model=2": (1, 4, 2), "replica=2,data=2,model=2": (2, 2, 2)}
FAST = {
  ("ebt", (2, 2, 2)),
  ("transformer", (1, 8, 1)),
  ("replay", (1, 4, 2)),
  ("residual", (1, 4, 2)),
  ("rnn", (2, 2, 2)),
}  # each mesh once
CASES = [
  pytest.param(name, sizes, id=f"{name}-{mesh}", marks=() if (name, sizes) in FAST else pytest.mark.slow)
  for name in CONFIGS
  for mesh, sizes in MESHES.items()
]


def batch_of(seed):
  rng = np.random.default_rng(seed)
  weights = np.arange(S)[None] < rng.permutation(np.resize([2, 5, S], ROWS))[:, None]
  size = weights.sum(1).astype(np.float32)
  tokens = rng.integers(0, V, (ROWS, S + 1), np.int32)
  return {"tokens": tokens, "weights": weights.astype(np.float32), "bytes": size}


def train(config, sizes, batch_of=batch_of):
  """Metrics of three steps, and the state after them."""
  mesh = parallel.make_mesh(MeshConfig(*sizes), jax.devices()[: int(np.prod(sizes))])
  task = registry.make(config, parallel.shards_of(mesh))
  with jax.set_mesh(mesh):
    state = state_lib.create(task, mesh)
    step = compiled_step(task, state_lib.abstract(task, mesh), mesh)
    seen = []
    for i in range(3):
      state, values = step(state, parallel.global_batch(batch_of(i), mesh))
      seen.append(jax.device_get(values))
    parallel.assert_sharded(state.params, mesh, tolerance=0.04)  # norms and scalars weigh more in a tiny model
  return seen, state


def same_on_eight(config, sizes, batch_of, least):
  """Compares three steps on eight devices with those on one, which change the loss by `least`; the state of eight."""
  wanted, one = train(config, (1, 1, 1), batch_of)
  found, eight = train(config, sizes, batch_of)
  for i, (a, b) in enumerate(zip(wanted, found)):
    for key in a:
      np.testing.assert_allclose(b[key], a[key], rtol=1e-4, atol=1e-5, err_msg=f"step {i}: {key}")
  assert abs(wanted[0]["loss"] - wanted[2]["loss"]) > least  # it learns, so that later steps compare something
  close = lambda path, a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4, err_msg=jax.tree_util.keystr(path))
  jax.tree.map_with_path(close, jax.device_get(one.params), jax.device_get(eight.params))
  return eight


@functools.cache
def on_one_device(name):
  return train(CONFIGS[name], (1, 1, 1))


@pytest.mark.parametrize("name, sizes", CASES)
def test_eight_devices_equal_one(name, sizes, request):
  if name == "replay":  # several steps of thinking magnify rounding
    request.getfixturevalue("x64")
  wanted, wanted_state = on_one_device(name)
  found, state = train(CONFIGS[name], sizes)
  for i in range(3):
    for key in wanted[i]:
      np.testing.assert_allclose(found[i][key], wanted[i][key], rtol=1e-5, atol=1e-5, err_msg=f"step {i}: {key}")
  close = lambda path, a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5, err_msg=jax.tree_util.keystr(path))
  kept = lambda state: jax.device_get((state.params, state.replay))
  jax.tree.map_with_path(close, kept(wanted_state), kept(state))
  if state.replay:
    assert int(state.replay.added) == 3 * ROWS and found[0]["replayed"] == 0 and 0 < found[1]["replayed"] < 0.5
    parts = {s.data.shape[0] for s in state.replay.rows["start"].addressable_shards}
    assert parts == {CONFIGS[name].thinking.replay_rows // (sizes[0] * sizes[1])}
  assert_slices(state, *sizes)


@pytest.mark.parametrize("name", ["ebt", "transformer"])
def test_one_device_has_the_loss_of_a_plain_loop(name):
  """In the first step, whose parameters are known."""
  task = registry.make(CONFIGS[name])
  params, batch = state_lib.fresh(task).params, jax.tree.map(jnp.asarray, batch_of(0))
  if name == "ebt":
    total, logged = jax.jit(lambda params: plain.text_loss(task, params, batch, jnp.zeros((ROWS, S, V))))(params)
  else:
    answer = task.model.predict(params["model"], batch["tokens"][:, :-1])
    total, logged = np.sum(batch["weights"] * plain.cross_entropy(answer, batch["tokens"][:, 1:])), {}
  found, count = on_one_device(name)[0][0], batch["weights"].sum()
  for key, value in {"loss": total, **logged}.items():
    np.testing.assert_allclose(found[key], value / count, rtol=1e-5, atol=1e-6, err_msg=key)


def assert_slices(state, replica, data, model):
  """Weights and both moments lie in slices over `data` and `model`, in copies over `replica`."""
  adam = state.optimizer[1].inner_states["weights"].inner_state[0]
  first = ("attention", "q") if "attention" in state.params["model"]["layers"] else ("recurrent", "x")
  for tree in (state.params["model"], adam.mu["model"], adam.nu["model"]):
    for kernel, dims in (
      (tree["layers"][first[0]][first[1]]["kernel"], (2, D // data, D // model)),
      (tree["layers"]["ffn"]["down"]["kernel"], (2, D // model, D // data)),
      (tree["embed"]["embedding"], (V // model, D // data)),
    ):
      shards = kernel.addressable_shards
      assert len(shards) == 8 and {s.data.shape for s in shards} == {dims}
      assert len({str(s.index) for s in shards}) == data * model
      assert {s.replica_id for s in shards} == set(range(replica))
