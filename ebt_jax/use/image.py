"""A trained model of pictures from Python: noise taken away step by step, and the energy of any picture."""

import pathlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float
import numpy as np

from ebt_jax import streams
from ebt_jax.config import ConfigError, ImageConfig
from ebt_jax.data import pictures
from ebt_jax.data.find import LeftOut
from ebt_jax.tasks.base import Batch, Params, Task, Thinks, corrupted
from ebt_jax.use.model import Model


class Denoised(NamedTuple):
  """What a task makes of noised pictures, `[b, h, w, c]`; values from -1 to 1."""

  batch: Batch  # `noised`, and `clean` where it is known
  steps: jax.Array  # the answer after each step, [t, b, h, w, c]
  energies: jax.Array | None  # before each step and at the end, [t + 1, b]; None for models without energies

  @property
  def answer(self) -> np.ndarray:
    """The last step as uint8 pixels `[b, h, w, c]`."""
    return pixels_of(self.steps[-1])


class Pictures(NamedTuple):
  """Pictures to denoise, uint8 `[n, h, w, c]`, their names, and what was left out."""

  pixels: np.ndarray
  names: list[str]
  left_out: LeftOut


class ImageModel(Model):
  """A trained run of task `image`: EBT, DiT or flow matching; see `Model`.

  Pictures are uint8 `[n, size, size, channels]`, or float of values from -1 to 1, as the config's `image` says.
  """

  def read(self, source: str | pathlib.Path) -> Pictures:
    """The pictures of a folder, a glob or a file; see `read`."""
    return read(str(source), self.config.image)

  def denoise(
    self, pixels: np.ndarray, level: float = 0.0, *, noised: bool = False, seed: int = 0, **thinking: Any
  ) -> Denoised:
    """Takes the noise away from pictures; clean ones are given noise first.

    Args:
      pixels: clean pictures, or noised ones with `noised`.
      level: of the noise, from 0 to 1; 0: that of the run (`image.noise_level`).
      noised: the pictures have noise of this level already.
      seed: of the noise and of candidates.
      **thinking: `steps`, `candidates`, `until`; see `Model`.

    Raises:
      ConfigError: pictures of another size, type or number of channels, or an impossible level.
    """
    pixels, count = self._checked("pictures", pixels), len(pixels)
    batch = {"label": np.zeros(count, np.int32), "level": np.full(count, self._level(level), np.float32)}
    batch |= {"weights": np.ones(count, np.float32)}
    batch["picture"] = pixels if pixels.dtype == np.uint8 else pixels_of(pixels)
    if noised:
      batch |= self._noised(pixels, level)
    found = self._with(_denoising, **thinking)(self._run.params, batch, _keys(seed, count))
    return jax.device_get(found)

  def energy(self, noised: np.ndarray, answers: np.ndarray, level: float = 0.0) -> Float[np.ndarray, " n"]:
    """The energy of answers to noised pictures: lower fits better.

    Raises:
      ConfigError: the model has no energies, or pictures do not fit.
    """
    if not isinstance(self._run.task, Thinks):
      raise ConfigError(f"energy: model.kind={self.config.model.kind} has no energies")
    noised, answers = self._checked("noised", noised), self._checked("answers", answers)
    if len(noised) != len(answers):
      raise ConfigError(f"energy: {len(noised)} noised pictures and {len(answers)} answers; give as many of both")
    return np.asarray(self._with(_energies)(self._run.params, self._noised(noised, level), _values(answers)))

  def _level(self, level: float) -> float:
    if not 0 <= level <= 1:
      raise ConfigError(f"level: expected 0 (that of the run) to 1, found {level}")
    return level

  def _noised(self, pixels: np.ndarray, level: float) -> Batch:
    step = int(self._run.task.problem.schedule.step_of(self._level(level) or self.config.image.noise_level))
    return {"noised": _values(pixels), "step": np.full(len(pixels), step, np.int32)}

  def _checked(self, name: str, pixels: Any) -> np.ndarray:
    i, pixels = self.config.image, np.asarray(pixels)
    wanted = (i.size, i.size, i.channels)
    if pixels.ndim != 4 or pixels.shape[1:] != wanted or not (pixels.dtype == np.uint8 or pixels.dtype.kind == "f"):
      shown = ", ".join(map(str, wanted))
      raise ConfigError(
        f"{name}: expected uint8 or float (-1 to 1) [n, {shown}], found {pixels.dtype} {list(pixels.shape)}; "
        "`read` makes such pictures of files"
      )
    return pixels if pixels.dtype == np.uint8 else pixels.astype(np.float32)


def read(source: str, image: ImageConfig) -> Pictures:
  """The pictures of a folder, a glob or a file: their middle squares, scaled to the model's size.

  Raises:
    ConfigError: there is no picture that can be used.
  """
  found, left_out = pictures.find(source)
  names, pixels = [], []
  for file in found:
    try:
      pixels.append(pictures.read(file.path, image))
      names.append(file.id)
    except pictures.BadPicture as e:
      left_out.add(str(e), file.id)
  if not names:
    raise ConfigError(f"{source} holds no picture that can be used; found {left_out}")
  return Pictures(np.stack(pixels), names, left_out)


def _values(pixels: np.ndarray) -> np.ndarray:
  """Values from -1 to 1."""
  return pixels.astype(np.float32) / 127.5 - 1 if pixels.dtype == np.uint8 else pixels


def pixels_of(x: Any) -> np.ndarray:
  """Pixels of values from -1 to 1."""
  return np.round((np.clip(np.asarray(x, np.float32), -1, 1) + 1) * 127.5).astype(np.uint8)


def _denoising(task: Task):
  return jax.jit(lambda params, batch, keys: denoise(task, params, batch, keys))


def denoised(task: Task, params: Params, batch: Batch, seed: int) -> Denoised:
  """`denoise`, compiled, with the keys of a seed."""
  return _denoising(task)(params, batch, _keys(seed, len(batch["weights"])))


def _keys(seed: int, count: int) -> jax.Array:
  return streams.each(streams.key_for(seed, streams.GENERATE), np.arange(count))


def denoise(task: Task, params: Params, batch: Batch, keys: jax.Array) -> Denoised:
  """The answer after each step, of the candidate that is kept where there are several; `keys` `[b]`."""
  batch = corrupted(task.problem, batch, keys)
  if not isinstance(task, Thinks):
    return Denoised(batch, task.answers(params, batch, keys), None)
  found = task.verified(params, batch, keys, lambda x: x)
  energies = jnp.concatenate([found.best(found.energies, 1), found.best(found.final)[None]])
  return Denoised(batch, found.best(found.observed, 1), energies)


def _energies(task: Task):
  def run(params, batch, x):
    return task.energy_of(params, task.context(params, batch), x)

  return jax.jit(run)
