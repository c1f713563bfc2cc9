"""The outer optimiser: AdamW, the learnable step size apart (paper appendix D); with Muon for matrices if wanted.

Muon (`train.optimizer=muon`) orthogonalises the updates of the matrices in blocks. Their size is brought to that of
AdamW's (root mean square 0.2), so that one learning rate serves both.
"""

import jax
import jax.numpy as jnp
import optax
from optax import contrib

from ebt_jax.config import Config, ConfigError

MUON_RMS = 0.2


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


def make(config: Config, tables: tuple[str, ...] = ()) -> optax.GradientTransformation:
  """Global clip over everything that is learnt, then an optimiser for each group. What is not learnt gets no update.

  Args:
    tables: names below `params["model"]` that are look-up tables and no matrices.

  Raises:
    ConfigError: at `init`, `train.optimizer=muon` for a model without matrices.
  """
  r = config.train
  rate = rates(config)

  def adam(group, decay):
    return optax.adamw(rate[group], r.beta1, r.beta2, r.eps, weight_decay=decay)

  groups = {
    "weights": adam("weights", r.weight_decay),
    "step_size": adam("step_size", 0.0),
    "fixed": optax.set_to_zero(),
  }
  if r.optimizer == "muon":
    groups["matrices"] = contrib.muon(
      rate["weights"],
      weight_decay=r.weight_decay,
      consistent_rms=MUON_RMS,
      muon_weight_dimension_numbers=_last_two_axes,
    )

  def group_of(params):
    return _with_matrices(labels(config, params), params, tables) if r.optimizer == "muon" else labels(config, params)

  return optax.chain(_clip(config), optax.partition(groups, group_of))


def _last_two_axes(params):
  """Matrices may be stacked over layers."""
  return jax.tree.map(lambda p: contrib.MuonDimensionNumbers(p.ndim - 2, p.ndim - 1), params)


def _with_matrices(labels: dict, params: dict, tables: tuple[str, ...]) -> dict:
  """The labels with `matrices` for what Muon is for: weights in blocks, neither look-up tables nor vectors.

  Below `layers` leaves are stacked over layers; a convolution has a vector for each position that it sees.
  """

  def is_matrix(path, p):
    names = [getattr(key, "key", None) for key in path]
    if names[0] in tables or names[-1] == "embedding" or "conv" in names:
      return False
    return p.ndim - ("layers" in names) > 1 and min(p.shape[-2:]) > 1

  found = jax.tree_util.tree_map_with_path(is_matrix, params["model"])
  if not any(jax.tree.leaves(found)):
    raise ConfigError("config.train.optimizer: muon is for matrices, and this model has none; set it to adamw")

  def label(matrix, group):
    return "matrices" if matrix and group == "weights" else group

  return {**labels, "model": jax.tree.map(label, found, labels["model"])}


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
