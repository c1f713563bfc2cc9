"""The ring of finished thoughts."""

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax.thinking import replay

ROW = {"a": jax.ShapeDtypeStruct((2,), jnp.float32), "b": jax.ShapeDtypeStruct((), jnp.int32)}
add, draw = jax.jit(replay.add), jax.jit(replay.draw, static_argnums=2)


def rows(*numbers):
  n = jnp.array(numbers)
  return {"a": jnp.stack([n, -n], 1).astype(jnp.float32), "b": n}


def test_the_oldest_rows_are_overwritten():
  buffer = replay.empty(5, ROW)
  buffer = add(buffer, rows(1, 2, 3))
  assert buffer.rows["b"].tolist() == [1, 2, 3, 0, 0] and buffer.added == 3
  buffer = add(buffer, rows(4, 5, 6))
  assert buffer.rows["b"].tolist() == [6, 2, 3, 4, 5] and buffer.added == 6
  np.testing.assert_array_equal(buffer.rows["a"][:, 1], [-6, -2, -3, -4, -5])
  same = add(buffer, rows(7, 8), False)
  jax.tree.map(np.testing.assert_array_equal, same, buffer)
  full = add(buffer, rows(*range(10, 17)))  # more than it holds: the last ones stay
  assert sorted(full.rows["b"].tolist()) == [12, 13, 14, 15, 16] and full.added == 13


def test_rows_are_drawn_without_replacement_from_those_that_are_there():
  buffer = add(replay.empty(6, ROW), rows(1, 2, 3))
  drawn, there = draw(buffer, jax.random.key(0), 4)
  assert there.tolist() == [True, True, True, False] and sorted(drawn["b"][:3].tolist()) == [1, 2, 3]
  buffer = add(buffer, rows(4, 5, 6))
  counts = np.zeros(7)
  for i in range(300):
    drawn, there = draw(buffer, jax.random.key(i), 3)
    assert there.all() and len(set(drawn["b"].tolist())) == 3
    np.testing.assert_array_equal(drawn["a"][:, 0], drawn["b"])
    counts[drawn["b"]] += 1
  assert counts[0] == 0 and (np.abs(counts[1:] / 150 - 1) < 0.25).all()  # each is drawn half of the times


def test_memory_limits_the_rows():
  row_bytes = 2 * 4 + 4
  assert replay.capacity(100, ROW, 1.0) == 100
  assert replay.capacity(100, ROW, 7.9 * row_bytes / 1e9) == 7
