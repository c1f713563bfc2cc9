"""Files are replaced whole or not at all."""

import json
import math

import numpy as np
import pytest

from ebt_jax import files


@pytest.mark.parametrize("stage", ["fsync", "replace"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, stage, error):
  path = tmp_path / "a.txt"
  files.replace_text(path, "old é\n")

  def fail(*_):
    raise error

  monkeypatch.setattr(files.os, stage, fail)
  with pytest.raises(type(error)):
    files.replace_bytes(path, b"new")
  assert path.read_text(encoding="utf-8") == "old é\n"
  assert list(tmp_path.iterdir()) == [path]


def test_two_writers_never_share_a_part(tmp_path, monkeypatch):
  path, replace, parts = tmp_path / "a.txt", files.os.replace, []

  def second_writer(part, target):
    parts.append(part)
    if len(parts) == 1:  # another process is as far as this one
      files.replace_bytes(path, b"second")
    replace(part, target)

  monkeypatch.setattr(files.os, "replace", second_writer)
  files.replace_bytes(path, b"first")
  assert len(set(parts)) == 2 and path.read_bytes() == b"first"


def test_json_is_valid(tmp_path):
  path = tmp_path / "result.json"
  files.write_json(path, {"loss": np.float32(0.5), "all": (1, math.nan, -math.inf), "name": "é", 3: None})
  text = path.read_text(encoding="utf-8")
  assert json.loads(text) == {"loss": 0.5, "all": [1, "nan", "-inf"], "name": "é", "3": None}
  assert text.startswith('{\n  "loss"') and "é" in text


def test_results_of_other_settings_are_kept(tmp_path):
  path = tmp_path / "study.json"
  for settings, kept in (
    ({"a": 1}, 0),
    ({"a": 1}, 0),
    ({"a": float("nan")}, 1),
    ({"a": float("nan")}, 1),
    ({"a": 2}, 2),
  ):
    files.keep_others(path, settings)
    files.write_json(path, {"settings": settings})
    assert len(list(tmp_path.glob("study.old*.json"))) == kept
  path.write_text("{}")  # of an older version, which wrote no settings
  assert files.keep_others(path, settings) == tmp_path / "study.old-2.json" and not path.exists()
