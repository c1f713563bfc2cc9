"""Three steps of training on frames of patches on eight devices, sliced, are those on one device."""

import numpy as np
import pytest

from ebt_jax.config import resolve
from tests import test_mesh_train as mesh

ROWS, S, P, F, D = 16, 5, 2, 12, 32
MESHES = {"ebt": (2, 2, 2), "residual": (1, 4, 2), "transformer": (1, 8, 1)}


def config_of(kind):
  thinking = {"start": "input", "steps": 2, "step_size": 5.0, "learn_step_size": True}
  return resolve(
    {
      "task": "video",
      "model": {
        "kind": "transformer" if kind == "transformer" else "ebt",
        "residual": kind == "residual",
        "layers": 1,
        "heads": 4,
        "width": D,
      },
      "thinking": thinking | ({"start": "context"} if kind == "residual" else {}),
      "video": {"features": "given", "width": F, "places": P},
      "data": {"context_length": S},
      # a large eps: Adam divides no rounding error by another
      "train": {"batch_size": ROWS, "learning_rate": 0.01, "warmup": 0, "steps": 50, "eps": 1e-3},
    }
  )


def batch_of(seed):
  """Windows, two of which only fill the batch, some of them short."""
  rng = np.random.default_rng(seed)
  weights = (np.arange(S)[None] < rng.integers(2, S + 1, ROWS)[:, None]).astype(np.float32)
  weights[[3, 11]] = 0
  return {"frames": rng.normal(size=(ROWS, S + 1, P, F)).astype(np.float32), "weights": weights}


@pytest.mark.parametrize(
  "kind", ["residual", *(pytest.param(k, marks=pytest.mark.slow) for k in ("ebt", "transformer"))]
)
def test_eight_devices_equal_one(kind):
  config, sizes = config_of(kind), MESHES[kind]
  eight = mesh.same_on_eight(config, sizes, batch_of, 1e-4)
  _, data, _ = sizes
  shards = eight.params["model"]["frame"]["kernel"].addressable_shards
  assert len(shards) == 8 and {s.data.shape for s in shards} == {(F, D // data)}
