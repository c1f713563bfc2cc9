"""From what users write to a checked `Config`: typed building, overrides, files, and how two configs differ."""

import ast
from collections.abc import Iterable
import dataclasses
import math
from typing import Any

from ebt_jax import files
from ebt_jax.config.checks import ConfigError, near
from ebt_jax.config.schema import Config
from ebt_jax.errors import UserError, together

# A run may go on with other values of these groups and keys; all other keys must agree.
RESUMABLE_GROUPS = ("mesh", "checkpoint", "eval", "sample")
RESUMABLE = (
  "train.log_every",
  "train.health_every",
  "train.max_bad_steps",
  "model.remat",
  "model.vocab_chunk",
  "model.attention",
  "model.attention_block",
)
# Keys that say where something is. Where a run knows what was there, it compares that and not the names.
PLACES = ("data.source", "data.tokenizer")
# Keys of earlier versions: where their value is now. `load` reads old runs, users are told the new name.
MOVED = {
  f"thinking.{name}": f"thinking.authors.{name}"
  for name in (
    "normalize", "clip_gradient", "clip_candidate", "sharpen", "soften_targets", "contrastive", "eval_noise",
  )
}  # fmt: skip

# Keys of earlier versions that are gone: the value that was off.
REMOVED = {
  "model.residual_drop": 0,
  "model.residual_end": 1,
  "model.answer_layers": 0,
  "thinking.loss_rise": 0,
}


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
  c = dataclasses.replace(c, model=c.model.sized())
  c.check()
  return c


def load(path) -> Config:
  """Reads a `config.json` that a run has written."""
  try:
    values = files.read_json(path, "a config", "is this the folder of a run?")
  except UserError as e:
    raise ConfigError(str(e)) from e
  for old, new in MOVED.items():
    group, name = old.split(".")
    if isinstance(values.get(group), dict) and name in values[group]:
      new_group, new_name = new.split(".")[1:]
      values[group].setdefault(new_group, {})[new_name] = values[group].pop(name)
  for key, off in REMOVED.items():
    group, name = key.split(".")
    found = values[group].pop(name, off) if isinstance(values.get(group), dict) else off
    if found != off:
      raise ConfigError(f"{path}: config.{key} is {found!r}, which this version no longer has; use an older one")
  return resolve(values)


def set_keys(config: Any, assignments: Iterable[str]) -> Config:
  """A config with `KEY=VALUE` strings applied, e.g. `eval.steps=6`; values are typed as the keys are.

  Args:
    config: a `Config`, or a ConfigDict that is not resolved yet.
    assignments: what the flag `--set` is given; `config.KEY=VALUE` is what the flag `--config.KEY=VALUE` says.

  Raises:
    ConfigError: no such key, a value of another type, or an impossible one.
  """
  values = config.to_dict()

  def put(assignment):
    key, value = key_value(assignment)
    if key == "model.size" and isinstance(config, Config):  # its layers, heads and width are not 0
      raise ConfigError(f"--set {assignment}: this model has its size; set model.layers, model.heads and model.width")
    *groups, name = key.split(".")
    group = values
    for part in groups:
      group = group.setdefault(part, {})
    group[name] = value

  together(ConfigError, put, assignments)
  return resolve(values)


def key_value(assignment: str) -> tuple[str, Any]:
  """Key and typed value of one of the assignments of `set_keys`. Raises ConfigError where it is wrong."""
  known = _flatten(Config().to_dict())
  flag = "--" if assignment.startswith("config.") else "--set "
  key, equals, text = assignment.partition("=")
  key = key.strip().removeprefix("config.")
  if not equals:
    raise ConfigError(f"{flag}{assignment}: expected KEY=VALUE, e.g. --set eval.steps=6")
  if key in MOVED:
    raise ConfigError(f"{flag}{assignment}: {key} is now {MOVED[key]}")
  if key not in known:
    raise ConfigError(f"{flag}{assignment}: no such key; {near(key, known)}")
  return key, parse(text, known[key], f"{flag}{assignment.partition('=')[0]}")


def parse(text: str, default: Any, where: str) -> Any:
  """The value that a string stands for, of the type of `default`."""
  if isinstance(default, str):
    return text
  try:
    value = ast.literal_eval({"true": "True", "false": "False"}.get(text.strip().lower(), text.strip()))
  except (ValueError, SyntaxError, RecursionError, MemoryError):  # it is no literal
    value = text
  return _typed(value, default, where)


def differences(there: Config, here: Config, places: bool = True) -> list[str]:
  """Keys in which two configs differ in a way that changes training, as `key: there -> here`.

  A run may be given more steps where its learning rate does not depend on how many there are.

  Args:
    places: whether the names of sources count; not where their content is compared.
  """
  a, b = _flatten(there.to_dict()), _flatten(here.to_dict())
  free = {*RESUMABLE, *(() if places else PLACES)}
  if there.train.schedule == "constant" or there.train.schedule_steps:
    free.add("train.steps")
  return [
    f"{k}: {a[k]!r} -> {b[k]!r}"
    for k in a
    if a[k] != b[k] and k not in free and k.split(".")[0] not in RESUMABLE_GROUPS
  ]


def keys() -> list[str]:
  """Every key, as `config.group.name`."""
  return [f"config.{k}" for k in _flatten(Config().to_dict())]


def _flatten(tree: dict, prefix: str = "") -> dict[str, Any]:
  out = {}
  for k, v in tree.items():
    out.update(_flatten(v, f"{prefix}{k}.") if isinstance(v, dict) else {prefix + k: v})
  return out


def _build(cls, values: Any, where: str):
  if not isinstance(values, dict):
    raise ConfigError(f"{where}: expected a group of keys, found {values!r}")
  fields = {f.name: f for f in dataclasses.fields(cls)}
  out = {}

  def take(item):
    name, value = item
    moved = MOVED.get(f"{where}.{name}".removeprefix("config."))
    if moved:
      raise ConfigError(f"{where}.{name}: is now config.{moved}")
    if name not in fields:
      raise ConfigError(f"{where}.{name}: no such key; {near(name, fields)}")
    default = fields[name].default
    if dataclasses.is_dataclass(default):
      out[name] = _build(type(default), value, f"{where}.{name}")
    else:
      out[name] = _typed(value, default, f"{where}.{name}")

  together(ConfigError, take, values.items())
  return cls(**out)


def _typed(value, default, where):
  expected = type(default)
  if type(value) is int and abs(value) >= 2**63:
    raise ConfigError(f"{where}: expected a number below 2^63, found one of {value.bit_length()} bits")
  if expected is float and type(value) is int:
    value = float(value)
  if type(value) is not expected:
    found = repr(value)
    found = found if len(found) <= 80 else f"{found[:80]}..."
    raise ConfigError(f"{where}: expected {expected.__name__}, found {found} ({type(value).__name__})")
  if expected is float and not math.isfinite(value):
    raise ConfigError(f"{where}: expected a finite number, found {value!r}")
  return value
