"""The study of films: what is known of each prediction, and what a cut is."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.video import study
from tests.tasks.test_video import KEYS, batch_of, task_of, with_random_weights


@pytest.mark.parametrize("kind", ["ebt", "transformer"])
def test_what_is_known_of_each_frame(kind):
  task = task_of(kind=kind)
  params, batch = with_random_weights(task), batch_of(task)
  found = jax.jit(lambda p: study.thought(task, p, batch, KEYS))(params)
  scores = jax.jit(lambda p: task.scores(p, batch, KEYS))(params)
  np.testing.assert_allclose(found["loss"], scores.error[-1], rtol=1e-5)
  assert ("truth" in found) == (kind == "ebt")
  if kind == "ebt":
    np.testing.assert_allclose(found["thought"], scores.final_energy, rtol=1e-4, atol=1e-5)
    y = task.space.embed_target(params["model"], batch["frames"][:, 1:])
    truth = task.model.energy(params["model"], task.context(params, batch), y, 0)
    np.testing.assert_allclose(found["truth"], truth, rtol=1e-4, atol=1e-5)
    assert np.abs(found["truth"] - found["thought"]).min() > 1e-4


class Known:
  """A run whose films do not move; the error of a frame is how far it is from the one before."""

  def __init__(self):
    self.config = self
    self.data, self.context_length, self.problem, self.params = self, 4, self, None
    self.encoder = self
    self.shape = (1, 1, 1)

  def encode(self, frames):
    return np.full((len(frames), 1), 1.5, np.float32)

  def __len__(self):
    return 8

  def rows(self, index):
    films = index // 2  # two windows of each
    return {"frames": np.tile(films[:, None, None], (1, 5, 1)).astype(np.float32), "weights": np.ones((len(index), 4))}


def test_a_cut_is_to_another_film(monkeypatch):
  monkeypatch.setattr(study.common, "held_out", lambda model: model)

  def step(params, batch, keys):
    return {"loss": jnp.abs(jnp.diff(batch["frames"], axis=1))[..., 0]}

  monkeypatch.setattr(study.common, "program", lambda function, config: step)
  found = study.surprise(Known(), 8)
  assert found == {"auroc error cut": 1.0, "auroc error empty": 1.0}  # also from window 2i to 2i + 1
