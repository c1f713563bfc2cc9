"""Losses of predictions `[*p]`."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def token_losses(logits: Float[Array, "*p v"], targets: Int[Array, "*p"], smoothing=None) -> Float[Array, "*p"]:
  """Cross-entropies in nats; `smoothing` (a number or `[*p]`) spreads that share of each target over the vocabulary."""
  log_z = jax.nn.logsumexp(logits, axis=-1)
  nll = log_z - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  if smoothing is not None:
    nll = (1 - smoothing) * nll + smoothing * (log_z - jnp.mean(logits, axis=-1))
  return nll


def energy_contrast(
  true: Float[Array, "*e"], predicted: Float[Array, "*e"], weights: Float[Array, "*e"]
) -> Float[Array, ""]:
  """Sum of -log softmax([-E_true, -E_predicted])[0]: the truth should have the lower energy.

  An option of the authors' code (`thinking.authors.contrastive`).
  """
  return jnp.sum(weights * jax.nn.softplus(true - predicted))


def energy_judgement(
  true: Float[Array, "*e"], wrong: Float[Array, "*e"], weights: Float[Array, "*e"]
) -> Float[Array, ""]:
  """Sum of -log sigmoid(-E_true) - log sigmoid(E_wrong): -E is the log-odds that an answer is right.

  Unlike `energy_contrast` it fixes the zero of the energy, so that energies of different contexts compare.
  """
  return jnp.sum(weights * (jax.nn.softplus(true) + jax.nn.softplus(-wrong)))


def smooth_l1(x: Float[Array, "*p"], target: Float[Array, "*p"]) -> Float[Array, "*p"]:
  """Half the squared difference where it is below 1, else its size less a half (Huber, beta 1)."""
  size = jnp.abs(x - target)
  return jnp.where(size < 1, size * size / 2, size - 0.5)
