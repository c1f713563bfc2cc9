"""The models that come with the package: small, whole, and the same from every door."""

import json
import os
import re

import numpy as np
import pytest

import ebt_jax
from ebt_jax import files, runs, weights
from ebt_jax.config import ConfigError, differences, resolve
from ebt_jax.sweep import read_config
from ebt_jax.tasks import registry
from ebt_jax.use import bundled
from tests.helpers import REPOSITORY, run

NAMES = ("bundled", "bundled/transformer")


@pytest.fixture(scope="module")
def model():
  return ebt_jax.load("bundled")


def test_they_are_small_and_what_their_card_says():
  assert tuple(bundled.names()) == NAMES
  whole = (bundled.FOLDER / "README.md").read_text(encoding="utf-8")
  sizes = {}
  for name in NAMES:
    folder = bundled.folder_of(name)
    sizes[name] = sum(p.stat().st_size for p in folder.iterdir())
    card = (folder / "README.md").read_text(encoding="utf-8")
    digest, result = weights.digest(folder), files.read_json(folder / "final_result.json", "a result", "")
    assert digest in card and digest in whole  # `load` compares it with the numbers
    for text in (f"{result['eval']['bits_per_byte']:.4f}", f"{result['params']:,}"):
      assert text in card and text in whole
    places = json.loads((folder / "data.json").read_text())
    assert (places["place"], places["absolute_place"]) == (".", ".")  # nothing of the machine that trained it
  assert sum(sizes.values()) < 3e6


@pytest.mark.parametrize("name", NAMES)
def test_they_were_trained_by_the_config_and_on_the_text_that_are_here(name):
  folder = bundled.folder_of(name)
  asked = read_config(f"{REPOSITORY}/configs/bundled.py:{name.partition('/')[2]}".rstrip(":"))
  task = registry.make(resolve(asked))
  assert differences(runs.config_of(folder), task.config) == []
  assert runs.config_of(folder).data == task.config.data
  result = files.read_json(folder / "final_result.json", "a result", "")
  assert result["git"] == "" and result["steps"] == task.config.train.steps
  if name == NAMES[0]:  # both have the same data
    assert files.read_json(folder / "data.json", "data", "")["fingerprint"] == task.problem.data().fingerprint
  other = files.read_json(bundled.folder_of(NAMES[0]) / "data.json", "data", "")
  assert files.read_json(folder / "data.json", "data", "") == other


def test_both_answer_and_the_energy_of_the_ebt_tells_words_from_noise(model):
  rival = ebt_jax.load("bundled/transformer")
  text = "The people of the United States have a Government of laws"
  for one in (model, rival):
    assert one.score(text).bits_per_byte < 2.5
    assert one.config.model.layers == 3 and one.config.data == model.config.data
  right, wrong = (np.mean(model.energy("The Congress of the ", word)) for word in ("United", "qzxwvk"))
  assert right < wrong


def test_a_fresh_process_in_another_folder_gives_the_same(model, tmp_path):
  before = {p: p.stat().st_mtime_ns for p in bundled.FOLDER.rglob("*")}
  out = tmp_path / "out.json"
  flags = ["--model=bundled", "--mode=generate", "--prompt=The people of", "--max_tokens=12", f"--out={out}"]
  done = run([*flags, "--seed=3"], cwd=tmp_path)
  assert done.code == 0, done.err
  (there,) = json.loads(out.read_text())
  here = model.generate("The people of", 12, temperature=0.8, seed=3)
  assert there["text"] == here.text
  assert [t["energy"] for t in there["tokens"]] == [t.energy for t in here.tokens]  # to the bit
  assert {p: p.stat().st_mtime_ns for p in bundled.FOLDER.rglob("*")} == before and os.listdir(tmp_path) == ["out.json"]


def test_bad_names_are_told_what_there_is(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  for name, said in (("bundled/gpt", "no such model comes with the package"), ("bundeld", "the folder holds no run")):
    with pytest.raises(ConfigError, match=rf"{name}: {said}.*one of bundled, bundled/transformer"):
      ebt_jax.load(name)
    done = run([f"--model={name}", "--mode=generate", "--prompt=a"], cwd=tmp_path)
    assert done.code == 2 and re.match(rf"error: --model: {name}: {said}.*bundled/transformer", done.err)
  done = run(["--model=bundled", "--workdir=x", "--mode=eval"], cwd=tmp_path)
  assert done.code == 2 and "give one of them" in done.err


def test_a_half_written_export_is_named(tmp_path):
  source, folder = bundled.folder_of("bundled"), tmp_path / "part"
  folder.mkdir()
  for path in source.iterdir():
    content = path.read_bytes()
    (folder / path.name).write_bytes(content[: len(content) // 2] if path.name == weights.FILE else content)
  with pytest.raises(weights.CheckpointError, match=r"part/model.safetensors: cannot be read .*export the run again"):
    ebt_jax.load(folder)
  (folder / weights.FILE).unlink()
  with pytest.raises(weights.CheckpointError, match="no checkpoint"):
    ebt_jax.load(folder)
  (folder / "config.json").unlink()
  with pytest.raises(ConfigError, match="the folder holds no run"):
    ebt_jax.load(folder)
