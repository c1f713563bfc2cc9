"""FLOPs counted by hand against those of the traced gradient."""

import dataclasses
import math

import jax
from jax.extend.core import jaxprs_in_params
import jax.numpy as jnp
import pytest

from ebt_jax import flops, thinking
from ebt_jax.config import Config, DataConfig, EvalConfig, ModelConfig, ThinkingConfig, TrainConfig
from ebt_jax.tasks.text import make_task

MODEL = ModelConfig(layers=3, heads=2, width=64, vocab_size=96, ffn_multiplier=2.0)
N, ROWS = 48, 2


def products(jaxpr, trips):
  """FLOPs of the matrix products of a jaxpr, loops included; `trips` of every while loop."""
  total = 0
  for e in jaxpr.eqns:
    if e.primitive.name == "dot_general":
      (contracted, _), _ = e.params["dimension_numbers"]
      shape = e.invars[0].aval.shape
      total += 2 * math.prod(e.outvars[0].aval.shape) * math.prod(shape[i] for i in contracted)
    times = {"scan": e.params.get("length"), "while": trips}.get(e.primitive.name, 1)
    total += times * sum(products(inner, trips) for inner in jaxprs_in_params(e.params))
  return total


def traced(config, steps=None, **options):
  """Of the gradient of a batch, with a number of thinking steps where it is random; CPUs store for the second order."""
  task = make_task(config)
  params = jax.eval_shape(task.init, jax.random.key(0))
  shape = jax.ShapeDtypeStruct
  batch = {"tokens": shape((ROWS, N + 1), jnp.int32), "weights": shape((ROWS, N), jnp.float32)}
  gradient = jax.grad(lambda p, b: task.loss(p, b, jax.random.key(0), **options)[0])
  trips = (steps or config.thinking.steps) - (config.thinking.gradient == "last")
  return products(jax.jit(gradient).trace(params, batch).jaxpr.jaxpr, trips)


def config_of(thinking=None, evaluation=None, **model):
  return Config(
    model=dataclasses.replace(MODEL, **model),
    thinking=ThinkingConfig(**(thinking or {})),
    train=TrainConfig(batch_size=ROWS),
    data=DataConfig(context_length=N),
    eval=EvalConfig(**(evaluation or {})),
  )


def counted(config, lean=False):
  row = flops.train_row(config, stores=not (lean or config.model.remat))
  return flops.train_step(config) + ROWS * row["recomputation"]


@pytest.mark.parametrize(
  "options",
  [
    dict(kind="transformer"),
    dict(kind="transformer", remat=True),
    dict(thinking=dict(steps=3)),
    dict(thinking=dict(steps=3, authors=dict(contrastive=0.1))),
    dict(remat=True, thinking=dict(steps=2, authors=dict(contrastive=0.1))),
    dict(embedder="tied", variant="time_embed", thinking=dict(steps=2, landscapes=2)),
    dict(variant="adaln", thinking=dict(steps=3, landscapes=2)),
    dict(variant="adaln", remat=True, thinking=dict(steps=2, landscapes=2, authors=dict(contrastive=0.1))),
    dict(variant="adaln_zero", thinking=dict(steps=3, landscapes=2, gradient="last", authors=dict(contrastive=0.1))),
    dict(variant="adaln_zero", thinking=dict(steps=2, gradient="unrolled", authors=dict(contrastive=0.1))),
    dict(thinking=dict(steps=1, gradient="last")),
    dict(thinking=dict(steps=3, gradient="last")),
    dict(thinking=dict(steps=3, gradient="last", step_size_path=False)),
    dict(thinking=dict(steps=3, gradient="last", learn_step_size=False)),
    dict(remat=True, thinking=dict(steps=3, gradient="last", authors=dict(contrastive=0.1))),
    dict(thinking=dict(steps=3, gradient="unrolled")),
    dict(remat=True, thinking=dict(steps=2, gradient="unrolled")),
  ],
  ids=str,
)
def test_the_count_is_that_of_the_traced_gradient(options):
  """To 0.1%: what is as narrow as one energy is not counted to the last product."""
  config = config_of(**options)
  assert counted(config) == pytest.approx(traced(config), rel=0.001)
  if config.model.kind == "ebt" and not config.model.remat:
    lean = traced(config, slope=thinking.reverse_over_forward)
    assert counted(config, lean=True) == pytest.approx(lean, rel=0.001) and lean > 1.05 * traced(config)


def test_a_random_number_of_steps_is_counted_on_average():
  for gradient in ("each", "last"):
    config = config_of(dict(steps=4, random_steps_min=1, gradient=gradient))
    assert counted(config) == pytest.approx(sum(traced(config, steps) for steps in (1, 2, 3, 4)) / 4, rel=0.01)
  two = dict(steps=5, landscapes=2, random_steps_min=2)  # 2 to 4 times each, or once and 2 to 4 times
  assert flops.mean_steps(config_of(two)) == 6
  assert flops.mean_steps(config_of({**two, "random_steps_of": "final"})) == 4


def test_training_costs_6n_for_a_transformer_and_30n_for_two_steps_of_ebt():
  """N weights in blocks, for each token, beside attention and vocabulary."""
  m = MODEL
  weights = m.layers * (4 * m.width**2 + 3 * m.width * m.hidden)
  attention, table = 4 * m.layers * m.width * N, 2 * m.width * m.vocab_size
  row = flops.train_row(config_of(kind="transformer"))
  assert row == {
      "trunk": N * (6 * weights + 3 * attention), "vocabulary": N * 3 * table,
      "total": N * (6 * weights + 3 * attention + 3 * table), "recomputation": N * attention,
  }  # fmt: skip
  row, head = flops.train_row(config_of()), 2 * m.width
  assert row["total"] == N * (30 * weights + 15 * attention + 10 * table + 12 * head)
  assert row["recomputation"] == N * (2 * (4 * weights + 2 * attention + 2 * head) + 7 * attention)
  assert flops.train_step(config_of()) == ROWS * row["total"]
  counts = [flops.least(config_of(**o)) for o in (
      dict(kind="transformer"), {}, dict(variant="time_embed", thinking=dict(landscapes=2)),
      dict(thinking=dict(steps=3, gradient="last")),
  )]  # fmt: skip
  assert counts == [6, 30, 36, 26]


@pytest.mark.parametrize(
  "options",
  [
    dict(kind="transformer"),
    dict(),
    dict(variant="time_embed", thinking=dict(steps=3, landscapes=2)),
    dict(variant="adaln", thinking=dict(landscapes=2), evaluation=dict(steps=5)),
    dict(evaluation=dict(candidates=4, accept="lower")),
    dict(variant="adaln_zero", evaluation=dict(candidates=4)),
  ],
  ids=str,
)
def test_a_written_token_is_counted_as_traced(options):
  config = config_of(**options)
  task = make_task(config)
  params = jax.eval_shape(task.init, jax.random.key(0))
  tokens, lengths = jax.ShapeDtypeStruct((1, N), jnp.int32), jax.ShapeDtypeStruct((1,), jnp.int32)
  state = jax.eval_shape(lambda *a: task.prefill(*a, N), params, tokens, lengths)

  def write(params, state, key):
    logits, energy, _ = task.propose(params, state, key)
    return task.append(params, state, jnp.argmax(logits, -1)), energy

  jaxpr = jax.jit(write).trace(params, state, jax.random.split(jax.random.key(0), 1)).jaxpr.jaxpr
  steps = config.eval.steps or config.thinking.steps
  assert flops.token(config)["total"] == pytest.approx(products(jaxpr, steps), rel=0.001)
