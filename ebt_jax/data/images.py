"""Pictures as training and held-out examples, from files, arrays, TFDS or the photographs of this package.

A row is `picture` uint8 `[size, size, channels]`, `label` int32, `level` float32 (a noise level; 0: as in training) and
`weights` float32, 1.
"""

import base64
import dataclasses
import hashlib
import importlib.resources
import itertools
import json
import logging
import lzma
import os
from typing import Any, NamedTuple
import zlib

import numpy as np

from ebt_jax.config import ConfigError, DataConfig, ImageConfig
from ebt_jax.data import image_folder, picture_items, pictures
from ebt_jax.data.find import KEY, LeftOut, describe
from ebt_jax.data.progress import Progress
from ebt_jax.data.text import is_held_out
from ebt_jax.files import local

log = logging.getLogger(__name__)


class Split(NamedTuple):
  """Examples of training and of evaluation, and what a person reads of them."""

  train: Any
  held_out: Any
  summary: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class PictureExamples:
  """Whole pictures, in memory or memory-mapped: uint8 `[n, size, size, channels]` and labels `[n]`."""

  pixels: np.ndarray
  labels: np.ndarray

  def __len__(self) -> int:
    return len(self.labels)

  def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
    return _rows(self.pixels[index], self.labels[index])

  def fingerprint(self) -> str:
    """Of sizes, labels and some of the pictures."""
    some = self.pixels[np.linspace(0, len(self) - 1, min(len(self), 64)).astype(int)]
    return hashlib.sha256(repr(self.pixels.shape).encode() + self.labels.tobytes() + some.tobytes()).hexdigest()


@dataclasses.dataclass(frozen=True)
class CropExamples:
  """Squares of photographs `[n, height, width, c]`, `stride` pixels apart, between two columns; labels say of which."""

  photos: np.ndarray
  size: int
  left: int
  right: int
  stride: int

  @property
  def places(self) -> tuple[int, int, int]:
    """Photographs, places in a column and in a row."""
    n, height = self.photos.shape[:2]
    return n, (height - self.size) // self.stride + 1, (self.right - self.left - self.size) // self.stride + 1

  def __len__(self) -> int:
    return int(np.prod(self.places))

  def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
    which, down, across = np.unravel_index(index, self.places)
    top, left = down * self.stride, self.left + across * self.stride
    crops = [self.photos[i, y : y + self.size, x : x + self.size] for i, y, x in zip(which, top, left)]
    return _rows(np.stack(crops), which)

  def fingerprint(self) -> str:
    return hashlib.sha256(self.photos.tobytes() + repr(dataclasses.astuple(self)[1:]).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class AtLevel:
  """Examples at a noise level of their own."""

  examples: Any
  level: float

  def __len__(self) -> int:
    return len(self.examples)

  def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
    rows = self.examples.rows(index)
    return {**rows, "level": np.full_like(rows["level"], self.level)}


def _rows(pixels, labels):
  n = len(pixels)
  return {
    "picture": np.ascontiguousarray(pixels),
    "label": np.asarray(labels, np.int32),
    "level": np.zeros(n, np.float32),
    "weights": np.ones(n, np.float32),
  }


def build(data: DataConfig, image: ImageConfig) -> Split:
  """Both splits of a source.

  Raises:
    ConfigError: the source is missing or bad, or a split is empty.
  """
  if data.source == "embedded":
    return _embedded(data, image)
  if image_folder.is_folder(data.source):
    train, held_out, summary = image_folder.open_folder(data, image)
    return Split(PictureExamples(*train), PictureExamples(*held_out), summary)
  names, pixels, labels, left_out = _all(data, image)
  out = np.array([is_held_out(name, data.held_out) for name in names])
  for split, empty, fix in (("training", out.all(), "lower"), ("held-out", not out.any(), "raise")):
    if empty:
      raise ConfigError(
        f"config.data.held_out: {data.held_out} of {len(names)} pictures leaves no {split} picture; {fix} it, or give "
        "more pictures"
      )
  summary = described("pictures", int((~out).sum()), int(out.sum()), "held out by picture", left_out.as_dict())
  return Split(PictureExamples(pixels[~out], labels[~out]), PictureExamples(pixels[out], labels[out]), summary)


def whole(data: DataConfig, image: ImageConfig) -> PictureExamples | CropExamples:
  """All pictures of a source, to evaluate on."""
  if data.source == "embedded":
    photos = embedded_photos(image)[1]
    return CropExamples(photos, image.size, 0, photos.shape[2], image.size)
  if image_folder.is_folder(data.source):
    raise ConfigError(
      f"--source: {data.source} is split already; set config.data.source and evaluate its held-out split"
    )
  _, pixels, labels, left_out = _all(data, image)
  if left_out.counts:
    log.warning("left out of %s: %s", data.source, left_out)
  return PictureExamples(pixels, labels)


def described(unit: str, train: int, held_out: int, how: str, left_out: dict[str, Any]) -> dict[str, Any]:
  """The summary of a split."""
  found = {"train_pictures": train, "held_out_pictures": held_out, "unit": unit, "split": how}
  return {**found, "left_out": left_out} if left_out else found


def lines(summary: dict[str, Any]) -> list[str]:
  """What a person reads of a summary."""
  unit = summary["unit"]
  out = [f"data: {summary['train_pictures']:,} {unit} to train on, {summary['held_out_pictures']:,} {summary['split']}"]
  if summary.get("left_out"):
    out.append(f"data: left out: {describe(summary['left_out'])}")
  return out


def embedded_photos(image: ImageConfig) -> tuple[list[str], np.ndarray]:
  """Names and pixels of the photographs in this package, see `embedded/README.md`."""
  from PIL import Image

  folder = importlib.resources.files("ebt_jax.data") / "embedded" / "photos"
  files = sorted((f for f in folder.iterdir() if f.name.endswith(".webp")), key=lambda f: f.name)
  photos = []
  for file in files:
    with file.open("rb") as f:
      photos.append(np.asarray(Image.open(f).convert("RGB" if image.channels == 3 else "L")))
  pixels = np.stack(photos).reshape(len(photos), *photos[0].shape[:2], image.channels)
  return [f.name.removesuffix(".webp") for f in files], pixels


def _embedded(data, image) -> Split:
  """All crops of the left part of each photograph; crops half a size apart of the rest, which training never sees."""
  names, photos = embedded_photos(image)
  height, width = photos.shape[1:3]
  rest = max(image.size, round(data.held_out * width))
  if image.size > height or rest + image.size > width:
    raise ConfigError(
      f"config.image.size: {image.size} is too large for the embedded photographs ({height} x {width} pixels, of which "
      f"{rest} columns are held out); lower it, or give pictures of your own in data.source"
    )
  train = CropExamples(photos, image.size, 0, width - rest, 1)
  held_out = CropExamples(photos, image.size, width - rest, width, max(1, image.size // 2))
  how = f"held out by region: the right {rest} of {width} columns of each of {len(names)} photographs"
  return Split(train, held_out, described("crops", len(train), len(held_out), how, {}))


def _all(data: DataConfig, image: ImageConfig) -> tuple[list[str], np.ndarray, np.ndarray, LeftOut]:
  """Names, pixels, labels of all pictures of a source, and what is left out."""
  if data.source.endswith(".npz"):
    return _from_npz(data, image)
  if data.source.endswith(".jsonl.xz"):
    return _from_rows(data, image)
  found = picture_items.items(data.source, data.max_documents)
  progress = Progress(f"decoding {os.path.basename(data.source)}", quiet_s=5.0, unit="pictures")
  names, pixels, labels, left_out = [], [], [], found.left_out
  for i in range(len(found)):
    try:
      picture, label = found.read(i, image)
      pixels.append(picture)
      labels.append(label)
      names.append(found.name(i))
    except pictures.BadPicture as e:
      left_out.add(str(e), found.name(i))
    progress.update(i + 1, 0, 0.0, (i + 1) / len(found))
  progress.close()
  pictures.refuse_bad(left_out, len(found) - len(names), len(found), data.max_bad)
  return names, np.stack(pixels), np.array(labels, np.int32), left_out


def _from_npz(data, image):
  try:
    with np.load(data.source, allow_pickle=False) as z:
      arrays = {name: z[name] for name in z.files}
  except (OSError, ValueError, zlib.error) as e:
    raise ConfigError(f"{KEY}: {data.source} cannot be read as .npz ({e})") from e
  if "images" not in arrays:
    raise ConfigError(f"{KEY}: {data.source} has no array `images`; found {', '.join(arrays) or 'none'}")
  found = arrays["images"][: data.max_documents or None]
  if not len(found):
    raise ConfigError(f"{KEY}: {data.source} holds no picture")
  labels = arrays.get("labels", np.zeros(len(found)))[: len(found)]
  if len(labels) != len(found):
    raise ConfigError(f"{KEY}: {data.source} has {len(found)} images and {len(labels)} labels")
  pixels = np.stack([pictures.fit_array(a, image, data.source) for a in found])
  return [f"{i}" for i in range(len(found))], pixels, labels.astype(np.int32), LeftOut()


def _from_rows(data, image):
  """JSON lines of `id`, `png` (base64) and `label`, as `tools/fetch_data.py` writes them."""
  names, pixels, labels, left_out = [], [], [], LeftOut()
  try:
    with lzma.open(local(data.source, KEY), "rb") as lines:
      for line in itertools.islice(lines, data.max_documents or None):
        row = json.loads(line)
        try:
          pixels.append(pictures.decode(base64.b64decode(row["png"]), image))
        except pictures.BadPicture as e:
          left_out.add(str(e), row["id"])
          continue
        names.append(row["id"])
        labels.append(row["label"])
  except (OSError, EOFError, lzma.LZMAError, ValueError, KeyError) as e:
    raise ConfigError(f"{KEY}: {data.source} cannot be read as rows of id, png and label ({e!r})") from e
  bad = sum(left_out.counts.values())
  pictures.refuse_bad(left_out, bad, bad + len(names), data.max_bad)
  return names, np.stack(pixels), np.array(labels, np.int32), left_out
