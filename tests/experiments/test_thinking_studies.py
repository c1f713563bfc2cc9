"""Every study of thinking, from tiny checkpoints to table, JSON and figure."""

import json
import shutil
import sys

import pytest

from ebt_jax.config import ConfigError
from experiments.thinking import (
  ablation,
  common,
  controls,
  landscape,
  later,
  longer,
  recipes,
  shift,
  train,
  uncertainty,
  verification,
  verifier,
)
from tests.helpers import REPOSITORY, TINY, run

SMALL = (*TINY, "--config.train.steps=4", "--config.checkpoint.keep_every=2", "--config.sample.tokens=0",
         "--config.thinking.replay_rows=4", "--config.eval.max_windows=4")  # fmt: skip


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """Runs of all sets; seeds are copies of one."""
  folder = tmp_path_factory.mktemp("thinking")
  for kind, flags in {
    "s2": [],
    "transformer": ["--config.model.kind=transformer", "--config.thinking.replay_rows=0"],
  }.items():
    first = folder / "first" / kind
    done = run([f"--config={REPOSITORY}/configs/text_ebt_s2.py:laptop", *SMALL, *flags, f"--workdir={first}"])
    assert done.code == 0, done.err
  for name in train.SETS:
    for wanted in train.SETS[name]():
      kind = "transformer" if wanted.overrides.get("model.kind") == "transformer" else "s2"
      shutil.copytree(folder / "first" / kind, folder / name / "runs" / wanted.name)
  return folder


@pytest.mark.slow
@pytest.mark.parametrize(
  "study, flags, words",
  [
    (recipes, ["--steps=4", "--last=4"], ["2 to 10 steps", "noise 1", "3 -> 4"]),
    (longer, ["--steps=10"], ["System 1", "System 2", "average of 3 models", "stopping where"]),
    (ablation, ["--candidates=2", "--kind=residual_s2"], ["no replay buffer", "bits/byte"]),
    (verification, ["--most=2"], ["least energy", "largest fall", "N = 2"]),
    (shift, ["--data=nowhere"], ["noise", "slope", "correlation"]),
    (uncertainty, ["--bins=4", "--text=some words"], ["Pearson", "random strings"]),
    (ablation, ["--candidates=2"], ["no replay buffer", "bits/byte"]),
    (verifier, [], ["truth has the least energy", "AUROC of errors, entropy", "Transformer++"]),
    (controls, [], ["paper's EBT, System 2", "each block used twice", "less Transformer++"]),
    (later, ["--steps=4"], ["unrolled,2_steps", "% of 1st"]),
    (landscape, ["--grid=5", "--panels=2", "--steps=3"], ["energy of the truth"]),
  ],
)
def test_a_study_leaves_table_json_and_figure(workdir, tmp_path, monkeypatch, study, flags, words):
  name = study.__name__.split(".")[-1]
  of_kind = name + "".join(f.replace("--kind=", "_") for f in flags if f.startswith("--kind"))
  monkeypatch.setattr(sys, "argv", [name, f"--workdir={workdir}", "--windows=4", f"--out={tmp_path}", *flags])
  study.main()
  table = (tmp_path / f"{of_kind}.txt").read_text(encoding="utf-8")
  assert all(w in table for w in words), table
  assert json.loads((tmp_path / f"{of_kind}.json").read_text(encoding="utf-8"))
  assert (tmp_path / f"{of_kind}.png").stat().st_size > 10_000


def test_runs_of_all_sets_have_their_own_names():
  names = [(s, r.name) for s, make in train.SETS.items() for r in make()]
  assert len(set(names)) == len(names) == 6 + 9 + 15 + 9 + 12 + 19 + 15
  for make in train.SETS.values():
    for r in make():
      r.resolve()  # is a valid config


def test_a_set_with_other_steps_is_not_taken_for_the_same(tmp_path):
  for task in train.recipes(steps=500):
    folder = tmp_path / "recipes/runs" / task.name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(task.resolve().to_dict()))
    (folder / "final_result.json").write_text("{}")
  command = ["--set=recipes", f"--workdir={tmp_path}", "--dry_run"]
  assert train.main([*command, "--steps=500"]) == 0
  with pytest.raises(ConfigError, match=r"other values of train.steps \(500 there, 600 here\); give another folder"):
    train.main([*command, "--steps=600"])


class Blank:
  """Stands in for a figure."""

  def savefig(self, file, format):
    file.write(b"drawn")


def test_results_carry_their_settings_and_have_one_owner(tmp_path, monkeypatch, capsys):
  def study(windows):
    monkeypatch.setattr(sys, "argv", ["s", f"--out={tmp_path}", f"--workdir={tmp_path}", f"--windows={windows}"])
    return common.arguments("about", "s", steps=3)

  for windows in (4, 4, 8):
    args = study(windows)
    with pytest.raises(ConfigError, match=f"--out: {tmp_path} is written by process"):
      study(windows)
    common.write_study(args, {"loss": windows}, "table", Blank())
  found = json.loads((tmp_path / "s.json").read_text())
  assert found == {"settings": {"workdir": str(tmp_path), "windows": 8, "steps": 3}, "loss": 8}
  assert json.loads((tmp_path / "s.old.json").read_text())["loss"] == 4
  assert f"of other settings that were there are kept as {tmp_path}/s.old.json" in capsys.readouterr().out
  names = {f"s{old}{suffix}" for old in ("", ".old") for suffix in (".json", ".txt", ".png")}
  assert {p.name for p in tmp_path.iterdir()} == names


def test_finished_runs_are_found_by_their_kind(tmp_path):
  runs = tmp_path / "models" / "runs"
  for name, finished in (("s2,seed=1", True), ("s2,seed=0", True), ("s2,seed=2", False), ("s1,seed=0", True)):
    (runs / name).mkdir(parents=True)
    if finished:
      (runs / name / "final_result.json").write_text("{}")
  assert common.find(tmp_path, "s2,seed") == [runs / "s2,seed=0", runs / "s2,seed=1"]
  words = rf"{tmp_path}/left_out holds no finished run s2,seed\*.* --set=left_out --workdir={tmp_path}"
  with pytest.raises(ConfigError, match=words):
    common.find(tmp_path, "s2,seed", "left_out")


@pytest.mark.parametrize(
  "flags, defaults, words",
  [
    (["--first=3"], {"first": 2, "last": 3}, "--last: expected more than --first=3, found 3"),
    ([], {"steps": 3, "first": 2, "last": 4}, "--last: expected more than --first=2 and at most --steps=3, found 4"),
  ],
)
def test_steps_to_compare_are_in_order(tmp_path, monkeypatch, flags, defaults, words):
  monkeypatch.setattr(sys, "argv", ["s", f"--out={tmp_path}", *flags])
  with pytest.raises(ConfigError) as e:
    common.arguments("about", "s", **defaults)
  assert str(e.value) == words
