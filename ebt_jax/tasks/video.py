"""Video: the features of each next frame from those before it, answered by EBT, Transformer++ or a recurrent network.

A batch is `frames` float32 `[b, s + 1, *frame]` and `weights` float32 `[b, s]`; a frame is `[f]`, or `[p, f]` where it
is cut into patches.
"""

import dataclasses
import functools
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
import numpy as np

from ebt_jax import losses, thinking
from ebt_jax.config import Config, ConfigError, DataConfig
from ebt_jax.data import frame_features, shapes, videos
from ebt_jax.models.efficientnet import EfficientNet
from ebt_jax.models.frames import FrameEBT, FrameRecurrent, Frames, FrameTransformer
from ebt_jax.tasks.base import Batch, Data, Kept, Mean, Problem, data_as_meant
from ebt_jax.tasks.direct import DirectTask
from ebt_jax.tasks.ebt import EBTTask

DIRECT = {"transformer": FrameTransformer, "rnn": FrameRecurrent}  # kind of model -> a direct one
FEATURES = "features.npz"  # the run's own copy of what turns frames into features, in its folder


def make(config: Config, shards: int = 1, kept: Kept | None = None) -> EBTTask | DirectTask:
  """The video task that `config.model.kind` names; see `registry.make`."""
  config = with_width(config)
  problem, m, t = VideoProblem(config, kept), config.model, config.thinking
  if m.kind in DIRECT:
    return DirectTask(config, problem, DIRECT[m.kind](m, config.video))
  model = FrameEBT(m, t.landscapes, step_size=t.step_size, video=config.video)
  return EBTTask(config, problem, model, space_of(config, model), shards=shards)


def space_of(config: Config, model: FrameEBT) -> thinking.Euclidean:
  """Frames as plain vectors, projected for the energy unless it is residual."""
  kind = thinking.NoisyEmbedding if config.thinking.authors.noise_embedding else thinking.Euclidean
  return kind(embedding=None if config.model.residual else model.embed, start_scale=config.thinking.start_scale)


def with_width(config: Config) -> Config:
  """The config with the features of a frame where it does not say them."""
  v = config.video
  if v.width and v.places:
    return config
  if v.features == "given":
    width, places = videos.width_of(config.data)
  elif v.features == "efficientnet":
    width, places = EfficientNet.width, 1
  else:
    width, places = v.rank, (v.size // v.side) ** 2
  return dataclasses.replace(config, video=dataclasses.replace(v, width=width, places=places))


@dataclasses.dataclass(frozen=True)
class VideoProblem(Problem):
  """Predict each frame from those before it; errors are smooth L1, means over the features of a frame."""

  config: Config
  kept: Kept | None = None  # of the run that this is a problem of

  item = "frame"
  headline = "of_copy"
  unit = "smooth L1"

  @functools.cached_property
  def data_config(self) -> DataConfig:
    """With paths as the run meant them; films that are made here have names, which may be those of folders too."""
    data = self.config.data
    return data if data.source in shapes.KINDS else data_as_meant(self.config, self.kept)

  @functools.cached_property
  def split(self) -> videos.Split:
    return videos.build(self.data_config, self.config.video)

  @functools.cached_property
  def encoder(self) -> Any:
    """What turns frames into features (see `data.frame_features`): the run's own, or one fitted on the training frames.

    None where features are given.
    """
    video = self.config.video
    if video.features != "pca":
      return EfficientNet() if video.features == "efficientnet" else None
    if self.kept is None or not (self.kept.folder / FEATURES).exists():
      return frame_features.fit(np.concatenate([s.frames for s in self.split.train]), video)
    path = self.kept.folder / FEATURES
    content, trained = path.read_bytes(), self.kept.files.get(FEATURES, "")
    found = hashlib.sha256(content).hexdigest()
    if trained and found != trained:
      raise ConfigError(
        f"{path}: has changed since training: expected SHA-256 {trained[:12]}, found {found[:12]}; put the file of the "
        "training back"
      )
    encoder = frame_features.load(content, str(path))
    wanted = (video.size, video.size, video.channels)
    if encoder.shape != wanted or len(encoder.basis) != video.rank or encoder.patch != video.patch:
      raise ConfigError(
        f"{path}: features of frames {list(encoder.shape)}, {len(encoder.basis)} of patches of {encoder.patch}; "
        f"expected {list(wanted)}, {video.rank} of {video.patch}: leave config.video as it was in training"
      )
    return encoder

  def files(self) -> dict[str, bytes]:
    return {FEATURES: self.encoder.content} if self.config.video.features == "pca" else {}

  def encoded(self, shots: list[videos.Shot]) -> list[np.ndarray]:
    """Features of each shot, `[t, *frame]`."""
    return [shot.frames if self.encoder is None else self.encoder.encode(shot.frames) for shot in shots]

  def examples(self, shots: list[videos.Shot], stride: int) -> videos.FrameExamples:
    """Windows of shots."""
    return videos.FrameExamples.of(self.encoded(shots), self.config.data.context_length, stride)

  def data(self) -> Data:
    found, length = self.split, self.config.data.context_length
    train, held_out = self.examples(found.train, 1), self.examples(found.held_out, length)
    fingerprint = {"train": train.fingerprint(), "held_out": held_out.fingerprint()}
    return Data(train, {"held_out": held_out}, found.summary, videos.lines(found.summary), "", fingerprint)

  def shots_of(self, source: str) -> list[videos.Shot]:
    """All shots of another source."""
    return videos.whole(dataclasses.replace(self.config.data, source=source), self.config.video)

  def examples_of(self, source: str) -> videos.FrameExamples:
    return self.examples(self.shots_of(source), self.config.data.context_length)

  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    s = self.config.data.context_length
    return {
      "frames": jax.ShapeDtypeStruct((s + 1, *self.config.video.frame_shape), jnp.float32),
      "weights": jax.ShapeDtypeStruct((s,), jnp.float32),
    }

  def inputs(self, batch: Batch) -> Frames:
    return batch["frames"][:, :-1]

  def target(self, batch: Batch) -> Frames:
    return batch["frames"][:, 1:]

  def start(self, space: Any, key: Array, batch: Batch) -> Frames:
    """Noise, zeros or the last frame, to which several candidates `[n, b, ...]` add noise, all but the first."""
    last, start = self.inputs(batch), self.config.thinking.start
    base = last if start == "input" else jnp.zeros_like(last)
    if start != "noise" and key.ndim < 2:
      return base
    noise = space.start(key, (*key.shape[:-1], *last.shape)).astype(last.dtype)
    return base + (noise if start == "noise" else noise.at[0].set(0))

  def error(self, x: Frames, target: Frames) -> Float[Array, "b s"]:
    return jnp.mean(losses.smooth_l1(x, target), tuple(range(2, target.ndim)))

  def measures(self, x: Frames, batch: Batch) -> dict[str, Float[Array, "b s"]]:
    """`mse`: of features, which for pca is that of pixels, but for a factor and what the components leave out."""
    return {"mse": jnp.mean((x - self.target(batch)) ** 2, tuple(range(2, x.ndim)))}

  def counts(self, batch: Batch) -> dict[str, Mean]:
    """Errors of two trivial answers."""
    answers = {"copy_loss": self.copied(batch), "linear_loss": self.extrapolated(batch)}
    return {n: Mean.of(self.error(x, self.target(batch)), batch["weights"]) for n, x in answers.items()}

  def copied(self, batch: Batch) -> Frames:
    """The last frame."""
    return self.inputs(batch)

  def extrapolated(self, batch: Batch) -> Frames:
    """The last frame and its change from the one before; of the first frame a copy."""
    last = self.inputs(batch)
    return last + jnp.concatenate([jnp.zeros_like(last[:, :1]), last[:, 1:] - last[:, :-1]], 1)

  def numbers(self, means: dict[str, float]) -> dict[str, float]:
    """`of_copy`: the loss as a share of that of copying the last frame."""
    return {"of_copy": means["loss"] / max(means["copy_loss"], 1e-12), **super().numbers(means)}
