"""Flags: every way to write a config key, what each mode refuses, and what became of old flags."""

import pytest

from ebt_jax import flags, main
from ebt_jax.config import ConfigError, MeshConfig, resolve
from ebt_jax.files import write_json

QUICKSTART = "--config=configs/quickstart.py"


def config(*argv):
  return main.read_config(flags.parse([*argv]))


@pytest.mark.parametrize(
  "argv, key, value",
  [
    (["--config.train.steps=99"], "train.steps", 99),
    (["--config.train.steps", "99"], "train.steps", 99),
    (["--config.mesh.data", "-1"], "mesh.data", -1),
    (["--config.train.learning_rate=1"], "train.learning_rate", 1.0),
    (["--config.model.remat"], "model.remat", True),
    (["--config.model.remat", "--config.train.steps=99"], "model.remat", True),
    (["--config.model.remat=true"], "model.remat", True),
    (["--config.thinking.learn_step_size=False"], "thinking.learn_step_size", False),
    (["--noconfig.thinking.step_size_path"], "thinking.step_size_path", False),
    (["--config.data.held_out_sources="], "data.held_out_sources", ""),
    (["--config.data.source=a=b"], "data.source", "a=b"),
    (["--set", "train.steps=99"], "train.steps", 99),
    (["--set=train.steps=99"], "train.steps", 99),
    (["--set", "seed=1", "train.steps=99", "--set", "seed=2"], "train.steps", 99),
    (["--set", "seed=1", "train.steps=99", "--set", "seed=2"], "seed", 2),
    (["--set", "train.steps=99", "--config.train.steps=98"], "train.steps", 99),  # --set comes after --config.KEY
    (["--config.train.steps=98", "--config.train.steps=99"], "train.steps", 99),
    (["--set", "thinking.landscapes=4", "thinking.steps=5"], "thinking.landscapes", 4),  # checked as a whole
    (["--set", "model.size=small"], "model.width", 768),
  ],
)
def test_a_key_can_be_written_in_many_ways(argv, key, value):
  for arguments in ([QUICKSTART, *argv], [*argv, "--config", "configs/quickstart.py"]):
    found = config(*arguments)
    for name in key.split("."):
      found = getattr(found, name)
    assert found == value and type(found) is type(value)


def test_a_run_folder_is_a_config(tmp_path):
  """Its mesh is that of its training, which other modes need not have."""
  write_json(tmp_path / "config.json", resolve({"train": {"steps": 105}, "mesh": {"model": 4}}).to_dict())
  assert config(f"--workdir={tmp_path}").mesh.model == 4
  evaluated = config(f"--workdir={tmp_path}", "--mode=eval", "--set", "eval.steps=6")
  assert (evaluated.train.steps, evaluated.eval.steps, evaluated.mesh) == (105, 6, MeshConfig())
  assert config(f"--workdir={tmp_path}", QUICKSTART).train.steps == 500  # --config counts where there are both


@pytest.mark.parametrize(
  "argv, words",
  [
    (["--thinking_steps=6"], "--thinking_steps: was removed; use --set eval.steps=6"),
    (["--candidates", "8"], "--candidates: was removed; use --set eval.candidates=8"),
    (["--eval=tolerance=0.01"], "--eval: was removed; use --set eval.tolerance=0.01"),
    (["--prompt=a"], "--prompt: mode train does not use it, only generate; leave it out"),
    (["--mode=eval", "--top_k", "3"], "--top_k: mode eval does not use it"),
    (["--mode=shapes", "--checkpoint_step=0"], "only eval, generate, export; leave it out"),
    (["--mode=generate", "--source=x.txt"], "--source: mode generate does not use it, only eval"),
    (["--work=x"], "--work: no such flag; did you mean --workdir"),
    (["-config=x.py"], "-config: no such flag; did you mean --config"),
    (["--config.train.stesp=1"], "--config.train.stesp=1: no such key; did you mean train.steps"),
    (["--config.thinking.sharpen=1"], "--config.thinking.sharpen=1: thinking.sharpen is now thinking.authors.sharpen"),
    (["--noconfig.train.steps"], "--noconfig.train.steps: no such flag"),
  ],
)
def test_refused(argv, words):
  with pytest.raises(ConfigError) as e:
    config(QUICKSTART, *argv)
  assert words in str(e.value)


def test_flags_at_their_defaults_are_never_refused():
  assert flags.parse(["--mode=shapes", "--top_k=0", "--seed=0", "--checkpoint_step=-1"]).mode == "shapes"


def test_home_folder_is_expanded(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  found = flags.parse(["--workdir=~/runs", "--config=~/c.py:a", "--mode=generate", "--out=~/o.json"])
  assert (found.workdir, found.config, found.out) == ("/home/me/runs", "/home/me/c.py:a", "/home/me/o.json")


def test_help_names_every_mode_and_flag(capsys):
  with pytest.raises(SystemExit) as e:
    flags.parse(["--help"])
  page = capsys.readouterr().out
  assert e.value.code == 0 and all(f"  {mode} " in page for mode in flags.MODES)
  assert all(f"--{name} " in page for name in vars(flags.parse([])) if name != "keys") and "--config.KEY " in page
  assert "--config.train" not in page and max(map(len, page.splitlines())) <= 120
