"""The user's own modules: config files and tasks whose names are also those of others."""

import os
import subprocess
import sys

import pytest

from ebt_jax import modules, sweep
from ebt_jax.config import ConfigError, resolve
from ebt_jax.tasks import registry
from tests.helpers import REPOSITORY

CONFIG = """
from __future__ import annotations
import dataclasses
from ebt_jax.config import defaults

@dataclasses.dataclass
class Mine:
  steps: int = 700

def get_config(arg=""):
  config = defaults()
  config.train.steps = Mine().steps
  return config
"""


def test_modules_of_the_working_directory_do_not_replace_those_of_others(tmp_path):
  for name in ("jax", "random", "logging", "dataclasses", "text", "config", "flags", "queue", "grain"):
    (tmp_path / f"{name}.py").write_text("raise RuntimeError('taken for another module')")
  (tmp_path / "types.py").write_text(CONFIG)
  env = os.environ | {"PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"}
  command = [sys.executable, "-m", "ebt_jax.main", "--config=types.py", "--mode=shapes"]
  done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
  assert done.returncode == 0 and "parameters" in done.stdout, done.stderr


def test_a_config_file_finds_its_neighbours_whatever_else_has_the_folders_name(tmp_path, monkeypatch):
  for place, steps in (("a", 300), ("b", 500)):
    folder = tmp_path / place / "configs"
    folder.mkdir(parents=True)
    (folder / "base.py").write_text(CONFIG.replace("= 700", f"= {steps}"))
    (folder / "mine.py").write_text("from configs import base\ndef get_config():\n  return base.get_config()\n")
  (tmp_path / "configs.py").write_text("raise RuntimeError('taken for another module')")
  monkeypatch.chdir(tmp_path)
  monkeypatch.syspath_prepend(str(tmp_path))
  before = sys.modules.get("configs")
  assert sweep.read_config("a/configs/mine.py").train.steps == 300
  assert sweep.read_config("b/configs/mine.py").train.steps == 500
  assert sweep.read_config(f"{REPOSITORY}/configs/text_ebt_s2.py:laptop").train.steps == 2000
  assert sys.modules.get("configs") is before


def test_a_folder_named_as_a_library_is_not_taken_for_it(tmp_path):
  folder = tmp_path / "ebt_jax"
  folder.mkdir()
  (folder / "config.py").write_text(CONFIG)
  assert sweep.read_config(str(folder / "config.py")).train.steps == 700


def test_a_task_of_ones_own_is_found_first_or_refused(tmp_path, monkeypatch):
  (tmp_path / "types.py").write_text("make = 1")
  (tmp_path / "zipapp.py").write_text("def make(config):\n  return 'mine'\n")  # of the standard library, not imported
  monkeypatch.chdir(tmp_path)
  monkeypatch.delitem(sys.modules, "zipapp", raising=False)
  with pytest.raises(ConfigError, match="config.task: types is to be found in .*types.py, but Python has another"):
    registry.make(resolve({"task": "types:make"}))
  assert modules.imported("zipapp", "config.task").__file__ == str(tmp_path / "zipapp.py")
  with pytest.raises(ConfigError, match="zipapp:make returned str"):
    registry.make(resolve({"task": "zipapp:make"}))
  monkeypatch.delitem(sys.modules, "zipapp")
