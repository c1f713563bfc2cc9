"""Models of the next frame: EBT, Transformer++ and recurrent ones, on features of frames (paper section 4, appendix D).

A frame is a vector of F features, `[b, s, f]`, or P patches of F features each, `[b, s, p, f]`. It is one entry of the
stream, or P entries that see each other and all earlier frames. Features are projected where F is not the width of the
stream. Energies of patches are summed, so that a step of a patch does not depend on how many there are.

With `config.residual` the energy is E(c, y) = g E_theta(c, y) + |y - a(c)|^2 / (2 a0): a(c) is the frame that the
context predicts as Transformer++ does, a0 the initial step size, g `config.energy_gain`. Where E_theta is 0, one step
of descent from anywhere lands on a(c). So this EBT contains its baseline.
"""

import dataclasses
from typing import Any

from flax import linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ebt_jax.config import ModelConfig, VideoConfig
from ebt_jax.flops import EnergyCost
from ebt_jax.models import layers
from ebt_jax.models.causal import CausalEBT
from ebt_jax.models.next_entry import NextEntry
from ebt_jax.models.recurrent import RecurrentBlocks
from ebt_jax.models.transformer import TransformerBlocks

Frames = Float[Array, "b s ..."]  # `[b, s, f]` or `[b, s, p, f]`
TABLES = ("frame", "place", "output", "frame_out")  # between features and stream: not blocks


def init_input(config: ModelConfig, video: VideoConfig, key: jax.Array) -> dict:
  """Parameters of `entries`."""
  project_key, place_key = jax.random.split(key)
  params = {}
  if video.width != config.width:
    kernel = layers.initializer(config)(project_key, (video.width, config.width))
    params["frame"] = {"kernel": kernel, "bias": jnp.zeros(config.width)}
  if video.places > 1:
    params["place"] = {"embedding": nn.initializers.normal(1.0)(place_key, (video.places, config.width))}
  return params


def project(params: dict, x: Float[Array, "... f"]) -> Float[Array, "... d"]:
  """Features at the width of the stream; never in reduced precision."""
  return _linear(params["frame"], x) if "frame" in params else x


def placed(params: dict, y: Float[Array, "b s ... d"]) -> Float[Array, "b e d"]:
  """Projected frames as entries, those of patches with their places."""
  if "place" in params:
    y = y + params["place"]["embedding"]
  return y.reshape(y.shape[0], -1, y.shape[-1])


def init_output(config: ModelConfig, video: VideoConfig, key: jax.Array) -> dict:
  """Parameters of `answer`. Changes start at 0, so that the first answer is the last frame."""
  output_key, project_key = jax.random.split(key)
  start = nn.initializers.zeros if video.change else layers.initializer(config)
  params = {"output": {"kernel": start(output_key, (config.width, config.width))}}
  if video.width != config.width:
    kernel = layers.initializer(config)(project_key, (config.width, video.width))
    params["frame_out"] = {"kernel": kernel, "bias": jnp.zeros(video.width)}
  return params


def answer(video: VideoConfig, params: dict, h: Float[Array, "b e d"], inputs: Frames) -> Frames:
  """The frame after each of `inputs`, read from the normed stream."""
  x = layers.wide(h) @ params["output"]["kernel"]
  x = _linear(params["frame_out"], x) if "frame_out" in params else x
  x = x.reshape(*inputs.shape)
  return inputs + x if video.change else x


def output_flops(config: ModelConfig, video: VideoConfig) -> int:
  """Of `answer`, for one entry."""
  out = 0 if video.width == config.width else video.width
  return 2 * config.width * (config.width + out)


def _linear(params, x):
  x = x @ params["kernel"]
  return x + params["bias"] if "bias" in params else x


@dataclasses.dataclass(frozen=True)
class FrameEBT(CausalEBT):
  """One energy for each next frame.

  y is a frame at the width of the stream (`embed`); with `config.residual`, whose term is a distance between frames, it
  is the frame itself.
  """

  video: VideoConfig = VideoConfig()
  tables = TABLES

  @property
  def group(self) -> int:
    return self.video.places

  def init(self, key: jax.Array) -> dict:
    keys = iter(jax.random.split(key, 8))
    params = {**init_input(self.config, self.video, next(keys)), **self.init_trunk(next(keys), next(keys))}
    params |= self.init_head(keys)
    if self.config.residual:
      params |= init_output(self.config, self.video, next(keys))
    return params

  def embed(self, params: dict, x: Frames) -> Float[Array, "b s ... d"]:
    """What the energy is given of a candidate."""
    return x if self.config.residual else project(params, x)

  @property
  def projected(self) -> int:
    return 0 if self.video.width == self.config.width else self.video.width

  def entries(self, params: dict, inputs: Frames) -> Float[Array, "b e d"]:
    return placed(params, project(params, inputs))

  def candidate_entries(self, params: dict, y: Float[Array, "b s ..."]) -> Float[Array, "b e d"]:
    return placed(params, project(params, y) if self.config.residual else y)

  def answer(self, params: dict, h: Float[Array, "b e d"], inputs: Frames) -> Frames:
    return answer(self.video, params, self.normed_state(params, h), inputs)

  def empty_answer(self, rows: int, dtype: Any) -> Frames:
    return jnp.zeros((rows, 1, *self.video.frame_shape), dtype)

  def residual_term(self, answer: Frames, y: Frames) -> Float[Array, "b s"]:
    return jnp.sum((y - answer) ** 2, tuple(range(2, y.ndim))) / (2 * self.step_size)

  def flops(self, inputs: jax.ShapeDtypeStruct, single: bool = False) -> EnergyCost:
    cost = super().flops(inputs, single)
    if not self.config.residual:
      return cost
    positions = 1 if single else inputs.shape[1]
    of_answer = positions * self.group * output_flops(self.config, self.video)
    return cost._replace(context=cost.context._replace(forward=cost.context.forward + of_answer))


@dataclasses.dataclass(frozen=True)
class NextFrame(NextEntry):
  """Pure functions of a parameter dict: what direct models of frames have around their blocks."""

  video: VideoConfig = VideoConfig()
  tables = TABLES

  @property
  def group(self) -> int:
    return self.video.places

  def init(self, key: jax.Array) -> dict:
    k_input, k_layers, k_norm, k_output = jax.random.split(key, 4)
    return {
      **init_input(self.config, self.video, k_input),
      "layers": self.init_layers(k_layers),
      "norm": self.init_norm(k_norm),
      **init_output(self.config, self.video, k_output),
    }

  def entries(self, params: dict, inputs: Frames) -> Float[Array, "b e d"]:
    return placed(params, project(params, inputs))

  def dtype(self, params: dict) -> Any:
    return params["output"]["kernel"].dtype

  def predict(self, params: dict, inputs: Frames) -> Frames:
    """The frame after each of `inputs`."""
    return answer(self.video, params, self.normed(params, self.stream(params, inputs)), inputs)

  def read_last(self, params: dict, x: Float[Array, "b g d"], inputs: Frames) -> Float[Array, "b ..."]:
    """The frame after one frame of each row."""
    return answer(self.video, params, self.normed(params, x), inputs)[:, 0]

  def output_flops(self, positions: int) -> int:
    return positions * self.group * output_flops(self.config, self.video)


class FrameTransformer(NextFrame, TransformerBlocks):
  """Transformer++ on frames."""


class FrameRecurrent(NextFrame, RecurrentBlocks):
  """Recurrent blocks on frames, one vector each."""
