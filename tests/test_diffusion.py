"""Diffusion and flow against closed forms: normal data, whose denoiser is known, is denoised to its exact posterior.

Data N(0, s^2): E[x0 | x_t] = k_t x_t with k_t = s^2 sqrt(abar) / (s^2 abar + 1 - abar), and every sampler is linear in
x_t and in its noise.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import diffusion
from ebt_jax.diffusion import Diffusion, Flow, Schedule

S = 0.5  # standard deviation of the data
SCHEDULE = Schedule()
KEYS = jax.random.split(jax.random.key(0), 1)
X = np.array([[1.7]])


def factor(t):
  """(k_t, variance of x0 given x_t)."""
  abar = 1.0 if t < 0 else SCHEDULE.alpha_bar[t]
  total = S**2 * abar + 1 - abar
  return S**2 * abar**0.5 / total, S**2 * (1 - abar) / total


def exact_network(x, t):
  """The noise and the variance that the exact denoiser predicts, for `Diffusion` steps of one."""
  k = jnp.array([factor(i)[0] for i in range(SCHEDULE.steps)])[t][:, None]
  noise = diffusion.noise_from_clean(SCHEDULE, x, t, k * x)
  return jnp.concatenate([noise, -jnp.ones_like(x)], -1)


def denoised(process, network, t, passes, x=X):
  return diffusion.denoise(process, network, jnp.asarray(x), jnp.array([t]), passes, KEYS, lambda x: x)


@pytest.mark.parametrize("t, passes", [(99, 100), (199, 7), (40, 1)])
def test_ddpm_without_noise_gives_the_posterior_mean(t, passes, x64):
  """By the tower rule exactly, however few the passes; one pass too few, or a wrong step before, would not."""
  process = Diffusion(SCHEDULE, "ddpm", clip=False)
  x = jnp.asarray(X)
  times = process.times(jnp.array([t]), passes)
  for now, before in zip(times[:-1], times[1:]):
    found = diffusion.predicted(SCHEDULE, exact_network(x, now), x, now, before, clip=False)
    x = diffusion.ddpm_step(found, before, jnp.zeros_like(x))
  assert float(x[0, 0]) == pytest.approx(factor(t)[0] * 1.7, rel=1e-9)


def test_ddpm_has_the_posterior_variance(x64):
  """A reverse kernel's exact variance: the posterior's, and that of x0 as seen through the mean."""
  t, passes = 199, 50
  times = np.asarray(diffusion.steps_from(jnp.array([t]), passes))[:, 0]
  variance = 0.0
  for now, before in zip(times[:-1], times[1:]):
    now, before = jnp.array([now]), jnp.array([before])
    one, zero = jnp.ones((1, 1)), jnp.zeros((1, 1))
    of_clean = diffusion.posterior(SCHEDULE, zero, now, before, one)
    of_x = diffusion.posterior(SCHEDULE, one, now, before, zero)
    k, left = factor(int(now[0]))
    step = float(of_clean.mean[0, 0] * k + of_x.mean[0, 0])
    added = float(jnp.exp(of_clean.log_variance[0, 0])) if before[0] >= 0 else 0.0
    variance = step**2 * variance + added + float(of_clean.mean[0, 0]) ** 2 * left
  assert variance == pytest.approx(factor(t)[1], rel=1e-9)


def test_ddpm_draws_the_noise_that_it_says(x64):
  found = diffusion.Gaussian(jnp.zeros((2, 1)), jnp.log(jnp.full((2, 1), 4.0)), jnp.zeros((2, 1)))
  drawn = diffusion.ddpm_step(found, jnp.array([3, -1]), jnp.ones((2, 1)))
  assert drawn[:, 0].tolist() == pytest.approx([2.0, 0.0])  # none is added to a clean picture


def test_ddim_follows_the_probability_flow(x64):
  """x_t s / sqrt(variance of x_t) in the limit, and what each finite step makes of x_t exactly."""
  process = Diffusion(SCHEDULE, "ddim", clip=False)
  t = 199
  abar = SCHEDULE.alpha_bar[t]
  limit = 1.7 * S / (S**2 * abar + 1 - abar) ** 0.5
  errors = [abs(float(denoised(process, exact_network, t, n)[0][0, 0]) - limit) for n in (10, 20, 40)]
  assert errors[2] < 0.02 and 1.8 < errors[0] / errors[1] < 2.2 and 1.8 < errors[1] / errors[2] < 2.2  # first order
  x, before = 1.7, diffusion.steps_from(jnp.array([t]), 5)[:, 0].tolist()
  for now, then in zip(before, before[1:]):
    k, (a, b) = factor(now)[0], (SCHEDULE.alpha_bar[now], 1.0 if then < 0 else SCHEDULE.alpha_bar[then])
    x = b**0.5 * k * x + (1 - b) ** 0.5 * (x - a**0.5 * k * x) / (1 - a) ** 0.5
  assert float(denoised(process, exact_network, t, 5)[0][0, 0]) == pytest.approx(x, rel=1e-9)


@pytest.mark.parametrize("predicts", ["clean", "velocity"])
@pytest.mark.parametrize("sampler, order", [("euler", 1), ("heun", 2)])
def test_flow_follows_its_path(sampler, order, predicts, x64):
  process = Flow(SCHEDULE, sampler, predicts, clip=False)

  def network(x, time):
    s = (time / 1000)[:, None]
    clean = S**2 * (1 - s) / (S**2 * (1 - s) ** 2 + s**2) * x
    return clean if predicts == "clean" else (x - clean) / s

  t = jnp.array([199])
  x, level = process.start(jnp.asarray(X), t)
  abar = SCHEDULE.alpha_bar[199]
  assert float(level[0] / (1 - level[0])) == pytest.approx(((1 - abar) / abar) ** 0.5)
  limit = float(x[0, 0]) * S / float(S**2 * (1 - level[0]) ** 2 + level[0] ** 2) ** 0.5
  assert limit == pytest.approx(1.7 * S / (S**2 * abar + 1 - abar) ** 0.5, rel=1e-9)  # the same flow as diffusion's
  errors = [abs(float(denoised(process, network, 199, n)[0][0, 0]) - limit) for n in (16, 32, 64)]
  for coarse, fine in zip(errors, errors[1:]):
    assert order - 0.25 < np.log2(coarse / fine) < order + 0.25
  one = denoised(process, network, 199, 1)[0]
  assert float(one[0, 0]) == pytest.approx(factor(199)[0] * 1.7, rel=1e-6)  # one pass: the posterior mean


def test_the_last_answer_is_what_a_sampler_ends_with(x64):
  for process in (Diffusion(SCHEDULE, "ddpm", False), Diffusion(SCHEDULE, "ddim", False)):
    x, seen = denoised(process, exact_network, 99, 8)
    assert float(x[0, 0]) == pytest.approx(float(seen[-1][0, 0]), rel=1e-9)


def test_steps():
  assert diffusion.steps_from(jnp.array([4]), 5)[:, 0].tolist() == [4, 3, 2, 1, 0, -1]
  assert diffusion.steps_from(jnp.array([99, 9]), 2).tolist() == [[99, 9], [49, 4], [-1, -1]]
  assert diffusion.steps_from(jnp.array([1]), 4)[:, 0].tolist()[-2:] == [0, -1]  # more passes than steps
  assert SCHEDULE.step_of(0.1) == 99 and SCHEDULE.step_of(1.0) == 999
  assert SCHEDULE.step_of(jnp.float32(0.7)) == 699  # not 698, which 0.7 in float32 is a little below


def test_noise_is_kept_in_float32():
  """1 - abar of the first step is 1e-4; a difference of float32 numbers near 1 would lose four digits of it."""
  _, scale = SCHEDULE.scales(jnp.array([0]), jnp.zeros((1, 1), jnp.float32))
  assert float(scale[0, 0]) == pytest.approx(SCHEDULE.betas[0] ** 0.5, rel=1e-6)


def test_losses_of_known_networks(x64):
  """The right noise and the posterior's variance cost nothing; a variance beta costs its divergence."""
  clean = jnp.linspace(-1, 1, 12).reshape(3, 4)
  noise = jax.random.normal(jax.random.key(1), clean.shape)
  t = jnp.array([0, 5, 400])
  process = Diffusion(SCHEDULE)

  def network(share):
    return lambda x, t: jnp.concatenate([noise, jnp.full_like(x, share)], -1)

  _, parts = process.loss_at(network(-1.0), clean, t, noise)
  assert parts["noise"].tolist() == [0, 0, 0] and np.allclose(parts["bound"][1:], 0, atol=1e-9)
  _, parts = process.loss_at(network(1.0), clean, t, noise)
  ratio = (1 - SCHEDULE.alpha_bar[t - 1]) / (1 - SCHEDULE.alpha_bar[t])  # of the posterior's variance to beta
  by_hand = 0.5 * (ratio - 1 - np.log(ratio)) / np.log(2)
  assert np.allclose(parts["bound"][1:], by_hand[1:], rtol=1e-6)
