"""Mirrors of runs on an object store, an fsspec one of this machine: whole, read back, and what another machine goes on
from."""

import importlib.util
import json
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebt_jax
from ebt_jax import files, remote
from ebt_jax.checkpoint import Checkpoints
from ebt_jax.config import CheckpointConfig, Config, ConfigError, set_keys
from ebt_jax.remote import Mirror, RemoteError
from tests import bucket
from tests.helpers import quickstart, run, write_corpus

ADDRESS, KEEP = "s3://b/runs/a", CheckpointConfig(keep=2, keep_every=4)
# ends the run without a word before the batch of step 6; the mirror has got step 4
KILL = """
import os, pathlib, signal, time
from tests import bucket
bucket.use({store!r})
from ebt_jax.data.loader import Loader
batch = Loader.batch
def patched(self, step, rows=None):
  if step + 1 == 6:
    while not pathlib.Path({store!r}, "b/runs/a/checkpoints/4/checksums.json").exists():
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)
  return batch(self, step, rows)
Loader.batch = patched
"""
USE = "from tests import bucket; bucket.use({store!r})"


@pytest.fixture
def store(tmp_path, monkeypatch):
  """The folder of the store; copies are in another."""
  monkeypatch.setenv(bucket.ROOT, "")  # is put back
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
  bucket.use(tmp_path / "store")
  return tmp_path / "store"


def trained(folder: pathlib.Path, steps, *keys: str) -> pathlib.Path:
  """A folder that looks like a run's, with real checkpoints."""
  folder.mkdir(exist_ok=True)
  files.write_json(folder / "config.json", set_keys(Config(), keys).to_dict())
  (folder / "metrics.jsonl").write_text('{"step": 1}\n')
  with Checkpoints(folder / "checkpoints", CheckpointConfig(keep=9)) as checkpoints:
    for n in steps:
      checkpoints.save(n, {"params": {"a": jnp.full(5, float(n))}, "training": {"b": jnp.arange(9)}}, {"at": n})
  return folder


def there(store: pathlib.Path) -> list[str]:
  return sorted(p.name for p in (store / "b/runs/a/checkpoints").iterdir())


def test_another_machine_goes_on_and_ends_as_a_run_that_never_left(store, tmp_path):
  corpus = write_corpus(tmp_path)
  flags = quickstart(f"--config.data.source={corpus}", "--config.eval.max_windows=6", kind="transformer")
  assert run([*flags, f"--workdir={tmp_path}/whole"]).code == 0
  mirrored = [*flags, f"--mirror={ADDRESS}"]
  killed = run([*mirrored, f"--workdir={tmp_path}/first"], KILL.format(store=str(store)))
  assert killed.code == -9
  shutil.rmtree(tmp_path / "first")
  again = run([*mirrored, f"--workdir={tmp_path}/second"], USE.format(store=str(store)))
  assert again.code == 0 and f"fetched step 4 from {ADDRESS}\n" in again.out, again.err
  assert "resuming from step 4" in again.out and not again.err
  whole, here, copy = (ebt_jax.load(where) for where in (tmp_path / "whole", tmp_path / "second", ADDRESS))
  for other in (here, copy):
    jax.tree.map(np.testing.assert_array_equal, whole._run.params, other._run.params)
  assert whole.step == copy.step == 6 and ebt_jax.load(ADDRESS, step=4).step == 4
  results = [json.loads((path / "final_result.json").read_text()) for path in (tmp_path / "whole", store / "b/runs/a")]
  assert results[0]["eval"] == results[1]["eval"] and there(store) == ["4", "6"]
  # a finished run sends what is missing, a copy holds no optimiser, and a store is started from and asked
  shutil.rmtree(store / "b/runs/a/checkpoints/6")
  assert run([*mirrored, f"--workdir={tmp_path}/second"], USE.format(store=str(store))).code == 0
  assert there(store) == ["4", "6"]
  (copied,) = (tmp_path / "cache/ebt_jax/runs").iterdir()
  assert not (copied / "checkpoints/4/training").exists() and not (copied / "checkpoints/6").exists()
  asked = [f"--model={ADDRESS}", "--mode=generate", "--prompt=the", "--max_tokens=2", f"--out={tmp_path}/a.json"]
  assert run(asked, USE.format(store=str(store)), XDG_CACHE_HOME=str(tmp_path / "cache")).code == 0
  warm = [*flags, f"--config.init_from={ADDRESS}", "--config.train.steps=2", f"--workdir={tmp_path}/warm"]
  done = run(warm, USE.format(store=str(store)), XDG_CACHE_HOME=str(tmp_path / "cache"))
  assert done.code == 0, done.err


def test_the_newest_and_those_to_keep_stay_and_nothing_counts_before_its_seal(store, tmp_path, caplog, monkeypatch):
  folder = trained(tmp_path / "run", [1, 3, 4, 5, 6, 7])
  (folder / "wandb/run").mkdir(parents=True)  # a tracker's own
  (folder / "owner.json").write_text("{}")
  mirror = Mirror(ADDRESS, folder, KEEP)
  assert mirror.begin() == ""
  for n in (1, 3, 4, 5, 6):
    mirror.send(n)
  assert there(store) == ["4", "5", "6"] and not caplog.text
  push = remote._push

  def torn(here, there, expected):
    if "training" in str(here):
      shutil.copy(here, tmp_path / "torn")
      with open(tmp_path / "torn", "ab") as f:
        f.write(b"x")
      here = tmp_path / "torn"
    push(here, there, expected)

  monkeypatch.setattr(remote, "_push", torn)
  mirror.send(7)
  assert "step 7: s3://b/runs/a/checkpoints/7/training" in caplog.text and "cannot be read back" in caplog.text
  assert remote.folder_of(ADDRESS).joinpath("checkpoints/6").exists()  # the newest that is whole
  with pytest.raises(RemoteError, match="cannot be read back.*; .*run is whole, and the same command sends it again"):
    mirror.finish()
  monkeypatch.undo()
  bucket.use(store)
  mirror.finish()
  assert sorted(p.name for p in (store / "b/runs/a").iterdir()) == ["checkpoints", "config.json", "metrics.jsonl"]
  part = (
    tmp_path / "fresh/checkpoints/7" / next(iter(json.loads((folder / "checkpoints/7/checksums.json").read_text())))
  )
  part.parent.mkdir(parents=True)
  part.touch()  # fetched in part, and killed
  fresh = Mirror(ADDRESS, tmp_path / "fresh", KEEP)
  assert fresh.begin() == f"fetched step 7 from {ADDRESS}"
  for name in ("metrics.jsonl", "checkpoints/7/checksums.json"):
    assert (tmp_path / "fresh" / name).read_bytes() == (folder / name).read_bytes()
  with Checkpoints(tmp_path / "fresh/checkpoints", KEEP) as checkpoints:
    abstract = {"params": {"a": jax.ShapeDtypeStruct((5,), jnp.float32)}}
    assert checkpoints.restore(abstract)[1]["params"]["a"].tolist() == [7.0] * 5


def test_a_changed_file_is_noticed_when_it_is_fetched(store, tmp_path):
  mirror = Mirror(ADDRESS, trained(tmp_path / "run", [2]), KEEP)
  mirror.send(2)
  path = next(p for p in sorted((store / "b/runs/a/checkpoints/2/params").rglob("*")) if p.is_file())
  path.write_bytes(path.read_bytes()[:-1] + b"?")
  with pytest.raises(RemoteError, match=r"s3://b/runs/a/checkpoints/2/params.*: has changed since it was sent"):
    remote.folder_of(ADDRESS)


def test_other_runs_and_other_machines_are_refused(store, tmp_path, caplog):
  folder = trained(tmp_path / "run", [2, 4])
  mirror = Mirror(ADDRESS, folder, KEEP)
  mirror.send(4)
  other = Mirror(ADDRESS, trained(tmp_path / "other", [2], "seed=1"), KEEP)
  with pytest.raises(ConfigError, match=rf"--mirror: {ADDRESS} holds another run than .*\n  seed: 0 -> 1"):
    other.begin()
  behind = Mirror(ADDRESS, trained(tmp_path / "behind", [2]), KEEP)
  with pytest.raises(ConfigError, match="is at step 4, and .*behind at step 2; give an empty --workdir"):
    behind.begin()
  behind.send(2)
  assert "is at step 4, later than 2: another run writes there" in caplog.text and there(store) == ["4"]


def test_what_cannot_be_reached_is_named(store, tmp_path):
  for address, words in [
    ("s3://b/none", "s3://b/none: holds no run .*give the address"),
    ("gs://b/run", r"gs://b/run: cannot be reached \(.*\); run `pip install gcsfs`"),
  ]:
    if address.startswith("gs") and not missing("gcsfs"):
      continue
    with pytest.raises(RemoteError, match=words):
      ebt_jax.load(address)
    done = run([f"--model={address}", "--mode=generate", "--prompt=a"], USE.format(store=str(store)))
    assert done.code == 2 and done.err.startswith(f"error: --model: {address}: "), done.err
  done = run([*quickstart(), f"--workdir={ADDRESS}"])
  assert done.code == 2 and f"--workdir: {ADDRESS} is a remote path" in done.err and "--mirror" in done.err
  trained(tmp_path / "run", [2])
  Mirror(ADDRESS, tmp_path / "run", KEEP).send(2)
  with pytest.raises(RemoteError, match=r"no checkpoint of step 3; found steps \[2\]"):
    remote.folder_of(ADDRESS, 3)


def missing(package: str) -> bool:
  return importlib.util.find_spec(package) is None
