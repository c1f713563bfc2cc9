"""A trained model of video from Python: it goes on with films, scores their frames, and shows how it finds the next."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int
import numpy as np

from ebt_jax import streams
from ebt_jax.config import ConfigError
from ebt_jax.data import videos
from ebt_jax.tasks import decoding, rollout
from ebt_jax.tasks.base import Params, Task, Thinks
from ebt_jax.use.model import Model

ROWS = 8  # windows that are scored in one device call


class Films(NamedTuple):
  """Features of films, each `[t, *frame]`, and their names."""

  features: list[np.ndarray]
  names: list[str]


class Continuation(NamedTuple):
  """Frames that a model adds to a film, each from those before it, as features; n frames."""

  frames: Float[np.ndarray, "n ..."]
  energies: Float[np.ndarray, " n"] | None  # of the thoughts that they are; None for models without energies
  steps: Int[np.ndarray, " n"] | None  # thinking steps used


class FilmScores(NamedTuple):
  """What a model makes of a film, frame by frame after the first; n frames, t thinking steps.

  A film longer than the window of the model is cut into windows that do not see each other.
  """

  errors: Float[np.ndarray, " n"]  # smooth L1 of the predicted features
  errors_by_step: Float[np.ndarray, "t n"]
  copy_errors: Float[np.ndarray, " n"]  # of a copy of the frame before
  energies: Float[np.ndarray, "t+1 n"] | None  # before each step and at the end; None for models without energies
  steps: Int[np.ndarray, " n"] | None  # thinking steps used


class NextFrame(NamedTuple):
  """How a model thought about the next frame: n candidates, t steps."""

  frames: Float[np.ndarray, "t ..."]  # the kept candidate after each step, as features
  energies: Float[np.ndarray, "t+1 n"]  # of each candidate, before each step and at the end
  steps: Int[np.ndarray, " n"]  # used by each candidate
  kept: int  # the candidate that is kept


class VideoModel(Model):
  """A trained run of task `video`: EBT, Transformer++ or recurrent network; see `Model`.

  A film is its frames: uint8 pixels `[t, size, size, channels]`, as the config's `video` says, or features
  `[t, *frame]`, which is what comes back. `decode` makes pixels of them.
  """

  def read(self, source: str) -> Films:
    """The shots of films that `data.source` may name: files, a folder, an .npz, `shapes`, `embedded`.

    Raises:
      ConfigError: there is no film that can be used.
    """
    shots = self._run.task.problem.shots_of(source)
    return Films(self._run.task.problem.encoded(shots), [shot.id for shot in shots])

  def encode(self, pixels: np.ndarray) -> Float[np.ndarray, "t ..."]:
    """Features of frames, uint8 `[t, h, w, c]`."""
    video, pixels = self.config.video, np.asarray(pixels)
    wanted = (video.size, video.size, video.channels)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[1:] != wanted:
      raise ConfigError(
        f"frames: expected uint8 [t, {', '.join(map(str, wanted))}], found {pixels.dtype} {list(pixels.shape)}; `read` "
        "makes such frames of files"
      )
    if self._encoder is None:
      raise ConfigError(
        "frames: this model knows features alone (video.features=given); give features in place of pixels"
      )
    return self._encoder.encode(pixels)

  def decode(self, features: np.ndarray) -> np.ndarray:
    """Frames of features, uint8 `[t, h, w, c]`. Raises ConfigError where features cannot be made pictures again."""
    if self._encoder is None or self._encoder.decode is None:
      raise ConfigError(f"decode: video.features={self.config.video.features} cannot be made pictures again")
    return self._encoder.decode(np.asarray(features))

  def generate(
    self, film: np.ndarray | Sequence[np.ndarray], frames: int = 64, *, seed: int = 0, **thinking: Any
  ) -> Any:
    """Goes on with a film, or with several; none depends on the others' frames.

    Args:
      film: what is given, or a list of films. A film that fills the window goes on from its last half.
      frames: to add.
      seed: of candidates.
      **thinking: `steps`, `candidates`, `until`; see `Model`.

    Returns:
      A `Continuation`; of several films a list of them.

    Raises:
      ConfigError: a film is no film of this model.
    """
    single = hasattr(film, "ndim")
    given = [self._checked(f) for f in ([film] if single else film)]
    if frames < 1:
      raise ConfigError(f"frames: expected 1 or more, found {frames}")
    run = self._with(_rolling, {"count": frames}, **thinking)
    found = _rolled(run, isinstance(self._run.task, Thinks), self._run.params, given, seed)
    return found[0] if single else found

  def score(self, film: np.ndarray, **thinking: Any) -> FilmScores:
    """How well the model predicts each frame of a film from those before it.

    Args:
      film: two frames at least.
      **thinking: `steps`, `candidates`, `until`, where they differ from the run's.
    """
    film = self._checked(film, least=2)
    length, score, parts = self._length, self._with(_scoring, **thinking), []
    places = [(first, min(length + 1, len(film) - first)) for first in range(0, len(film) - 1, length)]
    windows = videos.FrameExamples(film, np.array(places), length)
    for first in range(0, len(windows), ROWS):
      rows = np.arange(first, first + ROWS)
      batch = windows.rows(np.minimum(rows, len(windows) - 1))
      counted = (batch["weights"] > 0) & (rows < len(windows))[:, None]
      found = jax.device_get(score(self._run.params, batch, rows))
      parts.append([None if a is None else a[..., counted] for a in found])
    errors, copies, energies, steps = (None if p[0] is None else np.concatenate(p, -1) for p in zip(*parts))
    return FilmScores(errors[-1], errors, copies, energies, steps)

  def think(self, film: np.ndarray, *, seed: int = 0, **thinking: Any) -> NextFrame:
    """Thinks about the frame after a film, and shows how. Of a long film the last window is read.

    Raises:
      ConfigError: the model does not think, or this is no film of it.
    """
    self._thinks("think")
    film = self._checked(film)[-self._length :]
    think, key = self._with(_thinking, **thinking), streams.key_for(seed, streams.GENERATE)[None]
    frames, energies, steps, kept = jax.device_get(think(self._run.params, film[None], key))
    return NextFrame(frames, energies, steps, int(kept))

  def energy(self, film: np.ndarray, candidates: np.ndarray) -> Float[np.ndarray, " n"]:
    """The energy of candidates for the frame after a film, at the last landscape: lower fits better.

    Args:
      film: what comes before; of a long one the last window is read.
      candidates: n frames.

    Raises:
      ConfigError: the model has no energies, or frames do not fit.
    """
    self._thinks("energy")
    film, candidates = self._checked(film)[-self._length :], self._checked(candidates)
    rows = np.zeros((len(candidates), self._length + 1, *film.shape[1:]), np.float32)
    rows[:, : len(film)], rows[:, len(film)] = film, candidates
    return np.asarray(self._with(_energies)(self._run.params, rows))[:, len(film) - 1]

  @property
  def _encoder(self) -> Any:
    return self._run.task.problem.encoder

  @property
  def _length(self) -> int:
    return self.config.data.context_length

  def _thinks(self, what: str) -> None:
    if not isinstance(self._run.task, Thinks):
      raise ConfigError(f"{what}: model.kind={self.config.model.kind} has no energies")

  def _checked(self, film: Any, least: int = 1) -> np.ndarray:
    """A film as features."""
    film, wanted = np.asarray(film), self.config.video.frame_shape
    if film.dtype == np.uint8:
      film = self.encode(film)
    shape = ", ".join(map(str, wanted))
    if film.ndim < 2 or film.dtype.kind != "f" or film.shape[1:] != wanted:
      raise ConfigError(
        f"frames: expected uint8 pixels or float features [t, {shape}], found {film.dtype} {list(film.shape)}; `read` "
        "makes such features of files"
      )
    if len(film) < least:
      raise ConfigError(f"frames: expected {least} or more, found {len(film)}; give more of the film")
    return film.astype(np.float32)


def go_on(task: Task, params: Params, films: Sequence[np.ndarray], count: int, seed: int = 0) -> list[Continuation]:
  """`count` frames after each film, features `[t, *frame]`; film i draws the same starts whatever the others are."""
  return _rolled(_rolling(task, count), isinstance(task, Thinks), params, films, seed)


def _rolling(task: Task, count: int):
  def run(params, given, keys):
    return rollout.rollout(task, params, given, count, keys)

  return jax.jit(run)


def _rolled(run, thinks, params, films, seed):
  """Films of one length are rolled out together."""
  keys = streams.each(streams.key_for(seed, streams.GENERATE), np.arange(len(films)))
  out: dict[int, Continuation] = {}
  for length in {len(film) for film in films}:
    rows = [i for i, film in enumerate(films) if len(film) == length]
    found = jax.device_get(run(params, np.stack([films[i] for i in rows]), keys[np.array(rows)]))
    for i, frames, energies, steps in zip(rows, *found):
      out[i] = Continuation(frames, energies if thinks else None, steps if thinks else None)
  return [out[i] for i in range(len(films))]


def _scoring(task: Task):
  def run(params, batch, numbers):
    keys = streams.each(streams.key_for(task.config.eval.seed, streams.EVALUATE), numbers)
    found, problem = task.scores(params, batch, keys), task.problem
    copies = problem.error(problem.copied(batch), problem.target(batch))
    energies = None
    if found.energy is not None:
      energies = jnp.concatenate([found.energy, found.final_energy[None]])
    return found.error, copies, energies, found.steps

  return jax.jit(run)


def _thinking(task: Task):
  writer, capacity = decoding.writer(task), task.config.data.context_length

  def run(params, film, keys):
    params = writer.prepare(params)
    state = writer.prefill(params, film, jnp.full(1, film.shape[1], jnp.int32), capacity)
    last = {"frames": jnp.stack([film[:, -1], film[:, -1]], 1)}
    found = writer.think(params, state, keys, lambda x: x, last)
    energies = jnp.concatenate([found.energies, found.final[None]])
    return found.best(found.observed, 1)[:, 0, 0], energies[:, :, 0, 0], found.steps_used[:, 0, 0], found.kept[0, 0]

  return jax.jit(run)


def _energies(task: Task):
  def run(params, frames):
    batch = {"frames": frames}
    return task.energy_of(params, task.context(params, batch), task.problem.target(batch))

  return jax.jit(run)
