"""AdamW with two parameter groups: the learnable step size, and all else (paper appendix D)."""

import jax
import jax.numpy as jnp
import optax

from ebt_jax.config import Config


def gradient_norm(config: Config, gradient) -> jax.Array:
  """Norm over everything that is learnt."""

  def learnt(g, group):
    return jnp.zeros_like(g) if group == "fixed" else g

  return optax.tree.norm(jax.tree.map(learnt, gradient, labels(config, gradient)))


def schedule(peak: float, floor: float, warmup: int, horizon: int, start: float = 0.0) -> optax.Schedule:
  """Learning rate of update i = 0, 1, ...: linear warm-up that reaches `peak` at update `warmup` - 1, cosine to
  `floor` at update `horizon` - 1, `floor` from then on. `horizon` 0 keeps `peak` after the warm-up."""

  def rate(i):
    done = jnp.asarray(i, jnp.float32) + 1
    rising = start + (peak - start) * done / max(warmup, 1)
    if not horizon:
      return jnp.where(done < warmup, rising, peak)
    angle = jnp.pi * jnp.clip((done - warmup) / (horizon - warmup), 0, 1)
    return jnp.where(done < warmup, rising, floor + (peak - floor) * (1 + jnp.cos(angle)) / 2)

  return rate


def rates(config: Config) -> dict[str, optax.Schedule]:
  """The schedule of each group; every group falls to the same fraction of its own peak."""
  r = config.train
  horizon = r.horizon if r.schedule == "cosine" else 0

  def scaled(factor):
    peak = factor * r.learning_rate
    return schedule(peak, r.final_ratio * peak, r.warmup, horizon, r.warmup_start * peak)

  return {"weights": scaled(1.0), "step_size": scaled(config.thinking.step_size_lr_multiplier)}


def make(config: Config) -> optax.GradientTransformation:
  """Global clip over everything that is learnt, then AdamW for each group. What is not learnt gets no update."""
  r = config.train
  rate = rates(config)

  def adam(group, decay):
    return optax.adamw(rate[group], r.beta1, r.beta2, r.eps, weight_decay=decay)

  groups = {
    "weights": adam("weights", r.weight_decay),
    "step_size": adam("step_size", 0.0),
    "fixed": optax.set_to_zero(),
  }
  return optax.chain(_clip(config), optax.partition(groups, lambda p: labels(config, p)))


def labels(config: Config, params) -> dict:
  """The optimiser group of every parameter."""
  t = config.thinking
  thinking = {
    "step_size": "step_size" if t.learn_step_size else "fixed",
    "noise": "weights" if t.learn_noise else "fixed",
  }
  out = {"model": jax.tree.map(lambda _: "weights", params["model"])}
  if "thinking" in params:
    out["thinking"] = thinking
  if config.model.norm == "dyt" and "thinking" in params:
    out["model"]["norm"]["bias"] = "fixed"  # shifts every energy alike
  return out


def _clip(config: Config) -> optax.GradientTransformation:
  """Scales by limit / (norm + 1e-6) above the limit, as PyTorch does."""
  limit = config.train.clip

  def update(updates, state, params=None):
    factor = jnp.minimum(1.0, limit / (gradient_norm(config, updates) + 1e-6))
    return jax.tree.map(lambda g: g * factor, updates), state

  return optax.GradientTransformation(lambda params: optax.EmptyState(), update) if limit else optax.identity()
