"""Film files: finding them, decoding them into square frames, and why some cannot be used; cuts between frames."""

import os

import numpy as np

from ebt_jax.config import ConfigError, VideoConfig
from ebt_jax.data import media, pictures
from ebt_jax.data.find import KEY, LeftOut

FORMATS = (".mp4", ".avi", ".webm", ".mkv", ".mov", ".gif")
CUT = 24.0  # least mean change of brightness (of 255) between two frames at a cut
TIMES = 3.0  # and how much more than frames nearby change
NEARBY = 8


class BadFilm(Exception):
  """A film cannot be used; the text says what was found and expected, and the fix."""


def find(source: str) -> tuple[list[media.File], LeftOut]:
  """Films of a source; see `media.find`."""
  return media.find(source, FORMATS, "film", "shapes, futures, embedded, films, folders or an .npz")


def read(path: str, name: str, video: VideoConfig) -> tuple[np.ndarray, str]:
  """uint8 `[t, size, size, channels]`: the middle squares, scaled down; and what is lost of the film, or nothing.

  Raises:
    BadFilm: it is empty or broken, has no video or one frame, its frames change their size or are too small.
    ConfigError: the package that decodes it is not installed.
  """
  if not os.path.getsize(path):
    raise BadFilm(f"{name}: found an empty file, expected a film; fetch it again")
  frames, lost = (_read_gif if path.lower().endswith(".gif") else _read_av)(path, name, video)
  if len(frames) < 2:
    step = f" every {video.interval} s" if video.interval else ""
    raise BadFilm(f"{name}: found {len(frames)} frame{step}, expected at least 2; give a longer film"
                  + (", or lower video.interval" if step else ""))  # fmt: skip
  return np.stack(frames), lost


def _read_av(path, name, video):
  try:
    import av
  except ImportError as e:
    raise ConfigError(
      f"{KEY}: {name} needs the package `av` to be decoded; run `pip install av`, or give an .npz of frames"
    ) from e
  frames, size, after, lost = [], None, None, ""
  try:
    with av.open(path) as container:
      if not container.streams.video:
        kinds = ", ".join(sorted({s.type for s in container.streams})) or "no stream"
        raise BadFilm(f"{name}: found {kinds}, expected a video stream; give a film with pictures")
      stream = container.streams.video[0]
      stream.thread_type = "AUTO"
      seen = 0
      try:
        for frame in container.decode(stream):
          seen += 1
          if frame.is_corrupt:
            raise av.error.InvalidDataError(0, "frame is corrupt")
          size = _same_size(name, seen, size, (frame.width, frame.height), video)
          time = frame.time if frame.time is not None else (seen - 1) / float(stream.average_rate or 25)
          if video.interval and after is not None and time < after - 1e-6:
            continue
          after = (time if after is None else after) + video.interval
          frames.append(_square(frame, video))
      except av.error.FFmpegError as e:
        lost = f"what comes after frame {seen} of {name} is damaged ({type(e).__name__})"
      expected = stream.frames
      if not lost and 0 < seen < expected:
        lost = f"{name} ends after {seen} of {expected} frames"
  except av.error.FFmpegError as e:
    raise BadFilm(f"{name}: cannot be decoded ({type(e).__name__}), expected a film; fetch or encode it again") from e
  return frames, lost


def _same_size(name, number, size, found, video):
  if size is not None and found != size:
    raise BadFilm(
      f"{name}: frame {number} has {found[0]} x {found[1]} pixels, expected {size[0]} x {size[1]} as the first; cut "
      "the film in two there, or encode it again at one size"
    )
  if size is None and min(found) < video.size:
    raise BadFilm(
      f"{name}: frames have {found[0]} x {found[1]} pixels, expected at least video.size={video.size}; lower video.size"
    )
  return found


def _square(frame, video):
  """The middle square of a decoded frame."""
  scale = video.size / min(frame.width, frame.height)
  width, height = (max(video.size, round(n * scale)) for n in (frame.width, frame.height))
  form = "rgb24" if video.channels == 3 else "gray"
  pixels = frame.reformat(width, height, form, interpolation="AREA").to_ndarray()
  left, top = (width - video.size) // 2, (height - video.size) // 2
  return pixels.reshape(height, width, -1)[top : top + video.size, left : left + video.size].copy()


def _read_gif(path, name, video):
  from PIL import Image, ImageSequence, UnidentifiedImageError

  frames, size, lost, clock, after = [], None, "", 0.0, 0.0
  try:
    with Image.open(path) as film:
      try:
        for i, frame in enumerate(ImageSequence.Iterator(film)):
          size = _same_size(name, i + 1, size, frame.size, video)
          if not video.interval or clock >= after - 1e-6:
            frames.append(pictures.fit(frame.convert("RGB" if video.channels == 3 else "L"), video))
            after += video.interval
          clock += frame.info.get("duration", 100) / 1000
      except (OSError, SyntaxError, ValueError) as e:
        lost = f"what comes after frame {len(frames)} of {name} is damaged ({e})"
  except (UnidentifiedImageError, OSError) as e:
    raise BadFilm(f"{name}: cannot be decoded ({e}), expected a film; fetch or encode it again") from e
  return frames, lost


def cuts(frames: np.ndarray) -> np.ndarray:
  """Numbers of the frames, uint8 `[t, h, w, c]`, that begin another shot: much changes, and much more than nearby."""
  gray = frames.mean(-1, dtype=np.float32)
  change = np.abs(np.diff(gray, axis=0)).mean((1, 2))
  found = []
  for i, now in enumerate(change):
    around = np.delete(change[max(0, i - NEARBY) : i + NEARBY + 1], min(i, NEARBY))
    if now > CUT and now > TIMES * (np.median(around) if len(around) else 0):
      found.append(i + 1)
  return np.array(found, int)
