"""Picture files: finding and decoding them into squares of fixed size, and why some cannot be used."""

import io
from typing import Any

import numpy as np

from ebt_jax.config import ConfigError, ImageConfig, VideoConfig
from ebt_jax.data import media
from ebt_jax.data.find import KEY, LeftOut
from ebt_jax.data.media import File

FORMATS = (".png", ".jpg", ".jpeg", ".webp")


class BadPicture(Exception):
  """A picture cannot be used; the text says why."""


def find(source: str) -> tuple[list[File], LeftOut]:
  """Pictures of a source; see `media.find`."""
  return media.find(source, FORMATS, "picture", "`embedded`, pictures, folders, an .npz or tfds:NAME")


def read(path: str, image: ImageConfig) -> np.ndarray:
  """`decode` of a file."""
  try:
    with open(path, "rb") as f:
      return decode(f.read(), image)
  except OSError as e:
    raise BadPicture(f"cannot be read ({e.strerror})") from e


def decode(content: bytes, image: ImageConfig) -> np.ndarray:
  """uint8 `[size, size, channels]`: the middle square, scaled down.

  Raises:
    BadPicture: it is empty, broken, cut short, CMYK, of 16 bits, animated, or smaller than `image.size`.
  """
  from PIL import Image, ImageOps, UnidentifiedImageError

  if not content:
    raise BadPicture("empty files")
  try:
    with Image.open(io.BytesIO(content)) as picture:
      if getattr(picture, "is_animated", False):
        raise BadPicture("animated")
      if picture.mode in ("CMYK", "YCCK"):
        raise BadPicture("CMYK")
      if picture.mode[:1] in "IF" or ";16" in str(picture.tile):
        raise BadPicture("of 16 bits a value or more")
      if min(picture.size) < image.size:
        raise BadPicture(f"smaller than image.size={image.size}")
      picture = ImageOps.exif_transpose(picture).convert("RGB" if image.channels == 3 else "L")
      return fit(picture, image)
  except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as e:
    cut = "truncated" in str(e)
    raise BadPicture("cut short" if cut else "broken") from e


def fit(picture: Any, image: ImageConfig | VideoConfig) -> np.ndarray:
  """The middle square of a PIL picture, scaled down: by halves with box filters, then bicubic, as ADM does."""
  from PIL import Image

  size = image.size
  while min(picture.size) >= 2 * size:
    picture = picture.resize(tuple(n // 2 for n in picture.size), Image.Resampling.BOX)
  scale = size / min(picture.size)
  picture = picture.resize(tuple(max(size, round(n * scale)) for n in picture.size), Image.Resampling.BICUBIC)
  left, top = ((n - size) // 2 for n in picture.size)
  pixels = np.asarray(picture)[top : top + size, left : left + size]
  return pixels.reshape(size, size, image.channels)


def fit_array(pixels: np.ndarray, image: ImageConfig | VideoConfig, where: str) -> np.ndarray:
  """`fit` of uint8 `[h, w, c]` or `[h, w]`. Raises ConfigError: its channels or type are others, or it is too small."""
  from PIL import Image

  pixels = pixels[..., None] if pixels.ndim == 2 else pixels
  if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != image.channels:
    raise ConfigError(
      f"{KEY}: {where}: expected pictures uint8 [n, height, width, {image.channels}], found {pixels.dtype} "
      f"[n, {', '.join(map(str, pixels.shape))}]; set {image.group}.channels, or convert them"
    )
  if min(pixels.shape[:2]) < image.size:
    raise ConfigError(
      f"config.{image.group}.size: {image.size} is more than the pictures of {where} have ({pixels.shape[0]} x "
      f"{pixels.shape[1]}); lower it"
    )
  if pixels.shape[:2] == (image.size, image.size):
    return pixels
  return fit(Image.fromarray(pixels.squeeze(-1) if image.channels == 1 else pixels), image)


def refuse_bad(left_out: LeftOut, bad: int, files: int, most: float) -> None:
  """Raises ConfigError where more than the share `most` of the files cannot be used, or none can."""
  if bad == files or bad > most * files:
    raise ConfigError(
      f"{KEY}: {bad} of {files} pictures cannot be used ({left_out}); mend or remove them, or raise data.max_bad "
      f"(now {most})"
    )


def png(pixels: np.ndarray) -> bytes:
  """uint8 `[h, w, c]` as a PNG file."""
  from PIL import Image

  out = io.BytesIO()
  Image.fromarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels).save(out, "PNG")
  return out.getvalue()


def sheet(columns: dict[str, np.ndarray], tile: int) -> bytes:
  """A PNG with a column of pictures, uint8 `[rows, h, w, c]`, under each name.

  Args:
    tile: least pixels on a side; smaller pictures are shown larger, by whole pixels.
  """
  from PIL import Image, ImageDraw

  rows, height, width = next(iter(columns.values())).shape[:3]
  times = max(1, -(-tile // min(height, width)))
  step_x, step_y, head = width * times + 4, height * times + 4, 16
  whole = Image.new("RGB", (len(columns) * step_x, head + rows * step_y), "white")
  draw = ImageDraw.Draw(whole)
  for i, (name, pixels) in enumerate(columns.items()):
    draw.text((i * step_x + 2, 2), name, fill="black")
    for j, one in enumerate(np.broadcast_to(pixels, (*pixels.shape[:3], 3))):
      picture = Image.fromarray(one.repeat(times, 0).repeat(times, 1))
      whole.paste(picture, (i * step_x + 2, head + j * step_y))
  out = io.BytesIO()
  whole.save(out, "PNG")
  return out.getvalue()
