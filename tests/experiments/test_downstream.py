"""Questions with answers and choices: what is read, which choice each rule picks, and what solved questions cost."""

import json
import lzma

import numpy as np
import pytest

from ebt_jax.config import ConfigError
from ebt_jax.use.likelihood import Likelihood
from experiments.downstream import best_of, shots, study


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
  rows.append({"context": "5", "continuation": " 5"})
  assert study.read(written(tmp_path, rows), 3, 1)[0].context == "5 5\n\n0?"  # the shortest
  assert study.chance([first, *rest]) == 0.5 and study.chance([first._replace(choices=[" 0"], right=0)]) is None
  with pytest.raises(ConfigError, match="--shots: 6 solved"):
    study.read(path, 9, 6)
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


def test_the_right_answer_stands_among_the_next_ones():
  questions = [study.Question(f"{i}?", f" {i}", [f" {i}"], 0) for i in range(5)]
  found = best_of.among(questions, 3)
  assert found[1].choices == [" 2", " 1", " 3"] and found[4].choices == [" 0", " 4", " 1"]
  assert all(q.choices[q.right] == q.answer and len(set(q.choices)) == 3 for q in found)
  assert len({q.right for q in found}) == 3


def test_the_number_of_an_answer_and_who_picks_it():
  texts = ["so 3 + 4 = 7.", "it costs $1,200.50 a year", "none"]
  assert [best_of.number_in(text) for text in texts] == ["7", "1200.50", ""]

  class Judge:
    def likelihood(self, pairs):
      of = {" 7": ([-3.0], [0.1]), " 8": ([-1.0], [0.9]), " is 7": ([-1.0, -1.5], [0.2, 0.6]), " x": ([-9.0], [5.0])}
      return [found(*of[text][0], energies=of[text][1]) for _, text in pairs]

  q = study.Question("?", "3 + 4 = 7", [], 0)
  assert best_of.picked(Judge(), q, [" 8", " is 7", " 7", " x"]) == {
    "first": False, "likelihood": False, "energy": True, "any": True,
  }  # fmt: skip
  assert best_of.picked(Judge(), q._replace(answer="none"), [" 8", " x"])["any"] is False
  assert best_of.share([True, False]).startswith("50.0% [9.")


def test_numbers_with_solved_questions_are_on_those_that_fit():
  class Bytes:
    config = type("C", (), {"data": type("D", (), {"context_length": 8})})

    class tokenizer:
      encode = staticmethod(str.encode)

    def likelihood(self, pairs):
      return [found(*[-np.log(2) * len(context)] * len(text.encode())) for context, text in pairs]

  by_shots = {
    0: [study.Question("ab", "c", ["c"], 0), study.Question("abcd", "ef", ["ef"], 0)],
    2: [study.Question("1234ab", "c", ["c"], 0), study.Question("1234abcd", "ef", ["ef"], 0)],
  }
  assert shots.fitting(Bytes(), by_shots) == [0] and shots.fitting(Bytes(), {0: by_shots[0]}) == [0, 1]
  assert shots.answered(Bytes(), by_shots[2]) == pytest.approx(((6 + 2 * 8) / 3, 0.0))
  several = {
    0: [shots.Answers(2.0, 0.0), shots.Answers(3.0, 0.5)],
    2: [shots.Answers(1.0, 0.0), shots.Answers(2.5, 1.0)],
  }
  shown = shots.row("mine", several)
  assert "0: 2.50 ± 6.35, written 25.0%  2: 1.75 ± 9.53 [-0.75 ± 3.18], written 50.0%" in shown
  assert "2: 1.00 [-1.00], written 0.0%" in shots.row("mine", {n: a[:1] for n, a in several.items()})
