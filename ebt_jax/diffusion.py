"""Noise on pictures and ways to take it away: Gaussian diffusion (DDPM, DDIM) and flow matching (SiT's interpolant).

Pure functions of arrays; the network comes in from outside. A diffusion's step t has x_t = sqrt(abar_t) x0 +
sqrt(1 - abar_t) noise, abar falling with t; step -1 is the clean picture. Steps may be taken from any t to any earlier
one: all formulas are for such a pair (`t`, `before`), which is what respacing comes to. Sources: Ho et al. 2020; Song
et al. 2021; Nichol and Dhariwal 2021 (learnt variances); Ma et al. 2024 (interpolants).

Shapes: b rows; x, noise and clean pictures `[b, ...]`; t and before int `[b]`.
"""

from collections.abc import Callable
import dataclasses
import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key, Shaped
import numpy as np

from ebt_jax import streams

X = Float[Array, "b ..."]
Step = Int[Array, " b"]


@dataclasses.dataclass(frozen=True)
class Schedule:
  """Linear betas, from 0.1 / steps to 20 / steps (1e-4 to 0.02 at 1000 steps). Arrays are float64, `[steps]`."""

  steps: int = 1000

  @functools.cached_property
  def betas(self) -> np.ndarray:
    return np.linspace(0.1 / self.steps, 20 / self.steps, self.steps)

  @functools.cached_property
  def alpha_bar(self) -> np.ndarray:
    return np.cumprod(1 - self.betas)

  def log_alpha_bar(self, t: Step, dtype: Any) -> Float[Array, " b"]:
    """0 at step -1. Its differences and `expm1` keep their precision in float32, which 1 - abar does not."""
    table = np.concatenate([[0.0], np.cumsum(np.log1p(-self.betas))])
    return jnp.asarray(table, dtype)[t + 1]

  def scales(self, t: Step, x: X) -> tuple[X, X]:
    """sqrt(abar_t) of the picture and sqrt(1 - abar_t) of the noise, `[b, 1, ...]` like x."""
    log = rows_like(self.log_alpha_bar(t, x.dtype), x)
    return jnp.exp(log / 2), jnp.sqrt(-jnp.expm1(log))

  def step_of(self, level: Float[Array, "..."] | float) -> Shaped[Array | np.ndarray, "..."]:
    """The step whose noise a level in (0, 1] stands for: that share of all steps."""
    return jnp.asarray(jnp.round(jnp.asarray(level) * self.steps), jnp.int32) - 1


def rows_like(a: Shaped[Array, " b"], x: X) -> jax.Array:
  """`[b]` as `[b, 1, ...]`, for products with x."""
  return a.reshape(-1, *[1] * (x.ndim - 1))


def add_noise(schedule: Schedule, clean: X, t: Step, noise: X) -> X:
  """x_t of a clean picture."""
  signal, scale = schedule.scales(t, clean)
  return signal * clean + scale * noise


def clean_from_noise(schedule: Schedule, x: X, t: Step, noise: X) -> X:
  """The clean picture that a guess of the noise in x_t stands for."""
  signal, scale = schedule.scales(t, x)
  return (x - scale * noise) / signal


def noise_from_clean(schedule: Schedule, x: X, t: Step, clean: X) -> X:
  """The noise in x_t that a guess of the clean picture stands for."""
  signal, scale = schedule.scales(t, x)
  return (x - signal * clean) / scale


class Gaussian(NamedTuple):
  """A normal distribution of a step's outcome, and the clean picture that it is derived from."""

  mean: X
  log_variance: X
  clean: X


def posterior(schedule: Schedule, x: X, t: Step, before: Step, clean: X) -> Gaussian:
  """q(x_before | x_t, x0); the log variance of a step to -1, where it is 0, is that of the step from 1 to 0."""
  now, then = (rows_like(schedule.log_alpha_bar(s, x.dtype), x) for s in (t, before))
  beta = -jnp.expm1(now - then)
  left = jnp.expm1(then) / jnp.expm1(now)  # (1 - abar_before) / (1 - abar_t)
  mean = jnp.exp(then / 2) * beta / -jnp.expm1(now) * clean + jnp.exp((now - then) / 2) * left * x
  first, second = schedule.betas[:2]
  least = math.log(second * first / (1 - schedule.alpha_bar[1]))
  log_variance = jnp.where(left > 0, jnp.log(jnp.where(left > 0, left, 1) * beta), least)
  return Gaussian(mean, jnp.broadcast_to(log_variance, x.shape), clean)


def predicted(schedule: Schedule, output: X, x: X, t: Step, before: Step, clip: bool = True) -> Gaussian:
  """p(x_before | x_t) of a network that gives the noise and where the log variance lies in its range (DiT).

  Args:
    output: `[b, ..., 2 c]`: the noise, then a number from -1 (posterior's variance) to 1 (beta) for each channel.
    clip: bring the clean picture to [-1, 1].
  """
  noise, share = jnp.split(output, 2, -1)
  clean = clean_from_noise(schedule, x, t, noise)
  clean = jnp.clip(clean, -1, 1) if clip else clean
  found = posterior(schedule, x, t, before, clean)
  now, then = (rows_like(schedule.log_alpha_bar(s, x.dtype), x) for s in (t, before))
  share = (share + 1) / 2
  log_variance = share * jnp.log(-jnp.expm1(now - then)) + (1 - share) * found.log_variance
  return found._replace(log_variance=log_variance)


def ddpm_step(found: Gaussian, before: Step, noise: X) -> X:
  """A draw of x_before; its mean where that is the clean picture."""
  on = rows_like(before >= 0, found.mean)
  return found.mean + jnp.where(on, jnp.exp(found.log_variance / 2), 0) * noise


def ddim_step(schedule: Schedule, x: X, t: Step, before: Step, clean: X) -> X:
  """x_before with the noise that x_t has, given a guess of the clean picture; no randomness (eta = 0)."""
  signal, scale = schedule.scales(before, x)
  return signal * clean + scale * noise_from_clean(schedule, x, t, clean)


class DiffusionLoss(NamedTuple):
  """Of each row: squared error of the noise, and the variational bound of the variance, in bits for each value."""

  noise: Float[Array, " b"]
  bound: Float[Array, " b"]


def diffusion_loss(schedule: Schedule, output: X, clean: X, x: X, t: Step, noise: X) -> DiffusionLoss:
  """What DiT minimises the sum of; the bound has no gradient to the noise that is predicted."""
  guess, share = jnp.split(output, 2, -1)
  fixed = jnp.concatenate([jax.lax.stop_gradient(guess), share], -1)
  truth, found = posterior(schedule, x, t, t - 1, clean), predicted(schedule, fixed, x, t, t - 1, clip=False)
  apart = (truth.mean - found.mean) ** 2 * jnp.exp(-found.log_variance)
  ratio = truth.log_variance - found.log_variance
  divergence = 0.5 * (jnp.exp(ratio) - 1 - ratio + apart)
  likelihood = _binned_log_likelihood(clean, found.mean, found.log_variance / 2)
  bound = jnp.where(rows_like(t == 0, x), -likelihood, divergence)
  return DiffusionLoss(mean_of_row((noise - guess) ** 2), mean_of_row(bound) / math.log(2))


def _binned_log_likelihood(x, mean, log_scale):
  """Log probability of values on a grid of 256 from -1 to 1; the outermost bins reach to infinity."""

  def below(edge):
    z = (edge - mean) * jnp.exp(-log_scale)
    return 0.5 * (1 + jnp.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

  upper, lower = below(x + 1 / 255), below(x - 1 / 255)
  inside = jnp.where(x < -0.999, upper, jnp.where(x > 0.999, 1 - lower, upper - lower))
  return jnp.log(jnp.maximum(inside, 1e-12))


def mean_of_row(x: X) -> Float[Array, " b"]:
  """Mean over all axes but the first."""
  return jnp.mean(x, tuple(range(1, x.ndim)))


def steps_from(start: Step, passes: int) -> Int[Array, "n b"]:
  """`passes` + 1 steps from `start` to -1, evenly spread; all of them where `passes` is start + 1."""
  share = jnp.arange(passes, -1, -1)[:, None] / passes
  steps = jnp.round((start + 1) * share).astype(jnp.int32) - 1
  return steps.at[:-1].set(jnp.maximum(steps[:-1], 0))


@dataclasses.dataclass(frozen=True)
class Diffusion:
  """DiT's process: the network predicts the noise and a variance. `sampler`: ddim | ddpm."""

  schedule: Schedule
  sampler: str = "ddim"
  clip: bool = True
  outputs = 2  # channels of the network for each of the picture's

  def loss(self, network: Callable, clean: X, most: int, key: Key[Array, ""]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Of each row at a random step below `most`, and its parts."""
    step_key, noise_key = jax.random.split(key)
    t = jax.random.randint(step_key, clean.shape[:1], 0, most)
    noise = jax.random.normal(noise_key, clean.shape, clean.dtype)
    return self.loss_at(network, clean, t, noise)

  def loss_at(self, network: Callable, clean: X, t: Step, noise: X) -> tuple[jax.Array, dict[str, jax.Array]]:
    x = add_noise(self.schedule, clean, t, noise)
    parts = diffusion_loss(self.schedule, network(x, t), clean, x, t, noise)
    return parts.noise + parts.bound, parts._asdict()

  def start(self, noised: X, t: Step) -> tuple[X, Step]:
    """The noised picture and its time as this process counts it."""
    return noised, t

  def times(self, start: Step, passes: int) -> Int[Array, "n b"]:
    return steps_from(start, passes)

  def step(self, network: Callable, x: X, t: Step, before: Step, keys: Key[Array, " b"]) -> tuple[X, X]:
    """x at the step before, and the clean picture as it looks from here."""
    found = predicted(self.schedule, network(x, t), x, t, before, self.clip)
    if self.sampler == "ddim":
      return ddim_step(self.schedule, x, t, before, found.clean), found.clean
    noise = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)
    return ddpm_step(found, before, noise), found.clean


@dataclasses.dataclass(frozen=True)
class Flow:
  """Flow matching on x_s = (1 - s) clean + s noise: from a level s of noise down to 0. `sampler`: euler | heun.

  The network predicts the clean picture (`predicts` clean) or the velocity noise - clean (`velocity`).
  """

  schedule: Schedule
  sampler: str = "euler"
  predicts: str = "clean"
  clip: bool = True
  outputs = 1

  def level(self, t: Step, dtype: Any = jnp.float32) -> Float[Array, " b"]:
    """The s whose ratio of noise to picture is that of a diffusion's step."""
    log = self.schedule.log_alpha_bar(t, dtype)
    signal, scale = jnp.exp(log / 2), jnp.sqrt(-jnp.expm1(log))
    return scale / (signal + scale)

  def loss(self, network: Callable, clean: X, most: int, key: Key[Array, ""]) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Of each row at a random level up to that of step `most` - 1."""
    level_key, noise_key = jax.random.split(key)
    top = self.level(jnp.array([most - 1]), clean.dtype)
    s = top * (1 - jax.random.uniform(level_key, clean.shape[:1], clean.dtype))
    noise = jax.random.normal(noise_key, clean.shape, clean.dtype)
    x = (1 - rows_like(s, clean)) * clean + rows_like(s, clean) * noise
    target = clean if self.predicts == "clean" else noise - clean
    return mean_of_row((network(x, 1000 * s) - target) ** 2), {}

  def start(self, noised: X, t: Step) -> tuple[X, Float[Array, " b"]]:
    """A diffusion's noised picture, scaled as the interpolant has it."""
    signal, scale = self.schedule.scales(t, noised)
    return noised / (signal + scale), self.level(t, noised.dtype)

  def times(self, start: Float[Array, " b"], passes: int) -> Float[Array, "n b"]:
    """Levels from `start` to 0; the last one is 0 exactly. Each of Heun's steps takes two passes."""
    steps = passes if self.sampler == "euler" else max(1, passes // 2)
    return start * (jnp.arange(steps, -1, -1) / steps)[:, None]

  def step(self, network: Callable, x: X, s: jax.Array, after: jax.Array, keys: Any) -> tuple[X, X]:
    """x at the lower level, and the clean picture as it looks from here."""
    clean = self._clean(network, x, s)
    velocity = (x - clean) / rows_like(s, x)
    size = rows_like(after - s, x)
    if self.sampler == "euler":
      return x + size * velocity, clean
    there = x + size * velocity
    low = jnp.maximum(after, 1e-6)  # the velocity at 0 is not defined, and not used
    second = (there - self._clean(network, there, low)) / rows_like(low, x)
    heun = x + size * (velocity + second) / 2
    return jnp.where(rows_like(after > 0, x), heun, there), clean

  def _clean(self, network, x, s):
    output = network(x, 1000 * s)
    clean = output if self.predicts == "clean" else x - rows_like(s, x) * output
    return jnp.clip(clean, -1, 1) if self.clip else clean


def denoise(
  process: Any,
  network: Callable,
  noised: X,
  t: Step,
  passes: int,
  keys: Key[Array, " b"],
  observe: Callable[[X], Any],
) -> tuple[X, Any]:
  """Takes the noise of step t away.

  Args:
    process: `Diffusion` or `Flow`.
    network: `(x, time [b]) -> [b, ..., outputs x channels]`.
    observe: called on the clean picture as it looks from each step; the last one is the answer.

  Returns:
    The answer, and what `observe` gave, stacked.
  """
  x, start = process.start(noised, t)
  times = process.times(start, passes)

  def step(x, now):
    i, time, after = now
    x, clean = process.step(network, x, time, after, streams.fold(keys, i))
    return x, observe(clean)

  return jax.lax.scan(step, x, (jnp.arange(len(times) - 1), times[:-1], times[1:]))
