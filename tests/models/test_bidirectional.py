"""Models of masked rows: who sees whom, what is read, places and rotary positions, passes, FLOPs."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.config import ModelConfig
from ebt_jax.models import attention, layers, traced, trunk
from ebt_jax.models.bidirectional import EnergyStack, LoopedTransformer, Masked, MaskedEBT, MaskedTransformer
from tests.models.test_autoregressive import random_like

B, S, V, D, M = 2, 5, 7, 16, 2
BASE = ModelConfig(layers=2, heads=2, width=D, vocab_size=V)
INPUTS = Masked(jax.random.randint(jax.random.key(2), (B, S), 0, V), jnp.array([[0, 1, 1, 0, 1.0], [1, 0, 0, 0, 0]]))
Y = jax.random.normal(jax.random.key(3), (B, S, D))


def case(variant="default", landscape=M - 1, **options):
  """A model with random parameters, and its energy as a function of inputs and candidates."""
  model = MaskedEBT(dataclasses.replace(BASE, variant=variant), **{"places": S, "landscapes": M, **options})
  params = random_like(model.init(jax.random.key(0)), 1)

  @jax.jit
  def energy(inputs, y):
    return model.energy(params, model.encode(params, inputs), y, landscape)

  return model, params, energy


def test_whole_attention_is_softmax_over_all_entries_in_blocks_too():
  q, k, v = jax.random.normal(jax.random.key(0), (3, B, 2, 9, 4))
  expected = jnp.einsum("bhst,bhtk->bhsk", jax.nn.softmax(jnp.einsum("bhsk,bhtk->bhst", q, k)), v)
  for block in (0, 2, 4):
    np.testing.assert_allclose(attention.whole_attention(q, k, v, block=block), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", ["default", "time_embed", "adaln"])
def test_an_energy_reads_given_tokens_and_asked_candidates_and_nothing_else(variant):
  _, _, energy = case(variant)
  before = energy(INPUTS, Y)
  assert before.shape == (B,)
  for row in range(B):
    for place in range(S):
      token = INPUTS._replace(tokens=INPUTS.tokens.at[row, place].set((INPUTS.tokens[row, place] + 1) % V))
      asked = bool(INPUTS.asked[row, place])
      moved = energy(token, Y) != before, energy(INPUTS, Y.at[row, place].add(1.0)) != before
      own = [i == row for i in range(B)]
      assert moved[0].tolist() == ([False] * B if asked else own), (row, place)
      assert moved[1].tolist() == (own if asked else [False] * B), (row, place)


@pytest.mark.parametrize("variant, differs", [("default", False), ("time_embed", True), ("adaln", True)])
def test_landscapes_differ_where_the_variant_has_them(variant, differs):
  there, here = (case(variant, landscape)[2](INPUTS, Y) for landscape in (0, 1))
  assert bool(jnp.any(there != here)) == differs


def test_the_energies_of_places_add_up_to_that_of_the_row_and_are_zero_where_nothing_is_asked():
  by_place, whole = case(by_place=True)[2](INPUTS, Y), case()[2](INPUTS, Y)
  assert by_place.shape == (B, S) and not np.any(by_place * (1 - INPUTS.asked))
  np.testing.assert_allclose(by_place.sum(1), whole, rtol=1e-5)


@pytest.mark.parametrize("places", [S, 0])
def test_an_energy_depends_on_the_order_of_a_row(places):
  _, _, energy = case(places=places)
  turned = Masked(*(jnp.roll(a, 1, 1) for a in INPUTS))
  assert np.all(np.abs(energy(turned, jnp.roll(Y, 1, 1)) - energy(INPUTS, Y)) > (1e-3 if places else 0))
  swap = jnp.array([3, 1, 2, 0, 4])  # two given tokens change places
  assert np.any(np.abs(energy(Masked(INPUTS.tokens[:, swap], INPUTS.asked[:, swap]), Y) - energy(INPUTS, Y)) > 1e-3)


def test_rotary_places_matter_by_their_distance_alone():
  """The energy of a row stays the same where all positions move by as much: only differences are read."""
  _, params, _ = case(places=0)
  x = jax.random.normal(jax.random.key(4), (B, S, D))
  near, far = (trunk.whole(BASE, params["layers"], x, jnp.arange(S) + shift) for shift in (0, 11))
  np.testing.assert_allclose(near, far, rtol=2e-4, atol=2e-5)
  assert np.any(np.abs(near - trunk.whole(BASE, params["layers"], x)) > 1e-2)


def test_a_condition_of_each_row_changes_its_own_energies():
  stack = EnergyStack(dataclasses.replace(BASE, variant="adaln"))
  params, x = random_like(stack.init(jax.random.key(0)), 1), jax.random.normal(jax.random.key(4), (B, S, D))
  condition = jnp.zeros((B, 1, D))
  before = stack.energies(params, x, condition=condition)
  np.testing.assert_allclose(stack.energies(params, x), before, rtol=1e-4, atol=1e-5)
  after = stack.energies(params, x, condition=condition.at[1].add(1.0))
  assert not np.any(after[0] != before[0]) and np.all(after[1] != before[1])
  with pytest.raises(ValueError, match="set variant to adaln"):
    EnergyStack(BASE).energies(params, x, condition=condition)


def test_one_pass_reads_given_tokens_alone_and_several_start_with_the_first():
  model = MaskedTransformer(BASE, S)
  params = random_like(model.init(jax.random.key(0)), 1)
  logits = model.predict(params, INPUTS)
  hidden = INPUTS._replace(tokens=jnp.where(INPUTS.asked > 0, 0, INPUTS.tokens))
  assert logits.shape == (B, S, V) and np.array_equal(logits, model.predict(params, hidden))
  looped = LoopedTransformer(BASE, S)
  answers = looped.answers(params, INPUTS, 3)
  np.testing.assert_allclose(answers[0], logits, rtol=1e-5, atol=1e-5)  # the stream before the first pass is zero
  np.testing.assert_allclose(looped.answers(params, INPUTS, 2), answers[:2], rtol=1e-5)
  assert np.all(np.any(answers[1:] != answers[:-1], (1, 2, 3)))
  again = looped._pass(params, looped._pass(params, looped._stream(params, INPUTS)) + looped._stream(params, INPUTS))
  np.testing.assert_allclose(answers[1], looped._read(params, again), rtol=1e-4, atol=1e-5)


def test_a_recursive_pass_updates_its_latent_stream_and_learns_alone():
  model = LoopedTransformer(dataclasses.replace(BASE, kind="looped", latent_updates=2), S)
  params = random_like(model.init(jax.random.key(0)), 1)
  known, answers = model._stream(params, INPUTS), model.answers(params, INPUTS, 2)
  answer = latent = jnp.zeros_like(known)
  for found in answers:
    for _ in range(2):
      latent = model._pass(params, known + answer + latent)
    answer = model._pass(params, answer + latent)
    np.testing.assert_allclose(found, model._read(params, answer), rtol=1e-4, atol=1e-5)
  of_first = lambda table: jnp.sum(model.answers({**params, "embed": {"embedding": table}}, INPUTS, 1)[-1])
  of_both = lambda table: jnp.sum(model.answers({**params, "embed": {"embedding": table}}, INPUTS, 2)[-1])
  first, both = (jax.grad(f)(params["embed"]["embedding"]) for f in (of_first, of_both))
  assert np.any(first != both) and model.uses == 3
  row = Masked(*(a[:1] for a in INPUTS))
  plain = LoopedTransformer(BASE, S).flops(row)
  assert model.flops(row).trunk.forward == 3 * plain.trunk.forward and model.flops(row).output == plain.output


@pytest.mark.parametrize("variant", ["default", "time_embed", "adaln"])
def test_flops_are_those_of_a_trace(variant):
  model, params, _ = case(variant)
  row = Masked(*(a[:1] for a in INPUTS))
  context = jax.eval_shape(model.encode, params, row)
  cost = model.flops(row)
  counted = traced.flops(model.energy, params, context, Y[:1])
  assert counted == cost.candidate.forward + cost.modulation[1]
  assert traced.flops(lambda p: p @ model.table(params), jnp.zeros((1, S, V))) == cost.embedding
  direct = MaskedTransformer(BASE, S)
  found = direct.flops(row)
  assert traced.flops(direct.predict, direct.init(jax.random.key(0)), row) == found.trunk.forward + found.output


def test_bfloat16_products_change_little():
  model, params, energy = case()
  low = dataclasses.replace(model, config=dataclasses.replace(BASE, dtype="bfloat16"))
  found = low.energy(params, low.encode(params, INPUTS), Y)
  np.testing.assert_allclose(found, energy(INPUTS, Y), rtol=0.1, atol=0.1)
  assert found.dtype == jnp.float32 and layers.compute_dtype(low.config) == jnp.bfloat16
