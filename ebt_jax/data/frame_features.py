"""Features of frames that need no weights: principal components of frames or of their patches.

An encoder is anything with `encode` (uint8 `[n, h, w, c]` -> float32 `[n, *frame]`), `decode` (back, or None where
there is no way back) and `content` (the bytes that a run keeps of it, or None).
"""

import dataclasses
import functools
import io
import zipfile

import numpy as np

from ebt_jax.config import ConfigError, VideoConfig

FITTED_ON = 2048  # frames or patches at most, spread over all: more change the components little
_CHUNK = 4096


@dataclasses.dataclass(frozen=True)
class Components:
  """Principal components: orthonormal rows, so that decoding is exact for what lies in their span.

  All components are divided by one number, so that squared errors of features are those of pixels, but for a factor.

  Attributes:
    mean: of a vector of pixels, values from -1 to 1, `[n]`.
    basis: `[rank, n]`, the strongest first.
    scale: of the features: their mean variance is 1.
    patch: pixels on a side of the patches that these are components of; 0: of whole frames.
    shape: height, width and channels of a frame.
  """

  mean: np.ndarray
  basis: np.ndarray
  scale: float
  patch: int
  shape: tuple[int, int, int]

  def encode(self, frames: np.ndarray) -> np.ndarray:
    """uint8 `[n, h, w, c]` -> float32 `[n, rank]`, or with patches `[n, p, rank]`."""
    parts = [self._encode(frames[i : i + _CHUNK]) for i in range(0, len(frames), _CHUNK)]
    return np.concatenate(parts) if parts else np.zeros((0, *self._encode(np.zeros((1, *self.shape))).shape[1:]), "f4")

  def _encode(self, frames):
    x = vectors(frames, self.patch)
    found = ((x - self.mean) @ self.basis.T / self.scale).astype(np.float32)
    return found if self.patch else found[:, 0]

  def values(self, features: np.ndarray) -> np.ndarray:
    """float32 `[n, h, w, c]`, values from -1 to 1 and a little beyond."""
    x = np.asarray(features, np.float32) * np.float32(self.scale) @ self.basis + self.mean
    return _joined(x if self.patch else x[:, None], self.patch or self.shape[0], self.shape)

  def decode(self, features: np.ndarray) -> np.ndarray:
    """uint8 `[n, h, w, c]` of features `[n, *frame]`."""
    return np.round((np.clip(self.values(features), -1, 1) + 1) * 127.5).astype(np.uint8)

  @functools.cached_property
  def content(self) -> bytes:
    """What `load` reads."""
    out = io.BytesIO()
    arrays = {**dataclasses.asdict(self), "shape": np.array(self.shape)}
    with zipfile.ZipFile(out, "w") as z:  # np.savez writes the time into the file, which is part of its hash
      for name, array in arrays.items():
        inner = io.BytesIO()
        np.save(inner, np.asarray(array))
        z.writestr(zipfile.ZipInfo(f"{name}.npy"), inner.getvalue())
    return out.getvalue()


def load(content: bytes, where: str) -> Components:
  """What `Components.content` says. Raises ConfigError where it cannot be read."""
  try:
    with np.load(io.BytesIO(content), allow_pickle=False) as z:
      shape = tuple(int(n) for n in z["shape"])
      return Components(z["mean"], z["basis"], float(z["scale"]), int(z["patch"]), shape)
  except (OSError, ValueError, KeyError, zipfile.BadZipFile) as e:
    raise ConfigError(
      f"{where}: cannot be read as components of frames ({e}); put the file of the training back"
    ) from e


def fit(frames: np.ndarray, video: VideoConfig) -> Components:
  """The components of frames, uint8 `[n, h, w, c]`.

  Raises:
    ConfigError: there are fewer frames or patches than components.
  """
  some = frames[np.unique(np.linspace(0, len(frames) - 1, min(len(frames), FITTED_ON)).astype(int))]
  x = vectors(some, video.patch)
  x = x.reshape(-1, x.shape[-1])
  x = x[np.unique(np.linspace(0, len(x) - 1, min(len(x), 2 * FITTED_ON)).astype(int))].astype(np.float64)
  if video.rank >= len(x):
    raise ConfigError(
      f"config.video.rank: {video.rank} components of {len(x)} training {'patches' if video.patch else 'frames'}; "
      "expected fewer components than these; lower it, or give more frames"
    )
  mean = x.mean(0)
  x = x - mean
  if len(x) < x.shape[1]:  # the eigenvectors of the smaller of the two products
    values, vectors_ = np.linalg.eigh(x @ x.T)
    values, left = values[::-1][: video.rank], vectors_[:, ::-1][:, : video.rank]
    basis = (left.T @ x) / np.sqrt(np.maximum(values, 1e-12))[:, None]
  else:
    values, vectors_ = np.linalg.eigh(x.T @ x)
    values, basis = values[::-1][: video.rank], vectors_[:, ::-1][:, : video.rank].T
  basis = np.linalg.qr(basis.T)[0].T  # directions that the data do not have are made up
  basis *= np.sign(basis[np.arange(len(basis)), np.abs(basis).argmax(1)])[:, None]
  scale = float(np.sqrt(max(values.mean() / len(x), 1e-12)))
  return Components(mean.astype(np.float32), basis.astype(np.float32), scale, video.patch, tuple(frames.shape[1:]))


def vectors(frames: np.ndarray, patch: int) -> np.ndarray:
  """float32 `[n, p, pixels]`, values from -1 to 1, of frames or of their patches, row by row."""
  n, height, width, channels = frames.shape
  side = patch or height
  x = np.asarray(frames, np.float32) / 127.5 - 1
  x = x.reshape(n, height // side, side, width // side, side, channels).swapaxes(2, 3)
  return x.reshape(n, -1, side * side * channels)


def _joined(x, side, shape):
  """The inverse of `vectors`, but for the range of values."""
  height, width, channels = shape
  x = x.reshape(len(x), height // side, width // side, side, side, channels).swapaxes(2, 3)
  return x.reshape(len(x), *shape)
