"""A text model from Python: what it writes, scores and thinks agree with each other."""

import dataclasses
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import parallel, runs, weights
from ebt_jax.checkpoint import CheckpointError
from ebt_jax.config import Config, ConfigError, DataConfig, MeshConfig, ModelConfig, ThinkingConfig
from ebt_jax.tasks import registry
from ebt_jax.use.text import TextModel

CONFIG = Config(
  model=ModelConfig(layers=1, heads=2, width=16, vocab_size=257),
  thinking=ThinkingConfig(steps=2, start="zeros"),
  data=DataConfig(context_length=16),
)
TEXT = "Plain bytes and für all: 思 of it"  # longer than two windows


def model_of(config) -> TextModel:
  task = registry.make(config)
  return TextModel(runs.Run(task.config, task, task.init(jax.random.key(3)), 0, pathlib.Path(".")))


@pytest.fixture(scope="module")
def model():
  return model_of(CONFIG)


@pytest.fixture(scope="module")
def transformer():
  return model_of(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, kind="transformer")))


def test_what_is_streamed_is_what_is_written(model):
  for prompt in (TEXT, "思".encode()[:2].decode("latin-1")):
    whole = model.generate(prompt, 20, seed=4)
    tokens = list(model.stream(prompt, 20, seed=4))
    assert tokens == whole.tokens and whole.text == "".join(t.text for t in tokens)
    assert whole.prompt + whole.text == model.tokenizer.decode(model.encode(prompt) + [t.id for t in tokens])
  several = model.generate(["of", TEXT], 20, seed=4)
  assert [c.text for c in several] == [model.generate(p, 20, seed=4).text for p in ("of", TEXT)]


@pytest.mark.parametrize("kind", ["model", "transformer"])
def test_scores_are_those_of_next_tokens(kind, request):
  """Each token of a window against the prediction after the text before it."""
  model = request.getfixturevalue(kind)
  found, ids = model.score(TEXT), model.encode(TEXT)
  assert "".join(found.tokens) == TEXT and len(found.tokens) == len(ids) == found.bytes
  length = model.config.data.context_length
  batch = {"weights": jnp.ones((1, length))}
  stream = [model.tokenizer.end_of_text, *ids]
  for first in (0, length):  # a window sees the last token of the one before it, and no more
    tokens = jnp.array([stream[first : first + length + 1]])
    keys = jax.random.split(jax.random.key(0), 1)
    scores = model._run.task.scores(model._run.params, {"tokens": tokens, **batch}, keys)
    np.testing.assert_allclose(-scores.error[:, 0], found.log_likelihood_by_step[:, first : first + length], rtol=1e-5)
  assert found.perplexity == pytest.approx(math.exp(-found.log_likelihood.mean()))
  assert found.bits_per_byte == pytest.approx(-found.log_likelihood.sum() / math.log(2) / len(ids))


@pytest.mark.parametrize("kind", ["model", "transformer"])
def test_likelihoods_are_scores_and_energies_of_continuations(kind, request):
  model = request.getfixturevalue(kind)
  pairs = [("Plain by", "tes"), ("", "Plain"), (TEXT, " then"), ("of", TEXT), ("Plain by", "t")]
  found = model.likelihood(pairs)
  (alone,) = model.likelihood(pairs[2:3])
  np.testing.assert_allclose(found[2].log_likelihood, alone.log_likelihood, rtol=1e-5)
  np.testing.assert_allclose(found[0].log_likelihood[:1], found[4].log_likelihood, rtol=1e-5)
  np.testing.assert_allclose(found[1].log_likelihood, model.score("Plain").log_likelihood, rtol=1e-5)
  assert [len(f.tokens) for f in found] == [len(text.encode()) for _, text in pairs]
  if kind == "transformer":
    assert found[0].energies is None and found[0].energy is None
  else:
    np.testing.assert_allclose(found[0].energies, model.energy(*pairs[0]), rtol=1e-5)
  # in parts of half a window, each with the half before it, and then what is left with a whole window
  length, stream = model.config.data.context_length, [*b"of", *TEXT.encode()]
  first = 2 + length // 2
  (part,) = model.likelihood(
    [(stream_text(stream[first + length // 2 - length - 1 : first]), stream_text(stream[first : first + 3]))]
  )
  np.testing.assert_allclose(found[3].log_likelihood[length // 2 :][:3], part.log_likelihood, rtol=1e-5)
  written = model.generate("Plain by", 3, top_k=1)
  (greedy,) = model._with(model._scorer)([(model.encode("Plain by"), [t.id for t in written.tokens])])
  assert greedy.likeliest.all() and not found[0].likeliest.all()


def stream_text(ids):
  return bytes(ids).decode("utf-8", "surrogateescape")


def test_thinking_about_a_token_is_scoring_it(model):
  ids = model.encode("abcd")
  window = {"tokens": jnp.array([ids + [0] * 13]), "weights": jnp.ones((1, 16))}
  scores = model._run.task.scores(model._run.params, window, jax.random.split(jax.random.key(0), 1))
  for n in (1, 3):
    thought = model.think("abcd"[:n], top=3)
    np.testing.assert_allclose(thought.probabilities[:, ids[n]], np.exp(-scores.error[:, 0, n - 1]), rtol=1e-4)
    np.testing.assert_allclose(thought.energies[:-1, 0], scores.energy[:, 0, n - 1], rtol=1e-4, atol=1e-6)
    best = thought.probabilities[-1].argsort()[::-1][:3]
    assert [text for text, _ in thought.top[-1]] == [model.tokenizer.decode([int(i)]) for i in best]


def test_the_energy_of_a_thought_is_that_of_its_probabilities(model):
  noisy = dataclasses.replace(CONFIG, thinking=ThinkingConfig(steps=2))
  thought = model_of(noisy).think("of", candidates=3, steps=4)
  assert thought.energies.shape == (5, 3) and thought.steps.tolist() == [4, 4, 4]
  found = model.energy("of", thought.probabilities[-1])
  np.testing.assert_allclose(found, thought.energies[-1, thought.kept : thought.kept + 1], rtol=1e-5)
  one_hot = np.eye(257)[model.encode("X")[0]]
  np.testing.assert_allclose(model.energy("of", "X"), model.energy("of", one_hot), rtol=1e-5)
  whole = model.energy("o", "fXY")
  np.testing.assert_allclose(whole[1], model.energy("of", "X")[0], rtol=1e-5)
  assert whole.shape == (3,)


@pytest.mark.parametrize("half", [False, True])
def test_parameters_of_an_ebt_are_written_and_read(model, half, tmp_path):
  task, params = model._run.task, model._run.params
  weights.write(tmp_path, params, 3, half)
  mesh = parallel.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  step, found = weights.read(tmp_path, runs.abstract_params(task, mesh))
  kept = jax.tree.map(lambda a: a.astype(np.float16).astype(a.dtype) if half and a.ndim else a, params)
  jax.tree.map(np.testing.assert_array_equal, found, kept)
  assert step == 3 and found["thinking"]["step_size"].shape == ()


def test_a_file_of_another_model_is_named(model, tmp_path):
  mesh = parallel.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  abstract, params = runs.abstract_params(model._run.task, mesh), model._run.params
  size = params["thinking"]["step_size"]

  def said(thinking):
    weights.write(tmp_path, {**params, "thinking": thinking}, 3)
    with pytest.raises(CheckpointError, match="model.safetensors: is of another model than config.json") as found:
      weights.read(tmp_path, abstract)
    return str(found.value)

  rest = {n: a for n, a in params["thinking"].items() if n != "step_size"}
  assert "thinking.step_size: found int32[], expected float32[]" in said({**rest, "step_size": jnp.int32(size)})
  assert "thinking.step_size: found float32[2], expected float32[]" in said({**rest, "step_size": jnp.ones(2)})
  assert "thinking.step_size: missing, expected float32[]" in said(rest)
  assert "thinking.more: found float32[], not in this model" in said({**params["thinking"], "more": jnp.ones(())})


def test_what_does_not_fit_is_named(model, transformer):
  with pytest.raises(ConfigError, match="prompt: '' has no tokens"):
    model.generate("")
  with pytest.raises(ConfigError, match="think: model.kind=transformer answers in one pass"):
    transformer.think("of")
  with pytest.raises(ConfigError, match="energy: model.kind=transformer has no energies"):
    transformer.energy("of", "X")
  with pytest.raises(ConfigError, match="prompt: 17 tokens, more than the 16"):
    model.think("x" * 17)
  with pytest.raises(ConfigError, match=r"probabilities of 257 tokens, found shape \[3\]"):
    model.energy("of", np.ones(3) / 3)
  with pytest.raises(ConfigError, match="config.eval.candidates"):
    transformer.score("of", candidates=4)
