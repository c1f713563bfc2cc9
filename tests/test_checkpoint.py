"""Checkpoints: bitwise, atomic, and honest about damage."""

import json
import logging
import os
import resource
import shutil
import signal
import subprocess
import sys
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from orbax.checkpoint import v1 as ocp
import pytest

from ebt_jax import checkpoint
from ebt_jax.checkpoint import CheckpointError, Checkpoints
from ebt_jax.config import CheckpointConfig

P = jax.sharding.PartitionSpec
# where one read or write fails, orbax leaves others of its own unfinished
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(seed: int, rows: int = 64):
  k1, k2 = jax.random.split(jax.random.key(seed))
  params = {
    "model": {"embed": {"embedding": jax.random.normal(k1, (rows, 128))}},
    "thinking": {"step_size": jax.random.normal(k2, ())},
  }
  opt = optax.adamw(1e-3).init(params)
  half = jax.random.normal(k2, (8, 8), jnp.bfloat16)
  training = {"step": jnp.int32(seed), "opt": opt, "half": half, "key": jax.random.key_data(k1), "replay": ()}
  return {"params": params, "training": training}


def abstract(state, sharding=None):
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), state)


def copy(state):
  return jax.tree.map(lambda x: np.array(x, copy=True), state)


def assert_same(a, b):
  assert jax.tree.structure(a) == jax.tree.structure(b)
  for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b)):
    assert x.dtype == y.dtype
    assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


def save_all(folder, steps, **config):
  with Checkpoints(folder, CheckpointConfig(**config)) as c:
    for n in steps:
      c.save(n, make_state(n), {"at": n})


def restore(folder, step=None, state=None):
  with Checkpoints(folder, CheckpointConfig()) as c:
    return c.restore(abstract(state or make_state(0)), step)


def files_of(folder):
  return [p for p in folder.rglob("*") if p.is_file()]


def data_file(folder):
  """The file that holds most of the array bytes."""
  return max(files_of(folder), key=lambda p: p.stat().st_size)


def truncate(folder):
  path = data_file(folder)
  path.write_bytes(path.read_bytes()[: path.stat().st_size // 3])
  return path.name


def flip(folder):
  path = data_file(folder)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  return path.name


def delete_data(folder):
  path = data_file(folder)
  path.unlink()
  return path.name


def delete_metadata(folder):
  (folder / "_CHECKPOINT_METADATA").unlink()
  return "_CHECKPOINT_METADATA"


def test_round_trip_is_bitwise(tmp_path):
  state = make_state(3)
  extra = {"config": {"seed": 0, "model": {"size": "4xs"}}, "clock": 1.1, "loss": float("nan"), "none": None}
  with Checkpoints(tmp_path / "run", CheckpointConfig()) as c:
    assert c.restore(abstract(state)) is None
    assert not (tmp_path / "run").exists()  # reading leaves no trace
    assert c.save(7, state, extra)
  step, found, found_extra = restore(tmp_path / "run", state=state)
  assert step == 7
  assert_same(found, state)
  assert json.dumps(found_extra) == json.dumps(extra)


def test_state_may_be_donated_right_after_save(tmp_path):
  update = jax.jit(lambda s: jax.tree.map(lambda x: x * 3 + 1, s), donate_argnums=0)
  state = update({"params": {f"w{i}": jax.random.normal(jax.random.key(i), (1024, 1024)) for i in range(4)}})
  with Checkpoints(tmp_path, CheckpointConfig(keep=3)) as c:
    wanted = []
    for n in range(3):
      wanted.append(copy(state))
      c.save(n, state, {})
      state = update(update(state))
  for n, want in enumerate(wanted):
    assert_same(restore(tmp_path, n, state)[1], want)


def test_keeps_the_newest_and_every_kth(tmp_path):
  save_all(tmp_path, range(10, 80, 10), keep=2, keep_every=30)
  assert Checkpoints(tmp_path, CheckpointConfig()).steps() == [30, 60, 70]
  assert restore(tmp_path, 30)[2] == {"at": 30}
  with pytest.raises(CheckpointError, match=r"no checkpoint of step 20; found steps \[30, 60, 70\]"):
    restore(tmp_path, 20)


def test_a_step_saved_already_is_left(tmp_path):
  save_all(tmp_path, [1])
  with Checkpoints(tmp_path, CheckpointConfig()) as c:
    c.restore(abstract(make_state(0)))
    assert not c.save(1, make_state(5), {"at": "again"})
  with Checkpoints(tmp_path, CheckpointConfig()) as c:  # a run that did not start from it
    assert c.save(1, make_state(5), {"at": "again"})
  assert restore(tmp_path)[2] == {"at": "again"}
  assert (tmp_path / "1.old").is_dir()


def test_going_back_replaces_what_came_later(tmp_path):
  save_all(tmp_path, [1, 4, 6], keep=3)
  with Checkpoints(tmp_path, CheckpointConfig(keep=2)) as c:
    assert c.restore(abstract(make_state(0)), 1)[0] == 1
    c.save(3, make_state(3), {"at": 3})
    c.save(5, make_state(5), {"at": 5})
    c.save(4, make_state(4), {"at": "back"})
  assert sorted(p.name for p in tmp_path.iterdir()) == ["3", "4", "4.old", "5.old", "6.old"]
  assert restore(tmp_path)[2] == {"at": "back"}


def test_one_item_is_read_without_the_other(tmp_path, monkeypatch):
  """As a sentence is generated from a run whose replay buffer is a hundred times its parameters."""
  save_all(tmp_path, [1, 2])
  params = {"params": make_state(2)["params"]}
  for path in files_of(tmp_path / "2" / "training"):
    path.write_bytes(b"damaged")
  read, checksum = [], checkpoint.checksum
  monkeypatch.setattr(checkpoint, "checksum", lambda path: read.append(path) or checksum(path))
  step, found, extra = restore(tmp_path, state=params)
  assert (step, extra) == (2, {"at": 2})
  assert_same(found, params)
  assert read and not any("training" in path.parts for path in read)
  shutil.rmtree(tmp_path / "2" / "training")
  assert_same(restore(tmp_path, state=params)[1], params)
  with Checkpoints(tmp_path, CheckpointConfig()) as c:
    assert c.restore(abstract(params))[0] == 2
    assert c.save(2, make_state(2), {})  # step 2 is not whole: who read a part of it does not know
  (tmp_path / "3").mkdir()
  (tmp_path / "2" / "params" / "_METADATA").unlink()
  with pytest.raises(CheckpointError, match="2: damaged checkpoint: file params/_METADATA is missing"):
    restore(tmp_path, 2, params)


class State(NamedTuple):
  """The one tree of checkpoints whose items were not yet apart."""

  step: jax.Array
  params: dict
  opt: tuple
  replay: tuple = ()


def test_reads_checkpoints_of_one_tree(tmp_path):
  new = make_state(3)
  new["training"] = {k: new["training"][k] for k in ("step", "opt", "replay")}
  state = State(params=new["params"], **new["training"])
  with ocp.training.Checkpointer(tmp_path) as writer:
    metadata = {"leaves": checkpoint._leaves(state), "extra": {"at": 3}}
    writer.save_checkpointables(3, {"state": state}, custom_metadata=metadata)
  seal = json.dumps(checkpoint._checksums(tmp_path / "3"))
  (tmp_path / "3" / checkpoint.CHECKSUMS).write_text(seal)
  for wanted in (new, {"params": new["params"]}, {"training": new["training"]}):
    step, found, extra = restore(tmp_path, state=wanted)
    assert (step, extra) == (3, {"at": 3})
    assert_same(found, wanted)
  other = make_state(3, rows=32)["params"]
  with pytest.raises(CheckpointError, match=r"params/model/embed/embedding: found float32\[64, 128\]"):
    restore(tmp_path, state={"params": other})
  name = flip(tmp_path / "3")
  with pytest.raises(CheckpointError, match=f"{name} has changed"):
    restore(tmp_path, state={"params": new["params"]})


@pytest.mark.parametrize("character", ["[", "*", "?", "\\"])
def test_a_path_that_is_a_pattern_is_refused(tmp_path, character):
  with pytest.raises(CheckpointError, match="takes for a pattern.*rename the folder") as e:
    Checkpoints(tmp_path / f"a{character}b" / "checkpoints", CheckpointConfig())
  assert repr(character) in str(e.value)


def test_what_is_not_there_is_not_said_to_be_saved(tmp_path):
  """orbax takes `[x]` for a pattern, misses its own files, and reports success."""
  c = Checkpoints(tmp_path / "a", CheckpointConfig())
  c.directory = tmp_path / "a[x]"
  c.save(1, make_state(1), {})
  with pytest.raises(CheckpointError, match="step 1 could not be written: .*arrays are not there: params/"):
    c.close()


@pytest.mark.parametrize("sealed", [True, False], ids=["sealed", "unsealed"])
@pytest.mark.parametrize("damage", [truncate, flip, delete_data, delete_metadata])
def test_damaged_newest_is_named_and_passed_over(tmp_path, caplog, damage, sealed):
  save_all(tmp_path, [1, 2])
  name = damage(tmp_path / "2")
  if not sealed:  # as after a kill between the rename and the checksums
    if damage is flip:
      pytest.skip("only the checksums show it")
    (tmp_path / "2" / checkpoint.CHECKSUMS).unlink()
  before = sorted(p.name for p in (tmp_path / "2").rglob("*"))
  with caplog.at_level(logging.WARNING), Checkpoints(tmp_path, CheckpointConfig(keep=1)) as c:
    step, state, _ = c.restore(abstract(make_state(0)))
    assert step == 1
    assert_same(state, make_state(1))
    assert f"{tmp_path}/2" in caplog.text and (name in caplog.text or not sealed)
    assert sorted(p.name for p in (tmp_path / "2").rglob("*")) == before  # left alone
    # training comes by step 2 again; what lies before it must not push out the new one
    c.save(2, make_state(20), {"at": "again"})
  assert sorted(p.name for p in tmp_path.iterdir()) == ["2", "2.damaged"]
  assert sorted(p.name for p in (tmp_path / "2.damaged").rglob("*")) == before
  step, state, extra = restore(tmp_path)
  assert (step, extra) == (2, {"at": "again"})
  assert_same(state, make_state(20))


def test_unsealed_but_whole_is_used(tmp_path):
  save_all(tmp_path, [1, 2])
  (tmp_path / "2" / checkpoint.CHECKSUMS).unlink()
  assert restore(tmp_path)[0] == 2


def test_all_damaged_names_them(tmp_path):
  save_all(tmp_path, [1, 2])
  truncate(tmp_path / "1")
  flip(tmp_path / "2")
  with pytest.raises(CheckpointError, match=r"(?s)2: damaged.*has changed.*1: damaged.*bytes, expected") as e:
    restore(tmp_path)
  assert str(tmp_path) in str(e.value)


def test_another_model_is_no_damage(tmp_path):
  save_all(tmp_path, [1, 2])
  other = make_state(0, rows=32)
  del other["training"]["half"]
  with pytest.raises(CheckpointError, match="another model") as e:
    restore(tmp_path, state=other)
  assert "params/model/embed/embedding: found float32[64, 128], expected float32[32, 128]" in str(e.value)
  assert "training/half: found bfloat16[8, 8], expected nothing" in str(e.value)


def test_restores_onto_another_mesh(tmp_path):
  devices = np.array(jax.devices()[:8])
  eight = jax.sharding.NamedSharding(jax.sharding.Mesh(devices, ("data",)), P("data"))
  two = jax.sharding.NamedSharding(jax.sharding.Mesh(devices[4:].reshape(2, 2), ("a", "b")), P("b", "a"))
  value = np.arange(64 * 16, dtype=np.float32).reshape(64, 16)
  with Checkpoints(tmp_path, CheckpointConfig()) as c:
    c.save(1, {"params": {"w": jax.device_put(value, eight)}}, {})
    for sharding in (two, eight, jax.sharding.SingleDeviceSharding(devices[3])):
      w = c.restore(abstract({"params": {"w": value}}, sharding))[1]["params"]["w"]
      assert w.sharding == sharding
      np.testing.assert_array_equal(w, value)


def test_failed_background_save_is_told_at_the_next(tmp_path):
  with Checkpoints(tmp_path, CheckpointConfig()) as c:
    c.save(1, make_state(1), {})
    c.restore(abstract(make_state(0)))  # waits
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))  # as a full disk: the arrays do not fit
    try:
      c.save(2, make_state(2), {})
      c._pending[1].exception(timeout=60)
    finally:
      resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with pytest.raises(CheckpointError, match=r"step 2 could not be written: .*too large.*untouched \(steps \[1\]\)"):
      c.save(3, make_state(3), {"at": 3})
  assert restore(tmp_path)[2] == {"at": 3}  # the save that told was written all the same
  assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "3"]


def test_failure_is_told_at_close_and_hides_no_error(tmp_path, monkeypatch, caplog):
  def fail(*_):
    raise OSError(28, "No space left on device")

  monkeypatch.setattr(checkpoint, "_checksums", fail)
  with pytest.raises(CheckpointError, match="step 5 .*No space left"):
    with Checkpoints(tmp_path / "a", CheckpointConfig()) as c:
      c.save(5, make_state(1), {})
  with pytest.raises(KeyError, match="of training"), caplog.at_level(logging.WARNING):
    with Checkpoints(tmp_path / "b", CheckpointConfig()) as c:
      c.save(6, make_state(1), {})
      raise KeyError("of training")
  assert "step 6" in caplog.text


def test_save_that_cannot_start_is_a_checkpoint_error(tmp_path):
  (tmp_path / "file").write_text("")
  with Checkpoints(tmp_path / "file" / "run", CheckpointConfig()) as c:
    with pytest.raises(CheckpointError, match="step 1 could not be written"):
      c.save(1, make_state(1), {})
    with pytest.raises(TypeError, match="tree params/w: expected a jax.Array, found float"):
      c.save(1, {"params": {"w": 1.0}}, {})
    with pytest.raises(TypeError, match="extra: .*JSON"):
      c.save(1, make_state(1), {"loss": np.float32(1)})


KILLED = """
import os, pathlib, signal, sys
import jax
from ebt_jax.checkpoint import Checkpoints
from ebt_jax.config import CheckpointConfig
folder = pathlib.Path(sys.argv[1])
c = Checkpoints(folder, CheckpointConfig())
state = {"params": {"w": jax.random.bits(jax.random.key(1), (5_000_000,))}}
c.save(1, state, {})
c.save(2, state, {})
while not (left := list(folder.glob("2.*/*.*tmp*"))):
  pass
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_during_save_leaves_the_one_before(tmp_path, caplog):
  env = os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
  done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env=env, check=False, timeout=60)
  assert done.returncode == -signal.SIGKILL
  left = [p.name for p in tmp_path.iterdir() if p.name != "1"]
  assert len(left) == 1 and left[0].startswith("2.")  # killed in the middle
  with Checkpoints(tmp_path, CheckpointConfig()) as c:
    assert c.steps() == [1]
    step, state, _ = c.restore(abstract({"params": {"w": jnp.zeros(5_000_000, jnp.uint32)}}))
    assert step == 1 and not caplog.records
    np.testing.assert_array_equal(state["params"]["w"], jax.random.bits(jax.random.key(1), (5_000_000,)))
    c.save(2, {"params": {"w": jnp.zeros(3)}}, {})
  assert sorted(p.name for p in tmp_path.iterdir()) == ["1", "2"]
