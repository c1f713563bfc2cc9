"""Generated text against thinking about whole sequences, without a cache; what a token costs."""

import dataclasses

import jax
from jax.extend.core import jaxprs_in_params
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import thinking
from ebt_jax.config import Config, ConfigError, DataConfig, EvalConfig, ModelConfig, ThinkingConfig
from ebt_jax.tasks import decoding, registry
from ebt_jax.tasks.base import Decoding, Proposal
from ebt_jax.use import generate
from ebt_jax.use.generate import Generator
from ebt_jax.use.sampling import Sampling

CAPACITY, V, NEVER = 8, 11, 99
GREEDY = Sampling(top_k=1)
PROMPTS = [[3, 1, 4], [1, 5, 9, 2, 6], [5]]
BASE = Config(
  model=ModelConfig(layers=2, heads=2, width=16, vocab_size=V),
  thinking=ThinkingConfig(steps=2, start="zeros"),
  data=DataConfig(context_length=CAPACITY),
)


def with_target(tokens):
  """A batch whose inputs are these tokens."""
  return {"tokens": jnp.pad(tokens, ((0, 0), (0, 1)))}


def generator_of(task, params, end=NEVER):
  return Generator(decoding.writer(task), params, end, task.config.data.context_length)


def case_of(**model):
  landscapes = 1 if "kind" in model else 2
  config = dataclasses.replace(
    BASE,
    model=dataclasses.replace(BASE.model, **model),
    thinking=dataclasses.replace(BASE.thinking, landscapes=landscapes),
  )
  task = registry.make(config)
  params = task.init(jax.random.key(0))
  return task, params, generator_of(task, params)


@pytest.fixture(
  scope="module",
  params=[
    {},
    {"variant": "time_embed"},
    {"residual": True},
    {"kind": "transformer"},
    {"kind": "rnn"},
    {"kind": "rnn", "cell": "lstm"},
  ],
  ids=str,
)
def case(request):
  return case_of(**request.param)


@pytest.fixture(scope="module")
def transformer():
  return case_of(kind="transformer")


def whole(task, params):
  """`sequence -> logits after it`, from a pass over the padded sequence; the padding stands behind."""

  @jax.jit
  def logits(tokens):
    if task.config.model.kind != "ebt":
      return task.model.predict(params["model"], tokens)
    start = jnp.zeros((*tokens.shape, V))
    return thinking.think(
        task.model.energy, task.space, params, task.context(params, with_target(tokens)), start, jax.random.key(0),
        task.config.thinking,
    ).candidate  # fmt: skip

  def after(sequence):
    padded = np.zeros((1, CAPACITY), np.int32)
    padded[0, : len(sequence)] = sequence
    return np.asarray(logits(padded)[0, len(sequence) - 1])

  return after


def test_greedy_text_is_what_whole_sequences_say_and_the_window_slides(case):
  """Each row goes on from its last half window when its own window is full, whatever the lengths of the others."""
  task, params, generator = case
  after, length = whole(task, params), 9
  written = generator(PROMPTS, length, GREEDY)
  for r, prompt in zip(written, PROMPTS, strict=True):
    text, window, full = list(prompt), list(prompt), []
    for i in range(length):
      if len(window) == CAPACITY:
        window = text[-(CAPACITY // 2) :]
        full.append(i)
      logits = after(window)
      best = np.sort(logits)
      assert best[-1] - best[-2] > 1e-5  # no tie that rounding decides
      window.append(int(logits.argmax()))
      text.append(window[-1])
    assert r.prompt + r.tokens == text and r.window_full == full and not r.ended
    assert len(r.energies) == length and np.isfinite(r.energies).all()
  assert [r.window_full for r in written] == [[5], [3, 7], [7]]  # by hand: room of 8 - 3, 8 - 5, 8 - 1, then 4
  assert len({tuple(r.tokens) for r in written}) > 1
  generator(PROMPTS[::-1], 2, GREEDY, seed=1, on_token=print)
  assert generator._write._cache_size() == generator._prefill._cache_size() == 1  # whatever the lengths


@pytest.mark.parametrize("start", ["zeros", "noise"])
def test_a_row_is_the_same_whatever_stands_beside_it(start):
  """Greedy and sampled, with neighbours that are shorter, longer than the window, the same, and that end."""
  config = dataclasses.replace(BASE, thinking=dataclasses.replace(BASE.thinking, start=start))
  task = registry.make(config)
  generator = generator_of(task, task.init(jax.random.key(0)))
  prompts = [*PROMPTS, [7, 8] * CAPACITY, [3, 1, 4]]
  for sampling in (GREEDY, Sampling()):
    together = generator(prompts, 9, sampling)
    for prompt, r in zip(prompts[:4], together):
      (alone,) = generator([prompt], 9, sampling)
      assert alone.tokens == r.tokens and alone.window_full == r.window_full
      np.testing.assert_allclose(alone.energies, r.energies, rtol=1e-4, atol=1e-5)
    assert (together[0].tokens == together[4].tokens) == (sampling == GREEDY and start == "zeros")  # a draw of its own
    assert together[3].window_full == [0, 4, 8]
  if start == "zeros":  # of the 16 tokens the last 4 were read
    (end,) = generator([[7, 8] * (CAPACITY // 4)], 4, GREEDY)
    assert generator([prompts[3]], 4, GREEDY)[0].tokens == end.tokens


def test_text_does_not_depend_on_how_many_tokens_a_call_generates(case, monkeypatch):
  _, _, generator = case
  write, counts = generator._write, []

  def counted(params, state, ended, first, count, *rest):
    counts.append(count)
    return write(params, state, ended, first, count, *rest)

  monkeypatch.setattr(generator, "_write", counted)
  whole = generator(PROMPTS, 9, Sampling(), 3)
  assert counts == [3, 2, 2, 2]  # as many as the fullest window has room for
  for count in (1, 2):
    monkeypatch.setattr(generate, "STREAMED", count)
    counts.clear()
    assert generator(PROMPTS, 9, Sampling(), 3, lambda *event: None) == whole
    assert max(counts) == count


def test_the_energy_of_a_token_is_that_of_the_finished_thought():
  task, params, generator = case_of(variant="adaln")
  (written,) = generator([[3, 1, 4]], 1, GREEDY)
  config = dataclasses.replace(task.config.thinking, steps=task.config.thinking.steps + 1)

  @jax.jit
  def thoughts(tokens):
    start = jnp.zeros((*tokens.shape, V))
    contexts = task.context(params, with_target(tokens))
    return thinking.think(task.model.energy, task.space, params, contexts, start, jax.random.key(0), config)

  assert written.energies[0] == pytest.approx(float(thoughts(jnp.array([[3, 1, 4]])).energies[-1, 0, -1]), rel=1e-4)


def many_candidates(count, capacity, **model):
  """Task and parameters, and a cache of rows of 4 and 2 tokens."""
  thinking_config = dataclasses.replace(BASE.thinking, start="noise", landscapes=2)
  config = dataclasses.replace(
    BASE,
    model=dataclasses.replace(BASE.model, **model),
    thinking=thinking_config,
    data=DataConfig(context_length=capacity),
    eval=EvalConfig(candidates=count),
  )
  task = registry.make(config)
  params = task.init(jax.random.key(0))
  tokens, lengths = jnp.array([[3, 1, 4, 1], [5, 9, 0, 0]]), jnp.array([4, 2])
  prefill = jax.jit(decoding.writer(task).prefill, static_argnums=3)
  return task, params, tokens, lengths, prefill(params, tokens, lengths, capacity)


def test_of_many_candidates_the_one_of_least_energy_is_kept():
  count = 4
  task, params, tokens, lengths, state = many_candidates(count, CAPACITY, variant="time_embed")
  keys = jax.random.split(jax.random.key(7))  # one for each row
  logits, energies, steps = jax.jit(decoding.writer(task).propose)(params, state, keys)
  assert steps.tolist() == [task.eval_steps] * 2
  starts, _ = task.starts(params, state.context, keys, {"tokens": jnp.zeros((2, 2), int)})
  config = dataclasses.replace(task.config.thinking, steps=task.eval_steps + 1)

  @jax.jit
  def alone(tokens, start):
    """One row of a batch for each candidate."""
    contexts = task.context(params, with_target(jnp.tile(tokens, (count, 1))))
    return thinking.think(
      task.model.energy, task.space, params, contexts, start, jax.random.key(0), config, observe=lambda x: x
    )

  for row, at in enumerate(lengths - 1):
    seen = alone(tokens[row], jnp.zeros((count, tokens.shape[1], V)).at[:, at].set(starts[:, row, 0]))
    each = np.asarray(seen.energies[-1, :, at])
    assert np.ptp(each) > 1e-3 and energies[row] == pytest.approx(each.min(), rel=1e-4)
    np.testing.assert_allclose(logits[row], seen.observed[-2, each.argmin(), at], rtol=1e-3, atol=1e-4)


def test_many_candidates_share_one_cache():
  capacity = 13  # nothing else has this size
  task, params, *_, state = many_candidates(5, capacity)
  one_layer = state.context.keys[0].size

  def shapes(jaxpr):
    for equation in jaxpr.eqns:
      yield from (v.aval.shape for v in equation.outvars)
      for inner in jaxprs_in_params(equation.params):
        yield from shapes(inner)

  keys = jax.random.split(jax.random.key(0))
  found = set(shapes(jax.make_jaxpr(decoding.writer(task).propose)(params, state, keys).jaxpr))
  entries = [s for s in found if capacity in s and s[-1] == task.config.model.head_dim]
  assert entries and all(np.prod(s) <= one_layer for s in entries)


@pytest.mark.parametrize("rows, model", [(1, {}), (3, {}), (1, {"kind": "transformer"})], ids=str)
def test_the_cache_is_written_in_place(rows, model):
  """The loop over tokens holds no second copy of the cache, nor of the layers."""
  config = dataclasses.replace(
    BASE, model=dataclasses.replace(BASE.model, **model), data=DataConfig(context_length=512)
  )
  task = registry.make(config)
  generator = generator_of(task, task.init(jax.random.key(0)))
  state = generator._empty(rows)
  args = (generator._params, state, np.zeros(rows, bool), 0, 4, jax.random.split(jax.random.key(0), rows), GREEDY)
  memory = generator._write.lower(*args).compile().memory_analysis()
  assert memory.alias_size_in_bytes >= sum(a.nbytes for a in jax.tree.leaves(state.context))
  assert memory.temp_size_in_bytes < state.context.keys[0].nbytes


def test_a_row_that_ended_stops_and_the_others_go_on(transformer):
  task, params, generator = transformer
  free = generator(PROMPTS, 12, GREEDY)
  end = free[0].tokens[2]
  generator = generator_of(task, params, end)
  seen = []
  written = generator(PROMPTS, 12, GREEDY, on_token=lambda *event: seen.append(event))
  stops = [(r.tokens + [end]).index(end) + 1 for r in free]
  for row, (r, whole) in enumerate(zip(written, free)):
    assert r.tokens == whole.tokens[: stops[row]] and r.energies == whole.energies[: stops[row]]
    assert r.ended == (end in whole.tokens)
    assert [(t, e) for i, t, e in seen if i == row] == list(zip(r.tokens, r.energies))
  assert stops[0] <= 3 and max(stops) > 3
  assert len(generator([PROMPTS[0]] * 3, 12, GREEDY)[0].tokens) == stops[0]


def test_draws_follow_the_seed(transformer):
  _, _, generator = transformer
  text = lambda seed: [r.tokens for r in generator(PROMPTS, 8, Sampling(), seed)]
  assert text(0) == text(0) != text(1)


def test_a_prompt_without_tokens_is_refused(transformer):
  _, _, generator = transformer
  with pytest.raises(ConfigError, match="prompt 2 has no tokens"):
    generator([[1], []], 1, GREEDY)


class Diverging:
  """Writes 1, 2, 3, ... in every row; the third thought of row 0 diverges."""

  quantity, row_axis = "energy", 0

  def __init__(self, energy):
    self.energy = energy

  def prepare(self, params):
    return params

  def prefill(self, params, tokens, lengths, capacity):
    return Decoding(jnp.zeros(len(tokens), jnp.int32))

  def propose(self, params, state, keys):
    bad = (state.context == 2) & (jnp.arange(len(keys)) == 0)
    energy = jnp.where(bad, self.energy, -1.0 * state.context)
    return Proposal(jax.nn.one_hot(state.context + 1, V), energy, state.context + 1)

  def append(self, params, state, tokens):
    return Decoding(state.context + 1)


@pytest.mark.parametrize("energy", [np.nan, np.inf])
def test_a_thought_that_diverged_ends_its_row_and_no_other(energy):
  end = 9
  first, second = Generator(Diverging(energy), {}, end, CAPACITY)([[5], [6]], 5, GREEDY)
  assert first.ended and first.tokens == [1, 2, end] and first.energies[:2] == [0.0, -1.0]
  assert not np.isfinite(first.energies[2])
  assert not second.ended and second.tokens == [1, 2, 3, 4, 5] and second.steps == [1, 2, 3, 4, 5]
