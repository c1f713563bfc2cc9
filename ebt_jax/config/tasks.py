"""Config keys of single tasks, and what a task has to do with the groups that all share."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from ebt_jax.config.checks import Checks, ConfigError

if TYPE_CHECKING:
  from ebt_jax.config.schema import Config

# task of this package -> its kinds of model
KINDS = {
  "text": ("ebt", "transformer", "rnn"),
  "infill": ("ebt", "transformer"),
  "sudoku": ("ebt", "transformer", "looped"),
  "image": ("ebt", "dit", "flow"),
  "video": ("ebt", "transformer", "rnn"),
}
DIRECT = ("transformer", "rnn", "looped", "dit", "flow")  # kinds of model that have no energy
GROUPS = {"infill": "mask", "image": "image", "sudoku": "sudoku", "video": "video"}  # task -> its own group of keys


@dataclasses.dataclass(frozen=True)
class MaskConfig(Checks):
  """Which places of a text are blanks in `task=infill`, how they count, and how they are filled (tasks/masks.py)."""

  group = "mask"

  layout: str = "random"  # random (any places) | spans (of one length in a row, apart) | word (one) | suffix
  rate_min: float = 0.0  # the share of a row that is blank is uniform above rate_min, up to rate_max; not for `word`
  rate_max: float = 1.0
  span_min: int = 1  # places of a span, uniform; spans alone
  span_max: int = 8
  weighting: str = "place"  # place: every blank alike | row: every row alike, the bound of masked diffusion (CE / t)
  unmasking: str = "confidence"  # which blanks each pass of a Transformer settles: confidence | ancestral (sampled)
  by_place: bool = False  # an EBT has an energy of each blank in place of one of the row

  def check(self) -> None:
    self._one_of("layout", "random", "spans", "word", "suffix")
    self._one_of("weighting", "place", "row")
    self._one_of("unmasking", "confidence", "ancestral")
    if not 0 < self.rate_max <= 1:
      raise ConfigError(f"{self._key('rate_max')}: expected a share in (0, 1], found {self.rate_max}")
    if not 0 <= self.rate_min <= self.rate_max:
      raise ConfigError(
        f"{self._key('rate_min')}: expected a share from 0 to rate_max={self.rate_max}, found {self.rate_min}"
      )
    self._positive("span_min")
    if self.span_max < self.span_min:
      raise ConfigError(f"{self._key('span_max')}: expected at least span_min={self.span_min}, found {self.span_max}")


@dataclasses.dataclass(frozen=True)
class ImageConfig(Checks):
  """Pictures, the noise to take away from them, and how denoisers do it (paper section 4.4 and appendix D.3).

  A noise level l in (0, 1] is the noise of step l * `diffusion_steps` - 1 of a linear diffusion.
  """

  group = "image"

  size: int = 32  # pixels on a side
  channels: int = 3
  patch: int = 4  # pixels on a side
  noise_level: float = 0.1
  random_level: bool = False  # each picture has a level from 0 to noise_level of its own
  eval_levels: str = ""  # further levels to evaluate at, comma-separated
  diffusion_steps: int = 1000
  train_levels: str = (
    "asked"  # what dit and flow learn: asked (up to the highest level evaluated) | authors (up to noise_level)
  )
  passes: int = 10  # of dit and flow for one answer, where eval.steps is 0
  sampler: str = ""  # dit: ddim (default) | ddpm; flow: euler (default) | heun
  flow_predicts: str = "clean"  # clean | velocity

  @property
  def side(self) -> int:
    """Patches on a side."""
    return self.size // self.patch

  @property
  def patch_pixels(self) -> int:
    """Numbers in a patch."""
    return self.patch**2 * self.channels

  @property
  def more_levels(self) -> list[float]:
    """`eval_levels` as numbers."""
    return [float(level) for level in self.eval_levels.split(",") if level.strip()]

  def check(self) -> None:
    self._positive("size", "patch", "passes")
    if self.channels not in (1, 3):
      raise ConfigError(f"{self._key('channels')}: expected 1 (grey) or 3 (red, green, blue), found {self.channels}")
    self._one_of("train_levels", "asked", "authors")
    self._one_of("sampler", "", "ddim", "ddpm", "euler", "heun")
    self._one_of("flow_predicts", "clean", "velocity")
    self._at_least(21, "diffusion_steps", why=" (with fewer its last steps would add more noise than there can be)")
    if self.size % self.patch:
      near = min((p for p in range(1, self.size + 1) if self.size % p == 0), key=lambda p: abs(p - self.patch))
      raise ConfigError(
        f"{self._key('patch')}: {self.patch} does not divide size={self.size}; the nearest that does is {near}"
      )
    try:
      levels = self.more_levels
    except ValueError:
      raise ConfigError(
        f"{self._key('eval_levels')}: expected numbers with commas between them, found {self.eval_levels!r}"
      ) from None
    for name, level in [("noise_level", self.noise_level), *(("eval_levels", level) for level in levels)]:
      if not 0 < level <= 1 or round(level * self.diffusion_steps) < 1:
        raise ConfigError(
          f"{self._key(name)}: expected a level above 0, at most 1, and of at least one of diffusion_steps="
          f"{self.diffusion_steps}, found {level}"
        )


@dataclasses.dataclass(frozen=True)
class SudokuConfig(Checks):
  """Puzzles of `task=sudoku` (data/sudoku.py).

  With `data.source=embedded` they are made, and kept in `folder`; `data.held_out` is the share of all grids that are
  never trained on. Else `data.source` and `data.held_out_sources` are text files with a puzzle on each line.
  """

  group = "sudoku"

  size: int = 9  # of a row: 4 | 6 | 9
  givens_min: int = 31  # fewest and most givens of puzzles to train on, and of held-out ones like them
  givens_max: int = 42
  harder_min: int = 17  # of held-out puzzles with fewer givens; none that is made has fewer than a minimal one
  harder_max: int = 30
  boards: int = 2000  # minimal puzzles, whose variants are trained on
  held_out: int = 512  # puzzles of each held-out set that is made
  units: bool = False  # embeddings of cells in one row, column or block start with a part in common
  folder: str = ""  # where puzzles that are made are kept; empty: ~/.cache/ebt_jax/sudoku

  def check(self) -> None:
    if self.size not in (4, 6, 9):
      raise ConfigError(f"{self._key('size')}: expected 4, 6 or 9, found {self.size}")
    self._positive("givens_min", "harder_min", "boards", "held_out")
    for low, high in (("givens_min", "givens_max"), ("harder_min", "harder_max")):
      if not getattr(self, low) <= getattr(self, high) < self.size**2:
        raise ConfigError(
          f"{self._key(high)}: expected at least {low}={getattr(self, low)} and less than the {self.size**2} cells of "
          f"sudoku.size={self.size}, found {getattr(self, high)}"
        )


@dataclasses.dataclass(frozen=True)
class VideoConfig(Checks):
  """Frames of `task=video`, and the features that models read and predict (data/videos.py, data/frame_features.py).

  `data.source`: `shapes` (moving shapes that hide each other), `futures` (the same way, then one of two turns), both
  made here; `embedded`; films, globs and folders (.mp4, .avi, .webm, .mkv, .mov, .gif); an .npz of `frames` or
  `features`. A row is a window of `data.context_length` + 1 frames.
  """

  group = "video"

  size: int = 32  # pixels on a side
  channels: int = 1
  interval: float = 0.0  # seconds between the frames of a film that are used; 0: all
  clips: int = 400  # of shapes and futures
  clip_frames: int = 20  # of each of them
  features: str = "pca"  # pca (of the training frames) | efficientnet (1280 a frame) | given (by an .npz)
  rank: int = 64  # components of pca
  patch: int = 0  # of pca: pixels on a side of the patches that a frame is cut into; 0: a frame is one vector
  width: int = 0  # features of a frame, or of each of its patches; 0: as the features say
  places: int = 0  # patches of a frame; 0: as the features say
  change: bool = False  # the context predicts the change from the last frame

  @property
  def frame_shape(self) -> tuple[int, ...]:
    """Of the features of a frame, where width and places are known."""
    return (self.width,) if self.places == 1 else (self.places, self.width)

  @property
  def side(self) -> int:
    """Pixels on a side of what pca is of."""
    return self.patch or self.size

  def check(self) -> None:
    self._positive("size", "clips", "rank")
    self._at_least(2, "clip_frames")
    self._at_least(0, "patch", "width", "places", "interval")
    self._one_of("features", "pca", "efficientnet", "given")
    if self.channels not in (1, 3):
      raise ConfigError(f"{self._key('channels')}: expected 1 (grey) or 3 (red, green, blue), found {self.channels}")
    if self.patch and self.size % self.patch:
      raise ConfigError(f"{self._key('patch')}: {self.patch} does not divide size={self.size}; set it to a divisor")
    if self.features == "pca" and self.rank > self.side**2 * self.channels:
      raise ConfigError(
        f"{self._key('rank')}: {self.rank} components of {self.side} x {self.side} pixels of {self.channels} channels; "
        f"expected at most {self.side**2 * self.channels}"
      )
    if self.patch and self.features != "pca":
      raise ConfigError(f"{self._key('patch')}: {self.patch}, but only features=pca cuts frames; set it to 0")
    if self.features == "efficientnet" and self.channels != 3:
      raise ConfigError(
        f"{self._key('channels')}: {self.channels}, but features=efficientnet read colours; set it to 3"
      )


def check(config: Config) -> None:
  """What a task of this package does not have. Raises ConfigError."""
  m, t = config.model, config.thinking
  config._one_of("task", *KINDS)
  m._one_of("kind", *KINDS[config.task])
  if m.passes > 1 and config.task != "text":
    more = "model.kind=looped" if config.task == "sudoku" else "eval.steps"
    raise ConfigError(f"config.model.passes: {m.passes}, but task {config.task!r} loops by {more}; set it to 1")
  if t.start == "input" and config.task not in ("image", "video"):
    raise ConfigError("config.thinking.start: input is for pictures and video; set it to noise, zeros or context")
  if t.authors.noise_embedding and (config.task != "video" or m.residual):
    raise ConfigError(
      "config.thinking.authors.noise_embedding: is for video whose energy is given projected frames; leave it out"
      + (", or set model.residual=False" if config.task == "video" else "")
    )
  if config.task == "infill":
    check_infill(config)
  if config.task == "image":
    check_image(config)
  if config.task == "video":
    check_video(config)


def check_infill(config: Config) -> None:
  """What models of masked rows do not have."""
  m, t, length = config.model, config.thinking, config.data.context_length
  if m.residual or t.start == "context":
    key = "model.residual" if m.residual else "thinking.start"
    raise ConfigError(f"config.{key}: infilling has no residual energy; set model.residual=False, start=noise")
  if m.vocab_chunk:
    raise ConfigError(f"config.model.vocab_chunk: {m.vocab_chunk}, but infilling holds answers whole; set it to 0")
  if config.mask.by_place and config.eval.candidates > 1:
    raise ConfigError(
      f"config.eval.candidates: {config.eval.candidates} candidates with mask.by_place would mix answers blank by "
      "blank; set one of the two off"
    )
  if config.mask.layout == "spans" and config.mask.span_max > length:
    raise ConfigError(
      f"config.mask.span_max: expected at most data.context_length={length} places, found {config.mask.span_max}"
    )


def check_image(config: Config) -> None:
  """What pictures have to do with model and thinking."""
  m, t, i = config.model, config.thinking, config.image
  if m.width % 4:  # each head has an even width already
    raise ConfigError(f"config.model.width: {m.width} must divide by 4 for the positions of patches")
  fixed = {"variant": "default", "norm": "rms", "activation": "silu", "embedder": "linear"}
  for name, value in fixed.items():
    if getattr(m, name) != value:
      raise ConfigError(f"config.model.{name}: models of pictures have no choice of it; leave it out")
  if t.authors.soften_targets:
    raise ConfigError("config.thinking.authors.soften_targets: is for probabilities; leave it out for pictures")
  if m.kind != "ebt":
    samplers = {"dit": ("ddim", "ddpm"), "flow": ("euler", "heun")}[m.kind]
    if i.sampler and i.sampler not in samplers:
      raise ConfigError(f"config.image.sampler: model.kind={m.kind} has {' and '.join(samplers)}, found {i.sampler}")
    if m.residual:
      raise ConfigError(f"config.model.residual: model.kind={m.kind} has no energy; set it to False, or kind=ebt")
  elif t.start not in ("input", "context"):
    raise ConfigError(
      f"config.thinking.start: {t.start!r} forgets the noised picture; set it to 'input', or with model.residual to "
      "'context'"
    )
  elif t.start == "context" and not m.residual:
    raise ConfigError("config.thinking.start: context is what a residual energy predicts; set model.residual, or input")
  if m.kind == "ebt" and config.eval.candidates > 1 and not t.start_scale:
    raise ConfigError("config.thinking.start_scale: 0, so that all of eval.candidates start alike; set it above 0")


def check_video(config: Config) -> None:
  """What models of frames do not have."""
  m, t, v = config.model, config.thinking, config.video
  for name, value in {"embedder": "linear", "vocab_chunk": 0}.items():
    if getattr(m, name) != value:
      raise ConfigError(f"config.model.{name}: models of frames have no choice of it; leave it out")
  if t.authors.soften_targets:
    raise ConfigError("config.thinking.authors.soften_targets: is for probabilities; leave it out for video")
  if t.start == "context" and not m.residual:
    raise ConfigError("config.thinking.start: context is what a residual energy predicts; set model.residual, or input")
  if m.kind == "rnn" and v.patch:
    raise ConfigError(f"config.video.patch: {v.patch}, but model.kind=rnn reads one vector a frame; set it to 0")
  if m.attention == "fused" and v.patch:
    raise ConfigError(f"config.model.attention: fused kernels know no patches of frames (video.patch={v.patch}); "
                      "set it to plain")  # fmt: skip
