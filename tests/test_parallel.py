"""The mesh, the sharding rules and the batch on eight devices, and on two processes."""

import importlib
import logging
import os
import pathlib
import re
import socket
import subprocess
import sys

import jax
from jax.sharding import PartitionSpec as P
import numpy as np
import optax
import pytest

from ebt_jax import parallel
from ebt_jax.config import ConfigError, MeshConfig, resolve
from ebt_jax.tasks import registry

L, D, H, V, M = 2, 128, 256, 256, 4


def parameters(vocab=V):
  shapes = {
    "model": {
      "embed": {"embedding": (vocab, D)},
      "to_embed": {"kernel": (vocab, D)},
      "output": {"kernel": (D, vocab)},
      "layers": {
        "attention": {name: {"kernel": (L, D, D)} for name in "qkvo"},
        "ffn": {"gate": {"kernel": (L, D, H)}, "up": {"kernel": (L, D, H)}, "down": {"kernel": (L, H, D)}},
        "attention_norm": {"scale": (L, D)},
        "ffn_norm": {"scale": (L, D)},
        "modulation": {"kernel": (L, D, 6 * D), "bias": (L, 6 * D)},
      },
      "head_modulation": {"kernel": (D, 2 * D), "bias": (2 * D,)},
      "norm": {"scale": (D,)},
      "head": {"kernel": (D, 1)},
      "time": {"embedding": (M, D)},
    },
    "thinking": {"step_size": (), "noise": ()},
  }
  return jax.tree.map(lambda s: jax.ShapeDtypeStruct(s, np.float32), shapes, is_leaf=lambda x: isinstance(x, tuple))


def zeros(tree):
  return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), tree)


def mesh_of(replica=1, data=-1, model=1):
  return parallel.make_mesh(MeshConfig(replica, data, model))


def shard_shapes(tree, mesh):
  """Shape of the first device's part of every leaf, by path."""
  placed = jax.device_put(zeros(tree), parallel.shardings(tree, mesh))
  return {
    jax.tree_util.keystr(p, simple=True, separator="/"): x.addressable_shards[0].data.shape
    for p, x in jax.tree_util.tree_leaves_with_path(placed)
  }


@pytest.mark.parametrize(
  "sizes, expected",
  [((1, -1, 1), (1, 8, 1)), ((2, -1, 2), (2, 2, 2)), ((-1, 2, 1), (4, 2, 1)), ((1, 2, -1), (1, 2, 4))],
)
def test_minus_one_takes_what_is_left(sizes, expected):
  mesh = mesh_of(*sizes)
  assert dict(mesh.shape) == dict(zip(("replica", "data", "model"), expected))
  assert set(mesh.axis_types) == {jax.sharding.AxisType.Auto}


def test_mesh_of_some_devices():
  assert parallel.make_mesh(MeshConfig(), jax.devices()[:3]).shape["data"] == 3


@pytest.mark.parametrize(
  "sizes, text",
  [
    ((1, 3, 2), "replica=1 x data=3 x model=2 needs 6 devices, found 8; set replica=1, data=4, model=2"),
    ((1, -1, 3), "model=3 needs a multiple of 3 devices, found 8; set replica=1, data=4, model=2"),
    ((1, -1, 16), "needs a multiple of 16 devices, found 8; set replica=1, data=1, model=8"),
    ((1, 2, 2), "replica=1 x data=2 x model=2 needs 4 devices, found 8; set replica=1, data=4, model=2"),
    ((2, 8, 1), "needs 16 devices, found 8; set replica=2, data=4, model=1"),
  ],
)
def test_mesh_that_does_not_fit(sizes, text):
  with pytest.raises(ConfigError, match=f"^config.mesh: .*{re.escape(text)}$"):
    mesh_of(*sizes)


def test_batch_must_divide():
  mesh = mesh_of(2, 2, 2)
  parallel.check_batch(resolve({"train": {"batch_size": 8, "microbatches": 2}}), mesh)
  with pytest.raises(ConfigError, match="config.train.batch_size: 12 rows in 2 .* = 4 devices; .* is 16"):
    parallel.check_batch(resolve({"train": {"batch_size": 12, "microbatches": 2}}), mesh)
  parallel.check_batch(resolve({"train": {"batch_size": 8}, "eval": {"batch_size": 6}}), mesh)  # filled up


def test_every_parameter_has_a_rule_and_is_sliced_by_it():
  ends = [end for end, _ in parallel._RULES]
  names = [
    jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree_util.tree_leaves_with_path(parameters())
  ]
  assert all(sum(bool(end.search(name)) for end in ends) == 1 for name in names)
  assert shard_shapes(parameters(), mesh_of(1, 4, 2)) == {
    "model/embed/embedding": (V // 2, D // 4),
    "model/to_embed/kernel": (V // 2, D // 4),
    "model/output/kernel": (D // 4, V // 2),
    "model/layers/attention/q/kernel": (L, D // 4, D // 2),
    "model/layers/attention/k/kernel": (L, D // 4, D // 2),
    "model/layers/attention/v/kernel": (L, D // 4, D // 2),
    "model/layers/attention/o/kernel": (L, D // 2, D // 4),
    "model/layers/ffn/gate/kernel": (L, D // 4, H // 2),
    "model/layers/ffn/up/kernel": (L, D // 4, H // 2),
    "model/layers/ffn/down/kernel": (L, H // 2, D // 4),
    "model/layers/attention_norm/scale": (L, D),
    "model/layers/ffn_norm/scale": (L, D),
    "model/layers/modulation/kernel": (L, D // 4, 6 * D // 2),
    "model/layers/modulation/bias": (L, 6 * D // 2),
    "model/head_modulation/kernel": (D // 4, D),
    "model/head_modulation/bias": (D,),
    "model/norm/scale": (D,),
    "model/head/kernel": (D // 4, 1),
    "model/time/embedding": (M, D // 4),
    "thinking/step_size": (),
    "thinking/noise": (),
  }


CONFIGS = sorted(p.stem for p in (pathlib.Path(__file__).parent.parent / "configs").glob("[!_]*.py"))
CONFIGS.remove("finetune")  # has the model of the run that it is given


@pytest.mark.parametrize("variant", ["", "adaln"])
@pytest.mark.parametrize("name", CONFIGS)
def test_every_parameter_of_every_config_has_a_rule(name, variant):
  config = importlib.import_module(f"configs.{name}").get_config()
  if config.task in ("text", "infill"):
    config.model.vocab_size = config.model.vocab_size or 257
  if config.model.kind == "rnn":
    config.model.cell = "lstm" if variant else "rg_lru"
  elif config.task != "image":  # pictures have no variants
    config.model.variant = variant or config.model.variant
  params = jax.eval_shape(registry.make(resolve(config)).init, jax.random.key(0))
  assert "(no rule)" not in parallel.sharding_report(params, mesh_of(1, 4, 2))[0]
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    rule = parallel.rule_for(parallel.path_name(path))
    assert rule is not None and len(rule) <= leaf.ndim, parallel.path_name(path)


def test_a_large_parameter_without_a_rule_is_reported():
  tree = {
    "mine": {"large": jax.ShapeDtypeStruct((256, 256), np.float32), "small": jax.ShapeDtypeStruct((4,), np.float32)}
  }
  large, small = parallel.sharding_report(tree, mesh_of(1, 4, 2))[0].splitlines()[1:3]
  assert "data, -  (no rule)" in large and "(no rule)" not in small


def test_vocabulary_that_does_not_divide_moves_to_the_width():
  mesh = mesh_of(1, 4, 2)
  assert parallel.spec_for("model/embed/embedding", (257, D), mesh) == P(None, ("data", "model"))
  shapes = shard_shapes(parameters(257), mesh)
  assert shapes["model/embed/embedding"] == shapes["model/to_embed/kernel"] == (257, D // 8)
  assert shapes["model/output/kernel"] == (D // 8, 257)
  parallel.assert_sharded(parameters(257), mesh)


@pytest.mark.parametrize(
  "path, shape, spec",
  [
    ("params/model/embed/embedding", (257, 6), P(None, "model")),  # data (4) divides neither
    ("params/model/embed/embedding", (255, 7), P(None, None)),
    ("params/model/layers/attention/q/kernel", (3, 6, 8), P(None, None, ("model", "data"))),  # data moves
    ("opt/0/count", (), P()),
    ("params/thinking/step_size", (), P()),
    ("opt/0/mu/model/layers/ffn/up/kernel", (2, 8, 8), P(None, "data", "model")),
    ("params/other/weird", (8, 3, 4096), P(None, None, "data")),
    ("params/other/weird", (8, 4097), P("data", None)),
    ("params/other/weird", (16384,), P(None)),  # small
    ("params/model/embed/embedding", (8,), P(None)),  # of another rank than its rule's
  ],
)
def test_spec(path, shape, spec):
  assert parallel.spec_for(path, shape, mesh_of(1, 4, 2)) == spec


def test_optimiser_state_lies_as_its_parameters():
  mesh = mesh_of(1, 4, 2)
  params = parameters()
  places = parallel.shardings(params, mesh)
  state = jax.eval_shape(optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3)).init, params)
  state_places = parallel.shardings(state, mesh)
  adam = next(s for s in jax.tree.leaves(state_places, is_leaf=lambda x: hasattr(x, "mu")) if hasattr(s, "mu"))
  assert adam.mu == places and adam.nu == places
  assert adam.count.spec == P()


def test_replicas_hold_the_same():
  assert shard_shapes(parameters(), mesh_of(2, 2, 2))["model/embed/embedding"] == (V // 2, D // 2)


def test_report_and_assertion():
  mesh = mesh_of(1, 4, 2)
  table, fraction = parallel.sharding_report(parameters(), mesh)
  assert 0 < fraction < 0.02
  row = next(line for line in table.splitlines() if line.startswith("model/embed/embedding"))
  assert row.split("  ")[-1].strip() == f"{V * D * 4 // 8:,}" and "[256, 128]" in row and "model, data" in row
  parallel.assert_sharded(parameters(), mesh)

  whole = jax.device_put(zeros(parameters()), parallel.replicated(mesh))  # what arrays say outweighs the rules
  assert parallel.sharding_report(whole, mesh)[1] == 1.0
  text = r"config.mesh: data=4 x model=2 leaves 100.0% .*modulation/kernel \[2, 128, 768\]"
  with pytest.raises(ConfigError, match=text):
    parallel.assert_sharded(whole, mesh)
  parallel.assert_sharded(whole, mesh_of(8, 1, 1))  # nothing can be sliced there


def test_batch_rows_go_over_replica_and_data():
  mesh = mesh_of(2, 2, 2)
  rows = np.arange(8 * 3).reshape(8, 3)
  assert parallel.process_rows(8, mesh) == slice(0, 8)
  batch = parallel.global_batch({"tokens": rows}, mesh)["tokens"]
  assert batch.sharding == parallel.batch_sharding(mesh)
  assert batch.addressable_shards[0].data.shape == (2, 3)
  np.testing.assert_array_equal(batch, rows)
  with pytest.raises(ConfigError, match="7 rows do not divide into 4 equal parts; the nearest is 8"):
    parallel.process_rows(7, mesh)


def test_unknown_cluster_is_a_config_error(monkeypatch):
  def fail(**_):
    raise ValueError("coordinator_address should be defined.")

  monkeypatch.setattr(jax.distributed, "initialize", fail)
  with pytest.raises(ConfigError, match="do not meet: coordinator_address"):
    parallel.initialize_distributed()


def test_is_initialized_once(monkeypatch, caplog):
  monkeypatch.setattr(jax.distributed, "is_initialized", lambda: True)
  monkeypatch.setattr(jax.distributed, "initialize", lambda **_: pytest.fail("twice"))
  with caplog.at_level(logging.INFO):
    parallel.initialize_distributed()
  assert "process 0 of 1, 8 of 8 devices are local" in caplog.text


TWO = """
import sys
import jax, numpy as np
from ebt_jax import parallel
from ebt_jax.checkpoint import Checkpoints
from ebt_jax.config import CheckpointConfig, MeshConfig
port, index, folder = sys.argv[1], int(sys.argv[2]), sys.argv[3]
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
parallel.initialize_distributed(coordinator_address=f"localhost:{port}", num_processes=2, process_id=index)
rows = np.arange(8 * 3, dtype=np.float32).reshape(8, 3)
for sizes, mine in [((1, 4, 1), slice(4 * index, 4 * index + 4)), ((1, 1, 4), slice(0, 8))]:
  mesh = parallel.make_mesh(MeshConfig(*sizes))
  assert parallel.process_rows(8, mesh) == mine, (sizes, parallel.process_rows(8, mesh))
  batch = parallel.global_batch({"x": rows[parallel.process_rows(8, mesh)]}, mesh)["x"]
  assert batch.shape == (8, 3)
  for shard in batch.addressable_shards:
    np.testing.assert_array_equal(shard.data, rows[shard.index])
mesh = parallel.make_mesh(MeshConfig(1, 4, 1))
place = parallel.batch_sharding(mesh)
make = lambda n: {"params": {"x": jax.make_array_from_callback((8, 3), place, lambda i: rows[i] * n)}}
with Checkpoints(folder, CheckpointConfig()) as c:
  for n in (1, 2):
    c.save(n, make(n), {"at": n})
if index == 0:  # damaged for one process: both must take the one before
  with open(folder + "/2/_CHECKPOINT_METADATA", "a") as f:
    f.write(" ")
with Checkpoints(folder, CheckpointConfig()) as c:
  jax.experimental.multihost_utils.sync_global_devices("damaged")
  step, state, extra = c.restore({"params": {"x": jax.ShapeDtypeStruct((8, 3), np.float32, sharding=place)}})
  assert (step, extra) == (1, {"at": 1})
  for shard in state["params"]["x"].addressable_shards:
    np.testing.assert_array_equal(shard.data, rows[shard.index])
  c.save(2, make(3), {"at": 3})
assert c.steps() == [1, 2], c.steps()
print("well")
"""


def test_two_processes(tmp_path):
  with socket.socket() as s:
    s.bind(("localhost", 0))
    port = str(s.getsockname()[1])
  env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
  children = [
    subprocess.Popen(
      [sys.executable, "-c", TWO, port, str(i), str(tmp_path / "run")],
      env=env,
      stdout=subprocess.PIPE,
      stderr=subprocess.STDOUT,
      text=True,
    )  # fmt: skip
    for i in range(2)
  ]
  try:
    outputs = [child.communicate(timeout=60)[0] for child in children]
  finally:
    for child in children:
      child.kill()
  assert all("well" in text for text in outputs), "\n".join(outputs)
