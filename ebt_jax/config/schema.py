"""Every config key with its default, its meaning and its checks: frozen dataclasses, one for each group of keys.

`check` of a group looks at its own values; `Config.check` looks at what groups have to do with each other.
"""

from __future__ import annotations

from collections.abc import Iterable
import dataclasses
import difflib
import operator
from typing import Any

from ebt_jax.errors import UserError, together

# layers, heads, width (paper table D.1; 4xs and 3xs come from the authors' code)
SIZES = {
  "4xs": (2, 2, 128),
  "3xs": (4, 4, 256),
  "xxs": (6, 6, 384),
  "xs": (12, 6, 384),
  "small": (12, 12, 768),
  "medium": (24, 16, 1024),
  "large": (24, 16, 1536),
  "xl": (24, 32, 2048),
}

# task of this package -> its kinds of model
KINDS = {
  "text": ("ebt", "transformer"),
  "infill": ("ebt", "transformer"),
  "sudoku": ("ebt", "transformer", "looped"),
  "image": ("ebt", "dit", "flow"),
}
DIRECT = ("transformer", "looped", "dit", "flow")  # kinds of model that have no energy

_MOST_ROWS = 2**24  # of a batch: with many more, a host only makes lists until its memory is full


class ConfigError(UserError, ValueError):
  """A config value is unknown, ill-typed or impossible; the text names the key and the fix."""


def near(name: str, names: Iterable[str]) -> str:
  """`did you mean ...?` for a mistyped name, or else the names that exist, at most 30 of them."""
  names = sorted(names)
  close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
  if close:
    return f"did you mean {' or '.join(close)}?"
  return f"known: {', '.join(names[:30])}" + (f" and {len(names) - 30} more" if len(names) > 30 else "")


class _Checks:
  """Checks of single values that name the key `config.GROUP.NAME`."""

  group = ""

  def _key(self, name: str) -> str:
    return f"config.{self.group}.{name}" if self.group else f"config.{name}"

  def _one_of(self, name: str, *allowed: str) -> None:
    value = getattr(self, name)
    if value not in allowed:
      raise ConfigError(f"{self._key(name)}: no choice {value!r}; {near(value, allowed)}")

  def _at_least(self, low: int | float, *names: str, why: str = "") -> None:
    for name in names:
      if getattr(self, name) < low:
        raise ConfigError(f"{self._key(name)}: expected at least {low}{why}, found {getattr(self, name)}")

  def _positive(self, *names: str) -> None:
    for name in names:
      if not getattr(self, name) > 0:
        raise ConfigError(f"{self._key(name)}: expected more than 0, found {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class ModelConfig(_Checks):
  """Architecture (paper appendix D); where `layers`, `heads` or `width` is 0, `size` says it."""

  group = "model"

  kind: str = "ebt"  # as in KINDS; tasks of your own may have kinds of their own
  size: str = "4xs"
  layers: int = 0
  heads: int = 0
  width: int = 0
  variant: str = "default"  # default | time_embed | adaln | adaln_zero
  vocab_size: int = 0  # 0: the size of the tokenizer
  ffn_multiplier: float = 1.0  # hidden width of the FFN divided by width; the paper uses 1
  norm: str = "rms"  # rms | layer | dyt | none
  activation: str = "silu"  # silu | relu | gelu | elu
  dyt_scale: float = 0.5  # initial scale inside tanh, norm=dyt only
  residual: bool = False  # the energy is E_theta less what the context itself predicts (models/autoregressive.py)
  energy_gain: float = 1.0  # multiplies E_theta of a residual energy; 0: only the context's own prediction is left
  residual_drop: float = 0.0  # share of the rows that train without the residual term
  answer_layers: int = 0  # blocks of the context after which a residual energy reads its answer; 0: all of them
  passes: int = 1  # times that Transformer++ applies its blocks, with the same weights (a looped Transformer)
  embedder: str = "linear"  # candidate probabilities -> width: linear | tied (token table)
  init: str = "xavier"  # xavier | he
  init_gain: float = 1.0  # multiplies every initial linear weight except the energy head's
  head_gain: float = 1.0  # multiplies the energy head's initial weight
  dtype: str = "float32"  # matrix products: float32 | bfloat16; the rest stays float32
  remat: bool = False  # save nothing of a layer for the backward pass; else the outputs of its projections
  vocab_chunk: int = 0  # positions per chunk of vocabulary-wide arrays; 0: automatic
  attention: str = "plain"  # plain | fused: accelerator kernels where one derivative is enough (models/fused.py)
  attention_block: int = 0  # queries per attention block; 0: automatic (no blocks below 256 positions)

  @property
  def head_dim(self) -> int:
    return self.width // self.heads

  @property
  def hidden(self) -> int:
    return int(self.width * self.ffn_multiplier)

  def sized(self) -> ModelConfig:
    """With `layers`, `heads` and `width` filled in from `size`."""
    if self.layers and self.heads and self.width:
      return self
    if self.size not in SIZES:
      raise ConfigError(
        f"config.model.size: no size {self.size!r}; {near(self.size, SIZES)}, or set layers, heads and width"
      )
    layers, heads, width = SIZES[self.size]
    return dataclasses.replace(self, layers=self.layers or layers, heads=self.heads or heads, width=self.width or width)

  def check(self) -> None:
    self._one_of("variant", "default", "time_embed", "adaln", "adaln_zero")
    self._one_of("norm", "rms", "layer", "dyt", "none")
    self._one_of("activation", "silu", "relu", "gelu", "elu")
    self._one_of("embedder", "linear", "tied")
    self._one_of("init", "xavier", "he")
    self._one_of("dtype", "float32", "bfloat16")
    self._one_of("attention", "plain", "fused")
    self._positive("layers", "heads", "width", "ffn_multiplier", "passes")
    self._at_least(0, "vocab_size", "vocab_chunk", "attention_block", "energy_gain", "answer_layers")
    for name, off in (("energy_gain", 1), ("residual_drop", 0), ("answer_layers", 0)):
      if getattr(self, name) != off and not self.residual:
        raise ConfigError(f"{self._key(name)}: {getattr(self, name)} is for residual energies; set model.residual")
    if not 0 <= self.residual_drop < 1:
      raise ConfigError(f"{self._key('residual_drop')}: expected 0 <= x < 1, found {self.residual_drop}")
    if self.answer_layers > self.layers:
      raise ConfigError(
        f"{self._key('answer_layers')}: expected at most layers={self.layers}, found {self.answer_layers}"
      )
    if self.passes > 1 and self.kind == "ebt":
      raise ConfigError(f"{self._key('passes')}: an EBT thinks instead; set thinking.steps, or model.kind=transformer")
    if self.residual and self.kind == "transformer":
      raise ConfigError(f"{self._key('residual')}: model.kind=transformer has no energy; set it to False, or kind=ebt")
    if self.hidden < 1:
      raise ConfigError(
        f"config.model.ffn_multiplier: {self.ffn_multiplier} leaves no hidden unit at width {self.width}"
      )
    if self.width % self.heads or self.head_dim % 2:
      raise ConfigError(
        f"config.model.width: {self.width} must divide by heads ({self.heads}) into an even head width; "
        f"the nearest width is {2 * self.heads * max(1, round(self.width / (2 * self.heads)))}"
      )


@dataclasses.dataclass(frozen=True)
class AuthorsConfig(_Checks):
  """Options of the authors' code that they report as no help; kept so that their numbers can be reproduced."""

  group = "thinking.authors"

  normalize: str = "every"  # softmax before the energy: every | first (landscape 0 only) | never
  clip_gradient: float = 0.0  # c > 0: |dE/dp| is clipped at c / step_size
  clip_candidate: float = 0.0  # c > 0: a stepped candidate is clipped at +-c
  sharpen: float = 0.0  # s != 0: a stepped candidate is divided by s
  soften_targets: float = 0.0  # label smoothing of the first step, falling to 0 at the last
  contrastive: float = 0.0  # weight of the energy contrast between truth and prediction
  eval_noise: bool = False  # add the Langevin noise in evaluation too

  def check(self) -> None:
    self._one_of("normalize", "every", "first", "never")
    self._at_least(0.0, "clip_gradient", "clip_candidate", "contrastive")
    if not 0 <= self.soften_targets < 1:
      raise ConfigError(f"{self._key('soften_targets')}: expected 0 <= x < 1, found {self.soften_targets}")
    if self.contrastive and self.normalize == "never":
      raise ConfigError(
        f"{self._key('contrastive')}: needs candidates that are probabilities; set thinking.authors.normalize"
      )


@dataclasses.dataclass(frozen=True)
class ThinkingConfig(_Checks):
  """The inner optimisation in training (paper sections 3 and 4, appendix C).

  Step i of `steps` descends landscape min(i, landscapes - 1). With
  `random_steps_min` > 0 training draws how often a landscape is repeated, from
  `random_steps_min` to `steps - landscapes + 1` inclusive; evaluation never does.
  `start` context is what a residual energy's context predicts, without a derivative.
  """

  group = "thinking"

  steps: int = 2
  landscapes: int = 1
  step_size: float = 5.0
  learn_step_size: bool = True
  step_size_lr_multiplier: float = 15.0  # of the learning rate; the paper's rule is 3 x step_size
  step_size_min: float = 1e-4
  random_step_size: float = 1.0  # s > 1: uniform on [a/s, a*s], one draw for each energy, training only
  random_steps_min: int = 0
  random_steps_of: str = "every"  # every | final: which landscapes are repeated at random
  noise: float = 0.0  # Langevin noise: standard deviation, added to the candidate before each step
  learn_noise: bool = False
  noise_falls: bool = False  # from landscape to landscape: of k, landscape i has 1 - i / k of the noise
  contrast: float = 0.0  # weight of the energy contrast between the truth and a wrong answer that the problem makes
  gradient: str = "each"  # each | last | unrolled
  step_size_path: bool = True  # `last`: the step size's gradient sees the earlier steps too
  loss_rise: float = 0.0  # r: the loss of step i has a weight in proportion to (i + 1)^r; 0: all the same
  start: str = "noise"  # noise | zeros | input (what is known, as a noised picture) | context (see below)
  start_scale: float = 1.0  # of the noise; with input and context of all candidates but the first, in evaluation
  replay_rows: int = 0  # finished thoughts that the replay buffer holds; 0: no buffer (paper: 192 a device)
  replay_fraction: float = 0.5  # replayed rows added to a batch, divided by the rows of the batch
  replay_gb: float = 4.0  # memory of the replay buffer over all devices; it holds fewer rows where this is too little
  authors: AuthorsConfig = AuthorsConfig()

  @property
  def repeats_max(self) -> int:
    """The most often that one landscape can be repeated."""
    return self.steps - self.landscapes + 1

  @property
  def start_is_random(self) -> bool:
    return self.start != "zeros" and self.start_scale > 0

  def check(self) -> None:
    self._one_of("gradient", "each", "last", "unrolled")
    self._one_of("random_steps_of", "every", "final")
    self._one_of("start", "noise", "zeros", "input", "context")
    self._positive("steps", "landscapes", "step_size", "step_size_min", "step_size_lr_multiplier")
    self._positive("replay_fraction", "replay_gb")
    self._at_least(1.0, "random_step_size", why=" (1 is off)")
    self._at_least(0, "random_steps_min", "replay_rows", why=" (0 is off)")
    self._at_least(0.0, "noise", "start_scale", "loss_rise", "contrast")
    if self.landscapes > self.steps:
      raise ConfigError(
        f"config.thinking.landscapes: {self.landscapes} landscapes need at least as many steps, found "
        f"steps={self.steps}"
      )
    if self.random_steps_min > self.repeats_max:
      raise ConfigError(
        f"config.thinking.random_steps_min: {self.random_steps_min} is more than the most repetitions that "
        f"steps={self.steps} and landscapes={self.landscapes} allow ({self.repeats_max}); raise thinking.steps"
      )
    self.authors.check()


@dataclasses.dataclass(frozen=True)
class TrainConfig(_Checks):
  """Outer optimisation: AdamW, warm-up and cosine (paper tables D.2 and D.3), or Muon."""

  group = "train"

  steps: int = 1000
  batch_size: int = 32
  microbatches: int = 1
  optimizer: str = "adamw"  # adamw | muon (matrices in blocks; tables, norms, head and step size by AdamW)
  learning_rate: float = 1e-3
  warmup: int = 100
  warmup_start: float = 0.0  # learning rate of step 0 divided by the peak
  schedule: str = "cosine"  # cosine | constant (after the warm-up)
  schedule_steps: int = 0  # horizon of the cosine; 0: train.steps
  final_ratio: float = 0.1  # last learning rate divided by the peak, in every parameter group
  beta1: float = 0.9
  beta2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.01
  clip: float = 1.0  # global norm, the step size's gradient included; 0: off
  max_bad_steps: int = 20  # stop after this number of non-finite steps in a row
  log_every: int = 10
  health_every: int = 100  # steps between diagnoses of thinking (entropies, slopes, curvature); 0: never

  @property
  def horizon(self) -> int:
    """Updates until the learning rate has fallen."""
    return self.schedule_steps or self.steps

  def check(self) -> None:
    self._one_of("optimizer", "adamw", "muon")
    self._one_of("schedule", "cosine", "constant")
    self._positive("steps", "batch_size", "microbatches", "learning_rate", "eps", "max_bad_steps", "log_every")
    self._at_least(0, "warmup", "schedule_steps", "weight_decay", "clip", "final_ratio", "warmup_start", "health_every")
    for key in ("beta1", "beta2"):
      if not 0 <= getattr(self, key) < 1:
        raise ConfigError(f"config.train.{key}: expected 0 <= x < 1, found {getattr(self, key)}")
    if self.batch_size > _MOST_ROWS:
      raise ConfigError(f"config.train.batch_size: expected at most {_MOST_ROWS:,} rows, found {self.batch_size:,}")
    if self.steps >= 2**31:
      raise ConfigError(f"config.train.steps: expected less than 2^31 (steps are counted in int32), found {self.steps}")
    if self.batch_size % self.microbatches:
      raise ConfigError(
        f"config.train.microbatches: batch_size {self.batch_size} does not divide into {self.microbatches} equal parts"
      )
    if self.schedule == "cosine" and self.warmup >= self.horizon:
      raise ConfigError(
        f"config.train.warmup: {self.warmup} steps leave nothing of the schedule's {self.horizon}; lower it"
      )


@dataclasses.dataclass(frozen=True)
class DataConfig(_Checks):
  """Where text comes from and how it becomes windows of `context_length` + 1 tokens.

  `source`: `embedded`; files or globs, comma-separated; `tfds:NAME[/CONFIG][:SPLIT]`; or a folder that
  `tools/tokenize_text.py` has made. `held_out_sources` are further texts to evaluate on, as `NAME=SOURCE` with `;`
  between them; none of their documents is trained on unless `source` has it too.
  """

  group = "data"

  source: str = "embedded"
  tokenizer: str = "bytes"  # bytes | path of a tokenizer.json
  context_length: int = 256
  layout: str = "packed"  # packed (documents joined by end-of-text) | document (one a row, cut and padded)
  text_key: str = "text"  # field or column of jsonl, parquet and tfds sources
  held_out: float = 0.02  # fraction of documents kept for evaluation
  held_out_sources: str = ""
  max_documents: int = 0  # 0: all
  max_tokens: int = 0  # training tokens used at most; 0: all
  max_bad: float = 0.05  # pictures: the largest share of files that cannot be used, which are left out

  @property
  def more_held_out(self) -> dict[str, str]:
    """Name -> source of the further held-out sets."""
    pairs = [pair.partition("=") for pair in self.held_out_sources.split(";") if pair.strip()]
    return {name.strip(): source.strip() for name, _, source in pairs}

  def check(self) -> None:
    self._one_of("layout", "packed", "document")
    self._at_least(2, "context_length")
    self._at_least(0, "max_documents", "max_tokens")
    if not 0 < self.held_out < 1:
      raise ConfigError(f"config.data.held_out: expected a fraction between 0 and 1, found {self.held_out}")
    if not 0 <= self.max_bad < 1:
      raise ConfigError(f"config.data.max_bad: expected a fraction from 0 to below 1, found {self.max_bad}")
    names = [pair.partition("=")[0].strip() for pair in self.held_out_sources.split(";") if pair.strip()]
    if twice := sorted({name for name in names if names.count(name) > 1}):
      raise ConfigError(f"config.data.held_out_sources: {twice[0]} is named twice; give each source a name of its own")
    for name, source in self.more_held_out.items():
      if name == "held_out":
        raise ConfigError("config.data.held_out_sources: held_out is the split of data.source; give another name")
      if not (name.isidentifier() and source):
        raise ConfigError(
          f"config.data.held_out_sources: expected NAME=SOURCE with `;` between them, NAME of letters, digits and "
          f"underscores, found {self.held_out_sources!r}"
        )


@dataclasses.dataclass(frozen=True)
class MaskConfig(_Checks):
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
class ImageConfig(_Checks):
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
class SudokuConfig(_Checks):
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
class InferenceConfig(_Checks):
  """How a trained model thinks (paper section 4.3 and appendix C)."""

  group = "eval"

  steps: int = 0  # thinking steps, or their budget where tolerance > 0; 0: thinking.steps
  steps_of: str = "final"  # landscapes that share the steps beyond one for each: final | every
  tolerance: float = 0.0  # t > 0: a candidate is finished when a step changes its energy by less than t
  choose: str = "energy"  # which candidate is kept: least energy | largest fall of energy | least free_energy
  accept: str = "all"  # which steps are kept: all | lower (those that lower the energy) | lower_authors
  step_size_factor: float = 1.0  # multiplies the trained step size
  noise: float = 0.0  # Langevin noise in place of the trained one; 0: as thinking.authors.eval_noise says
  adjust: str = "every"  # landscapes that step_size_factor and noise are for: every | final

  def check(self) -> None:
    self._at_least(0, "steps")
    self._one_of("steps_of", "final", "every")
    self._one_of("choose", "energy", "fall", "free_energy")
    self._one_of("accept", "all", "lower", "lower_authors")
    self._one_of("adjust", "every", "final")
    self._at_least(0.0, "tolerance", why=" (0 is off)")
    self._at_least(0.0, "noise")
    self._positive("step_size_factor")


@dataclasses.dataclass(frozen=True)
class EvalConfig(InferenceConfig):
  """How a trained model thinks, and when and on how much it is evaluated."""

  candidates: int = 1  # candidates of independent starts for each prediction
  every: int = 0  # training steps between evaluations; 0: only at the end
  batch_size: int = 0  # 0: train.batch_size; changes no result
  max_windows: int = 0  # evaluate on this many first examples of each held-out set; 0: on all
  seed: int = 0  # of the candidates' starts

  def check(self) -> None:
    super().check()
    self._at_least(0, "every", "batch_size", "max_windows")
    self._positive("candidates")


@dataclasses.dataclass(frozen=True)
class MeshConfig(_Checks):
  """Devices along each axis; -1 takes the remaining ones. FSDP over data, tensor parallel over model."""

  group = "mesh"

  replica: int = 1
  data: int = -1
  model: int = 1

  def check(self) -> None:
    axes = dataclasses.asdict(self)
    if list(axes.values()).count(-1) > 1:
      raise ConfigError("config.mesh: only one axis may be -1")
    for axis, n in axes.items():
      if n != -1 and n < 1:
        raise ConfigError(f"config.mesh.{axis}: expected a number of devices or -1 (the remaining ones), found {n}")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig(_Checks):
  """When training is saved; always at the end, at Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 and SIGUSR2."""

  group = "checkpoint"

  every: int = 0  # steps between checkpoints; 0: by time alone
  minutes: float = 10.0  # also save when the last checkpoint is this old; 0: never by time
  keep: int = 2  # how many of the newest checkpoints are kept
  keep_every: int = 0  # and every K-th step for ever; 0: none

  def check(self) -> None:
    self._at_least(0, "every", "keep_every", "minutes")
    self._positive("keep")


@dataclasses.dataclass(frozen=True)
class SampleConfig(_Checks):
  """What is shown at the end of training: a text that is generated, pictures that are denoised."""

  group = "sample"

  tokens: int = 160
  prompt_tokens: int = 48
  temperature: float = 0.8
  pictures: int = 8  # on the contact sheet; 0: none
  noised: bool = False  # the pictures of --mode=generate have their noise already

  def check(self) -> None:
    self._at_least(0, "tokens", "temperature", "pictures")
    self._positive("prompt_tokens")


@dataclasses.dataclass(frozen=True)
class Config(_Checks):
  """All of a run.

  `task` is a name of `ebt_jax.tasks.registry`, or `package.module:function` of your own, a function of the config
  that returns a task (see `experiments/own_task`).
  """

  seed: int = 0
  task: str = "text"
  init_from: str = ""  # folder of a run whose parameters a new run starts with
  init_skip: str = ""  # parameters that init_from leaves as they are: paths as errors name them, comma-separated
  model: ModelConfig = ModelConfig()
  thinking: ThinkingConfig = ThinkingConfig()
  train: TrainConfig = TrainConfig()
  data: DataConfig = DataConfig()
  mask: MaskConfig = MaskConfig()
  image: ImageConfig = ImageConfig()
  sudoku: SudokuConfig = SudokuConfig()
  eval: EvalConfig = EvalConfig()
  mesh: MeshConfig = MeshConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  sample: SampleConfig = SampleConfig()

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)

  @property
  def replayed_rows(self) -> int:
    """Rows that each training step takes from the replay buffer."""
    return int(self.thinking.replay_fraction * self.train.batch_size) if self.thinking.replay_rows else 0

  def check(self) -> None:
    """Raises ConfigError, naming key and fix."""
    groups = [self.model, self.thinking, self.train, self.data, self.eval, self.mesh, self.checkpoint, self.sample]
    groups += [getattr(self, self.task)] if self.task in ("image", "sudoku") else []
    groups += [self.mask] if self.task == "infill" else []
    together(ConfigError, operator.methodcaller("check"), groups)
    m, t, r = self.model, self.thinking, self.train
    if ":" not in self.task:
      self._one_of("task", *KINDS)
      m._one_of("kind", *KINDS[self.task])
    if self.task == "infill":
      self._check_infill()
    if self.task == "image":
      self._check_image()
    if self.task == "text" and t.start == "input":
      raise ConfigError("config.thinking.start: input is for pictures; set it to noise, zeros or context")
    if m.embedder == "tied" and t.authors.normalize == "never":
      raise ConfigError(
        "config.model.embedder: tied mixes token embeddings by probability; set thinking.authors.normalize"
      )
    if self.init_skip and not self.init_from:
      raise ConfigError("config.init_skip: names parameters that init_from leaves out, and init_from is not set")
    replayed = self.replayed_rows
    if t.replay_rows and replayed % r.microbatches:
      raise ConfigError(
        f"config.thinking.replay_fraction: {t.replay_fraction} of {r.batch_size} rows is {replayed} rows, which do "
        f"not divide into {r.microbatches} microbatches"
      )
    if t.replay_rows and not 0 < replayed <= t.replay_rows:
      raise ConfigError(
        f"config.thinking.replay_rows: {t.replay_rows} kept, and {replayed} drawn for each batch (replay_fraction "
        f"{t.replay_fraction} of {r.batch_size} rows); expected 1 or more drawn and at least as many kept"
      )
    if self.eval.candidates > 1:
      many = f"config.eval.candidates: {self.eval.candidates} candidates"
      if m.kind in DIRECT:
        raise ConfigError(f"{many} need energies to choose by, which model.kind={m.kind} has not; set it to 1")
      alike = not t.start_is_random and not (t.noise and t.authors.eval_noise or self.eval.noise)
      if self.task in ("text", "infill") and alike:
        raise ConfigError(f"{many} that start alike end alike; set thinking.start='noise', or candidates to 1")

  def _check_infill(self) -> None:
    """What models of masked rows do not have."""
    m, t, length = self.model, self.thinking, self.data.context_length
    if m.residual or t.start == "context":
      key = "model.residual" if m.residual else "thinking.start"
      raise ConfigError(f"config.{key}: infilling has no residual energy; set model.residual=False, start=noise")
    if m.passes > 1:
      raise ConfigError(f"config.model.passes: {m.passes}, but infilling applies its blocks once; set eval.steps")
    if m.vocab_chunk:
      raise ConfigError(f"config.model.vocab_chunk: {m.vocab_chunk}, but infilling holds answers whole; set it to 0")
    if self.mask.by_place and self.eval.candidates > 1:
      raise ConfigError(
        f"config.eval.candidates: {self.eval.candidates} candidates with mask.by_place would mix answers blank by "
        "blank; set one of the two off"
      )
    if self.mask.layout == "spans" and self.mask.span_max > length:
      raise ConfigError(
        f"config.mask.span_max: expected at most data.context_length={length} places, found {self.mask.span_max}"
      )

  def _check_image(self) -> None:
    """What pictures have to do with model and thinking."""
    m, t, i = self.model, self.thinking, self.image
    if m.width % 4:  # each head has an even width already
      raise ConfigError(f"config.model.width: {m.width} must divide by 4 for the positions of patches")
    for name, value in (("variant", "default"), ("norm", "rms"), ("activation", "silu"), ("embedder", "linear")):
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
      raise ConfigError(
        "config.thinking.start: context is what a residual energy predicts; set model.residual, or input"
      )
    if m.kind == "ebt" and self.eval.candidates > 1 and not t.start_scale:
      raise ConfigError("config.thinking.start_scale: 0, so that all of eval.candidates start alike; set it above 0")
