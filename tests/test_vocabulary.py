"""Chunks of positions give what all of them give, whatever the length; choices do not look at the mesh in use."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import parallel, vocabulary
from ebt_jax.config import MeshConfig

LENGTHS = [250, 251, 257]  # the last two are prime
B, D, V = 4, 3, 7


def problem(length):
  """A table, and keys, hidden states, targets and weights of every position."""
  rng = np.random.default_rng(length)
  arrays = {
    "key": jax.random.split(jax.random.key(0), (B, length)),
    "hidden": jnp.asarray(rng.normal(size=(B, length, D))),
    "target": jnp.asarray(rng.integers(0, V, (B, length))),
    "weight": jnp.asarray(rng.uniform(size=(B, length))),
  }
  return jnp.asarray(rng.normal(size=(V, D))), arrays


def logits(table, arrays):
  drawn = jax.vmap(jax.vmap(lambda key: jax.random.normal(key, (V,), table.dtype)))(arrays["key"])
  return arrays["hidden"] @ table.T + drawn


def loss(table, arrays):
  """Positions of zero weight count too: nothing may be added to a batch."""
  log_p = jax.nn.log_softmax(logits(table, arrays))
  nll = -jnp.take_along_axis(log_p, arrays["target"][..., None], -1)[..., 0]
  return jnp.sum(arrays["weight"] * nll), {"positions": jnp.sum(jnp.ones_like(nll)), "nll": jnp.sum(nll)}


def assert_close(ours, theirs):
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11), ours, theirs)


def with_gradient(f, table, arrays):
  """`f(table, arrays) -> (scalar, aux)` and its gradient in the table and the float arrays."""

  def of(table, hidden, weight):
    return f(table, {**arrays, "hidden": hidden, "weight": weight})

  return jax.jit(jax.value_and_grad(of, (0, 1, 2), has_aux=True))(table, arrays["hidden"], arrays["weight"])


@pytest.mark.parametrize("length", LENGTHS)
def test_sums_over_chunks_and_their_gradients_are_those_of_the_whole(x64, length):
  table, arrays = problem(length)
  size = vocabulary.chunk_positions(B, length, V, 1, 100)
  found = with_gradient(lambda *args: vocabulary.sum_chunks(loss, *args, size), table, arrays)
  assert_close(found, with_gradient(loss, table, arrays))


@pytest.mark.parametrize("length", LENGTHS)
def test_maps_over_chunks_and_their_gradients_are_those_of_the_whole(x64, length):
  table, arrays = problem(length)

  def squared(y):
    return jnp.sum(jnp.sin(y)), y

  def chunked(table, arrays):
    return squared(vocabulary.map_chunks(logits, table, arrays, 100))

  found = with_gradient(chunked, table, arrays)
  assert_close(found, with_gradient(lambda *args: squared(logits(*args)), table, arrays))


def test_a_shorter_last_chunk_on_a_mesh(x64):
  table, arrays = problem(11)
  expected = with_gradient(loss, table, arrays)
  mesh = parallel.make_mesh(MeshConfig(replica=2, data=2, model=2))
  with jax.set_mesh(mesh):
    arrays = jax.device_put(arrays, parallel.batch_sharding(mesh))
    assert_close(with_gradient(lambda *args: vocabulary.sum_chunks(loss, *args, 4), table, arrays), expected)


@pytest.mark.parametrize("length", [*LENGTHS, 1021])
def test_chunks_are_of_nearly_equal_size_for_every_length(length):
  size = vocabulary.chunk_positions(1, length, V, 1, 100)
  chunks = math.ceil(length / size)
  assert 64 < size <= 100 and chunks == math.ceil(length / 100)
  assert 0 <= chunks * size - length < chunks


def test_positions_are_chosen_by_the_bytes_on_one_device():
  choose = lambda rows, shards: vocabulary.chunk_positions(rows, 256, 50_277, shards)
  assert choose(1, 1) == 256  # 51 MB
  assert choose(8, 8) == 256
  assert choose(8, 1) == 37 and 8 * 37 * 50_277 * 4 < vocabulary.CHUNK_BYTES
  with jax.set_mesh(parallel.make_mesh(MeshConfig())):  # eight devices
    assert choose(8, 1) == 37
  assert vocabulary.chunk_positions(8, 256, 50_277, 1, 500) == 256


def test_groups_of_rows_divide_them_and_fit():
  half = vocabulary.WHOLE_BYTES // 2
  assert vocabulary.row_groups(2, half, 1) == 1
  assert vocabulary.row_groups(8, half, 1) == 4
  assert vocabulary.row_groups(9, half, 1) == 9  # 9 / 3 rows are too many
  assert vocabulary.row_groups(8, half, 4) == 1
  assert vocabulary.row_groups(16, half, 4) == 2
  assert vocabulary.row_groups(8, 10 * half, 4) == 2  # at least one row on each device


def test_a_padded_table_changes_no_probability():
  mesh = parallel.make_mesh(MeshConfig(replica=1, data=2, model=4))
  table = jax.random.normal(jax.random.key(0), (V, D))
  y = jax.random.normal(jax.random.key(1), (B, D))
  with jax.set_mesh(mesh):
    sliced = jax.jit(lambda t: vocabulary.slice_table(t, 0))(table)
    assert sliced.shape == (8, D) and sliced.addressable_shards[0].data.shape == (2, D)
    p = jax.nn.softmax(vocabulary.mask_padding(y @ sliced.T, V))
  assert not p[:, V:].any()
  np.testing.assert_allclose(p[:, :V], jax.nn.softmax(y @ table.T), rtol=1e-5)


def test_tables_are_gathered_over_data_and_parameters_without_a_rule_stay():
  mesh = parallel.make_mesh(MeshConfig(replica=1, data=4, model=2))
  params = {"embed": {"embedding": np.zeros((8, 16))}, "layers": {"w": np.zeros((8, 16))}, "mine": np.zeros((8, 16))}
  rows = jax.NamedSharding(mesh, parallel.P("data"))
  with jax.set_mesh(mesh):
    found = jax.jit(vocabulary.gather_tables)(jax.device_put(params, rows))
  shapes = jax.tree.map(lambda a: a.addressable_shards[0].data.shape, found)
  assert shapes["embed"]["embedding"] == (4, 16)
  assert shapes["mine"] == shapes["layers"]["w"] == (2, 16)
