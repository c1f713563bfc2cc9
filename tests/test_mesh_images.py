"""Three steps of training on pictures on eight devices, sliced, are those on one device."""

import numpy as np
import pytest

from ebt_jax.config import resolve
from tests import test_mesh_train as mesh

ROWS, D = 16, 32
MESHES = {"ebt": (2, 2, 2), "dit": (1, 4, 2), "flow": (1, 8, 1)}


def config_of(kind):
  start = {"start": "input", "steps": 2, "step_size": 100.0, "learn_step_size": True} if kind == "ebt" else {}
  return resolve(
    {
      "task": "image",
      "model": {"kind": kind, "layers": 1, "heads": 4, "width": D},
      "thinking": start,
      "image": {"size": 8, "patch": 2, "eval_levels": "0.2"},
      # heads and gates start at 0 and have to move; a large eps: Adam divides no rounding error by another
      "train": {"batch_size": ROWS, "learning_rate": 0.05, "warmup": 0, "steps": 50, "eps": 1e-3},
    }
  )


def batch_of(seed):
  """Pictures, two of which only fill the batch, some with a level of their own."""
  rng = np.random.default_rng(seed)
  weights = np.ones(ROWS, np.float32)
  weights[[3, 11]] = 0
  levels = rng.choice(np.float32([0, 0.05, 0.4]), ROWS)
  pictures = rng.integers(0, 256, (ROWS, 8, 8, 3), np.uint8)
  return {"picture": pictures, "label": np.zeros(ROWS, np.int32), "level": levels, "weights": weights}


@pytest.mark.parametrize(
  "kind", ["ebt", "dit", pytest.param("flow", marks=pytest.mark.slow)]
)  # the network of flow is DiT's
def test_eight_devices_equal_one(kind):
  config, sizes = config_of(kind), MESHES[kind]
  eight = mesh.same_on_eight(config, sizes, batch_of, 1e-3)
  _, data, model = sizes
  for name, dims in (("q", (1, D // data, D // model)), ("o", (1, D // model, D // data))):
    shards = eight.params["model"]["layers"]["attention"][name]["kernel"].addressable_shards
    assert len(shards) == 8 and {s.data.shape for s in shards} == {dims}, name
