"""Probes, energies as uncertainty and Fréchet distances of denoisers: known answers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import linalg

from ebt_jax.models import efficientnet
from ebt_jax.tasks import registry
from ebt_jax.tasks.base import Examples
from experiments.denoising import frechet, probe, uncertainty
from tests.tasks.test_image import batch_of, config_of, with_random_weights


@pytest.fixture(scope="module", params=["ebt", "dit"])
def model(request):
  """Two blocks with random parameters."""
  task = registry.make(config_of(model={"kind": request.param, "layers": 2}))
  return task, with_random_weights(task)


def test_features_are_means_over_patches_after_the_blocks_that_are_asked(model):
  task, params = model
  pictures = np.asarray(batch_of(task, 5)["picture"])
  one, two = (probe.features(task, params, n)(pictures) for n in (1, 2))
  assert one.shape == two.shape == (5, 8) and np.abs(one - two).max() > 1e-2
  x = jnp.asarray(pictures, jnp.float32) / 127.5 - 1
  whole = task.model.tokens(params["model"], x if hasattr(task, "think") else (x, jnp.zeros(5)))
  np.testing.assert_allclose(two, whole.mean(1), rtol=1e-4, atol=1e-5)
  other = jax.tree.map(lambda a: a, params)
  other["model"]["layers"] = jax.tree.map(lambda a: a.at[1].add(0.3), other["model"]["layers"])
  np.testing.assert_array_equal(probe.features(task, other, 1)(pictures), one)  # later blocks do not enter
  assert np.abs(probe.features(task, other, 2)(pictures) - two).max() > 1e-2


def test_c_is_chosen_on_the_last_of_each_class():
  labels = np.array([1, 0, 1, 0, 1, 0, 1, 0, 1, 0])
  assert np.flatnonzero(probe.validation(labels)).tolist() == [8, 9]


def test_a_probe_finds_what_is_there_and_nothing_else():
  pytest.importorskip("sklearn")
  rng = np.random.default_rng(0)
  labels, truth = np.arange(300) % 3, np.arange(150) % 3
  centres = 4 * rng.normal(size=(3, 10))

  def around(which):
    return 100 * (centres[which] + 0.3 * rng.normal(size=(len(which), 10)))

  found = probe.probe(around(labels), labels, around(truth), truth)
  assert found.top1 == 1 and 0.97 < found.low < 1 == found.high
  nothing = probe.probe(rng.normal(size=(300, 10)), labels, rng.normal(size=(150, 10)), truth)
  assert nothing.low < 1 / 3 < nothing.high and nothing.strength < 1
  hard = probe.probe(rng.normal(size=(60, 200)) + 0.2 * centres[labels[:60]] @ np.eye(10, 200), labels[:60],
                     rng.normal(size=(150, 200)) + 0.2 * centres[truth] @ np.eye(10, 200), truth)  # fmt: skip
  assert hard.strength < probe.STRENGTHS[-1]  # few pictures, many features


class Pictures(Examples):
  def __len__(self):
    return 6

  def rows(self, index):
    pictures = np.arange(6 * 8 * 8 * 3).reshape(6, 8, 8, 3) % 251
    return {"picture": pictures[index].astype(np.uint8), "weights": np.ones(len(index), np.float32)}


def test_pictures_of_another_kind():
  usual, index = Pictures().rows(np.arange(6))["picture"], np.array([4, 1])
  noise = uncertainty.Other(Pictures(), uncertainty.noise).rows(index)["picture"]
  assert noise.dtype == np.uint8 and (noise[1:] == uncertainty.noise(usual[:1], [1])).all()  # of its number alone
  assert noise.shape == (2, 8, 8, 3) and abs(noise.mean() - 127.5) < 15
  mixed = uncertainty.shuffled(4, usual, np.arange(6))

  def cut(x):
    return sorted(x[i : i + 4, j : j + 4].tobytes() for i in (0, 4) for j in (0, 4))

  assert all(cut(a) == cut(b) for a, b in zip(usual, mixed)) and not all((a == b).all() for a, b in zip(usual, mixed))


def test_maps_show_each_patch_in_its_place():
  image = config_of().image  # four patches of 4 pixels
  found = uncertainty.as_map(np.array([[1.0, 3.0, 5.0, 2.0]]), image)
  assert found.shape == (1, 8, 8, 3) and (found[0, :4, 4:] == 0).all() and (found[0, 4:, :4] == 1).all()
  assert (found[0, :4, :4] == -1).all() and (found[0, 4:, 4:] == -0.5).all()


def test_auroc_is_the_share_of_pairs_and_its_interval_is_about_it():
  rng = np.random.default_rng(0)
  usual, other = rng.normal(size=80), 1 + rng.normal(size=60)
  found, low, high = uncertainty.ranked(usual, other)
  assert found == pytest.approx(np.mean(other[:, None] > usual)) and low < found < high < low + 0.25


def test_energies_are_those_of_the_picture_that_is_given():
  """Of a residual energy without E_theta: half the squared distance to what its context predicts."""
  task = registry.make(config_of(model={"residual": True, "energy_gain": 0.0}, thinking={"start": "context"}))
  params, batch = with_random_weights(task), task.problem.corrupt(batch_of(task), jax.random.key(0))
  g = task.model.encode(params["model"], batch["noised"])
  apart = jnp.sum((g - batch["noised"]) ** 2, (1, 2, 3)) / (2 * task.config.thinking.step_size)
  np.testing.assert_allclose(uncertainty.energy_of(task, params, batch), apart, rtol=1e-4)


def test_moved_and_errors_by_patch(model):
  task, params = model
  batch, keys = batch_of(task), jax.random.split(jax.random.key(1), 8)
  found = jax.jit(functools.partial(uncertainty.answered, task))(params, batch, keys)
  assert found["patch_error"].shape == (8, 4)
  np.testing.assert_allclose(found["error"], found["patch_error"].mean(1), rtol=1e-5)
  look = jax.jit(functools.partial(uncertainty.looked_at, task))
  seen, thinks = look(params, batch, keys), hasattr(task, "think")
  np.testing.assert_allclose(seen["error"], found["error"], rtol=1e-5)
  assert seen.keys() == ({"error", "energy", "thought", "moved"} if thinks else {"error"})
  if thinks:
    clean = jnp.asarray(batch["picture"], float) / 127.5 - 1
    np.testing.assert_allclose(seen["energy"], task.model.energy(params["model"], (), clean), rtol=1e-4, atol=1e-6)
    still = {**params, "thinking": jax.tree.map(jnp.zeros_like, params["thinking"])}  # steps of the least size
    assert float(look(still, batch, keys)["moved"].max()) < 1e-6 * float(seen["moved"].min())


def test_the_distance_of_two_normal_distributions():
  a, b = np.array([1.0, 4.0, 9.0]), np.array([4.0, 4.0, 1.0])
  mean = np.array([1.0, 2.0, 2.0])
  found = frechet.distance(frechet.Normal(np.zeros(3), np.diag(a)), frechet.Normal(mean, np.diag(b)))
  assert found == pytest.approx(9 + 1 + 0 + 4)  # |m|^2 and squares of differences of deviations
  rng = np.random.default_rng(0)
  one, two = (frechet.Normal(rng.normal(size=4), (r := rng.normal(size=(4, 4))) @ r.T) for _ in range(2))
  middle = np.trace(linalg.sqrtm(one.covariance @ two.covariance)).real  # that do not commute
  by_hand = np.sum((one.mean - two.mean) ** 2) + np.trace(one.covariance + two.covariance) - 2 * middle
  assert frechet.distance(one, two) == pytest.approx(by_hand) == pytest.approx(frechet.distance(two, one))
  few = frechet.Normal.of(rng.normal(size=(3, 5)))  # fewer samples than dimensions
  assert frechet.distance(few, few) == pytest.approx(0, abs=1e-6)


def test_the_network_knows_a_cat_and_a_cup():
  pytest.importorskip(efficientnet.PACKAGE)
  from ebt_jax.config import ImageConfig
  from ebt_jax.data import images

  names, pixels = images.embedded_photos(ImageConfig(channels=3))
  pictures = jnp.asarray(pixels[[names.index("chelsea"), names.index("coffee")], :, 48:336], jnp.float32) / 127.5 - 1
  found = efficientnet.logits(efficientnet.weights(), pictures)
  assert jnp.argmax(found, 1).tolist() == [285, 967]  # Egyptian cat, espresso
