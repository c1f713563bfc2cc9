"""Suite `image`: its rows, and PyTorch computing what this package computes."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.config import ConfigError
from ebt_jax.tasks import registry
from tests.tasks.test_image import with_random_weights
from tests.tools.test_bench_numbers import Program
from tools.bench import pictures

TINY = (2, 2, 8)
ARGS = SimpleNamespace(batch=2, dtype="float32", max_gb=10.0, rounds=1, torch="", only="DiT;EBT, each 1")


class Ran(Program):
  def __call__(self, *_):
    raise AssertionError("times are given")


def test_rows_ratios_and_what_loading_costs(monkeypatch, capsys):
  """EBT's step takes 6 seconds, DiT's 2 and PyTorch's EBT 9; 20 batches load in 4; products take 4 or 1."""
  seconds = {"DiT": [2.0], "EBT, each 1": [6.0], "PyTorch, EBT, each 1": [9.0], "load": [4.0],
             "matrix products": [5.0, 4.0], "PyTorch, matrix products": [2.0, 1.0]}  # fmt: skip
  monkeypatch.setattr(pictures, "SHAPES", {"tiny": (TINY, (1,), ())})
  monkeypatch.setattr(pictures.timing, "interleaved", lambda calls, *_: {name: seconds[name] for name in calls})
  monkeypatch.setattr(pictures.timing, "compiled", lambda step, *_: (Ran(), 1.5))
  theirs = dict.fromkeys(["PyTorch, matrix products", "PyTorch, EBT, each 1"])
  monkeypatch.setattr(pictures, "pytorch_calls", lambda *_: theirs)
  ARGS.torch = "python"
  rows = {row["name"]: row for row in pictures.image(ARGS)["tiny"]["rows"]}
  assert list(rows) == ["DiT", "EBT, each 1", "matrix products", "PyTorch, matrix products", "PyTorch, EBT, each 1"]
  assert rows["EBT, each 1"]["ratio"] == 3 and rows["PyTorch, EBT, each 1"]["ratio"] == 4.5
  assert 1.5 < rows["EBT, each 1"]["flops_ratio"] < 2  # 12 N against 6 N, and DiT's wider head and time layers
  assert rows["EBT, each 1"]["temp_mb"] == 4e3 and "flops" not in rows["PyTorch, EBT, each 1"]
  out = capsys.readouterr().out
  share = rows["EBT, each 1"]["progress_flops"] / 6 / (2 * 2 * 64 * 8**2 * pictures.REPEATED)  # of what takes 1 second
  assert rows["EBT, each 1"]["utilisation"] == pytest.approx(share)
  assert rows["PyTorch, EBT, each 1"]["utilisation"] == pytest.approx(share * 6 / 9)
  assert (
    "PyTorch, EBT, each 1: 1.50 times the seconds of EBT, each 1; twice as fast as that would be "
    f"{2 * share * 6 / 9:.0%} of the peak" in out
  )
  assert "loading a batch: 200.0 ms, 10.0% of the fastest step" in out


def test_without_pytorch(monkeypatch):
  monkeypatch.setitem(__import__("sys").modules, "torch", None)
  with pytest.raises(ConfigError, match="--torch: suite image takes turns with PyTorch in one process"):
    pictures.pytorch_calls(SimpleNamespace(rivals=[]), None, None)


@pytest.fixture
def parts(x64):
  """Both models with random parameters, and a batch."""

  def of(kind, **thinking):
    task = registry.make(pictures.configured(TINY, kind, 2, "float32", thinking))
    params = jax.tree.map(lambda a: jnp.asarray(a, jnp.float64), with_random_weights(task))
    rows = task.problem.data().train.rows(np.array([0, 40_000]))
    return task, params, task.problem.corrupt(jax.tree.map(jnp.asarray, rows), jax.random.key(3))

  return of


def test_the_authors_ebt_in_pytorch(parts):
  torch = pytest.importorskip("torch")
  from tools.bench import pytorch_images

  task, params, batch = parts("ebt", steps=2, step_size=3.0)
  image, weights = task.config.image, pytorch_images.to_torch(jax.device_get(params["model"]))
  clean, noised = (torch.tensor(np.array(batch[name], np.float64)) for name in ("clean", "noised"))
  found = pytorch_images.energies(weights, noised, image, 2)
  ours = task.model.energy(params["model"], (), jnp.asarray(batch["noised"], jnp.float64))
  np.testing.assert_allclose(found.detach().numpy(), ours, rtol=1e-10)

  size = torch.tensor(3.0, dtype=torch.float64, requires_grad=True)
  theirs = pytorch_images.ebt_loss(weights, size, clean, noised, image, 2, 2)
  theirs.backward()

  def mean(params):
    total = task.loss(params, {**batch, "noised": jnp.asarray(batch["noised"], jnp.float64)}, jax.random.key(0))[0]
    return total.value()

  value, gradients = jax.jit(jax.value_and_grad(mean))(params)
  np.testing.assert_allclose(theirs.item(), value, rtol=1e-9)
  np.testing.assert_allclose(size.grad.item(), gradients["thinking"]["step_size"], rtol=1e-7)
  for a, leaf in zip(jax.tree.leaves(gradients["model"]), jax.tree.leaves(weights), strict=True):
    np.testing.assert_allclose(0 if leaf.grad is None else leaf.grad, a, rtol=1e-7, atol=1e-12)


def test_dit_in_pytorch(parts):
  torch = pytest.importorskip("torch")
  from ebt_jax.models import patches
  from tools.bench import pytorch_images

  task, params, batch = parts("dit")
  weights = pytorch_images.to_torch(jax.device_get(params["model"]))
  x, time = jnp.asarray(batch["noised"], jnp.float64), jnp.array([3.0, 170.0])
  theirs = pytorch_images.denoiser(
    weights, torch.tensor(np.array(x)), torch.tensor(np.array(time)), task.config.image, 2
  )
  ours = task.model.predict(params["model"], (x, time))
  np.testing.assert_allclose(theirs.detach().numpy(), patches.cut(ours, 4), rtol=1e-9, atol=1e-9)
