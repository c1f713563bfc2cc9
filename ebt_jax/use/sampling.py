"""Choosing a token from logits."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from ebt_jax.config import ConfigError


@dataclasses.dataclass(frozen=True)
class Sampling:
  """Temperature, then the k likeliest, then the smallest set that holds probability p.

  Attributes:
    temperature: more than 0; for the likeliest token use `top_k=1`.
    top_k: 0 keeps all.
    top_p: 1 keeps all.
  """

  temperature: float = 1.0
  top_k: int = 0
  top_p: float = 1.0

  def __post_init__(self):
    if not self.temperature > 0:
      raise ConfigError(f"--temperature: expected more than 0, found {self.temperature}; for greedy text use --top_k=1")
    if self.top_k < 0:
      raise ConfigError(f"--top_k: expected 0 (all) or more, found {self.top_k}")
    if not 0 < self.top_p <= 1:
      raise ConfigError(f"--top_p: expected 0 < p <= 1, found {self.top_p}")


def sample(logits: Float[Array, "b v"], keys: Key[Array, " b"], sampling: Sampling) -> Int[Array, " b"]:
  """One token for each row, drawn with the key of the row."""
  if sampling.top_k == 1:
    return jnp.argmax(logits, -1)
  logits = logits / sampling.temperature
  if sampling.top_k and sampling.top_k < logits.shape[-1]:
    least = jax.lax.top_k(logits, sampling.top_k)[0][:, -1:]
    logits = jnp.where(logits < least, -jnp.inf, logits)
  if sampling.top_p < 1:
    ordered = jnp.sort(logits, axis=-1)[:, ::-1]
    before = jnp.cumsum(jax.nn.softmax(ordered, -1), -1) - jax.nn.softmax(ordered, -1)
    least = jnp.min(jnp.where(before < sampling.top_p, ordered, jnp.inf), -1, keepdims=True)
    logits = jnp.where(logits < least, -jnp.inf, logits)
  return jax.vmap(jax.random.categorical)(keys, logits)
