"""Frames for people: an animated GIF, an MP4 where `av` is installed, and strips of frames with numbers under them."""

from collections.abc import Sequence
import io
from typing import NamedTuple

import numpy as np


class Strip(NamedTuple):
  """A film beside what followed in truth; both uint8 `[t, h, w, c]`, the truth as far as it is known."""

  name: str
  made: np.ndarray
  truth: np.ndarray
  below: Sequence[float | None]  # a number under each frame that was made


def gif(frames: np.ndarray, seconds: float = 0.15) -> bytes:
  """uint8 `[t, h, w, c]` as an endless GIF."""
  from PIL import Image

  out = io.BytesIO()
  pages = [Image.fromarray(_coloured(frame)) for frame in frames]
  pages[0].save(out, "GIF", save_all=True, append_images=pages[1:], duration=round(1000 * seconds), loop=0)
  return out.getvalue()


def mp4(frames: np.ndarray, rate: int = 8) -> bytes | None:
  """uint8 `[t, h, w, c]` as a film; None where the package `av` is not installed."""
  try:
    import av
  except ImportError:
    return None
  height, width = (n + n % 2 for n in frames.shape[1:3])  # H.264 has even sizes
  out = io.BytesIO()
  with av.open(out, "w", format="mp4") as container:
    stream = container.add_stream("libx264", rate=rate)
    stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
    for frame in frames:
      padded = np.zeros((height, width, 3), np.uint8)
      padded[: frame.shape[0], : frame.shape[1]] = frame
      container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
    container.mux(stream.encode())
  return out.getvalue()


def beside(films: list[np.ndarray], tile: int) -> np.ndarray:
  """Films of one shape, uint8 `[t, h, w, c]`, side by side, each frame at least `tile` high."""
  return np.concatenate([enlarged(f, tile) for f in films], 2)


def enlarged(frames: np.ndarray, tile: int) -> np.ndarray:
  """uint8 `[t, h, w, c]` with whole numbers of pixels in place of one, at least `tile` high, with a border of one."""
  times = max(1, -(-tile // frames.shape[1]))
  large = frames.repeat(times, 1).repeat(times, 2)
  return np.pad(large, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=255)


def strips(films: list[Strip], given: int, tile: int, most: int) -> bytes:
  """A PNG: for each film the frames that were given and made, a number under each, and those that followed in truth.

  Args:
    given: frames before the first that was made; a line is drawn behind them.
    tile: least pixels of a frame.
    most: frames that are shown, spread over all that were made.
  """
  from PIL import Image, ImageDraw

  count = len(films[0].made)
  made = np.linspace(given, count - 1, max(1, min(count, most) - given)).astype(int)
  shown = [*range(given), *dict.fromkeys(made.tolist())]
  side = enlarged(films[0].made[:1], tile).shape[1]
  head, text, gap = 14, 12, 6
  whole = Image.new("RGB", (len(shown) * side + gap, head + len(films) * (2 * side + text + gap)), "white")
  draw = ImageDraw.Draw(whole)
  for column, frame in enumerate(shown):
    left = column * side + (gap if column >= given else 0)
    draw.text((left + 2, 1), f"{frame}", fill="black")
    for row, film in enumerate(films):
      top = head + row * (2 * side + text + gap)
      whole.paste(_tile(film.made[frame], tile), (left, top))
      if film.below[frame] is not None:
        draw.text((left + 2, top + side), f"{film.below[frame]:.3g}", fill="black")
      if frame < len(film.truth):
        whole.paste(_tile(film.truth[frame], tile), (left, top + side + text))
  draw.line([(given * side + gap // 2, 0), (given * side + gap // 2, whole.height)], fill="red", width=2)
  out = io.BytesIO()
  whole.save(out, "PNG")
  return out.getvalue()


def _tile(frame, tile):
  from PIL import Image

  return Image.fromarray(_coloured(enlarged(frame[None], tile)[0]))


def _coloured(frame):
  return np.ascontiguousarray(np.broadcast_to(frame, (*frame.shape[:2], 3)))
