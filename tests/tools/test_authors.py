"""The authors' formulation (tools/bench/authors.py) and the package agree: energies, losses, gradients, decoding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import thinking
from ebt_jax.config import resolve
from ebt_jax.tasks import decoding, text
from ebt_jax.use.generate import Generator
from ebt_jax.use.sampling import Sampling
from tools.bench import authors

ROWS, LENGTH, VOCABULARY = 2, 7, 13


def tasks(variant="default", layers=1, **thinking_options):
  config = resolve(
    {
      "model": {"layers": layers, "heads": 2, "width": 16, "variant": variant, "vocab_size": VOCABULARY},
      "thinking": {"step_size": 0.7, **thinking_options},
      "data": {"context_length": LENGTH},
      "train": {"batch_size": ROWS},
    }
  )
  return text.make(config), authors.AuthorsText.of(config)


def problem(task, dtype=jnp.float64):
  """Parameters, with candidate embeddings large enough to matter; a batch; a start."""
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda a: jnp.asarray(np.asarray(a), dtype), task.init(jax.random.key(0)))
  params["model"]["to_embed"]["kernel"] *= 10
  tokens = rng.integers(0, VOCABULARY, (ROWS, LENGTH + 1))
  batch = {"tokens": jnp.asarray(tokens), "weights": jnp.asarray(rng.uniform(0.5, 1, (ROWS, LENGTH)))}
  return params, batch, jnp.asarray(rng.normal(size=(ROWS, LENGTH, VOCABULARY)))


def assert_close(ours, theirs):
  for path, a in jax.tree_util.tree_leaves_with_path(ours):
    b = np.asarray(dict(jax.tree_util.tree_leaves_with_path(theirs))[path])
    np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-10 * np.abs(b).max(), err_msg=str(path))


@pytest.mark.parametrize("variant", ["default", "time_embed"])
def test_energies(x64, variant):
  task, rival = tasks(variant, layers=2, steps=2, landscapes=2)
  params, batch, start = problem(task)
  tokens, p = batch["tokens"][:, :-1], jax.nn.softmax(start)

  @jax.jit
  def energies(params):
    y, contexts = p @ task.model.table(params["model"]), task.context(params, batch)
    at = lambda k: task.model.energy(params["model"], thinking.at_landscape(contexts, k), y, k)
    return [at(k) for k in range(2)], [rival.energies(params["model"], tokens, p, k) for k in range(2)]

  assert_close(*energies(params))


@pytest.mark.parametrize(
  "options",
  [
    dict(steps=2),
    dict(steps=3, variant="time_embed", landscapes=2),
    dict(steps=3, gradient="last"),
    dict(steps=2, gradient="unrolled"),
  ],
  ids=lambda o: "-".join(map(str, o.values())),
)
def test_loss_and_gradients(x64, options):
  task, rival = tasks(**options)
  params, batch, start = problem(task)
  key = jax.random.key(1)

  def both(task):
    def loss(params):
      mean, output = task.loss(params, batch, key, start=start)
      return mean.total, (mean.total, output.metrics["final_loss"].total, output.metrics["energy_gap"].total)

    return jax.jit(jax.grad(loss, has_aux=True))(params)

  assert_close(both(task), both(rival))


@pytest.mark.parametrize("variant", ["default", "time_embed"])
def test_written_tokens(variant):
  task, rival = tasks(variant, steps=2, start="zeros")
  params, batch, _ = problem(task, jnp.float32)
  prompts, greedy = np.asarray(batch["tokens"][:, :3]).tolist(), Sampling(top_k=1)
  ours = Generator(decoding.writer(task), params, end_of_text=-1, capacity=LENGTH)(prompts, 4, greedy)
  assert [w.tokens for w in ours] == authors.Generator(rival, params, multiple=8)(prompts, 4, greedy)


def test_random_starts_are_drawn():
  task, rival = tasks(steps=1)
  params = task.init(jax.random.key(0))
  batch = {"tokens": jnp.zeros((ROWS, LENGTH + 1), jnp.int32), "weights": jnp.ones((ROWS, LENGTH))}
  loss = jax.jit(lambda key: rival.loss(params, batch, key)[0].total)
  one, two = (float(loss(jax.random.key(i))) for i in range(2))
  assert np.isfinite(one) and one != two


def test_what_is_not_known_is_refused():
  with pytest.raises(ValueError, match="default and time_embed"):
    tasks("adaln")
  with pytest.raises(ValueError, match="without further options"):
    tasks(noise=1.0)


def test_flops_are_more_than_ours_and_grow_with_steps():
  few, many = (tasks(steps=steps)[1] for steps in (2, 8))
  assert many.flops().row["total"] == 4 * few.flops().row["total"]
  ours = text.make(few.config).flops().row
  assert few.flops().row["total"] - ours["total"] == (6 * 2 - 3) * ours["context"] // 3
