"""tools/pytorch.py computes what this package computes, from the same parameters. Needs PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.config import resolve
from ebt_jax.tasks import registry

torch = pytest.importorskip("torch")
from tools.bench import pytorch

ROWS, LENGTH, VOCABULARY, HEADS = 2, 7, 13, 2


def of(**options):
  task = registry.make(
    resolve(
      {
        "model": {"layers": 2, "heads": HEADS, "width": 16, "vocab_size": VOCABULARY, **options.pop("model", {})},
        "thinking": {"step_size": 0.7, **options},
        "data": {"context_length": LENGTH},
      }
    )
  )
  params = jax.tree.map(lambda a: np.array(a, np.float64), task.init(jax.random.key(0)))
  tokens = np.random.default_rng(0).integers(0, VOCABULARY, (ROWS, LENGTH + 1))
  return task, params, tokens


def to_torch(params):
  return {k: to_torch(v) if isinstance(v, dict) else torch.tensor(v, requires_grad=True) for k, v in params.items()}


def test_transformer(x64):
  task, params, tokens = of(model={"kind": "transformer"})
  theirs = pytorch.transformer(to_torch(params["model"]), torch.tensor(tokens), HEADS)
  ours = jax.jit(task.model.predict)(jax.tree.map(jnp.asarray, params["model"]), jnp.asarray(tokens))
  np.testing.assert_allclose(theirs.detach().numpy(), ours, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("gradient", ["each", "last"])
def test_ebt(x64, gradient):
  task, params, tokens = of(steps=3, gradient=gradient)
  params["model"]["to_embed"]["kernel"] *= 10
  start = np.random.default_rng(1).normal(size=(ROWS, LENGTH, VOCABULARY))
  model, step_size = to_torch(params["model"]), torch.tensor(params["thinking"]["step_size"], requires_grad=True)
  theirs = pytorch.loss(model, step_size, torch.tensor(tokens), HEADS, 3, gradient, torch.tensor(start))
  theirs.backward()

  batch = {"tokens": jnp.asarray(tokens), "weights": jnp.ones((ROWS, LENGTH))}
  mean = lambda params: task.loss(params, batch, jax.random.key(0), start=jnp.asarray(start))[0] / (ROWS * LENGTH)
  ours, gradients = jax.jit(jax.value_and_grad(mean))(jax.tree.map(jnp.asarray, params))
  np.testing.assert_allclose(theirs.item(), ours, rtol=1e-10)
  np.testing.assert_allclose(step_size.grad, gradients["thinking"]["step_size"], rtol=1e-9)
  for ours, leaf in zip(jax.tree.leaves(gradients["model"]), jax.tree.leaves(model), strict=True):
    np.testing.assert_allclose(leaf.grad, ours, rtol=1e-9, atol=1e-10 * np.abs(ours).max())
