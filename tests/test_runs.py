"""Opening runs, warm starts, more steps for a finished run: through `runs.py` and the command line."""

import json
import os
import re
import shutil
import signal

import jax
import numpy as np
import pytest

import ebt_jax
from ebt_jax import metrics, runs, weights
from ebt_jax.checkpoint import CheckpointError
from ebt_jax.config import ConfigError
from ebt_jax.owner import FILE, Owner
from ebt_jax.use import export
from tests.helpers import quickstart, run, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return write_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
  """The folder of a finished run with a schedule that may go on, and its flags."""
  folder = tmp_path_factory.mktemp("trained") / "run"
  flags = quickstart(f"--config.data.source={corpus}", "--config.train.steps=4", "--config.train.schedule=constant",
                     kind="transformer")  # fmt: skip
  assert run([*flags, f"--workdir={folder}"]).code == 0
  return folder, flags


def leaves(params):
  return {jax.tree_util.keystr(p): np.asarray(a) for p, a in jax.tree_util.tree_leaves_with_path(params)}


def test_a_run_opens_without_its_optimiser(trained, tmp_path):
  folder, _ = trained
  there = runs.open_run(folder)
  assert there.step == 4 and there.config.model.vocab_size == 257 and there.task.problem.item == "token"
  copy = tmp_path / "copy"
  shutil.copytree(folder, copy)
  for path in (copy / "checkpoints/4/training").rglob("*"):
    if path.is_file():
      path.write_bytes(b"broken")
  again = runs.open_run(copy)
  assert {k: v.tobytes() for k, v in leaves(again.params).items()} == {
    k: v.tobytes() for k, v in leaves(there.params).items()
  }
  with pytest.raises(ConfigError, match="holds no run"):
    runs.open_run(tmp_path)
  model = ebt_jax.load(folder, settings={"eval.seed": 3})
  assert model.step == 4 and model.config.eval.seed == 3 and model.score("of it").log_likelihood.shape == (5,)


def test_an_exported_run_is_the_run(trained, tmp_path):
  folder, flags = trained
  out = tmp_path / "shared"
  done = run([f"--workdir={folder}", "--mode=export", f"--out={out}"])
  assert done.code == 0 and "model.safetensors" in done.out, done
  names = {p.name for p in out.iterdir()}
  assert names == {"README.md", "config.json", "data.json", "final_result.json", "model.safetensors"}
  card = (out / "README.md").read_text()
  assert "Transformer++" in card and "for 4 steps" in card and "| bits/byte |" in card
  there, shared = runs.open_run(folder), runs.open_run(out)
  assert shared.step == there.step == 4
  assert {k: v.tobytes() for k, v in leaves(shared.params).items()} == {
    k: v.tobytes() for k, v in leaves(there.params).items()
  }
  half = export.export(folder, tmp_path / "half", half=True)
  assert (half / weights.FILE).stat().st_size < 0.6 * (out / weights.FILE).stat().st_size
  for name, leaf in leaves(runs.open_run(half).params).items():
    np.testing.assert_array_equal(leaf, leaves(there.params)[name].astype(np.float16).astype(np.float32))
  score = "of it"
  assert (
    ebt_jax.load(out).score(score).log_likelihood.tolist() == ebt_jax.load(folder).score(score).log_likelihood.tolist()
  )
  for command, said in (
    ([f"--workdir={out}", *flags], f"is an exported model.*--config.init_from={out}"),
    ([f"--workdir={folder}", "--mode=export", f"--out={out}"], f"--out: {out} exists already"),
    ([f"--workdir={out}", "--mode=eval", "--checkpoint_step=2"], "was exported at step 4, and has no step 2"),
    ([f"--workdir={folder}", "--mode=export"], "--out: mode export needs"),
  ):
    done = run(command)
    assert done.code == 2 and re.search(said, done.err), done


def test_damaged_weights_are_named(trained, tmp_path):
  out = export.export(trained[0], tmp_path / "shared")
  whole = (out / weights.FILE).read_bytes()
  for damaged, said in (
    (whole[: len(whole) // 2], "cannot be read"),
    (whole[:-1] + bytes([whole[-1] ^ 1]), "its content has changed"),
    (b"", "cannot be read"),
  ):
    (out / weights.FILE).write_bytes(damaged)
    with pytest.raises(CheckpointError, match=f"{weights.FILE}: {said}.*export the run again"):
      runs.open_run(out)
  (out / weights.FILE).write_bytes(whole)
  config = json.loads((out / "config.json").read_text())
  config["model"] |= {"width": 2 * config["model"]["width"]}
  (out / "config.json").write_text(json.dumps(config))
  with pytest.raises(CheckpointError, match=r"(?s)of another model.*embedding: found float32\[257, .*expected float32"):
    runs.open_run(out)


def test_a_finished_run_goes_on_as_if_it_had_never_ended(trained, corpus, tmp_path):
  folder, flags = trained
  whole, more = tmp_path / "whole", tmp_path / "more"
  shutil.copytree(folder, more)
  six = [*flags, "--config.train.steps=6"]
  assert run([*six, f"--workdir={whole}"]).code == 0
  done = run([*six, f"--workdir={more}"])
  assert done.code == 0 and "resuming from step 4" in done.out, done.err
  for k, v in leaves(runs.open_run(whole).params).items():
    np.testing.assert_array_equal(leaves(runs.open_run(more).params)[k], v)
  first, last = (json.loads((more / n).read_text()) for n in ("final_result_step4.json", "final_result.json"))
  assert (first["steps"], last["steps"]) == (4, 6) and last["items"] > first["items"] > 0
  for name in ("sample_step4.json", "sample.json"):
    ids = [token["id"] for token in json.loads((more / name).read_text())["tokens"]]
    assert len(ids) == 6 or ids[-1] == 256  # or it ended by itself
  assert json.loads((more / "config_until_step4.json").read_text())["train"]["steps"] == 4
  fewer = run([*flags, "--config.train.steps=2", f"--workdir={more}"])
  assert fewer.code == 2 and "holds a finished run of 6 steps, more than 2" in fewer.err


def test_a_warm_start_takes_what_fits_and_names_what_does_not(trained, corpus, tmp_path):
  folder, flags = trained
  warm = [
    *flags,
    f"--config.init_from={folder}",
    "--config.train.learning_rate=1e-12",
    "--config.train.weight_decay=0.0",
  ]
  done = run([*warm, f"--workdir={tmp_path}/warm"])
  assert done.code == 0, done.err
  before, after = leaves(runs.open_run(folder).params), leaves(runs.open_run(tmp_path / "warm").params)
  for k in before:
    np.testing.assert_allclose(after[k], before[k], atol=1e-6)

  wider = run([*warm, "--config.model.ffn_multiplier=2.0", f"--workdir={tmp_path}/wider"])
  assert wider.code == 2 and "model/layers/ffn/up/kernel: [1, 16, 16] there, expected [1, 16, 32]" in wider.err
  assert "config.init_skip=" in wider.err and not (tmp_path / "wider/config.json").exists()
  skip = ["--config.model.ffn_multiplier=2.0", "--config.init_skip=model/layers/ffn"]
  assert run([*warm, *skip, f"--workdir={tmp_path}/skip"]).code == 0
  mixed = leaves(runs.open_run(tmp_path / "skip").params)
  np.testing.assert_allclose(
    mixed["['model']['embed']['embedding']"], before["['model']['embed']['embedding']"], atol=1e-6
  )

  ebt = quickstart(f"--config.data.source={corpus}", f"--config.init_from={folder}", f"--workdir={tmp_path}/ebt")
  done = run(ebt)
  assert done.code == 2 and "model/output/kernel: [16, 257] there, not in this model" in done.err
  assert "model/head/kernel: missing there, expected [16, 1] here" in done.err
  wrong = run([*warm, "--config.init_skip=model/layer", f"--workdir={tmp_path}/wrong"])
  assert wrong.code == 2 and "config.init_skip: no parameter 'model/layer'; did you mean" in wrong.err


def test_several_held_out_sets(corpus, tmp_path):
  other = tmp_path / "other.txt"
  other.write_text("a text of another kind, long enough to fill more than one window of it\n" * 3, encoding="utf-8")
  flags = quickstart(f"--config.data.source={corpus}", f"--config.data.held_out_sources=other={other}; same={corpus}",
                     f"--workdir={tmp_path}/run", "--config.eval.every=3", kind="transformer")  # fmt: skip
  done = run(flags)
  assert done.code == 0, done.err
  result = json.loads((tmp_path / "run/final_result.json").read_text())
  assert set(result["evals"]) == {"other", "same"} and result["eval"]["loss"] > 0
  rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
  last = [r for r in rows if "eval/loss" in r][-1]
  assert last["eval/other/bits_per_byte"] == pytest.approx(result["evals"]["other"]["bits_per_byte"])
  assert last["progress/items"] == result["items"] and last["progress/flops"] == result["flops"]
  assert "step 3  other " in done.out and "\nother, " in done.out


def test_a_folder_that_another_process_trains_in_is_refused(corpus, tmp_path):
  flags = quickstart(f"--config.data.source={corpus}", f"--workdir={tmp_path}/run", kind="transformer")
  with Owner(tmp_path / "run"):
    done = run(flags)
    assert done.code == 2 and done.err.count("\n") == 1, done.err
    assert f"error: --workdir: {tmp_path}/run is written by process {os.getpid()} on " in done.err
    assert [p.name for p in (tmp_path / "run").iterdir()] == [FILE]


# Kills before a step; the first checkpoint is of step 2.
DIES = """
import os, signal
from ebt_jax.data.loader import Loader
batch = Loader.batch
def patched(self, step, rows=None):
  if step + 1 == {step}:
    os.kill(os.getpid(), signal.SIGKILL)
  return batch(self, step, rows)
Loader.batch = patched
"""


def test_checkpoints_that_were_saved_and_are_gone_are_missed(trained, corpus, tmp_path):
  folder, flags = trained
  lost = tmp_path / "lost"
  shutil.copytree(folder, lost)
  shutil.rmtree(lost / "checkpoints")
  for name in ("final_result.json", None):  # of a finished run that is given more steps, and of one that is not
    before = {p: p.read_bytes() for p in lost.rglob("*") if p.is_file()}
    steps = 6 if name else 4
    done = run([*flags, f"--config.train.steps={steps}", f"--workdir={lost}"])
    assert done.code == 2 and f"{lost}/checkpoints: no checkpoint, but this run has saved some" in done.err, done
    assert {p: p.read_bytes() for p in lost.rglob("*") if p.is_file()} == before
    assert not (lost / "checkpoints").exists()  # else `mv` would put them inside
    (lost / (name or runs.SAVED)).unlink()
  rows = metrics.read_rows(lost / metrics.FILE)
  done = run([*flags, f"--workdir={lost}"])  # as told
  assert done.code == 0 and "has rows up to step 4, but there is no checkpoint" in done.err, done
  assert "the old rows are kept as metrics.old.jsonl" in done.err
  assert metrics.read_rows(lost / "metrics.old.jsonl") == rows
  assert (lost / "tensorboard.old").is_dir() and json.loads((lost / runs.SAVED).read_text()) == {"step": 4}


def test_a_run_killed_before_its_first_checkpoint_starts_again(corpus, tmp_path):
  folder = tmp_path / "run"
  flags = quickstart(f"--config.data.source={corpus}", f"--workdir={folder}", "--config.checkpoint.every=0",
                     kind="transformer")  # fmt: skip
  assert run(flags, DIES.format(step=4)).code == -signal.SIGKILL
  kept = (folder / metrics.FILE).read_text()
  assert kept and run(flags).code == 0
  assert (folder / "metrics.old.jsonl").read_text() == kept


def test_a_run_is_not_evaluated_as_one_of_fewer_steps(trained, corpus, tmp_path):
  """One that was given more steps, and killed on the way."""
  folder, flags = trained
  more = tmp_path / "more"
  shutil.copytree(folder, more)
  longer = [*flags, f"--workdir={more}", "--config.train.steps=9", "--config.checkpoint.every=1"]
  done = run(longer, DIES.format(step=8))
  assert done.code == -signal.SIGKILL and not (more / "final_result.json").exists()
  done = run([*flags, f"--workdir={more}"])
  assert done.code == 2 and "has been trained to step" in done.err and "more than 4; give more steps" in done.err
  assert (more / "final_result_step4.json").exists() and not (more / "final_result.json").exists()


def test_rows_that_are_lost_are_missed(trained, corpus, tmp_path):
  folder, flags = trained
  more = tmp_path / "more"
  shutil.copytree(folder, more)
  lines = (more / metrics.FILE).read_text().splitlines(keepends=True)
  (more / metrics.FILE).write_text("".join(lines[:2]))
  done = run([*flags, f"--workdir={more}", "--config.train.steps=5"])
  assert done.code == 0 and f"metrics.jsonl: 2 rows up to step 4, but there were {len(lines) - 1}" in done.err, done


def test_the_result_names_this_program(trained, monkeypatch, tmp_path):
  folder, _ = trained
  assert json.loads((folder / "final_result.json").read_text())["versions"]["ebt_jax"] == ebt_jax.__version__
  commit = runs._git()
  monkeypatch.setenv("GIT_DIR", str(tmp_path))  # as in a hook of another repository
  assert runs._git() == commit


def test_evaluations_of_other_settings_are_kept(trained, tmp_path):
  folder, _ = trained
  copy = tmp_path / "run"
  shutil.copytree(folder, copy)
  for windows, files in ((4, 1), (4, 1), (2, 2)):
    done = run([f"--workdir={copy}", "--mode=eval", "--set", f"eval.max_windows={windows}"])
    assert done.code == 0 and ("of other settings that was there is kept as" in done.out) == (files == 2), done
    found = [json.loads(p.read_text()) for p in sorted(copy.glob("eval_*.json"))]
    assert sorted(f["settings"]["eval"]["max_windows"] for f in found) == sorted({4, windows})
    assert len(found) == files and all(f["examples"] == f["settings"]["eval"]["max_windows"] for f in found)
