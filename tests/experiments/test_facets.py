"""The study of facets: its numbers against values worked out by hand, its runs, its page."""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.config import Config, ConfigError, DataConfig, ModelConfig, resolve
from ebt_jax.tasks import registry
from experiments.facets import measure, page, study, train
from tests.helpers import REPOSITORY, run


def test_a_slope_is_the_change_for_each_doubling():
  passes = np.array(study.PASSES)
  assert measure.slope(passes, 3.0 / passes) == pytest.approx(-50)
  assert measure.slope(passes, np.full(5, 2.0)) == pytest.approx(0, abs=1e-9)
  assert measure.slope(passes, 1.1 ** np.arange(5)) == pytest.approx(10)
  assert measure.change(2.0, 1.5) == -25


def test_the_truth_is_preferred_to_what_others_have_wrong():
  """Another's second answer of five is right; in the other pairs the truth costs less, the same, more, less."""
  costs = np.array([[1.0, 9.0, 2.0, 5.0, 0.0], [3.0, 9.0, 2.0, 4.0, 7.0], [0.0, 9.0, 0.0, 9.0, 1.0]])
  target, proposed = np.array([0, 2, 1, 0, 2]), np.array([1, 2, 0, 1, 1])
  assert measure.verifies(costs, target, proposed) == ((1 + 0.5 + 0 + 1) / 4, 4)
  share, pairs = measure.verifies(costs, target, target)
  assert np.isnan(share) and pairs == 0
  assert measure.worse_half(np.array([3.0, 1.0, 2.0, 5.0, 4.0])).tolist() == [0, 0, 0, 1, 1]


def test_all_models_of_a_modality_see_the_same_data():
  for of_set, models in ((train.text, train.TEXT), (train.pictures, train.PICTURES.values())):
    configs = {r.name: r.resolve() for r in of_set(90)}
    assert len(configs) == 3 * len(models)
    like = configs["ebt,seed=0"]
    for config in configs.values():
      t = config.train
      assert (t.steps, t.warmup, t.batch_size) == (90, 9, like.train.batch_size) and config.data == like.data
      assert (config.model.size, config.model.layers, config.image) == (like.model.size, like.model.layers, like.image)
    assert configs["residual,seed=2"].model.residual and not configs["ebt,seed=2"].model.residual
    assert configs["ebt,seed=2"].seed == 2
  assert {r.resolve().model.kind for r in train.text(90)} == {"rnn", "transformer", "ebt"}


class Trained(NamedTuple):
  """A model of a run."""

  params: Any
  work: Any

  def task(self):
    return self.work


class Opened:
  """A model of a run, as far as its cost goes."""

  def __init__(self, task):
    self.run, self.config = self, task.config
    self.task = task


def fresh(config, seed=0) -> Trained:
  task = registry.make(config)
  return Trained(task.init(jax.random.key(seed)), task)


def test_a_direct_model_of_text_has_the_costs_of_its_distribution():
  tiny = ModelConfig(kind="transformer", layers=1, heads=1, width=8, vocab_size=19)
  model = fresh(Config(model=tiny, data=DataConfig(context_length=4)))
  tokens = np.random.default_rng(0).integers(0, 19, (3, 5)).astype(np.int32)
  batch = {"tokens": jnp.asarray(tokens), "weights": jnp.ones((3, 4))}
  keys = jax.random.split(jax.random.key(0), 3)
  found = jax.jit(lambda p: study.known(model.work, p, batch, keys))(model.params)
  p = np.exp(-np.asarray(found["costs"]))
  assert p.shape == (19, 3, 4)
  np.testing.assert_allclose(p.sum(0), 1, rtol=1e-5)
  np.testing.assert_array_equal(found["answer"], p.argmax(0))
  np.testing.assert_allclose(found["signal"], -(p * np.log(p)).sum(0), rtol=1e-4)
  np.testing.assert_allclose(found["loss"], -np.log(np.take_along_axis(p, tokens[None, :, 1:], 0)[0]), rtol=1e-4)


def test_a_flat_energy_prefers_nothing_and_a_denoiser_its_own_answer(monkeypatch):
  image = {"size": 8, "patch": 4, "passes": 2}
  base = {"task": "image", "image": image, "model": {"layers": 1, "heads": 1, "width": 8}}
  flow = fresh(resolve({**base, "model": {**base["model"], "kind": "flow"}}))
  ebt = fresh(resolve({**base, "thinking": {"start": "input", "steps": 1}}))
  pixels = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3)).astype(np.uint8)

  class Pictures:
    def __len__(self):
      return 6

    def rows(self, index):
      ones = np.ones(len(index), np.float32)
      return {"picture": pixels[index], "level": 0.1 * ones, "weights": ones, "label": np.zeros(len(index), np.int32)}

  monkeypatch.setattr(study.common, "held_out", lambda model: Pictures())
  assert study.pictures(ebt, flow, 6) == (0.5, 6)
  assert study.pictures(flow, flow, 6) == (0.0, 6)  # which is why no model judges its own seed
  found = study.common.scores(ebt, Pictures(), 6)
  assert found["loss"].shape == (1, 6) and (found["loss"] > 0).all() and "target" not in found
  assert found["final_energy"].tolist() == [0] * 6


def test_answers_are_of_another_seed():
  models = {"transformer": {0: "a", 1: "b"}, "rnn": {0: "c", 1: "d", 2: "e"}, "ebt": {0: "f"}}
  assert study.proposers_of(models, "ebt", 0) == ["b", "d"]
  assert study.proposers_of(models, "rnn", 1) == ["a", "e"] and study.proposers_of(models, "rnn", 2) == ["a", "c"]
  with pytest.raises(ConfigError, match="verification needs two seeds of transformer, .* found seed 0 alone"):
    study.proposers_of({**models, "transformer": {0: "a"}}, "ebt", 0)
  with pytest.raises(ConfigError, match="--models: no 'rn'; did you mean rnn"):
    study.main(["--models=rn"])
  for flags, words in (
    ("--models=rnn", "holds no finished run rnn,seed.*python -m experiments.facets.train --set=text"),
    ("--models=image_flow", "no finished run flow,seed.*experiments.facets.train --set=pictures --workdir=nowhere"),
    ("--models=image_ebt --pictures=there/models", "ebt,seed.*denoising.train --set=models --workdir=there"),
  ):
    with pytest.raises(ConfigError, match=words):
      study.main([*flags.split(), "--facets=cost", "--workdir=nowhere"])


def test_what_is_replayed_costs_too():
  """Half a batch is replayed beside each batch: half as much again for as many new tokens."""
  keys = {"model": {"layers": 1, "heads": 1, "width": 8, "vocab_size": 19}, "data": {"context_length": 4},
          "train": {"batch_size": 8}}  # fmt: skip
  plain, replays = (
    study.cost(Opened(fresh(resolve({**keys, "thinking": {"gradient": "last", "replay_rows": n}})).work), "ebt", [], 1)
    for n in (0, 16)
  )
  assert replays["flops"] == pytest.approx(1.5 * plain["flops"], rel=0.05)
  assert plain["beyond_prediction"] == []


STUDY = {
  "settings": {"workdir": "runs/facets", "windows": 64},
  "trained": {"ebt": 90, "transformer": 90},
  "rows": [
    row
    for seed, more in ((0, 0.0), (1, 0.2))
    for row in (
      {"model": "ebt", "seed": seed, "facet": "compute", "passes": [1, 2, 4, 8, 16], "loss": [3.0, 2, 2, 2, 2],
       "slope": -1.0 - more, "trained_passes": 10, "beyond": 0.5 + more},
      {"model": "ebt", "seed": seed, "facet": "uncertainty", "auroc": 0.5 + more, "number": "energy"},
      {"model": "ebt", "seed": seed, "facet": "verification", "transformer": 0.25, "rnn": 0.75},
      {"model": "ebt", "seed": seed, "facet": "cost", "beyond_prediction": ["thinking.contrast"], "flops": 30.0},
      {"model": "transformer", "seed": seed, "facet": "compute", "passes": [1], "loss": [2.0]},
      {"model": "transformer", "seed": seed, "facet": "uncertainty", "auroc": 0.75, "number": "entropy"},
      {"model": "transformer", "seed": seed, "facet": "verification", "transformer": 0.5, "rnn": 0.5},
      {"model": "transformer", "seed": seed, "facet": "cost", "beyond_prediction": [], "flops": 12.0},
    )
  ],
}  # fmt: skip


def test_the_page_holds_every_cell_and_its_command(tmp_path, capsys):
  (tmp_path / "study.json").write_text(json.dumps(STUDY))
  page.main([str(tmp_path)])
  lines = [[c.strip() for c in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines() if "|" in line]
  # half a 95% interval of two values 0.2 apart: 12.706 x 0.1
  assert lines[2] == ["EBT, the paper's System 2", "1 to 16, and any other", "-1.10 ± 1.27", "+0.60 ± 1.27", "energy",
                      "0.600 ± 1.271", "Transformer++ 0.250 ± 0.000; RNN (RG-LRU) 0.750 ± 0.000",
                      "thinking.contrast", "2.50 x"]  # fmt: skip
  assert lines[3][:5] == ["Transformer++", "1", "-", "-", "entropy"] and lines[3][-2:] == ["no", "1.00 x"]
  text = (tmp_path / "report.html").read_text()
  for facet in study.FACETS:
    assert f"--workdir=runs/facets --windows=64 --models=ebt --facets={facet}" in text
  assert "<svg" in text and "2 seed(s)" in text and "src=" not in text


@pytest.mark.slow
def test_the_study_of_tiny_models(tmp_path):
  small = ["train.steps=2", "train.batch_size=4", "train.warmup=0", "model.layers=1", "model.heads=1", "model.width=8"]
  of = {"text": ["data.context_length=8", "thinking.replay_rows=0", "sample.tokens=0"],
        "pictures": ["image.size=8", "image.patch=4", "sample.pictures=0"]}  # fmt: skip
  own = {"train.steps", "train.warmup", "train.health_every", "checkpoint.every", "sample.tokens", "sample.pictures"}
  for kind, runs in train.SETS.items():
    for one in (r for r in runs(30) if r.overrides["seed"] < 2):
      keys = [*(f"{k}={v}" for k, v in one.overrides.items() if k not in own), *small, *of[kind]]
      flags = [f"--config={REPOSITORY}/{one.config}", f"--workdir={tmp_path}/{kind}/runs/{one.name}"]
      done = run([*flags, *(f"--config.{key}" for key in keys), "--config.eval.max_windows=4"])
      assert done.code == 0, done.err
  study.main([f"--workdir={tmp_path}", "--windows=4", f"--out={tmp_path}/out"])
  page.main([f"{tmp_path}/out"])
  rows = json.loads((tmp_path / "out" / "study.json").read_text())["rows"]
  assert len(rows) == 2 * len(train.MODELS) * len(study.FACETS)
  for row in rows:
    if row["facet"] == "verification":
      proposers = study.PROPOSERS[study.modality(row["model"])]
      assert all(0 <= row[p] <= 1 and row[f"{p}_pairs"] > 0 for p in proposers)
    if row["facet"] == "compute":
      direct = row["model"] in ("rnn", "transformer")
      assert row["passes"] == ([1] if direct else list(study.PASSES)) and ("slope" in row) != direct
