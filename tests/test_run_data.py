"""A run knows what it was trained on: its tokenizer, its data, and where they were."""

import json
import shutil

import jax
import numpy as np
import pytest

from ebt_jax import runs
from ebt_jax.config import ConfigError, resolve
from ebt_jax.data.tokenizers import fingerprint_of
from ebt_jax.tasks.base import Kept
from ebt_jax.tasks.text import TextProblem
from tests.helpers import quickstart, run, write_corpus


def write_tokenizer(path, text):
  """A byte-level BPE of 270 tokens whose ids depend on the text."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  alphabet = pre_tokenizers.ByteLevel.alphabet()
  trainer = trainers.BpeTrainer(
    vocab_size=270, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
  )
  backend.train_from_iterator([text] * 20, trainer)
  backend.save(str(path))


FLAGS = quickstart("--config.data.source=corpus.jsonl", "--config.data.tokenizer=t.json", "--config.train.steps=4",
                   "--config.train.schedule=constant", kind="transformer")  # fmt: skip
MORE = [*FLAGS, "--config.train.steps=6", "--workdir=run"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """A folder with a corpus, two tokenizers and a run, all named by relative paths."""
  place = tmp_path_factory.mktemp("place")
  write_corpus(place)
  write_tokenizer(place / "t.json", "the state of our union and its people")
  write_tokenizer(place / "other.json", "energy model thinks about every next word then descends" * 3)
  done = run([*FLAGS, "--workdir=run"], cwd=place)
  assert done.code == 0, done.err
  return place


@pytest.fixture
def place(trained, tmp_path):
  """A copy to change: of the run, and of what it was trained on."""
  return shutil.copytree(trained, tmp_path / "place")


def params(folder):
  tree = runs.open_run(folder).params
  return {jax.tree_util.keystr(p): np.asarray(a) for p, a in jax.tree_util.tree_leaves_with_path(tree)}


def test_another_tokenizer_of_the_same_size_changes_nothing(place, tmp_path):
  shutil.copytree(place, tmp_path / "plain")
  assert run(MORE, cwd=tmp_path / "plain").code == 0
  shutil.copy(place / "other.json", place / "t.json")
  done = run(MORE, cwd=place)
  assert done.code == 0 and "resuming from step 4" in done.out
  assert (
    "t.json is not the tokenizer that run was trained with" in done.err and "run/tokenizer.json, is used" in done.err
  )
  theirs = params(tmp_path / "plain/run")
  for name, ours in params(place / "run").items():
    np.testing.assert_array_equal(ours, theirs[name])
  results = []
  for folder in (place, tmp_path / "plain"):
    done = run(["--workdir=run", "--mode=eval"], cwd=folder)
    assert done.code == 0 and ("is not the tokenizer" in done.err) == (folder == place)
    assert "data are not those" not in done.err
    (found,) = (folder / "run").glob("eval_held_out_*.json")
    results.append(json.loads(found.read_text()))
  assert results[0] == results[1]
  # asking for it is refused, in every mode
  for mode in (["--mode=eval"], ["--mode=generate", "--prompt=the"]):
    done = run(["--workdir=run", *mode, "--set", "data.tokenizer=other.json"], cwd=place)
    assert done.code == 2 and "config.data.tokenizer: " in done.err and "was trained with t.json" in done.err
  assert run(["--workdir=run", "--mode=eval", "--set", "data.tokenizer=bytes"], cwd=place).code == 2


def test_a_run_is_used_from_anywhere_and_without_what_it_does_not_need(trained, place, tmp_path):
  elsewhere = tmp_path / "elsewhere"
  elsewhere.mkdir()
  (elsewhere / "corpus.jsonl").write_text('{"text": "another text of the same name"}\n' * 20)
  done = run([f"--workdir={place}/run", "--mode=eval"], cwd=elsewhere)
  assert done.code == 0 and "data are not those" not in done.err, done.err
  record = place / "run/data.json"
  record.write_text(record.read_text().replace(str(trained), "/nowhere"))
  (place / "t.json").unlink()
  (place / "corpus.jsonl").rename(elsewhere / "moved.jsonl")
  (elsewhere / "corpus.jsonl").unlink()
  write = [f"--workdir={place}/run", "--mode=generate", "--prompt=the state", "--max_tokens=3"]
  done = run(write, cwd=elsewhere)
  assert done.code == 0 and not done.err, done.err
  done = run([f"--workdir={place}/run", "--mode=eval"], cwd=elsewhere)
  assert done.code == 2 and "no file or folder 'corpus.jsonl'" in done.err
  assert f"searched too: {place}; give --set data.source=PATH" in done.err
  # what the message says leads on
  moved = ["--set", "data.source=moved.jsonl"]
  assert "checkpoint 4" in run([f"--workdir={place}/run", "--mode=eval", *moved], cwd=elsewhere).out
  # under another name in the corpus ids would differ, and with them what is held out
  done = run([f"--workdir={place}/run", "--mode=eval", *moved], cwd=elsewhere)
  assert "the data are not those that" in done.err
  (elsewhere / "corpus").mkdir()
  (elsewhere / "moved.jsonl").rename(elsewhere / "corpus/corpus.jsonl")
  done = run([*MORE, f"--workdir={place}/run", "--set", "data.source=corpus/corpus.jsonl"], cwd=elsewhere)
  assert done.code == 0 and "resuming from step 4" in done.out, done.err


def test_other_data_are_refused_and_the_message_leads_on(place):
  with open(place / "corpus.jsonl", "a") as f:
    f.write('{"text": "one document more"}\n')
  done = run(MORE, cwd=place)
  assert done.code == 2 and "config.data: run was trained on other data (then -> now: train documents: " in done.err
  assert "Traceback" not in done.err
  done = run(["--workdir=run", "--mode=eval"], cwd=place)
  assert done.code == 0 and "the data are not those that run was trained on" in done.err
  done = run([*FLAGS, "--workdir=new", "--config.init_from=run"], cwd=place)
  assert done.code == 0, done.err
  done = run([*FLAGS, "--workdir=third", "--config.init_from=run", "--config.data.tokenizer=other.json"], cwd=place)
  assert done.code == 0 and "run was trained with another tokenizer.json" in done.err


def test_a_run_that_failed_before_it_saved_anything_holds_neither_config_nor_data(place):
  for entry in (place / "run").iterdir():
    if entry.name not in ("config.json", "data.json", "tokenizer.json"):
      shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
  with open(place / "corpus.jsonl", "a") as f:
    f.write('{"text": "one document more"}\n')
  done = run([*MORE, "--config.data.tokenizer=other.json", "--config.train.learning_rate=0.002"], cwd=place)
  assert done.code == 0, done.err
  assert (place / "run/tokenizer.json").read_bytes() == (place / "other.json").read_bytes()


def test_any_other_tokenizer_is_noticed(tmp_path, monkeypatch, caplog):
  """Whichever of the two fingerprints is the larger."""
  monkeypatch.chdir(tmp_path)
  (tmp_path / "run").mkdir()
  write_tokenizer(tmp_path / "run/tokenizer.json", "the state of our union")
  own, config = fingerprint_of("run/tokenizer.json"), resolve({"data": {"tokenizer": "t.json"}})
  kept = Kept(tmp_path / "run", config, (tmp_path,), fingerprint={"tokenizer": own})
  others = []
  for word in ("people", "energy", "model", "thinks", "about", "every", "next", "word"):
    write_tokenizer(tmp_path / f"{word}.json", word)
    others.append((fingerprint_of(f"{word}.json"), tmp_path / f"{word}.json"))
  (least, first), *_, (most, last) = sorted(others)
  assert least < own < most
  for path in (first, last):
    shutil.copy(path, "t.json")
    caplog.clear()
    assert TextProblem(config, kept).load_tokenizer().fingerprint == own
    assert "t.json is not the tokenizer that" in caplog.text
  (tmp_path / "run/tokenizer.json").unlink()
  for path in (first, last):
    shutil.copy(path, "t.json")
    with pytest.raises(ConfigError, match="run/tokenizer.json is missing and"):
      TextProblem(config, kept).load_tokenizer()


def test_a_damaged_copy_and_a_run_of_an_older_version(place):
  shutil.copy(place / "other.json", place / "run/tokenizer.json")
  write = ["--workdir=run", "--mode=generate", "--prompt=the", "--max_tokens=2"]
  done = run(write, cwd=place)
  assert done.code == 2 and "run/tokenizer.json has changed since training: expected SHA-256" in done.err
  (place / "run/tokenizer.json").unlink()
  assert run(write, cwd=place).code == 0  # the file that the config names is the right one
  shutil.copy(place / "other.json", place / "t.json")
  done = run(write, cwd=place)
  assert done.code == 2 and "run/tokenizer.json is missing and" in done.err
  (place / "run/data.json").unlink()
  for arguments in (write, ["--workdir=run", "--mode=eval"], MORE):
    done = run(arguments, cwd=place)
    assert done.code == 0 and not done.err, done.err
  assert json.loads((place / "run/data.json").read_text())["files"].keys() == {"tokenizer.json"}


def test_a_task_without_files_or_fingerprint(tmp_path):
  flags = ["--config=experiments/own_task/sudoku.py", "--config.train.steps=2", "--config.train.batch_size=4",
           "--config.train.schedule=constant", "--config.model.width=8", "--config.model.layers=1",
           "--config.eval.max_windows=4", f"--workdir={tmp_path}/run"]  # fmt: skip
  assert run(flags).code == 0
  assert json.loads((tmp_path / "run/data.json").read_text())["fingerprint"] == {}
  done = run([*flags, "--config.train.steps=3"])
  assert done.code == 0 and "resuming from step 2" in done.out, done.err
  assert run(["--mode=eval", f"--workdir={tmp_path}/run"]).code == 0
