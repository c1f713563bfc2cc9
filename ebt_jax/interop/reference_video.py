"""Reads video models of the authors' PyTorch code: EBT and Transformer++ on features of frames.

Blocks, head and landscapes are those of their text models (`reference`). Candidates are features, projected to the
width of the stream where theirs is another, and their Langevin noise is added to the projected candidate.
"""

from collections.abc import Mapping
import dataclasses

import numpy as np

from ebt_jax.config import ThinkingConfig, VideoConfig

WHOLE = {
  "encoder_down_projection.weight": "model/frame/kernel",
  "encoder_down_projection.bias": "model/frame/bias",
  "encoder_up_projection.weight": "model/frame_out/kernel",
  "encoder_up_projection.bias": "model/frame_out/bias",
}
ENCODER = "image_encoder."  # frozen, and not read


def is_video(arrays: Mapping[str, np.ndarray]) -> bool:
  """Whether these are the parameters of a video model: blocks of sequences, and no token table."""
  return "embeddings.weight" not in arrays and any(n.startswith("transformer.layers.") for n in arrays)


def video_config(arrays: Mapping[str, np.ndarray]) -> VideoConfig:
  """Features of a frame, as the arrays describe them."""
  projection = arrays.get("encoder_down_projection.weight")
  width = arrays["transformer.layers.0.attention.wq.weight"].shape[1] if projection is None else projection.shape[1]
  return VideoConfig(features="given", width=int(width), places=1)


def thinking(config: ThinkingConfig) -> ThinkingConfig:
  """Their options (`reference.thinking_config`) as video takes them: nothing is a probability, noise is normal."""
  authors = dataclasses.replace(
    config.authors, normalize="every", clip_candidate=0.0, sharpen=0.0, soften_targets=0.0, noise_embedding=True
  )
  return dataclasses.replace(config, start_scale=1.0, authors=authors)
