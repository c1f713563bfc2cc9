"""Pictures as patches: cutting, joining, fixed positions.

Shape suffixes: B rows, S patches, D width of the stream; pictures are `[b, height, width, channels]`.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np


def cut(x: Float[Array, "b h w c"], patch: int) -> Float[Array, "b s p"]:
  """Square patches, row by row, each as its pixels row by row with the channel last."""
  b, h, w, c = x.shape
  x = x.reshape(b, h // patch, patch, w // patch, patch, c).swapaxes(2, 3)
  return x.reshape(b, (h // patch) * (w // patch), patch * patch * c)


def join(x_BxSxP: Float[Array, "b s p"], patch: int, channels: int) -> Float[Array, "b h w c"]:
  """The inverse of `cut`, for square pictures."""
  b, s, _ = x_BxSxP.shape
  side = round(s**0.5)
  x = x_BxSxP.reshape(b, side, side, patch, patch, channels).swapaxes(2, 3)
  return x.reshape(b, side * patch, side * patch, channels)


def positions(side: int, width: int) -> np.ndarray:
  """Sines and cosines of the column (first half of the width) and row of each of `side` x `side` patches, `[s, d]`.

  float32 in any precision, as the authors keep them.
  """
  frequency = 10000.0 ** (-np.arange(width // 4) / (width // 4))

  def of(place):
    angle = place.reshape(-1, 1) * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], -1)

  row, column = np.indices((side, side), float)
  return np.concatenate([of(column), of(row)], -1).astype(np.float32)


def time_features(t: Float[Array, " b"], width: int = 256) -> Float[Array, "b w"]:
  """Cosines, then sines of a time, frequencies from 1 down to 1/10000."""
  frequency = jnp.exp(-jnp.log(10000.0) * jnp.arange(width // 2, dtype=t.dtype) / (width // 2))
  angle = t[:, None] * frequency
  return jnp.concatenate([jnp.cos(angle), jnp.sin(angle)], -1)
