"""Fused attention equals plain attention where one derivative is enough, and says so where it is not or cannot run.

Splash attention runs interpreted; cuDNN has no interpreter, and JAX's plain implementation takes its place in the call.
"""

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np
import pytest

from ebt_jax import parallel
from ebt_jax.config import AuthorsConfig, Config, ConfigError, EvalConfig, MeshConfig, ModelConfig, ThinkingConfig
from ebt_jax.models import attention, fused
from ebt_jax.tasks import registry

B, H, K = 1, 2, 8


@pytest.fixture(params=["gpu", "tpu"])
def backend(request, monkeypatch):
  monkeypatch.setattr(fused, "INTERPRETED", request.param)
  return request.param


def arrays(*lengths):
  """Of the shape `[B, H, length, K]`."""
  keys = jax.random.split(jax.random.key(sum(lengths)), len(lengths))
  return [jax.random.normal(k, (B, H, n, K)) for k, n in zip(keys, lengths)]


def assert_close(ours, theirs, tolerance=1e-4):
  assert jax.tree.structure(ours) == jax.tree.structure(theirs)
  for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs)):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(np.abs(b).max(), 1e-3), err_msg=str(path))


def outputs_and_gradients(f, args, weights):
  """`f` and the gradient of a weighted sum of it in every argument."""
  gradient = jax.grad(lambda *args: jnp.sum(weights * f(*args)), range(len(args)))
  return jax.jit(lambda *args: (f(*args), gradient(*args)))(*args)


LENGTHS = [128, 290]  # of one block of the splash kernel, and of three that are not full


@pytest.mark.parametrize("length", LENGTHS)
def test_the_context_equals_plain(backend, length):
  *args, weights = arrays(*[length] * 4)
  plain = lambda q, k, v: attention.reference_context_attention(q, k, v, jnp.arange(length))
  expected = outputs_and_gradients(plain, args, weights)
  assert_close(outputs_and_gradients(fused.context_attention, args, weights), expected, 1e-5)


@pytest.mark.parametrize("length, prefix", [(LENGTHS[0], 0), (LENGTHS[1], 1)])
def test_candidates_equal_plain(backend, length, prefix):
  """In every argument; the context's too, though only candidates are differentiated where this is used."""
  *args, weights = arrays(*[length - prefix] * 3, length, length, length - prefix)
  positions = jnp.arange(prefix, length) + 1
  expected = outputs_and_gradients(lambda *a: attention.reference_candidate_attention(*a, positions), args, weights)
  assert_close(outputs_and_gradients(fused.candidate_attention, args, weights), expected, 1e-5)


FUNCTIONS = {"context": (fused.context_attention, 3), "candidate": (fused.candidate_attention, 5)}


@pytest.mark.parametrize("which", FUNCTIONS)
def test_a_second_derivative_is_refused(backend, which):
  f, count = FUNCTIONS[which]
  args = arrays(*[4] * count)
  first = jax.grad(lambda q, w=1.0: jnp.sum(w * f(q, *args[1:]) ** 2))
  seconds = {
    "reverse over reverse": jax.grad(lambda q: jnp.sum(first(q))),
    "forward over reverse": lambda q: jax.jvp(first, (q,), (q,)),
    "of what comes after": lambda q: jax.grad(lambda w: jnp.sum(first(q, w)))(1.0),
    "forward": lambda q: jax.jvp(lambda q: f(q, *args[1:]), (q,), (q,)),
  }
  for name, second in seconds.items():
    with pytest.raises(TypeError) as e:
      jax.jit(second).lower(args[0])
    assert ("forward-mode" if name == "forward" else "set it to plain") in str(e.value), name


def problem(attention, candidates=1, gradient="each", **model):
  """A task, parameters and a batch; mode `last` with the randomness of System 2."""
  model = ModelConfig(layers=1, heads=2, width=16, vocab_size=11, attention=attention, **model)
  random = {"steps": 3, "random_steps_min": 1, "noise": 0.1, "learn_noise": True} if gradient == "last" else {}
  thinking = ThinkingConfig(step_size=0.8, gradient=gradient, authors=AuthorsConfig(contrastive=0.1), **random)
  task = registry.make(Config(model=model, thinking=thinking, eval=EvalConfig(candidates=candidates)))
  tokens = jax.random.randint(jax.random.key(1), (4, 8), 0, 11)
  return task, jax.jit(task.init)(jax.random.key(0)), {"tokens": tokens, "weights": jnp.ones((4, 7))}


def evaluated(task, params, batch):
  return jax.jit(
    lambda params, batch: task.evaluate(params, batch, jax.random.split(jax.random.key(2), len(batch["tokens"])))
  )(params, batch)


@pytest.fixture
def called(backend, monkeypatch):
  """Which kernels were called: with (True) or without (False) the log-sum-exp."""
  (kernel, multiple), seen = fused.KERNELS[backend], set()

  def spy(q, k, v, lse, interpret):
    seen.add(lse)
    return kernel(q, k, v, lse, interpret)

  monkeypatch.setitem(fused.KERNELS, backend, (spy, multiple))
  return seen


@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
def test_transformer_training_equals_plain(called):
  def trained(attention):
    task, params, batch = problem(attention, kind="transformer")
    return jax.jit(jax.value_and_grad(lambda params: task.loss(params, batch, jax.random.key(2))[0].total))(params)

  expected = trained("plain")
  assert not called
  assert_close(trained("fused"), expected)
  assert called == {False}


@pytest.mark.parametrize("backend", ["gpu"], indirect=True)
@pytest.mark.parametrize("gradient", ["each", "last"])
def test_ebt_training_differentiates_its_context_once(called, gradient):
  """Traced only: a second derivative would be refused, and a fused candidate would ask for a log-sum-exp."""
  task, params, batch = problem("fused", gradient=gradient, variant="adaln")
  loss = lambda params: task.loss(params, batch, jax.random.key(2))[0].total
  jax.eval_shape(jax.grad(loss), params)
  assert called == {False}


@pytest.mark.parametrize(
  "backend, variant, candidates",
  [("gpu", "default", 2), pytest.param("tpu", "time_embed", 1, marks=pytest.mark.slow)],
  indirect=["backend"],
)
def test_evaluation_equals_plain_with_fused_candidates(called, variant, candidates):
  expected = evaluated(*problem("plain", candidates, variant=variant))
  assert not called
  assert_close(evaluated(*problem("fused", candidates, variant=variant)), expected)
  assert called == {True, False}


@pytest.mark.parametrize("backend", ["tpu"], indirect=True)
@pytest.mark.parametrize("rows, cut", [(4, P(parallel.ROW_AXES, "model")), (1, P())])
def test_a_mesh_equals_one_device(backend, rows, cut):
  """Heads and rows are cut, or rows whole where they do not divide."""
  *args, weights = (a * jnp.arange(1.0, rows + 1)[:, None, None, None] for a in arrays(9, 9, 9, 9))
  expected = outputs_and_gradients(fused.context_attention, args, weights)
  mesh = parallel.make_mesh(MeshConfig(replica=2, data=2, model=2))
  with jax.set_mesh(mesh):
    found = outputs_and_gradients(fused.context_attention, jax.device_put(args, NamedSharding(mesh, cut)), weights)
  assert_close(found, expected, 1e-5)
  assert found[0].sharding.spec[0] == (cut[0] if cut else None)


def test_what_cannot_run_names_the_key_and_the_fix(monkeypatch):
  with pytest.raises(ConfigError, match="config.model.attention: fused needs a gpu or tpu, found backend cpu"):
    jax.eval_shape(fused.context_attention, *arrays(4, 4, 4))
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  with pytest.raises(ConfigError, match="config.model.dtype: .* takes bfloat16, found float32; set it to bfloat16"):
    jax.eval_shape(fused.context_attention, *arrays(4, 4, 4))
  narrow = [jnp.zeros((1, 1, 4, 6))] * 3
  with pytest.raises(ConfigError, match="config.model.heads: .* found 6; change width or heads"):
    jax.eval_shape(lambda *a: fused.context_attention(*a, jnp.bfloat16), *narrow)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16])
@pytest.mark.parametrize("which", FUNCTIONS)
def test_the_splash_kernels_lower_for_a_tpu(monkeypatch, which, dtype):
  monkeypatch.setattr(jax, "default_backend", lambda: "tpu")
  f, count = FUNCTIONS[which]
  gradient = jax.jit(jax.value_and_grad(lambda *a: jnp.sum(f(*a, dtype)), range(count)))
  lowered = gradient.trace(*[jnp.zeros((2, 2, 200, 64))] * count).lower(lowering_platforms=("tpu",))
  assert "tpu_custom_call" in lowered.as_text()


@pytest.mark.parametrize("which", FUNCTIONS)
def test_cudnn_takes_the_shapes_and_types(monkeypatch, which):
  """Traced, not lowered, which needs a GPU."""
  monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
  monkeypatch.setattr("jax._src.cudnn.fused_attention_stablehlo.check_cudnn_version", lambda: 91000)
  f, count = FUNCTIONS[which]
  gradient = jax.value_and_grad(lambda *a: jnp.sum(f(*a, jnp.bfloat16)), range(count))
  text = str(jax.make_jaxpr(gradient)(*[jnp.zeros((2, 2, 201, 64))] * count))
  assert "dot_product_attention_fwd" in text and "dot_product_attention_bwd" in text
