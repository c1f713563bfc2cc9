"""Products of a few rows against plain ones."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import few


@pytest.mark.parametrize(
  "ours, plain, wide",
  [(few.product, lambda x, w: x @ w, 4), (few.scores, lambda x, w: x @ w.swapaxes(-1, -2), 6)],
  ids=["product", "scores"],
)
def test_values_and_gradients_are_those_of_the_plain_product(ours, plain, wide):
  rng = np.random.default_rng(0)
  with jax.enable_x64(True):
    x, w = jnp.asarray(rng.normal(size=(2, 3, wide))), jnp.asarray(rng.normal(size=(2, 4, 6)))
    total = lambda f: lambda x, w: jnp.sum(jnp.sin(f(x, w)))
    np.testing.assert_allclose(ours(x, w), plain(x, w), rtol=1e-13)
    for got, expected in zip(*[jax.grad(total(f), (0, 1))(x, w) for f in (ours, plain)], strict=True):
      np.testing.assert_allclose(got, expected, rtol=1e-12, atol=1e-13)


def test_one_row_and_many_are_not_few():
  assert [few.applies(n) for n in (1, 2, few.ROWS, few.ROWS + 1)] == [False, True, True, False]
