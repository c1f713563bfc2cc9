"""EfficientNet-Lite0: its convolutions."""

import jax
import numpy as np
import pytest

from ebt_jax.models import efficientnet


@pytest.mark.parametrize("side, stride, n", [(6, 1, 3), (6, 2, 3), (7, 2, 5), (5, 1, 5)])
def test_a_sum_of_shifts_is_a_convolution_of_each_channel(side, stride, n):
  rng = np.random.default_rng(0)
  x, kernel = rng.normal(size=(2, side, side + 1, 4)).astype(np.float32), rng.normal(size=(4, 1, n, n)).astype("f4")
  expected = jax.lax.conv_general_dilated(
    x, kernel, (stride, stride), "SAME", feature_group_count=4, dimension_numbers=("NHWC", "OIHW", "NHWC")
  )
  np.testing.assert_allclose(efficientnet._depthwise(x, kernel, stride), expected, rtol=1e-5, atol=1e-5)
