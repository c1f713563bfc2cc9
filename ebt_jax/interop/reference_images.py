"""Reads image models of the authors' PyTorch code: EBT (`EBT` of bi_ebt_adaln) and DiT.

Differences that leave every energy and output as it is: Linear weights are transposed; the projection of q, k and v is
three; the convolution over patches is a product with their pixels, channels last; positions are computed and not kept.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ebt_jax.config import ConfigError, ImageConfig, ModelConfig
from ebt_jax.interop.nested import nested

_LAYER = {
  "attn.proj": "attention/o",
  "mlp.fc1": "ffn/up",
  "mlp.fc2": "ffn/down",
  "adaLN_modulation.1": "modulation",
}
_WHOLE = {
  "final_layer.linear": "model/head",
  "final_layer.adaLN_modulation.1": "model/head_modulation",
  "t_embedder.mlp.0": "model/time/up",
  "t_embedder.mlp.2": "model/time/down",
}
_ROOTS = ("transformer.", "diffusion_transformer.")


def is_image(arrays: Mapping[str, np.ndarray]) -> bool:
  """Whether these are the parameters of an image model."""
  return any(name.endswith("x_embedder.proj.weight") for name in arrays)


def convert(arrays: Mapping[str, np.ndarray], layers: int) -> dict:
  """Renames, transposes, splits and stacks; linear in the arrays, so it maps gradients too."""
  flat: dict[str, Any] = {}
  stacks: dict[str, list] = {}
  for name, array in arrays.items():
    array = np.asarray(array)
    inner = next((name.removeprefix(root) for root in _ROOTS if name.startswith(root)), name)
    part, _, kind = inner.rpartition(".")
    leaf = {"weight": "kernel", "bias": "bias"}.get(kind, kind)
    matrix = array.T if array.ndim == 2 else array
    if inner == "pos_embed":
      continue
    if name == "alpha":
      flat["thinking/step_size"] = array
    elif name == "langevin_dynamics_noise_std":
      flat["thinking/noise"] = array
    elif name == "learned_adaln_condition.weight":
      flat["model/condition/embedding"] = array
    elif part == "x_embedder.proj":
      flat[f"model/patches/{leaf}"] = array if array.ndim == 1 else array.transpose(2, 3, 1, 0).reshape(-1, len(array))
    elif part in _WHOLE:
      flat[f"{_WHOLE[part]}/{leaf}"] = matrix
    elif inner.startswith("blocks."):
      _, layer, block = part.split(".", 2)
      split = zip("qkv", np.split(matrix, 3, -1)) if block == "attn.qkv" else ()
      found = {f"attention/{n}": a for n, a in split} or ({_LAYER[block]: matrix} if block in _LAYER else {})
      for target, a in found.items():
        stacks.setdefault(f"model/layers/{target}/{leaf}", [None] * layers)[int(layer)] = a
      if not found:
        raise ConfigError(f"{name}: not a parameter of the authors' image models")
    else:
      raise ConfigError(f"{name}: not a parameter of the authors' image models")
  return nested(flat, stacks)


def model_config(arrays: Mapping[str, np.ndarray], **h) -> ModelConfig:
  """The architecture that the arrays and options describe."""
  kind = "ebt" if "alpha" in arrays else "dit"
  root = _ROOTS[kind == "dit"]
  layers = 1 + max(int(n.split(".")[2]) for n in arrays if n.startswith(f"{root}blocks."))
  hidden, width = arrays[f"{root}blocks.0.mlp.fc1.weight"].shape
  return ModelConfig(
    kind=kind,
    size="",
    layers=layers,
    heads=h["multiheaded_attention_heads"],
    width=width,
    ffn_multiplier=hidden / width,
  )


def image_config(arrays: Mapping[str, np.ndarray], **h) -> ImageConfig:
  """Pictures and noise as the arrays and options describe them."""
  embedding = next(a for n, a in arrays.items() if n.endswith("x_embedder.proj.weight"))
  _, channels, patch, _ = embedding.shape
  level = h["denoise_images_noise_level"]
  return ImageConfig(
    size=h["image_dims"][0],
    channels=channels,
    patch=patch,
    noise_level=level,
    random_level=h.get("randomize_denoise_images_noise_level", False),
    diffusion_steps=int(h["diffusion_steps"] / level),
    train_levels="authors",
  )
