"""Questions with answers and choices: what is read, and which choice each rule picks."""

import json
import lzma

import numpy as np
import pytest

from ebt_jax.config import ConfigError
from ebt_jax.use.likelihood import Likelihood
from experiments.downstream import study


def written(tmp_path, rows):
  path = tmp_path / "set.jsonl.xz"
  path.write_bytes(lzma.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
  return path


def found(*nats, energies=None):
  n = len(nats)
  return Likelihood(np.zeros(n), np.array(nats), np.zeros(n, bool), None if energies is None else np.array(energies))


def test_questions_and_solved_ones_before_them(tmp_path):
  rows = [{"context": f"{i}?", "continuation": f" {i}", "choices": [" no", f" {i}"]} for i in range(5)]
  path = written(tmp_path, rows)
  first, *rest = study.read(path, 9, 2)
  assert first == study.Question("3? 3\n\n4? 4\n\n0?", " 0", [" no", " 0"], 1) and len(rest) == 2
  assert study.chance([first, *rest]) == 0.5 and study.chance([first._replace(choices=[" 0"], right=0)]) is None
  with pytest.raises(ConfigError, match="--shots: 5 solved"):
    study.read(path, 9, 5)
  with pytest.raises(ConfigError, match="set.jsonl.xz:1: expected a context and a continuation, found text"):
    study.read(written(tmp_path, [{"text": "x"}]), 9, 0)
  with pytest.raises(ConfigError, match="' y' is none of the choices"):
    study.read(written(tmp_path, [{"context": "x", "continuation": " y", "choices": [" z"]}]), 9, 0)


def test_each_rule_picks_its_own_choice():
  question = study.Question("", "b", ["a", "bbbb"], 1)
  both = [found(-2.0, energies=[1.0]), found(-1.0, -1.5, energies=[0.6, 0.6])]
  assert study.judged(both, question) == {"total": False, "per_byte": True, "energy": False, "energy_per_token": True}
  assert study.judged([found(-3.0), found(-2.0)], question) == {"total": True, "per_byte": True}


class Model:
  """Knows the answers; says how it was asked."""

  asked = ()

  def likelihood(self, pairs, **thinking):
    self.asked = thinking
    return [found(*[-0.5 if "b" in text else -2.0] * len(text), energies=[0.0] * len(text)) for _, text in pairs]


def test_means_are_of_the_right_answers_alone(monkeypatch):
  monkeypatch.setattr(study, "GROUP", 2)
  model = Model()
  questions = [study.Question("q", "bb", ["aaa", "bb"], 1), study.Question("q", "a", ["a"], 0)] * 2
  measured = study.measure(model, questions, steps=3)
  assert model.asked == {"steps": 3}
  nats = 2 * (2 * 0.5 + 2.0)
  assert measured["bits_per_byte"] == pytest.approx(nats / np.log(2) / 6)
  assert measured["perplexity"] == pytest.approx(np.exp(nats / 6)) and measured["accuracy_total"] == 1.0
  assert measured["accuracy_energy"] == 0.0  # equal energies: the first choice


def test_the_table_pairs_seeds():
  questions = [study.Question("q", "bb", ["aaa", "bb"], 1)]
  values = {"transformer": (2.0, 2.5), "s1": (2.2, 2.9), "s1, 8 steps": (2.0, 2.6)}
  kinds = {
    name: {str(seed): {"x": {"bits_per_byte": v, "accuracy_total": 0.5}} for seed, v in enumerate(several)}
    for name, several in values.items()
  }
  result = {"chance": {"x": 0.5}, "kinds": kinds}
  assert study.differences(result, "s1", "bits_per_byte", "x") == pytest.approx([0.2, 0.4])
  shown = study.table(result, {"x": questions})
  assert "chance 50.0%" in shown and "paper's EBT, System 1, 8 steps" in shown and "[+0.30 ± 1.27]" in shown
