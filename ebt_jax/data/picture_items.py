"""Single pictures of a source that are decoded one by one: files, or rows of a prepared TFDS data set."""

import numpy as np

from ebt_jax.config import ConfigError, ImageConfig
from ebt_jax.data import pictures
from ebt_jax.data.find import KEY, LeftOut
from ebt_jax.data.sources import open_tfds

TFDS = "tfds:"


class Files:
  """Picture files; labels are their folders.

  Attributes:
    left_out: what was found and is no picture.
  """

  def __init__(self, source: str, most: int = 0):
    found, self.left_out = pictures.find(source)
    self._files = found[: most or None]
    self._labels = sorted({f.label for f in self._files})

  def __len__(self) -> int:
    return len(self._files)

  def name(self, i: int) -> str:
    """That does not depend on where the source is stored."""
    return self._files[i].id

  def read(self, i: int, image: ImageConfig) -> tuple[np.ndarray, int]:
    """uint8 `[size, size, channels]` and a label. Raises BadPicture where it cannot be used."""
    file = self._files[i]
    return pictures.read(file.path, image), self._labels.index(file.label)


class Rows:
  """Rows of a TFDS data set with a feature `image`, and `label` where it has one; as `Files`."""

  def __init__(self, source: str, most: int = 0):
    self._source, self.left_out = source, LeftOut()
    self._name, self._rows = open_tfds(source)
    self._count = min(len(self._rows), most or len(self._rows))
    if not self._count:
      raise ConfigError(f"{KEY}: {source} holds no picture; choose another split")

  def __len__(self) -> int:
    return self._count

  def name(self, i: int) -> str:
    return f"{self._name}:{i}"

  def read(self, i: int, image: ImageConfig) -> tuple[np.ndarray, int]:
    try:
      row = self._rows[i]
    except (OSError, SyntaxError, ValueError) as e:  # of Pillow, which decodes it
      raise pictures.BadPicture("broken") from e
    if "image" not in row:
      raise ConfigError(
        f"{KEY}: {self._source} has no feature `image`, expected one; found {', '.join(row)}; choose another data set"
      )
    pixels = np.asarray(row["image"])
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    if pixels.dtype != np.uint8:
      raise pictures.BadPicture("of 16 bits a value or more")
    if pixels.shape[2] != image.channels:
      raise pictures.BadPicture(f"of {pixels.shape[2]} channels, where image.channels={image.channels}")
    if min(pixels.shape[:2]) < image.size:
      raise pictures.BadPicture(f"smaller than image.size={image.size}")
    return pictures.fit_array(pixels, image, self._source), int(row.get("label", 0))


Items = Files | Rows


def items(source: str, most: int = 0) -> Items:
  """Pictures of a source, at most `most` (0: all). Raises ConfigError where there is none."""
  return Rows(source, most) if source.startswith(TFDS) else Files(source, most)
