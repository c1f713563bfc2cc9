"""Losses, as sums over positions so that microbatches and hosts can be weighted by tokens."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def cross_entropy(
  logits: Float[Array, "b s v"], targets: Int[Array, "b s"], weights: Float[Array, "b s"], smoothing=None
) -> Float[Array, ""]:
  """Sum of weighted `token_losses`."""
  return jnp.sum(weights * token_losses(logits, targets, smoothing))


def token_losses(logits: Float[Array, "*p v"], targets: Int[Array, "*p"], smoothing=None) -> Float[Array, "*p"]:
  """Cross-entropies in nats; `smoothing` (a number or `[*p]`) moves that share of each target to all tokens alike."""
  log_z = jax.nn.logsumexp(logits, axis=-1)
  nll = log_z - jnp.take_along_axis(logits, targets[..., None], axis=-1)[..., 0]
  if smoothing is not None:
    nll = (1 - smoothing) * nll + smoothing * (log_z - jnp.mean(logits, axis=-1))
  return nll


def energy_contrast(
  true: Float[Array, "b s"], predicted: Float[Array, "b s"], weights: Float[Array, "b s"]
) -> Float[Array, ""]:
  """Sum of -log softmax([-E_true, -E_predicted])[0]: truth should have the lower energy (facts 2.4)."""
  return jnp.sum(weights * jax.nn.softplus(true - predicted))


def without_padding(logits: Float[Array, "*p w"], vocabulary: int) -> Float[Array, "*p w"]:
  """Logits of -inf beyond the vocabulary, which a table padded for slicing has."""
  if logits.shape[-1] == vocabulary:
    return logits
  return jnp.where(jnp.arange(logits.shape[-1]) < vocabulary, logits, -jnp.inf)
