"""Parity of the video models with numbers of the authors' PyTorch code; see `test_golden.py`, whose tolerances hold."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import thinking
from ebt_jax.config import Config
from ebt_jax.interop import reference, reference_video
from ebt_jax.tasks import registry
from tests.interop.test_golden import check, check_gradients, group, load, of_kind, tolerance_of

KEY = jax.random.key(0)


def task_of(data, meta):
  arrays, h = group(data, "param/"), meta["hparams"]
  model, params = reference.load(arrays, **h)
  more = {"thinking": reference_video.thinking(reference.thinking_config(**h))} if model.kind == "ebt" else {}
  assert reference_video.is_video(arrays)
  config = Config(task="video", model=model, video=reference_video.video_config(arrays), **more)
  return registry.make(config), jax.tree.map(jnp.asarray, params)


def draws_of(task, meta, data, frames):
  """Their start, and the further draws as our `Randomness`; the noise of every step is stacked."""
  config, drawn = task.config.thinking, {}
  for i, text in enumerate(meta["draws"]):
    kind = text.split()[0]
    drawn.setdefault(kind, []).append(data[f"draw/{i}/{kind}"])
  normal = drawn.get("randn", []) + drawn.get("randn_like", [])
  start = normal.pop(0) if config.start == "noise" else task.problem.start(task.space, KEY, {"frames": frames})
  repeats = [int(r.reshape(-1)[0]) for r in drawn.get("randint", [])]
  if repeats and len(repeats) < config.landscapes:
    repeats = [1] * (config.landscapes - len(repeats)) + repeats
  uniform = [u[..., 0] for u in drawn.get("rand_like", [])]
  random = thinking.Randomness(
    uniform[0] if uniform else None, np.stack(normal) if normal else None, np.array(repeats) if repeats else None
  )
  return jnp.asarray(start), random


def run_video(path, double):
  """Worst relative error."""
  data, meta = load(path, double)
  f64 = "f64/" if double else ""
  tolerance = 1e-8 if double else tolerance_of(meta.get("f32_grad_relerr_max", 0))
  task, params = task_of(data, meta)
  frames = jnp.asarray(data["input/x"])
  batch = {"frames": frames, "weights": jnp.ones((frames.shape[0], frames.shape[1] - 1), frames.dtype)}

  if task.config.model.kind == "transformer":
    loss, gradient = jax.jit(jax.value_and_grad(lambda p: task.loss(p, batch, KEY)[0].value()))(params)
    out = task.model.predict(params["model"], frames[:, :-1])
    worst = max(check("out", out, data[f64 + "out"], tolerance), check("loss", loss, data[f64 + "loss"], tolerance))
    return max(worst, check_gradients(gradient, data, f64 + "grad/", task.config.model, tolerance))

  training, (start, random) = meta["phase"] == "train", draws_of(task, meta, data, frames)

  def loss_of(params):
    return task.loss(params, batch, KEY, training=training, start=start, randomness=random)[0].value()

  @jax.jit
  def run(params):
    thoughts = thinking.think(
      task.model.energy, task.space, params, task.context(params, batch), start, KEY, task.config.thinking,
      training=training, randomness=random, observe=lambda x: x,
    )  # fmt: skip
    return thoughts, *jax.value_and_grad(loss_of)(params)

  thoughts, loss, gradient = run(params)
  assert int(thoughts.steps_used) == meta["steps"]
  worst = check("loss", loss, data[f64 + "loss"], tolerance)
  for i in range(meta["steps"]):
    energies = data[f"{f64}energy/{i}"].reshape(thoughts.energies[i].shape)
    worst = max(worst, check(f"energy {i}", thoughts.energies[i], energies, tolerance))
    prediction = data[f"{f64}pred/{i}"].reshape(start.shape)
    worst = max(worst, check(f"prediction {i}", thoughts.observed[i], prediction, tolerance))
  if not training:  # their evaluation of video keeps no graph
    return worst
  return max(worst, check_gradients(gradient, data, f64 + "grad/", task.config.model, tolerance))


is_one = lambda n: n.startswith("vid_") and "replay" not in n


@pytest.mark.parametrize("path", of_kind(is_one))
def test_video_agrees_in_float64(path, x64, record_property):
  record_property("golden video float64", float(run_video(path, double=True)))


@pytest.mark.parametrize("path", of_kind(is_one))
def test_video_agrees_in_float32(path, record_property):
  record_property("golden video float32", float(run_video(path, double=False)))
