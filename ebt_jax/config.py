"""Configuration: frozen dataclasses and the one function that checks them.

A config file returns the ConfigDict of `defaults()` with some values changed;
`resolve` turns it into the frozen `Config` that the rest of the program sees.
Defaults and checks live here and nowhere else.
"""

import dataclasses
import difflib
import json
import math
from typing import Any

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


class ConfigError(ValueError):
  """A config value is unknown, ill-typed or impossible; the text names the key and the fix."""


@dataclasses.dataclass(frozen=True)
class ModelConfig:
  """Architecture (facts of paper appendix D; `layers/heads/width` of 0 come from `size`)."""

  kind: str = "ebt"  # ebt | transformer
  size: str = "4xs"
  layers: int = 0
  heads: int = 0
  width: int = 0
  variant: str = "default"  # default | time_embed | adaln | adaln_zero
  vocab_size: int = 0  # 0: what the tokenizer has
  ffn_multiplier: float = 1.0  # hidden width of the FFN over width; the paper uses 1
  norm: str = "rms"  # rms | layer | dyt | none
  activation: str = "silu"  # silu | relu | gelu | elu
  dyt_scale: float = 0.5  # initial scale inside tanh, norm=dyt only
  embedder: str = "linear"  # candidate probabilities -> width: linear | tied (token table)
  init: str = "xavier"  # xavier | he
  init_gain: float = 1.0  # multiplies every initial linear weight but the energy head's
  head_gain: float = 1.0  # multiplies the energy head's initial weight
  dtype: str = "float32"  # matrix products: float32 | bfloat16; the rest stays float32
  remat: bool = False  # keep nothing of a layer for the backward pass (else what its projections gave)
  vocab_chunk: int = 0  # positions whose [rows, positions, vocab_size] is computed at once; 0: chosen by memory
  attention: str = "plain"  # plain | fused: kernels of the accelerator where one derivative is enough (models/fused.py)
  attention_block: int = (
    0  # query positions whose attention is computed at once; 0: all of less than 256, half of less than 512, else 256
  )

  @property
  def head_dim(self) -> int:
    return self.width // self.heads

  @property
  def hidden(self) -> int:
    return int(self.width * self.ffn_multiplier)


@dataclasses.dataclass(frozen=True)
class ThinkingConfig:
  """The inner optimisation (paper sections 3 and 4, appendix C).

  Step i of `steps` descends landscape min(i, landscapes - 1). With
  `random_steps_min` > 0 training draws how often a landscape is repeated, from
  `random_steps_min` to `steps - landscapes + 1` inclusive; evaluation never does.
  """

  steps: int = 2
  landscapes: int = 1
  step_size: float = 5.0
  learn_step_size: bool = True
  step_size_lr_multiplier: float = 15.0  # of the learning rate; the paper's rule is 3 x step_size
  step_size_min: float = 1e-4
  random_step_size: float = 1.0  # s > 1: uniform on [a/s, a*s] for each (row, position), training only
  random_steps_min: int = 0
  random_steps_of: str = "every"  # every | final: which landscapes are repeated at random
  noise: float = 0.0  # Langevin noise: standard deviation, added to the candidate before each step
  learn_noise: bool = False
  eval_noise: bool = False  # the authors also add the noise when they evaluate
  gradient: str = "each"  # each | last | unrolled
  step_size_path: bool = True  # `last`: the step size's gradient sees the earlier steps too
  start: str = "noise"  # noise | zeros
  start_scale: float = 1.0
  normalize: str = "every"  # softmax before the energy: every | first (landscape 0 only) | never
  clip_gradient: float = 0.0  # c > 0: |dE/dp| is clipped at c / step_size
  clip_candidate: float = 0.0  # c > 0: a stepped candidate is clipped at +-c
  sharpen: float = 0.0  # s != 0: a stepped candidate is divided by s
  soften_targets: float = 0.0  # label smoothing of the first step, falling to 0 at the last
  contrastive: float = 0.0  # weight of the energy contrast between truth and prediction
  replay_rows: int = 0  # finished thoughts that training keeps and thinks on; 0: none (paper: 192 a device)
  replay_fraction: float = 0.5  # replayed rows beside a batch, over the rows of the batch
  replay_gb: float = 4.0  # memory of the replay buffer over all devices; fewer rows are kept where it is too little


@dataclasses.dataclass(frozen=True)
class TrainConfig:
  """Outer optimisation: AdamW, warm-up and cosine (paper tables D.2 and D.3)."""

  steps: int = 1000
  batch_size: int = 32
  microbatches: int = 1
  learning_rate: float = 1e-3
  warmup: int = 100
  warmup_start: float = 0.0  # learning rate of step 0 over the peak
  schedule: str = "cosine"  # cosine | constant (after the warm-up)
  schedule_steps: int = 0  # horizon of the cosine; 0: train.steps
  final_ratio: float = 0.1  # last learning rate over the peak, in every parameter group
  beta1: float = 0.9
  beta2: float = 0.999
  eps: float = 1e-8
  weight_decay: float = 0.01
  clip: float = 1.0  # global norm, the step size's gradient included; 0: off
  max_bad_steps: int = 20  # stop after so many non-finite steps in a row
  log_every: int = 10
  health_every: int = 100  # steps between looks at the landscape (entropies, slopes, curvature); 0: never


@dataclasses.dataclass(frozen=True)
class DataConfig:
  """Where text comes from and how it becomes windows of `context_length` + 1 tokens."""

  source: str = "embedded"  # embedded | files or globs, comma-separated | tfds:NAME[/CONFIG][:SPLIT] | a folder of tools/tokenize_text.py
  tokenizer: str = "bytes"  # bytes | path of a tokenizer.json
  context_length: int = 256
  layout: str = "packed"  # packed (documents joined by end-of-text) | document (one a row, cut and padded)
  text_key: str = "text"  # field or column of jsonl, parquet and tfds sources
  held_out: float = 0.02  # fraction of documents kept for evaluation
  max_documents: int = 0  # 0: all
  max_tokens: int = 0  # training tokens used at most; 0: all


@dataclasses.dataclass(frozen=True)
class EvalConfig:
  """Evaluation and generation: how a trained model thinks (facts 3.2)."""

  every: int = 0  # training steps between evaluations; 0: only at the end
  batch_size: int = 0  # 0: train.batch_size
  max_windows: int = 0  # evaluate on the first so many windows; 0: the whole held-out split
  steps: int = 0  # thinking steps, or their budget where tolerance > 0; 0: thinking.steps
  steps_of: str = "final"  # landscapes that share the steps beyond one for each: final | every
  tolerance: float = 0.0  # t > 0: a candidate is finished when a step changes its energy by less than t
  candidates: int = 1  # thoughts of independent starts for each prediction
  choose: str = "energy"  # the candidate that is kept: of least energy | of the largest fall of energy
  accept: str = "all"  # steps that are kept: all | lower (those that lower the energy) | lower_authors (and their flaw)
  step_size_factor: float = 1.0  # of the trained step size
  noise: float = 0.0  # Langevin noise in place of the trained one; 0: as thinking.eval_noise says
  adjust: str = "every"  # landscapes that step_size_factor and noise are for: every | final
  seed: int = 0  # of the candidates' starts


@dataclasses.dataclass(frozen=True)
class MeshConfig:
  """Devices along each axis; -1 takes what is left. FSDP over data, tensor parallel over model."""

  replica: int = 1
  data: int = -1
  model: int = 1


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
  every: int = 0  # steps between checkpoints; 0: only the last
  keep: int = 2  # the newest so many are kept
  keep_every: int = 0  # and every K-th step for ever; 0: none


@dataclasses.dataclass(frozen=True)
class SampleConfig:
  """Text written at the end of training."""

  tokens: int = 160
  prompt_tokens: int = 48
  temperature: float = 0.8


@dataclasses.dataclass(frozen=True)
class Config:
  seed: int = 0
  task: str = "text"  # text
  model: ModelConfig = ModelConfig()
  thinking: ThinkingConfig = ThinkingConfig()
  train: TrainConfig = TrainConfig()
  data: DataConfig = DataConfig()
  eval: EvalConfig = EvalConfig()
  mesh: MeshConfig = MeshConfig()
  checkpoint: CheckpointConfig = CheckpointConfig()
  sample: SampleConfig = SampleConfig()

  def to_dict(self) -> dict[str, Any]:
    return dataclasses.asdict(self)


# A run may be resumed with other values of these; all other keys must agree.
RESUMABLE = (
    "mesh.", "checkpoint.", "eval.", "sample.", "train.log_every", "train.health_every", "train.max_bad_steps", "model.remat",
    "model.vocab_chunk", "model.attention",
)  # fmt: skip


def defaults():
  """The ConfigDict with every key and its default, for files in `configs/`."""
  import ml_collections  # not on every accelerator image, and only config files need it

  return ml_collections.ConfigDict(Config().to_dict())


def resolve(config: Any) -> Config:
  """Checks a ConfigDict or nested dict and returns the frozen Config.

  Args:
    config: keys of `Config`, all optional.

  Raises:
    ConfigError: an unknown or ill-typed key, or an impossible value.
  """
  if hasattr(config, "to_dict"):
    config = config.to_dict()
  c = _build(Config, config, "config")
  c = dataclasses.replace(c, model=_sized(c.model))
  _check(c)
  return c


def replayed(config: Config) -> int:
  """Rows that each training step takes from the replay buffer."""
  return int(config.thinking.replay_fraction * config.train.batch_size) if config.thinking.replay_rows else 0


def load(path) -> Config:
  """Reads a `config.json` that a run has written."""
  try:
    with open(path, encoding="utf-8") as f:
      return resolve(json.load(f))
  except (OSError, json.JSONDecodeError) as e:
    raise ConfigError(f"{path}: cannot be read as a config ({e}); is this the folder of a run?") from e


def differences(a: Config, b: Config) -> list[str]:
  """Keys in which two configs differ in a way that changes training, as `key: a -> b`."""
  a, b = _flatten(a.to_dict()), _flatten(b.to_dict())
  return [f"{k}: {a[k]!r} -> {b[k]!r}" for k in a if a[k] != b[k] and not k.startswith(RESUMABLE)]


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
  out = {}
  for k, v in tree.items():
    out.update(_flatten(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v})
  return out


def keys() -> list[str]:
  """Every key, as `config.group.name`."""
  return [f"config.{k}" for k in _flatten(Config().to_dict())]


def near(name: str, names) -> str:
  """`; did you mean ...?` for a mistyped name, or the list of what exists."""
  close = difflib.get_close_matches(name, list(names), n=3, cutoff=0.5)
  return f"did you mean {' or '.join(close)}?" if close else f"known: {', '.join(sorted(names))}"


def _build(cls, values: Any, where: str):
  if not isinstance(values, dict):
    raise ConfigError(f"{where}: expected a group of keys, found {values!r}")
  fields = {f.name: f for f in dataclasses.fields(cls)}
  out = {}
  for name, value in values.items():
    if name not in fields:
      raise ConfigError(f"{where}.{name}: no such key; {near(name, fields)}")
    default = fields[name].default
    if dataclasses.is_dataclass(default):
      out[name] = _build(type(default), value, f"{where}.{name}")
    else:
      out[name] = _typed(value, default, f"{where}.{name}")
  return cls(**out)


def _typed(value, default, where):
  expected = type(default)
  if expected is float and isinstance(value, int) and not isinstance(value, bool):
    value = float(value)
  if type(value) is not expected:
    raise ConfigError(f"{where}: expected {expected.__name__}, found {value!r} ({type(value).__name__})")
  if expected is float and not math.isfinite(value):
    raise ConfigError(f"{where}: expected a finite number, found {value!r}")
  return value


def _sized(m: ModelConfig) -> ModelConfig:
  if m.layers and m.heads and m.width:
    return m
  if m.size not in SIZES:
    raise ConfigError(f"config.model.size: no size {m.size!r}; {near(m.size, SIZES)}, or set layers, heads and width")
  layers, heads, width = SIZES[m.size]
  return dataclasses.replace(m, layers=m.layers or layers, heads=m.heads or heads, width=m.width or width)


def _check(c: Config) -> None:
  def one_of(key, value, *allowed):
    if value not in allowed:
      raise ConfigError(f"config.{key}: no choice {value!r}; {near(value, allowed)}")

  def at_least(key, value, low, why=""):
    if value < low:
      raise ConfigError(f"config.{key}: expected at least {low}{why}, found {value}")

  def positive(key, value, why=""):
    if not value > 0:
      raise ConfigError(f"config.{key}: expected more than 0{why}, found {value}")

  m, t, r, d = c.model, c.thinking, c.train, c.data
  one_of("task", c.task, "text")
  one_of("model.kind", m.kind, "ebt", "transformer")
  one_of("model.variant", m.variant, "default", "time_embed", "adaln", "adaln_zero")
  one_of("model.norm", m.norm, "rms", "layer", "dyt", "none")
  one_of("model.activation", m.activation, "silu", "relu", "gelu", "elu")
  one_of("model.embedder", m.embedder, "linear", "tied")
  one_of("model.init", m.init, "xavier", "he")
  one_of("model.dtype", m.dtype, "float32", "bfloat16")
  one_of("model.attention", m.attention, "plain", "fused")
  for key in ("layers", "heads", "width"):
    positive(f"model.{key}", getattr(m, key))
  at_least("model.vocab_size", m.vocab_size, 0)
  at_least("model.vocab_chunk", m.vocab_chunk, 0)
  at_least("model.attention_block", m.attention_block, 0)
  positive("model.ffn_multiplier", m.ffn_multiplier)
  if m.hidden < 1:
    raise ConfigError(f"config.model.ffn_multiplier: {m.ffn_multiplier} leaves no hidden unit at width {m.width}")
  if m.width % m.heads or m.head_dim % 2:
    raise ConfigError(
      f"config.model.width: {m.width} must divide by heads ({m.heads}) into an even head width; "
      f"the nearest width is {2 * m.heads * max(1, round(m.width / (2 * m.heads)))}"
    )

  one_of("thinking.gradient", t.gradient, "each", "last", "unrolled")
  one_of("thinking.random_steps_of", t.random_steps_of, "every", "final")
  one_of("thinking.start", t.start, "noise", "zeros")
  one_of("thinking.normalize", t.normalize, "every", "first", "never")
  positive("thinking.steps", t.steps)
  positive("thinking.landscapes", t.landscapes)
  positive("thinking.step_size", t.step_size)
  positive("thinking.step_size_min", t.step_size_min)
  positive("thinking.step_size_lr_multiplier", t.step_size_lr_multiplier)
  at_least("thinking.random_step_size", t.random_step_size, 1.0, " (1 is off)")
  at_least("thinking.random_steps_min", t.random_steps_min, 0, " (0 is off)")
  at_least("thinking.replay_rows", t.replay_rows, 0, " (0 is off)")
  positive("thinking.replay_fraction", t.replay_fraction)
  positive("thinking.replay_gb", t.replay_gb)
  if t.replay_rows and replayed(c) % r.microbatches:
    raise ConfigError(
      f"config.thinking.replay_fraction: {t.replay_fraction} of {r.batch_size} rows is {replayed(c)} rows, which do not "
      f"divide into {r.microbatches} microbatches"
    )
  if t.replay_rows and not 0 < replayed(c) <= t.replay_rows:
    raise ConfigError(
      f"config.thinking.replay_rows: {t.replay_rows} kept, and {replayed(c)} drawn for each batch (replay_fraction "
      f"{t.replay_fraction} of {r.batch_size} rows); expected 1 or more drawn and at least so many kept"
    )
  for key in ("noise", "start_scale", "clip_gradient", "clip_candidate", "contrastive"):
    at_least(f"thinking.{key}", getattr(t, key), 0.0)
  if not 0 <= t.soften_targets < 1:
    raise ConfigError(f"config.thinking.soften_targets: expected 0 <= x < 1, found {t.soften_targets}")
  if t.landscapes > t.steps:
    raise ConfigError(
      f"config.thinking.landscapes: {t.landscapes} landscapes need at least as many steps, found steps={t.steps}"
    )
  if t.random_steps_min > t.steps - t.landscapes + 1:
    raise ConfigError(
      f"config.thinking.random_steps_min: {t.random_steps_min} is more than the most repetitions that "
      f"steps={t.steps} and landscapes={t.landscapes} allow ({t.steps - t.landscapes + 1}); raise thinking.steps"
    )
  if t.contrastive and t.normalize == "never":
    raise ConfigError("config.thinking.contrastive: needs candidates that are probabilities; set thinking.normalize")
  if m.embedder == "tied" and t.normalize == "never":
    raise ConfigError("config.model.embedder: tied mixes token embeddings by probability; set thinking.normalize")

  one_of("train.schedule", r.schedule, "cosine", "constant")
  for key in ("steps", "batch_size", "microbatches", "learning_rate", "eps", "max_bad_steps", "log_every"):
    positive(f"train.{key}", getattr(r, key))
  for key in ("warmup", "schedule_steps", "weight_decay", "clip", "final_ratio", "warmup_start", "health_every"):
    at_least(f"train.{key}", getattr(r, key), 0)
  for key in ("beta1", "beta2"):
    if not 0 <= getattr(r, key) < 1:
      raise ConfigError(f"config.train.{key}: expected 0 <= x < 1, found {getattr(r, key)}")
  if r.batch_size % r.microbatches:
    raise ConfigError(
      f"config.train.microbatches: batch_size {r.batch_size} does not divide into {r.microbatches} equal parts"
    )
  horizon = r.schedule_steps or r.steps
  if r.schedule == "cosine" and r.warmup >= horizon:
    raise ConfigError(f"config.train.warmup: {r.warmup} steps leave nothing of the schedule's {horizon}; lower it")

  one_of("data.layout", d.layout, "packed", "document")
  at_least("data.context_length", d.context_length, 2)
  at_least("data.max_documents", d.max_documents, 0)
  at_least("data.max_tokens", d.max_tokens, 0)
  if not 0 < d.held_out < 1:
    raise ConfigError(f"config.data.held_out: expected a fraction between 0 and 1, found {d.held_out}")

  for key in ("every", "batch_size", "max_windows", "steps"):
    at_least(f"eval.{key}", getattr(c.eval, key), 0)
  positive("eval.candidates", c.eval.candidates)
  one_of("eval.steps_of", c.eval.steps_of, "final", "every")
  one_of("eval.choose", c.eval.choose, "energy", "fall")
  one_of("eval.accept", c.eval.accept, "all", "lower", "lower_authors")
  one_of("eval.adjust", c.eval.adjust, "every", "final")
  at_least("eval.tolerance", c.eval.tolerance, 0.0, " (0 is off)")
  at_least("eval.noise", c.eval.noise, 0.0)
  positive("eval.step_size_factor", c.eval.step_size_factor)
  if c.eval.candidates > 1:
    many = f"config.eval.candidates: {c.eval.candidates} candidates"
    if m.kind != "ebt":
      raise ConfigError(f"{many} need energies to choose by, which model.kind={m.kind} has not; set it to 1")
    if not (t.start == "noise" and t.start_scale) and not (t.noise and t.eval_noise) and not c.eval.noise:
      raise ConfigError(f"{many} that start alike end alike; set thinking.start='noise', or candidates to 1")
  at_least("checkpoint.every", c.checkpoint.every, 0)
  at_least("checkpoint.keep_every", c.checkpoint.keep_every, 0)
  positive("checkpoint.keep", c.checkpoint.keep)
  at_least("sample.tokens", c.sample.tokens, 0)
  positive("sample.prompt_tokens", c.sample.prompt_tokens)
  at_least("sample.temperature", c.sample.temperature, 0.0)
  axes = dataclasses.asdict(c.mesh)
  if list(axes.values()).count(-1) > 1:
    raise ConfigError("config.mesh: only one axis may be -1")
  for axis, n in axes.items():
    if n != -1 and n < 1:
      raise ConfigError(f"config.mesh.{axis}: expected a number of devices or -1 (what is left), found {n}")
