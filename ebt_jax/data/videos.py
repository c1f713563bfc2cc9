"""Films as training and held-out examples: windows of frames that never cross a cut, as features.

A row is `frames` float32 `[s + 1, *frame]`, features of frames, and `weights` float32 `[s]`: 1 for each next frame, 0
for what fills up a short shot. Films that are made, and those of an .npz, are held out whole; of film files the ends.
"""

import dataclasses
import hashlib
import importlib.resources
import json
import logging
from typing import Any, NamedTuple
import zlib

import numpy as np

from ebt_jax.config import ConfigError, DataConfig, VideoConfig
from ebt_jax.data import films, pictures, shapes
from ebt_jax.data.find import KEY, LeftOut, describe
from ebt_jax.data.progress import Progress
from ebt_jax.data.text import is_held_out
from ebt_jax.files import local

log = logging.getLogger(__name__)


class Shot(NamedTuple):
  """Frames without a cut: pixels uint8 `[t, h, w, c]`, or features float32 `[t, *frame]`."""

  id: str  # of its film, and the number of its first frame there
  frames: np.ndarray


class Split(NamedTuple):
  """Shots to train on and held-out ones, and what a person reads of them."""

  train: list[Shot]
  held_out: list[Shot]
  summary: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class FrameExamples:
  """Windows of `length` + 1 frames, `stride` frames apart within each shot.

  Attributes:
    features: of all frames, `[n, *frame]`.
    places: (first frame, frames) of each window.
  """

  features: np.ndarray
  places: np.ndarray
  length: int

  @classmethod
  def of(cls, shots: list[np.ndarray], length: int, stride: int) -> "FrameExamples":
    """Windows of shots, each `[t, *frame]`."""
    places, first = [], 0
    for shot in shots:
      starts = range(0, max(1, len(shot) - length), stride)
      places += [(first + s, min(length + 1, len(shot) - s)) for s in starts]
      first += len(shot)
    return cls(np.concatenate(shots), np.array(places), length)

  def __len__(self) -> int:
    return len(self.places)

  def rows(self, index: np.ndarray) -> dict[str, np.ndarray]:
    first, count = self.places[index].T
    steps = np.arange(self.length + 1)
    which = first[:, None] + np.minimum(steps, count[:, None] - 1)
    return {"frames": self.features[which], "weights": (steps[1:] < count[:, None]).astype(np.float32)}

  def fingerprint(self) -> str:
    """Of sizes, windows and some of the frames."""
    some = self.features[np.linspace(0, len(self.features) - 1, min(len(self.features), 256)).astype(int)]
    rounded = np.round(some, 2) + 0.0  # features differ in their last digits between machines
    return hashlib.sha256(repr(self.features.shape).encode() + self.places.tobytes() + rounded.tobytes()).hexdigest()


def build(data: DataConfig, video: VideoConfig) -> Split:
  """Both splits of a source.

  Raises:
    ConfigError: the source is missing or bad, or a split is empty.
  """
  whole, found, left_out = _read(data, video)
  train, held_out, short = [], [], 0
  for shot in found:
    if whole:
      (held_out if is_held_out(shot.id, data.held_out) else train).append(shot)
      continue
    border = len(shot.frames) - round(data.held_out * len(shot.frames))
    for part, first, end in ((train, 0, border), (held_out, border, len(shot.frames))):
      shots = apart(Shot(shot.id, shot.frames[first:end]), first)
      part += [s for s in shots if len(s.frames) > 1]
      short += sum(len(s.frames) < 2 for s in shots)
  for name, part, fix in (("training", train, "lower"), ("held-out", held_out, "raise")):
    if not part:
      raise ConfigError(
        f"config.data.held_out: {data.held_out} of {len(found)} films leaves no {name} shot; {fix} it, or give more"
      )
  for _ in range(short):
    left_out.add("shots of one frame")
  how = "held out by film" if whole else "held out by time, the end of each film"
  summary = {
    "train_shots": len(train), "train_frames": sum(len(s.frames) for s in train),
    "held_out_shots": len(held_out), "held_out_frames": sum(len(s.frames) for s in held_out), "split": how,
  }  # fmt: skip
  if left_out.counts:
    summary["left_out"] = left_out.as_dict()
  return Split(train, held_out, summary)


def whole(data: DataConfig, video: VideoConfig) -> list[Shot]:
  """All shots of a source, to evaluate on."""
  made, found, left_out = _read(data, video)
  if left_out.counts:
    log.warning("left out of %s: %s", data.source, left_out)
  return found if made else [s for film in found for s in apart(film, 0) if len(s.frames) > 1]


def lines(summary: dict[str, Any]) -> list[str]:
  """What a person reads of a summary."""
  out = [
    f"data: {summary['train_shots']:,} shots ({summary['train_frames']:,} frames) to train on, "
    f"{summary['held_out_shots']:,} ({summary['held_out_frames']:,}) {summary['split']}"
  ]
  if summary.get("left_out"):
    out.append(f"data: left out: {describe(summary['left_out'])}")
  return out


def apart(film: Shot, first: int) -> list[Shot]:
  """The shots of a film; `first` is the number of its first frame. Features have no cuts that can be seen."""
  if film.frames.dtype != np.uint8:
    return [film]
  edges = [0, *films.cuts(film.frames), len(film.frames)]
  return [Shot(f"{film.id}:{first + a}", film.frames[a:b]) for a, b in zip(edges, edges[1:])]


def width_of(data: DataConfig) -> tuple[int, int]:
  """Features of a frame or of a patch, and patches, of an .npz of features."""
  shape = _arrays(data)[1].shape[2:]
  return (shape[0], 1) if len(shape) == 1 else (shape[1], shape[0])


def _read(data: DataConfig, video: VideoConfig) -> tuple[bool, list[Shot], LeftOut]:
  """Whether these are whole shots that are independent of each other, all films of a source, what is left out."""
  if data.source in shapes.KINDS:
    count = min(video.clips, data.max_documents or video.clips)
    made = (shapes.make(data.source, i, video.clip_frames, video.size, video.channels) for i in range(count))
    return True, [Shot(f"{data.source}:{i}", frames) for i, frames in enumerate(made)], LeftOut()
  if data.source == "embedded":
    return True, embedded(video)[: data.max_documents or None], LeftOut()
  if data.source.endswith(".npz"):
    return True, _from_npz(data, video), LeftOut()
  if video.features == "given":
    raise ConfigError(f"{KEY}: {data.source}: video.features=given needs an .npz of features; set it to pca")
  return False, *_from_files(data, video)


def embedded(video: VideoConfig) -> list[Shot]:
  """Shots of a film in this package, 24 frames a second; see `embedded/README.md`."""
  from PIL import Image

  folder = importlib.resources.files("ebt_jax.data") / "embedded" / "clips"
  made = json.loads((folder / "bunny.json").read_text(encoding="utf-8"))
  side, columns, lengths = made["size"], made["columns"], made["lengths"]
  if video.size > side:
    raise ConfigError(f"config.video.size: {video.size} is more than the {side} pixels of the embedded film; lower it")
  with (folder / "bunny.webp").open("rb") as f:
    sheet = np.asarray(Image.open(f).convert("RGB"))
  frames = sheet.reshape(-1, side, columns, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)[: sum(lengths)]
  mode = "RGB" if video.channels == 3 else "L"
  frames = np.stack([pictures.fit(Image.fromarray(f).convert(mode), video) for f in frames])
  return [Shot(f"bunny:{start:g}", f) for start, f in zip(made["starts"], np.split(frames, np.cumsum(lengths)[:-1]))]


def _from_files(data, video):
  found, left_out = films.find(data.source)
  found = found[: data.max_documents or None]
  progress = Progress(f"decoding {len(found)} films", quiet_s=5.0, unit="films")
  out, bad = [], []
  for n, (path, name) in enumerate(found, 1):
    try:
      frames, lost = films.read(path, name, video)
      out.append(Shot(name, frames))
      if lost:
        log.warning("%s: %s; the %d frames before are used", KEY, lost, len(frames))
        left_out.add("damaged ends of films", name)
    except films.BadFilm as e:
      bad.append(str(e))
      left_out.add("films that cannot be used", name)
    progress.update(n, 0, 0.0, n / len(found))
  progress.close()
  if not out or len(bad) > data.max_bad * len(found):
    more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
    advice = "" if not out else f", or raise data.max_bad (now {data.max_bad})"
    raise ConfigError(f"{KEY}: {bad[0]}{more}{advice}")
  for text in bad:
    log.warning("%s: left out: %s", KEY, text)
  return out, left_out


def _arrays(data):
  """(name, array `[n, t, ...]`, frames of each) of an .npz."""
  try:
    with np.load(local(data.source, KEY), allow_pickle=False) as z:
      arrays = {name: z[name] for name in z.files if name in ("frames", "features", "lengths")}
      names = list(z.files)
  except (OSError, ValueError, zlib.error) as e:
    raise ConfigError(f"{KEY}: {data.source} cannot be read as .npz ({e})") from e
  name = next((n for n in ("features", "frames") if n in arrays), None)
  if name is None:
    raise ConfigError(f"{KEY}: {data.source}: expected an array `frames` (uint8 [n, t, h, w, c]) or `features` (float "
                      f"[n, t, f] or [n, t, p, f]), found {', '.join(names) or 'none'}; add one of them")  # fmt: skip
  found = arrays[name][: data.max_documents or None]
  wanted = (3, 4) if name == "features" else (4, 5)
  if found.ndim not in wanted or not found.size or found.shape[1] < 2:
    raise ConfigError(
      f"{KEY}: {data.source}: {name} {list(found.shape)}; expected {' or '.join(map(str, wanted))} axes, [films, "
      "frames of each (2 or more), ...]; reshape it"
    )
  lengths = arrays.get("lengths", np.full(len(found), found.shape[1]))[: len(found)]
  if lengths.shape != (len(found),) or lengths.min() < 2 or lengths.max() > found.shape[1]:
    raise ConfigError(f"{KEY}: {data.source}: lengths: expected a number from 2 to {found.shape[1]} for each of the "
                      f"{len(found)} films, found {lengths.tolist()[:8]}; mend it")  # fmt: skip
  return name, found, lengths


def _from_npz(data, video):
  name, found, lengths = _arrays(data)
  given = video.features == "given"
  if given != (name == "features"):
    fix = "set video.features=given" if name == "features" else "set video.features=pca"
    raise ConfigError(f"{KEY}: {data.source} holds {name}, but video.features={video.features}; {fix}")
  if given:
    found = found.astype(np.float32)
    shape = found.shape[2:]
    expected = video.frame_shape if video.width and video.places else shape
    if shape != expected:
      raise ConfigError(
        f"{KEY}: {data.source}: features of a frame are {list(shape)}, expected {list(expected)} as the model was made "
        "for; give features of that width, or train another model"
      )
    if not np.isfinite(found).all():
      raise ConfigError(f"{KEY}: {data.source}: features are not finite; mend them")
    return [Shot(f"{i}", f[:n]) for i, (f, n) in enumerate(zip(found, lengths))]
  found = found[..., None] if found.ndim == 4 else found
  return [
    Shot(f"{i}", np.stack([pictures.fit_array(p, video, data.source) for p in f[:n]]))
    for i, (f, n) in enumerate(zip(found, lengths))
  ]
