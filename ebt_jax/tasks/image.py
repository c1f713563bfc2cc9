"""Pictures: the clean one from a noised one, answered by EBT, DiT or flow matching.

A batch is `picture` uint8 `[b, size, size, channels]`, `label` int32 `[b]`, `level` float32 `[b]` (a noise level, 0: as
in training) and `weights` float32 `[b]`. `corrupt` adds `clean` (values from -1 to 1), `noised` and `step`, the step of
the diffusion that the noise is of.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ebt_jax import diffusion, losses, streams, thinking
from ebt_jax.config import Config, DataConfig
from ebt_jax.data import images
from ebt_jax.models.denoiser import Denoiser
from ebt_jax.models.image_ebt import ImageEBT
from ebt_jax.tasks import image_quality
from ebt_jax.tasks.base import Batch, Data, Kept, Mean, Problem, data_as_meant
from ebt_jax.tasks.denoise import DenoisingTask
from ebt_jax.tasks.ebt import EBTTask
from ebt_jax.thinking.spaces import draw

Picture = Float[Array, "b h w c"]


def make(config: Config, shards: int = 1, kept: Kept | None = None) -> EBTTask | DenoisingTask:
  """The task that `config.model.kind` names; see `registry.make`."""
  problem, m, i = ImageProblem(config, kept), config.model, config.image
  if m.kind == "ebt":
    model = ImageEBT(m, i, step_size=config.thinking.step_size)
    space = thinking.Euclidean(start_scale=config.thinking.start_scale)
    return EBTTask(config, problem, model, space, shards=shards)
  if m.kind == "dit":
    process = diffusion.Diffusion(problem.schedule, i.sampler or "ddim")
  else:
    process = diffusion.Flow(problem.schedule, i.sampler or "euler", i.flow_predicts)
  return DenoisingTask(config, problem, Denoiser(m, i, process.outputs * i.channels), process)


@dataclasses.dataclass(frozen=True)
class ImageProblem(Problem):
  """Take the noise away; errors are smooth L1, means over a picture."""

  config: Config
  kept: Kept | None = None  # of the run that this is a problem of

  item = "image"
  headline = "psnr"
  unit = "smooth L1"

  @property
  def schedule(self) -> diffusion.Schedule:
    return diffusion.Schedule(self.config.image.diffusion_steps)

  @property
  def steps_asked(self) -> int:
    """The highest step that noise is of, and one: what denoisers learn, as `image.train_levels` says."""
    i = self.config.image
    levels = [i.noise_level, *i.more_levels] if i.train_levels == "asked" else [i.noise_level]
    return round(max(levels) * i.diffusion_steps)

  @functools.cached_property
  def data_config(self) -> DataConfig:
    """With paths as the run meant them."""
    return data_as_meant(self.config, self.kept)

  def data(self) -> Data:
    found = images.build(self.data_config, self.config.image)
    held_out = {"held_out": found.held_out}
    for level in self.config.image.more_levels:
      held_out[f"level_{level:g}"] = images.AtLevel(found.held_out, level)
    fingerprint = {"train": found.train.fingerprint(), "held_out": found.held_out.fingerprint()}
    return Data(found.train, held_out, found.summary, images.lines(found.summary), "", fingerprint)

  def examples_of(self, source: str) -> Any:
    return images.whole(dataclasses.replace(self.config.data, source=source), self.config.image)

  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    i = self.config.image
    return {
      "picture": jax.ShapeDtypeStruct((i.size, i.size, i.channels), jnp.uint8),
      "label": jax.ShapeDtypeStruct((), jnp.int32),
      "level": jax.ShapeDtypeStruct((), jnp.float32),
      "weights": jax.ShapeDtypeStruct((), jnp.float32),
    }

  def corrupt(self, batch: Batch, key: Array) -> Batch:
    if "noised" in batch:
      return batch
    i, rows = self.config.image, batch["picture"].shape[:1]
    clean = jnp.asarray(batch["picture"], float) / 127.5 - 1
    step_key, noise_key = streams.split(key, 2)
    step = jnp.broadcast_to(self.schedule.step_of(i.noise_level), rows)
    if i.random_level:
      step = jnp.floor(draw(jax.random.uniform, step_key, rows) * (step + 1)).astype(jnp.int32)
    step = jnp.where(batch["level"] > 0, self.schedule.step_of(batch["level"]), step)
    noise = draw(jax.random.normal, noise_key, clean.shape, clean.dtype)
    noised = diffusion.add_noise(self.schedule, clean, step, noise)
    return {**batch, "clean": clean, "noised": noised, "step": step}

  def inputs(self, batch: Batch) -> Picture:
    return batch["noised"]

  def target(self, batch: Batch) -> Picture:
    return batch["clean"]

  def start(self, space: Any, key: Array, batch: Batch) -> Array:
    """The noised picture, to which several candidates `[n, b, ...]` add noise, all but the first."""
    noised = batch["noised"]
    base = jnp.zeros_like(noised) if self.config.thinking.start == "context" else noised
    if key.ndim < 2:
      return base
    noise = space.start(key, (*key.shape[:-1], *noised.shape))
    return base + noise.at[0].set(0).astype(noised.dtype)

  def error(self, x: Picture, target: Picture) -> Float[Array, " b"]:
    return jnp.mean(losses.smooth_l1(x, target), (1, 2, 3))

  def measures(self, x: Picture, batch: Batch) -> dict[str, Float[Array, " b"]]:
    clean = batch["clean"]
    return {
      "psnr": image_quality.psnr(x, clean),
      "ssim": image_quality.ssim(x, clean),
      "mse": image_quality.squared_error(x, clean),
    }

  def counts(self, batch: Batch) -> dict[str, Mean]:
    """PSNR of two trivial answers: the noised picture, and the same divided by its share of the picture."""
    answers = {"input_psnr": batch["noised"], "rescaled_psnr": self.rescaled(batch)}
    return {n: Mean.of(image_quality.psnr(x, batch["clean"]), batch["weights"]) for n, x in answers.items()}

  def rescaled(self, batch: Batch) -> Picture:
    """The noised picture over sqrt(abar): the mean over noise is the clean one."""
    return batch["noised"] / self.schedule.scales(batch["step"], batch["noised"])[0]

  def step(self, batch: Batch) -> Int[Array, " b"]:
    """The diffusion's step of each row's noise."""
    return batch["step"]
