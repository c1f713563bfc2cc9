"""How near a picture is to another one: squared error, PSNR, SSIM. Values from -1 to 1, compared at 0 to 255.

Shapes: b rows; pictures `[b, h, w, c]`; results `[b]`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

Picture = Float[Array, "b h w c"]


def as_shown(x: Picture) -> Picture:
  """Values 0 to 255, cut off there, not rounded."""
  return (jnp.clip(x, -1, 1) + 1) * 127.5


def squared_error(x: Picture, y: Picture) -> Float[Array, " b"]:
  """Mean squared difference of the shown values."""
  return jnp.mean((as_shown(x) - as_shown(y)) ** 2, (1, 2, 3))


def psnr(x: Picture, y: Picture) -> Float[Array, " b"]:
  """Decibels, of each picture; at most 100."""
  return 10 * jnp.log10(255**2 / jnp.maximum(squared_error(x, y), 255**2 * 1e-10))


def ssim(x: Picture, y: Picture) -> Float[Array, " b"]:
  """Structural similarity (Wang et al. 2004): Gaussian windows of 11 pixels, sigma 1.5; mean over all channels."""
  side = min(11, *x.shape[1:3])
  taps = np.exp(-((np.arange(side) - (side - 1) / 2) ** 2) / (2 * 1.5**2))
  taps /= taps.sum()

  def windows(n):
    return jnp.asarray(np.stack([np.pad(taps, (i, n - side - i)) for i in range(n - side + 1)]), x.dtype)

  def local_mean(a):
    return jnp.einsum("oh,bhwc,pw->bopc", windows(a.shape[1]), a, windows(a.shape[2]))

  x, y = as_shown(x), as_shown(y)
  mean_x, mean_y = local_mean(x), local_mean(y)
  var_x, var_y = local_mean(x * x) - mean_x**2, local_mean(y * y) - mean_y**2
  both = local_mean(x * y) - mean_x * mean_y
  c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
  found = (2 * mean_x * mean_y + c1) * (2 * both + c2) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
  return jnp.mean(found, (1, 2, 3))
