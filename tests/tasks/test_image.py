"""Pictures as a task: the noise that is drawn, where thinking starts, what an answer is worth, the residual energy."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.config import ConfigError, resolve
from ebt_jax.evaluation import image_report
from ebt_jax.tasks import image_quality, registry
from tests.experiments.test_own_task import KILL
from tests.helpers import run

KEYS = jax.random.split(jax.random.key(0), 8)
TINY = {
  "task": "image",
  "model": {"layers": 1, "heads": 2, "width": 8},
  "thinking": {"start": "input", "steps": 2, "step_size": 100.0, "start_scale": 0.1},
  "image": {"size": 8, "patch": 4, "passes": 3},
  "data": {"held_out": 0.2},
  "train": {"batch_size": 8, "warmup": 0},
}


def config_of(**groups):
  return resolve({**TINY, **{name: {**TINY.get(name, {}), **values} for name, values in groups.items()}})


def with_random_weights(task):
  """Nothing starts at 0, so that every part counts."""
  params = task.init(jax.random.key(1))
  leaves, structure = jax.tree.flatten(params["model"])
  keys = jax.random.split(jax.random.key(2), len(leaves))
  random = [a + 0.3 * jax.random.normal(k, a.shape) for a, k in zip(leaves, keys)]
  return {**params, "model": structure.unflatten(random)}


def batch_of(task, rows=8):
  return jax.tree.map(jnp.asarray, task.problem.data().train.rows(np.arange(rows) * 5000))


def test_noise_is_that_of_its_level_and_of_its_row_alone():
  task = registry.make(config_of(image={"random_level": True, "noise_level": 0.2}))
  batch = batch_of(task)
  batch["level"] = batch["level"].at[0].set(0.5)
  found = task.problem.corrupt(batch, KEYS)
  assert int(found["step"][0]) == 499 and int(found["step"][1:].max()) < 200 and len(set(found["step"].tolist())) > 5
  assert task.problem.corrupt(found, KEYS) is found  # what is drawn stays
  alone = task.problem.corrupt(jax.tree.map(lambda a: a[3:4], batch), KEYS[3:4])
  assert (alone["noised"][0] == found["noised"][3]).all()
  signal, scale = task.problem.schedule.scales(found["step"], found["clean"])
  noise = (found["noised"] - signal * found["clean"]) / scale
  assert abs(float(noise.std()) - 1) < 0.05 and abs(float(noise.mean())) < 0.1
  fixed = registry.make(config_of()).problem.corrupt(batch, jax.random.key(0))
  assert fixed["step"].tolist() == [499] + 7 * [99]
  assert float(found["clean"].min()) >= -1 and float(found["clean"].max()) <= 1


def test_thinking_starts_at_the_noised_picture_and_its_candidates_near_it():
  task = registry.make(config_of(eval={"candidates": 3}))
  batch = task.problem.corrupt(batch_of(task), KEYS)
  assert (task.problem.start(task.space, jax.random.key(0), batch) == batch["noised"]).all()
  starts, _ = task.starts(task.init(jax.random.key(0)), (), KEYS, batch)
  assert starts.shape == (3, 8, 8, 8, 3) and (starts[0] == batch["noised"]).all()
  apart = starts[1:] - batch["noised"]
  assert 0.08 < float(apart.std()) < 0.12 and float(jnp.abs(apart[0] - apart[1]).max()) > 0.1


@pytest.mark.parametrize("kind", ["ebt", "ebt residual", "dit", "flow"])
def test_a_picture_alone_is_answered_as_among_eight(kind, x64):
  name, _, residual = kind.partition(" ")
  more = {"model": {"kind": name, "residual": bool(residual)}}
  if residual:
    more["thinking"] = {"start": "context"}
  task = registry.make(config_of(**more, image={"sampler": {"dit": "ddpm"}.get(name, "")}))
  params, batch = jax.tree.map(lambda a: a.astype(float), with_random_weights(task)), batch_of(task)
  found = jax.jit(lambda b, k: image_report.denoise(task, params, b, k))(batch, KEYS)
  alone = image_report.denoise(task, params, jax.tree.map(lambda a: a[5:6], batch), KEYS[5:6])
  assert found.steps.shape == (task.eval_steps, 8, 8, 8, 3)
  assert np.allclose(found.steps[:, 5], alone.steps[:, 0], atol=1e-9)
  assert float(jnp.abs(found.steps[0] - found.batch["noised"]).max()) > 1e-3  # something happens
  scores = task.scores(params, batch, KEYS)
  assert np.allclose(scores.measures["psnr"][-1], image_quality.psnr(found.steps[-1], found.batch["clean"]))


def test_one_step_of_the_residual_energy_lands_on_what_its_context_predicts():
  task = registry.make(
    config_of(model={"residual": True, "energy_gain": 0.0}, thinking={"start": "input", "steps": 1, "step_size": 7.0})
  )
  params, batch = with_random_weights(task), task.problem.corrupt(batch_of(task), KEYS)
  g = task.model.direct_answer(params["model"], task.context(params, batch))
  found = image_report.denoise(task, params, batch, KEYS)
  assert np.allclose(found.steps[0], g, atol=1e-5) and float(jnp.abs(g - batch["noised"]).max()) > 0.1
  there = dataclasses.replace(task, config=dataclasses.replace(task.config, thinking=dataclasses.replace(
    task.config.thinking, start="context")))  # fmt: skip
  problem = dataclasses.replace(task.problem, config=there.config)
  start, _ = dataclasses.replace(there, problem=problem).starts(params, g, KEYS, batch)
  assert np.allclose(start[0], g, atol=1e-6)


def test_energies_are_means_over_patches_and_start_at_zero():
  task = registry.make(config_of())
  y = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  assert not jnp.any(task.model.energy(task.init(jax.random.key(0))["model"], (), y))
  params = with_random_weights(task)["model"]
  assert np.allclose(task.model.energy(params, (), y), task.model.patch_energies(params, y).mean(-1), atol=1e-5)


def test_quality_of_known_pictures():
  flat = lambda v: jnp.full((1, 16, 16, 3), v / 127.5 - 1)
  one = flat(100.0)
  assert float(image_quality.squared_error(one, flat(110.0))[0]) == pytest.approx(100, rel=1e-4)
  assert float(image_quality.psnr(one, flat(110.0))[0]) == pytest.approx(10 * np.log10(255**2 / 100), rel=1e-4)
  assert float(image_quality.psnr(one, one)[0]) == pytest.approx(100)
  assert float(image_quality.psnr(flat(300.0), flat(255.0))[0]) == pytest.approx(100)  # what is shown is cut off
  c1 = (0.01 * 255) ** 2
  by_hand = (2 * 100 * 110 + c1) / (100**2 + 110**2 + c1)
  assert float(image_quality.ssim(one, flat(110.0))[0]) == pytest.approx(by_hand, rel=1e-4)
  x = jax.random.uniform(jax.random.key(0), (2, 16, 16, 3), minval=-1, maxval=1)
  assert np.allclose(image_quality.ssim(x, x), 1, atol=1e-5)
  assert float(jnp.abs(image_quality.ssim(x, x[::-1])).max()) < 0.2  # nothing in common


def test_denoisers_learn_what_they_are_asked_and_the_authors_less():
  asked = registry.make(config_of(model={"kind": "dit"}, image={"eval_levels": "0.2,0.35"}))
  authors = registry.make(config_of(model={"kind": "dit"}, image={"eval_levels": "0.2", "train_levels": "authors"}))
  assert (asked.problem.steps_asked, authors.problem.steps_asked) == (350, 100)
  assert list(asked.problem.data().held_out) == ["held_out", "level_0.2", "level_0.35"]
  assert asked.problem.data().held_out["level_0.35"].rows(np.arange(1))["level"] == np.float32(0.35)


@pytest.mark.parametrize(
  "groups, words",
  [
    ({"image": {"patch": 3}}, "config.image.patch: 3 does not divide size=8; the nearest that does is (2|4)"),
    ({"image": {"channels": 4}}, "config.image.channels: expected 1 .grey. or 3"),
    ({"image": {"noise_level": 0.0}}, "config.image.noise_level: expected a level above 0, at most 1"),
    ({"image": {"noise_level": 1.01}}, "config.image.noise_level: expected a level above 0, at most 1"),
    ({"image": {"eval_levels": "0.2;0.3"}}, "config.image.eval_levels: expected numbers with commas between them"),
    ({"image": {"eval_levels": "0.2,2"}}, "config.image.eval_levels: expected a level above 0.*found 2"),
    ({"image": {"diffusion_steps": 10}}, "config.image.diffusion_steps: expected at least 21"),
    ({"thinking": {"start": "noise"}}, "config.thinking.start: 'noise' forgets the noised picture; set it to 'input'"),
    ({"thinking": {"start": "context"}}, "context is what a residual energy predicts; set model.residual"),
    ({"model": {"kind": "dit"}, "image": {"sampler": "euler"}}, "model.kind=dit has ddim and ddpm, found euler"),
    ({"model": {"kind": "flow", "residual": True}}, "model.kind=flow has no energy"),
    ({"model": {"kind": "dit"}, "eval": {"candidates": 2}}, "need energies to choose by, which model.kind=dit has not"),
    ({"model": {"kind": "transformer"}}, "config.model.kind: no choice 'transformer'"),
    ({"model": {"norm": "dyt"}}, "config.model.norm: models of pictures have no choice of it"),
    ({"model": {"kind": "dit", "passes": 2}}, "config.model.passes: 2, but task 'image' loops by eval.steps"),
    ({"model": {"width": 10, "heads": 1}}, "config.model.width: 10 must divide by 4"),
    ({"thinking": {"authors": {"soften_targets": 0.1}}}, "soften_targets: is for probabilities"),
    ({"data": {"max_bad": 1.0}}, "config.data.max_bad: expected a fraction from 0 to below 1"),
  ],
)  # fmt: skip
def test_mistakes(groups, words):
  with pytest.raises(ConfigError, match=words):
    config_of(**groups)


FLAGS = [
  f"--config.{key}"
  for key in (
    "model.layers=1", "model.heads=1", "model.width=8", "image.size=8", "image.patch=4", "train.steps=20",
    "train.batch_size=4", "train.warmup=1", "train.log_every=10", "checkpoint.every=10", "eval.max_windows=8",
    "sample.pictures=2", "image.passes=2",
  )
]  # fmt: skip


@pytest.mark.parametrize("kind", ["image_ebt", pytest.param("image_dit", marks=pytest.mark.slow)])
def test_a_run_is_killed_resumes_and_denoises_files(kind, tmp_path):
  flags = [f"--config=configs/{kind}.py", *FLAGS]
  whole = run([*flags, f"--workdir={tmp_path}/whole"])
  assert whole.code == 0, whole.err
  assert run([*flags, f"--workdir={tmp_path}/killed"], KILL).code == -9
  again = run([*flags, f"--workdir={tmp_path}/killed"])
  assert again.code == 0 and "resuming from step 10" in again.out, again.err
  results = [(tmp_path / n / "sample.json").read_text() for n in ("whole", "killed")]
  assert results[0] == results[1] and (tmp_path / "whole/sample.png").stat().st_size > 500
  assert "input psnr" in whole.out and "rescaled psnr" in whole.out
  from tests.data.test_pictures import BAD, picture, saved

  (tmp_path / "in").mkdir()
  (tmp_path / "in/good.png").write_bytes(saved(picture()))
  (tmp_path / "in/bad.png").write_bytes(BAD["rgb16.png"][0])
  generate = [f"--workdir={tmp_path}/whole", "--mode=generate", f"--prompts_file={tmp_path}/in"]
  done = run(generate)
  assert done.code == 0 and "good.png  psnr" in done.out and "left out: of 16 bits" in done.out, done.err
  assert (tmp_path / "whole/generated/good.png").exists() and (tmp_path / "whole/generated.png").exists()
  noised = run([*generate, f"--out={tmp_path}/other.json", "--set", "sample.noised=True"])
  assert noised.code == 0 and "psnr" not in (tmp_path / "other.json").read_text(), noised.err
  (tmp_path / "in/good.png").unlink()
  assert run(generate).code == 2 and "holds no picture that can be used" in run(generate).err
  assert run([*generate, "--prompt=a"]).code == 2
