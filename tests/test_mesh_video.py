"""Three steps of training on frames of patches on eight devices, sliced, are those on one device."""

import jax
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
  wanted, one = mesh.train(config, (1, 1, 1), batch_of)
  found, eight = mesh.train(config, sizes, batch_of)
  for i, (a, b) in enumerate(zip(wanted, found)):
    for key in a:
      np.testing.assert_allclose(b[key], a[key], rtol=1e-4, atol=1e-5, err_msg=f"step {i}: {key}")
  assert abs(wanted[0]["loss"] - wanted[2]["loss"]) > 1e-4  # it learns, so that later steps compare something
  close = lambda path, a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-4, err_msg=jax.tree_util.keystr(path))
  jax.tree.map_with_path(close, jax.device_get(one.params), jax.device_get(eight.params))
  _, data, _ = sizes
  shards = eight.params["model"]["frame"]["kernel"].addressable_shards
  assert len(shards) == 8 and {s.data.shape for s in shards} == {(F, D // data)}
