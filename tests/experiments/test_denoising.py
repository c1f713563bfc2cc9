"""The denoising study: from runs to its page, and what its rows mean."""

import json

import jax
import numpy as np
import pytest

from ebt_jax.config import ConfigError
from ebt_jax.tasks import registry
from experiments.denoising import page, study, train
from tests.helpers import run
from tests.tasks.test_image import batch_of, config_of, with_random_weights

SMALL = ["model.layers=1", "model.heads=1", "model.width=8", "image.size=8", "image.patch=4", "train.steps=1",
         "train.batch_size=4", "train.warmup=0", "train.schedule=constant", "train.learning_rate=1e-9",
         "eval.max_windows=4", "sample.pictures=0"]  # fmt: skip


def test_every_model_sees_the_same_pictures():
  runs = train.models(90)
  configs = {r.name: r.resolve() for r in runs}
  assert len(configs) == 3 * len(train.MODELS)
  for config in configs.values():
    t = config.train
    assert (t.steps, t.batch_size, t.warmup) == (90, 16, 9) and config.data == configs["ebt,seed=0"].data
  assert configs["dit_authors,seed=1"].image.train_levels == "authors" and configs["dit_authors,seed=1"].seed == 1


def test_equal_flops_are_equal():
  costs = {}
  chosen = [run_ for run_ in train.options() if run_.name.startswith(("steps_3", "residual_2"))]
  for run_ in (train.models()[0], train.equal_flops()[0], *chosen):
    task = registry.make(run_.resolve())
    costs[run_.name] = task.config.train.steps * task.flops().row["total"]
  assert len(costs) == 4 and list(costs.values()) == pytest.approx(4 * [costs["ebt,seed=0"]], rel=0.01)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
  """Two models that have learnt nothing yet."""
  folder = tmp_path_factory.mktemp("denoising")
  for name, config in (("ebt", "image_ebt.py"), ("dit", "image_dit.py")):
    flags = [f"--config.{key}" for key in SMALL]
    done = run([f"--config=configs/{config}", f"--workdir={folder}/models/runs/{name},seed=0", *flags])
    assert done.code == 0, done.err
  patch = pytest.MonkeyPatch()
  patch.setattr(study, "PASSES", {"dit": (1, 3)})
  patch.setattr(study, "THINKING", 3)
  patch.setattr(study, "CANDIDATES", (2,))
  patch.setattr(study, "AGAIN", 2)
  patch.setattr(study, "panel", lambda models, level: b"PNG")
  study.main([f"--workdir={folder}", "--levels=0.1,0.2", "--pictures=6", f"--out={folder}/out"])
  patch.undo()
  page.main([f"{folder}/out"])
  return folder / "out"


def test_rows_of_models_that_have_learnt_nothing(results):
  found = json.loads((results / "study.json").read_text())
  rows, trivial = found["rows"], {(t["answer"], t["level"]): t for t in found["trivial"]}
  of = lambda series, level: [r for r in rows if (r["series"], r["level"]) == (series, level)]
  assert [(r["passes"], r["candidates"]) for r in of("ebt", 0.1)] == [(1, 1), (2, 1), (3, 1), (2, 2)]
  assert [r["passes"] for r in of("dit", 0.2)] == [1, 3, 6]
  for level in (0.1, 0.2):
    for row in of("ebt", level)[:3]:  # its energy is flat: the noised picture stays, the same one for all models
      assert row["psnr"] == pytest.approx(trivial["input", level]["psnr"], abs=1e-3)
      assert row["ssim"] == pytest.approx(trivial["input", level]["ssim"], abs=1e-3)
    for row in of("dit", level)[:2]:  # it predicts no noise: only the scale of the picture changes
      assert row["psnr"] == pytest.approx(trivial["rescaled", level]["psnr"], abs=0.05)
  assert trivial["input", 0.2]["psnr"] < trivial["input", 0.1]["psnr"] - 3
  assert np.isclose(found["trained"]["dit"]["levels"], 0.2)


def test_the_best_of_the_first_candidates_is_the_best_of_so_many(monkeypatch):
  monkeypatch.setattr(study, "CANDIDATES", (1, 2, 4))
  thinking = {"start": "input", "start_scale": 0.5, "steps": 2}
  made = {n: registry.make(config_of(thinking=thinking, eval={"candidates": n})) for n in (1, 2, 4)}
  task, params = made[4], with_random_weights(made[4])
  batch, keys = batch_of(task), jax.random.split(jax.random.key(1), 8)
  found = study.best_of(task, params, batch, keys)["mse"]
  for i, n in enumerate(made):
    np.testing.assert_allclose(found[i], study.measured(made[n], params, batch, keys)["mse"][-1], rtol=1e-4)
  assert (np.abs(found[2] - found[0]) > 1e-3).any()


def test_the_page_holds_what_was_measured(results):
  text = (results / "report.html").read_text()
  for words in ("Noise level 0.2: EBT has never seen this level", "EBT, 2 steps", "rescaled", "2 x 2", "<svg"):
    assert words in text


def test_no_run_yet(tmp_path):
  with pytest.raises(ConfigError, match="holds no finished run MODEL,seed=N; train first"):
    study.find(tmp_path)
