"""Autoregressive EBT: who sees whom, one context for all steps, the cache, precision, options."""

import dataclasses

import jax
from jax.extend.core import jaxprs_in_params
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import losses
from ebt_jax.config import ModelConfig
from ebt_jax.models import trunk
from ebt_jax.models.autoregressive import AutoregressiveEBT
from ebt_jax.thinking import descent

B, S, V, D, M, A0 = 3, 6, 11, 16, 2, 5.0
BASE = ModelConfig(layers=2, heads=2, width=D, vocab_size=V)
VARIANTS = ("default", "time_embed", "adaln", "adaln_zero", "residual", "residual time_embed")
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def random_like(tree, seed, scale=0.3):
  """Nothing is zero: the parts that start at zero take part too."""
  leaves, structure = jax.tree.flatten(tree)
  keys = jax.random.split(jax.random.key(seed), len(leaves))
  return jax.tree.unflatten(structure, [a + scale * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves)])


class Case:
  """A model, parameters and inputs; its functions are compiled once. The last landscape is used."""

  def __init__(self, variant):
    name = variant.removeprefix("residual").strip() or "default"
    config = dataclasses.replace(BASE, variant=name, residual=variant.startswith("residual"))
    self.model = AutoregressiveEBT(config, landscapes=M, step_size=A0)
    self.params = random_like(self.model.init(jax.random.key(0)), 1)
    self.tokens = jax.random.randint(jax.random.key(2), (B, S), 0, V)
    self.candidates = jax.random.normal(jax.random.key(3), (B, S, D))
    self.landscape = M - 1
    self.encode = jax.jit(lambda tokens: self.model.encode(self.params, tokens, self.landscape))
    self.energy = jax.jit(lambda context, y: self.model.energy(self.params, context, y, self.landscape))

  def energies(self, tokens=None, candidates=None):
    tokens = self.tokens if tokens is None else tokens
    return self.energy(self.encode(tokens), self.candidates if candidates is None else candidates)


@pytest.fixture(scope="module", params=VARIANTS)
def case(request):
  return Case(request.param)


def test_an_energy_depends_on_its_own_candidate_alone(case):
  energies = case.energies()
  for t in range(S):
    moved = case.energies(candidates=case.candidates.at[1, t].add(1.0))
    changed = np.argwhere(np.asarray(moved != energies))
    np.testing.assert_array_equal(changed, [[1, t]])


def test_several_candidates_share_a_context(case):
  context = case.encode(case.tokens)
  several = jnp.stack([case.candidates, 2 * case.candidates, case.candidates - 1])
  for n in (1, 3):
    found = jax.jit(lambda y: case.model.energies(case.params, context, y, case.landscape))(several[:n])
    each = [case.energy(context, y) for y in several[:n]]
    np.testing.assert_allclose(found, each, rtol=1e-4, atol=1e-5)


def test_an_energy_depends_on_the_tokens_up_to_its_own_and_no_later_one(case):
  energies = case.energies()
  for t in range(S):
    moved = case.energies(tokens=case.tokens.at[1, t].set((case.tokens[1, t] + 1) % V))
    changed = np.argwhere(np.asarray(moved != energies))
    np.testing.assert_array_equal(changed, [[1, later] for later in range(t, S)])


def test_a_candidate_is_the_next_entry_of_an_ordinary_causal_pass(case):
  """One row for each position t: the tokens up to t, then the candidate, then what nobody may see."""
  model, params, k = case.model, case.params, case.landscape
  front = params["time"]["embedding"][k][None] if model.prefix else jnp.zeros((0, D))
  condition = params["time"]["embedding"][k] if model.config.variant.startswith("adaln") else None

  def normed(x, scale):
    return x / jnp.sqrt(jnp.mean(x**2, -1, keepdims=True) + 1e-5) * scale

  @jax.jit
  def one_stream(tokens, candidates):
    known = jnp.concatenate([front, params["embed"]["embedding"][tokens]])
    at = model.prefix + 1 + jnp.arange(S)
    rows = jnp.broadcast_to(jnp.pad(known, ((0, 1), (0, 0)), constant_values=9.0), (S, len(known) + 1, D))
    rows = rows.at[jnp.arange(S), at].set(candidates)
    stream, _ = trunk.context(model.config, params["layers"], rows, jnp.arange(rows.shape[1]), condition)
    x = normed(stream[jnp.arange(S), at], params["norm"]["scale"])
    if condition is not None:
      head = params["head_modulation"]
      shift, scale = jnp.split(jax.nn.silu(condition) @ head["kernel"] + head["bias"], 2)
      x = x * (1 + scale) + shift
    energies = (x @ params["head"]["kernel"])[:, 0]
    if model.config.residual:  # less the product with the entry before the candidate, and the level of its logits
      before = normed(stream[jnp.arange(S), at - 1], params["context_norm"]["scale"])
      level = jnp.log(jnp.sum(jnp.exp(before @ model.table(params).T), -1))
      energies = energies + (level - jnp.sum(before * candidates, -1)) / A0
    return energies

  for row in range(B):
    expected = one_stream(case.tokens[row], case.candidates[row])
    np.testing.assert_allclose(case.energies()[row], expected, **CLOSE)


def test_a_cache_filled_in_ragged_parts_equals_encoding_at_once(case):
  """Rows of 2, 4 and 1 tokens; then two turns that add 2, 0, 3 and 1, 1, 2 of them."""
  model, params, k = case.model, case.params, case.landscape
  extend = jax.jit(lambda context, tokens, lengths: model.extend(params, context, tokens, lengths, k))
  context = model.empty_cache(params, B, S + 2, k)  # room for the padding of the last part
  whole, done = case.energies(), np.zeros(B, int)
  for lengths in ([2, 4, 1], [2, 0, 3], [1, 1, 2]):
    part = np.full((B, max(lengths)), 7)
    for row, n in enumerate(lengths):
      part[row, :n] = case.tokens[row, done[row] : done[row] + n]
    context, done = extend(context, jnp.asarray(part), jnp.array(lengths)), done + lengths
    y = case.candidates[jnp.arange(B), done - 1][:, None]
    got = case.energy(context, y)[:, 0]
    np.testing.assert_allclose(got, whole[jnp.arange(B), done - 1], **CLOSE)


def test_landscapes_differ_where_the_model_knows_them(case):
  at = lambda k: case.model.energy(case.params, case.model.encode(case.params, case.tokens, k), case.candidates, k)
  differs = np.abs(jax.jit(at)(0) - case.energies()).max() > 1e-2
  assert differs == (case.model.config.variant != "default")
  assert case.model.shared_context == (not differs)


def test_adaln_zero_starts_at_zero_energy_and_still_learns():
  model = AutoregressiveEBT(dataclasses.replace(BASE, variant="adaln_zero"), landscapes=M)
  params = model.init(jax.random.key(0))
  tokens = jax.random.randint(jax.random.key(2), (B, S), 0, V)
  p = jax.nn.softmax(jax.random.normal(jax.random.key(3), (B, S, V)))

  def loss(params):
    slope = descent.reverse_over_forward(model.energy)
    energies, dy = slope(params, model.encode(params, tokens), p @ model.table(params), 0)
    x = p - 5.0 * dy @ params["to_embed"]["kernel"].T
    return jnp.sum(losses.token_losses(x, tokens)), energies

  gradient, energies = jax.jit(jax.grad(loss, has_aux=True))(params)
  assert not energies.any()
  assert jnp.linalg.norm(gradient["head"]["kernel"]) > 1e-3


def equations(jaxpr):
  """Those of a jaxpr and of the jaxprs inside it."""
  for equation in jaxpr.eqns:
    yield equation
    for inner in jaxprs_in_params(equation.params):
      yield from equations(inner)


@pytest.mark.parametrize("variant", ["default", "adaln"])
def test_bfloat16_is_for_the_products_of_the_blocks_alone(variant):
  case, config = Case(variant), dataclasses.replace(BASE, variant=variant, dtype="bfloat16")
  low = AutoregressiveEBT(config, landscapes=M)

  def energies(params, p):
    return low.energy(params, low.encode(params, case.tokens), p @ low.table(params), 0)

  p = jax.nn.softmax(4 * jax.random.normal(jax.random.key(4), (B, S, V)))
  full = case.model.energy(
    case.params, case.model.encode(case.params, case.tokens), p @ case.model.table(case.params), 0
  )
  got = jax.jit(energies)(case.params, p)
  assert got.dtype == jnp.float32
  error = jnp.linalg.norm(got - full) / jnp.linalg.norm(full)
  assert 1e-5 < error < 0.05

  def second_order(params, p):
    return jnp.sum(jax.grad(lambda p: jnp.sum(energies(params, p)))(p) ** 2)

  seen = list(equations(jax.make_jaxpr(jax.grad(second_order))(case.params, p).jaxpr))
  narrow = [e for e in seen if e.primitive.name == "dot_general" and e.invars[0].aval.dtype == jnp.bfloat16]
  wide = [e for e in seen if e.primitive.name == "dot_general" and e.invars[0].aval.dtype != jnp.bfloat16]
  shapes = {tuple(sorted(set(a.aval.shape for a in (*e.invars, *e.outvars)), key=str)) for e in wide}
  assert len(narrow) > 50
  # the candidates' embedding, the head and the modulation stay wide
  assert all(any(V in s or 1 in s[-2:] or len(s) == 1 for s in group) for group in shapes), shapes
  delicate = ("exp", "rsqrt", "tanh", "logistic", "reduce_sum", "reduce_max", "div", "mul", "add")
  types = {a.aval.dtype.name for e in seen if e.primitive.name in delicate for a in e.invars}
  assert types - {"int32"} == {"float32"}


def training_gradient(config, seed=0):
  """Value and gradient of a loss after one step, all compiled in one."""
  model = AutoregressiveEBT(config)
  tokens = jax.random.randint(jax.random.key(2), (B, S), 0, V)
  p = jax.nn.softmax(jax.random.normal(jax.random.key(3), (B, S, V)))

  def loss(params):
    y, pull = jax.vjp(lambda p: p @ model.table(params), p)
    slope = descent.reverse_over_forward(model.energy)
    _, dy = slope(params, model.encode(params, tokens), y, 0)
    return jnp.sum(losses.token_losses(p - 5.0 * pull(dy)[0], tokens))

  return jax.jit(lambda key: jax.value_and_grad(loss)(model.init(key)))(jax.random.key(seed))


def test_remat_changes_nothing():
  (value, gradient), (again, same) = (training_gradient(dataclasses.replace(BASE, remat=r)) for r in (False, True))
  np.testing.assert_allclose(value, again, rtol=1e-6)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6 * np.abs(a).max()), gradient, same)


@pytest.mark.parametrize("variant", ["default", "time_embed"])
def test_blocks_of_attention_change_nothing_to_second_order(x64, variant):
  config = dataclasses.replace(BASE, variant=variant, layers=1)
  params = jax.tree.map(lambda a: a.astype(float), random_like(AutoregressiveEBT(config).init(jax.random.key(0)), 1))
  tokens = jax.random.randint(jax.random.key(2), (B, S), 0, V)
  p = jax.nn.softmax(jax.random.normal(jax.random.key(3), (B, S, V), float))

  def run(block):
    model = AutoregressiveEBT(dataclasses.replace(config, attention_block=block))

    def loss(params):
      energies, dy = descent.reverse_over_forward(model.energy)(
        params, model.encode(params, tokens), p @ model.table(params), 0
      )
      return jnp.sum(jnp.sin(dy)) + jnp.sum(energies**2), (energies, dy)

    return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

  for whole, blocks in zip(jax.tree.leaves(run(S + 1)), jax.tree.leaves(run(4)), strict=True):
    np.testing.assert_allclose(blocks, whole, rtol=1e-12, atol=1e-12 * np.abs(whole).max())


def test_blocks_of_attention_bound_the_memory_of_a_long_context():
  length = 2048

  def needed(block):
    model = AutoregressiveEBT(dataclasses.replace(BASE, layers=1, attention_block=block))

    def loss(params, tokens):
      context = model.encode(params, tokens)
      _, dy = descent.reverse_over_forward(model.energy)(params, context, params["embed"]["embedding"][tokens], 0)
      return jnp.sum(dy**2)

    shapes = jax.eval_shape(model.init, jax.random.key(0)), jax.ShapeDtypeStruct((1, length), jnp.int32)
    program = jax.jit(jax.grad(loss)).lower(*shapes).compile()
    return program.memory_analysis().temp_size_in_bytes

  assert needed(length) > 5 * needed(0)


@pytest.mark.parametrize(
  "options",
  [
    {"norm": "layer", "activation": "gelu", "ffn_multiplier": 2.5},
    {"norm": "dyt", "activation": "elu", "init": "he"},
    {"norm": "none", "activation": "relu", "embedder": "tied"},
  ],
)
def test_options_train(options):
  value, gradient = training_gradient(dataclasses.replace(BASE, **options))
  assert np.isfinite(value) and all(np.isfinite(a).all() for a in jax.tree.leaves(gradient))
  silent = {jax.tree_util.keystr(p) for p, a in jax.tree_util.tree_leaves_with_path(gradient) if not np.any(a)}
  assert silent <= {"['norm']['bias']"}  # it shifts every energy alike
  assert gradient["layers"]["ffn"]["up"]["kernel"].shape == (2, D, int(D * options.get("ffn_multiplier", 1)))
  assert ("to_embed" in gradient) == (options.get("embedder") != "tied")
