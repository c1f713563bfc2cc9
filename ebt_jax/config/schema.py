"""Config keys with their defaults, meanings and checks: frozen dataclasses, one for each group of keys.

Groups of single tasks are in `tasks`.

`check` of a group looks at its own values; `Config.check` looks at what groups have to do with each other.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

from ebt_jax.config import tasks
from ebt_jax.config.checks import Checks, ConfigError, near
from ebt_jax.config.tasks import ImageConfig, MaskConfig, SudokuConfig, VideoConfig
from ebt_jax.errors import together

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

_MOST_ROWS = 2**24  # of a batch: with many more, a host only makes lists until its memory is full


@dataclasses.dataclass(frozen=True)
class ModelConfig(Checks):
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
  cell: str = "rg_lru"  # of kind rnn: rg_lru (Griffin's and Hawk's) | lstm
  passes: int = 1  # times that Transformer++ applies its blocks, with the same weights (a looped Transformer)
  latent_updates: int = 0  # of kind looped: updates of a latent stream in each pass; 0: it has none
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
    self._one_of("cell", "rg_lru", "lstm")
    self._positive("layers", "heads", "width", "ffn_multiplier", "passes")
    self._at_least(0, "vocab_size", "vocab_chunk", "attention_block", "energy_gain", "latent_updates")
    if self.energy_gain != 1 and not self.residual:
      raise ConfigError(f"{self._key('energy_gain')}: {self.energy_gain} is for residual energies; set model.residual")
    if self.latent_updates and self.kind != "looped":
      raise ConfigError(f"{self._key('latent_updates')}: is for model.kind=looped, found kind={self.kind}; set it to 0")
    if self.passes > 1 and self.kind == "ebt":
      raise ConfigError(f"{self._key('passes')}: an EBT thinks instead; set thinking.steps, or model.kind=transformer")
    if self.residual and self.kind in ("transformer", "rnn"):
      raise ConfigError(f"{self._key('residual')}: model.kind={self.kind} has no energy; set it to False, or kind=ebt")
    if self.cell != "rg_lru" and self.kind != "rnn":
      raise ConfigError(f"{self._key('cell')}: {self.cell} is a recurrent cell; set model.kind=rnn, or leave it out")
    for name, only in (("passes", 1), ("attention", "plain"), ("attention_block", 0), ("variant", "default")):
      if self.kind == "rnn" and getattr(self, name) != only:
        raise ConfigError(
          f"{self._key(name)}: model.kind=rnn has no choice of it, found {getattr(self, name)}; leave it out"
        )
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
class AuthorsConfig(Checks):
  """Options of the authors' code that they report as no help; kept so that their numbers can be reproduced."""

  group = "thinking.authors"

  normalize: str = "every"  # softmax before the energy: every | first (landscape 0 only) | never
  clip_gradient: float = 0.0  # c > 0: |dE/dp| is clipped at c / step_size
  clip_candidate: float = 0.0  # c > 0: a stepped candidate is clipped at +-c
  sharpen: float = 0.0  # s != 0: a stepped candidate is divided by s
  soften_targets: float = 0.0  # label smoothing of the first step, falling to 0 at the last
  contrastive: float = 0.0  # weight of the energy contrast between truth and prediction
  eval_noise: bool = False  # add the Langevin noise in evaluation too
  noise_embedding: bool = False  # video: the Langevin noise is added to the projected frame that the energy is given

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
class ThinkingConfig(Checks):
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
  momentum: float = 0.0  # beta in [0, 1): a step follows m <- beta m + slope (heavy ball)
  noise: float = 0.0  # Langevin noise: standard deviation, added to the candidate before each step
  learn_noise: bool = False
  noise_falls: bool = False  # from landscape to landscape: of k, landscape i has 1 - i / k of the noise
  contrast: float = 0.0  # weight of the energy contrast between the truth and a wrong answer, `Problem.wrong`
  contrast_of: str = "pair"  # pair (the truth below the wrong one) | each (below 0 and above 0, whatever the other is)
  gradient: str = "each"  # each | last | unrolled
  step_size_path: bool = True  # `last`: the step size's gradient sees the earlier steps too
  start: str = "noise"  # noise | zeros | input (what is known: a noised picture, the last frame) | context (see below)
  explore: int = 1  # starts of each answer in training, of which the one that ends best is learnt from
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
    self._one_of("contrast_of", "pair", "each")
    self._positive("explore", "steps", "landscapes", "step_size", "step_size_min", "step_size_lr_multiplier")
    self._positive("replay_fraction", "replay_gb")
    self._at_least(1.0, "random_step_size", why=" (1 is off)")
    self._at_least(0, "random_steps_min", "replay_rows", why=" (0 is off)")
    self._at_least(0.0, "noise", "start_scale", "contrast", "momentum")
    if self.momentum >= 1:
      raise ConfigError(f"config.thinking.momentum: expected at least 0 (off) and less than 1, found {self.momentum:g}")
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
    if self.explore > 1:
      many = f"config.thinking.explore: {self.explore} starts"
      if self.start in ("zeros", "context") or not self.start_scale:
        raise ConfigError(f"{many} have to differ; set thinking.start=noise and start_scale above 0, or explore to 1")
      if self.replay_rows:
        raise ConfigError(f"{many}, but replayed thoughts have one; set thinking.replay_rows to 0, or explore to 1")
    self.authors.check()


@dataclasses.dataclass(frozen=True)
class TrainConfig(Checks):
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
class DataConfig(Checks):
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
  text_key: str = "text"  # field or column of jsonl, parquet and tfds sources; of a chat, the list of its messages
  prompt_key: str = ""  # field with the prompt of `text_key`: read before it, and not learnt; needs layout=document
  held_out: float = 0.02  # fraction of documents kept for evaluation
  held_out_sources: str = ""
  max_documents: int = 0  # 0: all
  max_tokens: int = 0  # training tokens used at most; 0: all
  max_bad: float = 0.05  # pictures: the largest share of files that cannot be used, which are left out

  @property
  def limits(self) -> dict[str, int]:
    """Keys that are set and leave out what the source holds beyond them."""
    return {key: n for key in ("max_documents", "max_tokens") if (n := getattr(self, key))}

  @property
  def more_held_out(self) -> dict[str, str]:
    """Name -> source of the further held-out sets."""
    pairs = [pair.partition("=") for pair in self.held_out_sources.split(";") if pair.strip()]
    return {name.strip(): source.strip() for name, _, source in pairs}

  def check(self) -> None:
    self._one_of("layout", "packed", "document")
    self._at_least(2, "context_length")
    if self.prompt_key and self.layout != "document":
      raise ConfigError(
        f"config.data.prompt_key: {self.prompt_key!r} needs a row for each prompt and answer; set data.layout=document"
      )
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
class InferenceConfig(Checks):
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
class MeshConfig(Checks):
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
class CheckpointConfig(Checks):
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
class SampleConfig(Checks):
  """What is shown at the end of training: a text that is generated, pictures that are denoised, films that go on."""

  group = "sample"

  tokens: int = 160
  prompt_tokens: int = 48
  temperature: float = 0.8
  pictures: int = 8  # on the contact sheet, or films that go on; 0: none
  given_frames: int = 4  # of a film, after which it goes on
  frames: int = 16  # that are added to it
  noised: bool = False  # the pictures of --mode=generate have their noise already

  def check(self) -> None:
    self._at_least(0, "tokens", "temperature", "pictures")
    self._positive("prompt_tokens", "given_frames", "frames")


@dataclasses.dataclass(frozen=True)
class Config(Checks):
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
  video: VideoConfig = VideoConfig()
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
    groups += [getattr(self, tasks.GROUPS[self.task])] if self.task in tasks.GROUPS else []
    together(ConfigError, operator.methodcaller("check"), groups)
    m, t, r = self.model, self.thinking, self.train
    if ":" not in self.task:
      tasks.check(self)
    if m.embedder == "tied" and t.authors.normalize == "never":
      raise ConfigError(
        "config.model.embedder: tied mixes token embeddings by probability; set thinking.authors.normalize"
      )
    if t.momentum and self.eval.accept == "lower_authors":
      raise ConfigError("config.eval.accept: lower_authors is not built for thinking.momentum; set it to lower")
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
    if t.explore > 1 and m.kind in tasks.DIRECT:
      raise ConfigError(f"config.thinking.explore: {t.explore} starts, but model.kind={m.kind} has none; set it to 1")
    if self.eval.candidates > 1:
      many = f"config.eval.candidates: {self.eval.candidates} candidates"
      if m.kind in tasks.DIRECT:
        raise ConfigError(f"{many} need energies to choose by, which model.kind={m.kind} has not; set it to 1")
      alike = not t.start_is_random and not (t.noise and t.authors.eval_noise or self.eval.noise)
      if self.task in ("text", "infill", "video") and alike:
        raise ConfigError(f"{many} that start alike end alike; set thinking.start='noise', or candidates to 1")
