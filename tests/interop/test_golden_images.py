"""Parity of the image models with numbers of the authors' PyTorch code; see `test_golden.py`, whose tolerances hold.

DiT files hold float32 numbers alone: those are met within what rounding does to our own float64 ones.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import diffusion, thinking
from ebt_jax.config import Config, ImageConfig
from ebt_jax.interop import reference, reference_images
from ebt_jax.models import patches
from ebt_jax.tasks import registry
from tests.interop.test_golden import ROUNDING, check, group, load, of_kind, tolerance_of

KEY = jax.random.key(0)


def last(a):
  """Their pictures are channels first."""
  return jnp.asarray(np.moveaxis(a, 1, -1))


def leaves(tree):
  """By name; q, k and v as one, as in their files: the gradient of k's bias alone is 0 but for rounding."""
  out = {jax.tree_util.keystr(path): np.asarray(a) for path, a in jax.tree_util.tree_leaves_with_path(tree)}
  for name in [n for n in out if "['q']" in n]:
    parts = [out.pop(name.replace("['q']", f"['{x}']")) for x in "qkv"]
    out[name.replace("['q']", "['qkv']")] = np.concatenate(parts, -1)
  return out


def check_tree(ours, data, prefix, layers, tolerance):
  theirs = leaves(reference_images.convert(group(data, prefix), layers))
  ours = leaves(ours)
  assert theirs
  return max(check(name, ours[name], value, tolerance) for name, value in theirs.items())


def task_of(data, meta):
  arrays, h = group(data, "param/"), meta["hparams"]
  model, params = reference.load(arrays, **h)
  image = reference_images.image_config(arrays, **h)
  (positions,) = (a for n, a in arrays.items() if n.endswith("pos_embed"))
  check("positions", patches.positions(image.side, model.width)[None], positions, 1e-6)
  more = {}
  if model.kind == "ebt":
    thinks = reference.thinking_config(**h)
    how = {"start": "input", "authors": thinks.authors.__class__(eval_noise=not h["no_langevin_during_eval"])}
    more["thinking"] = thinks.__class__(**{**thinks.__dict__, **how})
  config = Config(task="image", model=model, image=image, **more)
  assert isinstance(image, ImageConfig)
  return registry.make(config), jax.tree.map(jnp.asarray, params)


def draws_of(meta, data):
  """Their draws by kind, in order."""
  out = {}
  for i, text in enumerate(meta["draws"]):
    kind = text.split()[0]
    out.setdefault(kind, []).append(data[f"draw/{i}/{kind}"])
  return out


def batch_of(task, meta, data):
  """Clean and noised pictures, and the further draws as our `Randomness`."""
  clean, draws = last(data["input/image"]), draws_of(meta, data)
  rows = len(clean)
  noise = last(draws["randn_like"].pop(0))
  step = jnp.full(rows, task.problem.steps_asked - 1)
  repeats = []
  for drawn in draws.get("randint", []):
    if drawn.shape == (rows,):
      step = jnp.asarray(drawn)
    else:
      repeats.append(int(drawn.reshape(-1)[0]))
  config = task.config.thinking
  if repeats and len(repeats) < config.landscapes:
    repeats = [1] * (config.landscapes - len(repeats)) + repeats
  uniform = [d.reshape(rows) for d in draws.get("rand_like", [])]
  more = [np.moveaxis(d, 1, -1) for d in draws["randn_like"]]
  random = thinking.Randomness(
    uniform[0] if uniform else None, np.stack(more) if more else None, np.array(repeats) if repeats else None
  )
  noised = diffusion.add_noise(task.problem.schedule, clean, step, noise)
  batch = {"clean": clean, "noised": noised, "step": step, "weights": jnp.ones(rows, clean.dtype)}
  return batch, random


def run_ebt(path, double):
  data, meta = load(path, double)
  f64 = "f64/" if double else ""
  tolerance = 1e-8 if double else tolerance_of(meta.get("f32_grad_relerr_max", 0))
  task, params = task_of(data, meta)
  batch, random = batch_of(task, meta, data)
  training = meta["phase"] == "train"
  thoughts = thinking.think(
    task.model.energy, task.space, params, task.context(params, batch), batch["noised"], KEY,
    task.config.thinking, training=training, randomness=random, observe=lambda x: x,
  )  # fmt: skip
  worst = 0.0
  assert int(thoughts.steps_used) == meta["steps"]
  for i in range(meta["steps"]):
    worst = max(worst, check(f"energy {i}", thoughts.energies[i], data[f"{f64}energy/{i}"].reshape(-1), tolerance))
    worst = max(worst, check(f"prediction {i}", thoughts.observed[i], last(data[f"{f64}pred/{i}"]), tolerance))

  def loss_of(params):
    return task.loss(params, batch, KEY, training=training, randomness=random)[0].value()

  loss, gradient = jax.jit(jax.value_and_grad(loss_of))(params)
  worst = max(worst, check("loss", loss, data[f64 + "loss"], tolerance))
  return max(worst, check_tree(gradient, data, f64 + "grad/", task.config.model.layers, tolerance))


@pytest.mark.parametrize("path", of_kind(lambda n: n.startswith("img_ebt")))
def test_ebt_agrees_in_float64(path, x64, record_property):
  record_property("golden float64", float(run_ebt(path, double=True)))


@pytest.mark.parametrize("path", of_kind(lambda n: n.startswith("img_ebt")))
def test_ebt_agrees_in_float32(path, record_property):
  record_property("golden float32", float(run_ebt(path, double=False)))


def of_schedule(schedule):
  """Their arrays by name; those of the posterior are what `posterior` makes of units."""
  abar, t = schedule.alpha_bar, jnp.arange(schedule.steps)
  one, zero = jnp.ones((schedule.steps, 1)), jnp.zeros((schedule.steps, 1))
  of_clean = diffusion.posterior(schedule, zero, t, t - 1, one)
  of_x = diffusion.posterior(schedule, one, t, t - 1, zero)
  signal, scale = schedule.scales(t, one)
  return {
    "betas": schedule.betas,
    "alphas_cumprod": abar,
    "alphas_cumprod_prev": np.append(1.0, abar[:-1]),
    "alphas_cumprod_next": np.append(abar[1:], 0.0),
    "sqrt_alphas_cumprod": signal[:, 0],
    "sqrt_one_minus_alphas_cumprod": scale[:, 0],
    "posterior_variance": np.append(0.0, np.exp(of_clean.log_variance[1:, 0])),
    "posterior_log_variance_clipped": of_clean.log_variance[:, 0],
    "posterior_mean_coef1": of_clean.mean[:, 0],
    "posterior_mean_coef2": of_x.mean[:, 0],
  }


def run_dit(path, double):
  """Ours and theirs by name."""
  data, meta = load(path, double)
  task, params = task_of(data, meta)
  schedule, process, draws = task.problem.schedule, task.process, draws_of(meta, data)
  out = {}

  def network(params):
    return lambda x, t: task.model.predict(params["model"], (x, t))

  apply = network(params)
  clean, noise = last(data["input/image"]), last(data["q_noise"])
  mixed = jnp.asarray(data["t_mixed"])
  top = jnp.full_like(mixed, task.problem.steps_asked - 1)
  out["q_t99"] = x = diffusion.add_noise(schedule, clean, top, noise)
  out["q_t_mixed"] = diffusion.add_noise(schedule, clean, mixed, noise)
  out["eps_sigma_t99"], out["eps_sigma_mixed"] = apply(x, top), apply(x, mixed)
  found = diffusion.predicted(schedule, apply(x, top), x, top, top - 1)
  out |= {"p_mean_variance_t99/mean": found.mean, "p_mean_variance_t99/log_variance": found.log_variance}
  out |= {"p_mean_variance_t99/variance": jnp.exp(found.log_variance), "p_mean_variance_t99/pred_xstart": found.clean}
  out["p_sample_t99"] = diffusion.ddpm_step(found, top - 1, last(data["p_sample_noise"]))
  out["ddim_sample_t99"] = diffusion.ddim_step(schedule, x, top, top - 1, found.clean)
  keys = jax.random.split(KEY, len(clean))
  steps = task.problem.steps_asked
  out["ddim_loop_from_t99"], _ = diffusion.denoise(process, apply, x, top, steps, keys, lambda x: ())
  errors, parts = process.loss_at(apply, clean, mixed, noise)
  out |= {"training_losses_mixed/vb": parts["bound"], "training_losses_mixed/mse": parts["noise"]}
  out["training_losses_mixed/loss"] = errors
  out["timestep_embedding_mixed"] = patches.time_features(jnp.asarray(mixed, clean.dtype))

  def loss_of(params):
    t, noise = jnp.asarray(draws["randint"][0]), last(draws["randn_like"][0])
    errors, parts = process.loss_at(network(params), clean, t, noise)
    return jnp.mean(errors), parts

  (loss, parts), gradient = jax.jit(jax.value_and_grad(loss_of, has_aux=True))(params)
  out |= {"loss": loss, "log/vb_loss": jnp.mean(parts["bound"]), "log/mse_conditioned_loss": jnp.mean(parts["noise"])}
  t, noise = jnp.asarray(draws["randint"][0]), last(draws["randn_like"][0])
  out["out"] = apply(diffusion.add_noise(schedule, clean, t, noise), t)
  theirs = {n: np.moveaxis(data[n], 1, -1) if data[n].ndim == 4 else data[n] for n in out}
  result = {name: (np.asarray(a, np.float64), theirs[name]) for name, a in out.items()}
  ours = leaves(gradient)
  for name, value in leaves(reference_images.convert(group(data, "grad/"), task.config.model.layers)).items():
    result[f"grad {name}"] = (np.asarray(ours[name], np.float64), value)
  return result


@pytest.mark.parametrize("path", of_kind(lambda n: n.startswith("img_dit")))
def test_dit_agrees(path, x64, record_property):
  data, meta = load(path, True)
  for name, ours in of_schedule(task_of(data, meta)[0].problem.schedule).items():
    check(name, ours, data[f"schedule/{name}"], 1e-8)
  exact, rounded, worst = run_dit(path, True), run_dit(path, False), 0.0
  for name, (ours, theirs) in exact.items():
    rounding = np.linalg.norm(ours - rounded[name][0]) / max(np.linalg.norm(ours), 1e-30)
    worst = max(worst, check(name, rounded[name][0], theirs, tolerance_of(rounding)))
    if 10 * rounding < ROUNDING:  # the tail of the likelihood at step 0 is lost in float32
      worst = max(worst, check(name, ours, theirs, tolerance_of(rounding)))
  record_property("golden DiT", float(worst))
