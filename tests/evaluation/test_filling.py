"""Prompts with blanks: how they are read, what they are filled with, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from ebt_jax import streams
from ebt_jax.config import Config, ConfigError, DataConfig, EvalConfig, MaskConfig, ModelConfig, ThinkingConfig
from ebt_jax.data.examples import WindowExamples
from ebt_jax.data.windows import Windows
from ebt_jax.evaluation import filling
from ebt_jax.tasks import registry
from ebt_jax.tasks.base import Data
from ebt_jax.use import infill

BASE = Config(
  task="infill",
  model=ModelConfig(layers=1, heads=1, width=8),
  thinking=ThinkingConfig(steps=2, step_size=2.0),
  data=DataConfig(context_length=16),
)
PROMPT = "a ___ b_"


def task_of(kind, mask=MaskConfig(), steps=3, candidates=1):
  how = EvalConfig(steps=steps, candidates=candidates)
  return registry.make(
    dataclasses.replace(BASE, model=ModelConfig(kind, layers=1, heads=1, width=8), mask=mask, eval=how)
  )


def test_each_mark_is_one_blank():
  row = infill.parse("é__b_", task_of("ebt"))
  assert row["tokens"].tolist() == [[0, 0xC3, 0xA9, 0, 0, ord("b"), 0]] and row["asked"].tolist() == [
    [0, 0, 1, 1, 0, 1]
  ]


@pytest.mark.parametrize(
  "prompt, words",
  [
    ("no blank here", "prompt 2, 'no blank here', has no blank; write a _ for each token"),
    ("_" * 17, "has 17 tokens, more than the 16 places of the model; shorten it"),
  ],
)
def test_a_prompt_that_cannot_be_filled_is_refused(prompt, words):
  with pytest.raises(ConfigError) as e:
    infill.parse(prompt, task_of("ebt"), "prompt 2")
  assert words in str(e.value)


@pytest.mark.parametrize(
  "kind, mask, candidates",
  [("ebt", MaskConfig(), 2), ("transformer", MaskConfig(), 1)],
)
def test_blanks_are_filled_and_the_rest_stays(kind, mask, candidates):
  task = task_of(kind, mask, candidates=candidates)
  params, row = task.init(jax.random.key(0)), infill.parse(PROMPT, task)
  fill = infill.Filler(task, params)
  steps = fill(row)
  assert (
    len(steps) == 3
    and all(np.isfinite(s.score) for s in steps)
    and {s.quantity for s in steps} == {"energy" if kind == "ebt" else "nats"}
  )
  for step in steps:
    bytes_of = step.text.encode("utf-8", "surrogateescape")
    assert bytes_of.startswith(b"a ") and b" b" in bytes_of
  assert steps == fill(row)
  if kind == "transformer":  # 4 blanks in 3 passes: 2, 1, 1
    assert [s.text.count("_") for s in steps] == [2, 1, 0]
  filled = infill.Filled(PROMPT, steps)
  found = filling.as_json(filled)
  assert found["text"] == steps[-1].text and len(json.loads(json.dumps(found))["steps"]) == 3
  assert len(filling.draw(filled).split("\n")) == 4


def test_the_energy_after_each_step_is_that_of_the_text_there():
  task = task_of("ebt", steps=2)
  params, row = task.init(jax.random.key(0)), infill.parse(PROMPT, task)
  key = streams.key_for(0, streams.GENERATE)
  found = jax.jit(task.verified)(params, row, key[None])
  wanted = [float(found.energies[1, 0, 0]), float(found.final[0, 0])]
  np.testing.assert_allclose([s.score for s in infill.Filler(task, params)(row)], wanted, rtol=1e-4)


def test_a_sample_shows_blanks_of_the_held_out_text_and_the_truth(tmp_path):
  task = task_of("transformer", MaskConfig(layout="suffix", rate_min=0.5, rate_max=0.5))
  tokens = np.frombuffer(b".of the people and so on", np.uint8)[None, :17].astype(np.uint16)
  held_out = WindowExamples(Windows(tokens, np.array([16], np.int32)), np.ones(257), 257)
  shown = filling.write_sample(task, task.init(jax.random.key(0)), Data(held_out, {"held_out": held_out}), tmp_path)
  found = json.loads((tmp_path / "sample.json").read_text())
  assert found["truth"] == "of the people an" and found["prompt"] == "of the p________"
  assert "truth" in shown and found["text"].startswith("of the p")
