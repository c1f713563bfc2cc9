"""Sweeps as data: an algebra of config overrides, and the named runs that come out of it.

A sweep is a list of `Variant`s, each a few config keys with their values:

  sizes = zipped({"model.width": [64, 128], "train.learning_rate": [3e-3, 2.4e-3]})
  sweep = product(chain(sizes, grid({"train.batch_size": [8, 16]})), grid({"seed": [0, 1, 2]}))
  runs("configs/quickstart.py:ebt", sweep, base={"train.steps": 300})

A run's name is made of its own keys and values alone, so that a study may grow without any run changing its folder.
"""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import functools
import hashlib
import importlib.util
import os
import re
import sys
from typing import Any

from ebt_jax import config as config_lib
from ebt_jax.config import Config, ConfigError

_LONGEST = 120  # characters of a name; most file systems allow 255 for a file made from it


@dataclasses.dataclass(frozen=True)
class Variant:
  """Config keys, dotted and without `config.`, with their values; `label` stands for them in names."""

  values: Mapping[str, Any]
  label: str


@dataclasses.dataclass(frozen=True)
class Run:
  """One training run.

  Attributes:
    name: of its folder.
    config: a config file, with `:arg` or without.
    overrides: dotted key -> value, on top of the file.
  """

  name: str
  config: str
  overrides: Mapping[str, Any]

  def flags(self) -> list[str]:
    """What `python -m ebt_jax.main` is given, but for the folder."""
    return [f"--config={self.config}"] + [f"--config.{key}={value}" for key, value in self.overrides.items()]

  def resolve(self) -> Config:
    """The checked config. Raises ConfigError, naming the run."""
    try:
      return config_lib.resolve(apply(load(self.config), self.overrides))
    except ConfigError as e:
      raise ConfigError(f"run {self.name}: {e}") from e


def grid(axes: Mapping[str, Sequence[Any]]) -> list[Variant]:
  """Every combination of the values of each key."""
  return product(*([_variant({key: value}) for value in values] for key, values in axes.items()))


def zipped(axes: Mapping[str, Sequence[Any]]) -> list[Variant]:
  """The first values of all keys together, then the second, and so on. Raises ConfigError at unequal lengths."""
  lengths = {key: len(values) for key, values in axes.items()}
  if len(set(lengths.values())) > 1:
    raise ConfigError(f"zipped: expected as many values for each key, found {lengths}")
  return [_variant(dict(zip(axes, values))) for values in zip(*axes.values())]


def named(variants: Mapping[str, Mapping[str, Any]]) -> list[Variant]:
  """Overrides with labels of your own, for sets of keys that would make long names."""
  return [Variant(dict(values), label) for label, values in variants.items()]


def product(*sweeps: Sequence[Variant]) -> list[Variant]:
  """Every combination of one variant of each. Raises ConfigError where two give the same key."""
  return functools.reduce(lambda a, b: [_merge(u, v) for u in a for v in b], sweeps, [Variant({}, "")])


def chain(*sweeps: Sequence[Variant]) -> list[Variant]:
  """The variants of all, one sweep after the other, each once."""
  seen = {}
  for variant in (v for sweep in sweeps for v in sweep):
    seen.setdefault((variant.label, repr(sorted(variant.values.items()))), variant)
  return list(seen.values())


def prefix(group: str, sweep: Sequence[Variant]) -> list[Variant]:
  """The same sweep over the keys of a group: `prefix("train", grid({"steps": [1, 2]}))`."""
  return [_variant({f"{group}.{key}": value for key, value in v.values.items()}) for v in sweep]


def runs(config: str, sweep: Iterable[Variant], base: Mapping[str, Any] | None = None, label: str = "") -> list[Run]:
  """The named runs of a sweep over one config file.

  Args:
    config: a config file, with `:arg` or without.
    sweep: what the runs differ in. Its values go before those of `base`.
    base: overrides that all share, and that names leave out.
    label: first part of each name, to tell the runs of several config files apart.

  Raises:
    ConfigError: two runs would have one name.
  """
  out = [Run(_name(label, v.label), config, {**(base or {}), **v.values}) for v in sweep]
  return list(unique(out).values())


def unique(runs: Iterable[Run]) -> dict[str, Run]:
  """Runs by name, each once. Raises ConfigError where two differ under one name."""
  out: dict[str, Run] = {}
  for run in runs:
    other = out.setdefault(run.name, run)
    if other != run:
      mine, theirs = ({"config": r.config, **r.overrides} for r in (run, other))
      differ = sorted(k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k))
      raise ConfigError(f"two runs named {run.name!r} differ in {', '.join(differ)}; give one of them another label")
  return out


def load(config: str):
  """The ConfigDict of a config file, `FILE[:arg]`.

  Raises:
    ConfigError: there is no such file, it has no `get_config`, or it refuses its argument.
  """
  path, _, arg = config.partition(":")
  if not os.path.isfile(path):
    raise ConfigError(f"config file: no file {path!r} in {os.getcwd()}; expected FILE.py or FILE.py:arg")
  parent = os.path.dirname(os.path.dirname(os.path.abspath(path)))
  if parent not in sys.path:  # a config file may import its neighbours as `configs.NAME`, as under ebt_jax.main
    sys.path.append(parent)
  spec = importlib.util.spec_from_file_location("_config_" + re.sub(r"\W", "_", path), path)
  module = importlib.util.module_from_spec(spec)
  try:
    spec.loader.exec_module(module)
    return module.get_config(arg) if arg else module.get_config()
  except Exception as e:  # a config file may raise anything
    raise ConfigError(f"config file {config}: {type(e).__name__}: {e}") from e


def apply(config: Any, overrides: Mapping[str, Any]) -> Any:
  """Sets dotted keys of a ConfigDict and returns it. Raises ConfigError at a key that it has not."""
  for key, value in overrides.items():
    *groups, last = key.split(".")
    try:
      group = functools.reduce(lambda c, name: c[name], groups, config)
      group[last]  # a new key would not be an error
      with group.ignore_type():  # types are checked, and better explained, in `resolve`
        group[last] = value
    except (KeyError, TypeError, AttributeError):
      near = config_lib.near(f"config.{key}", config_lib.keys())
      raise ConfigError(f"config.{key}: no such key; {near}") from None
  return config


def _variant(values: Mapping[str, Any]) -> Variant:
  return Variant(dict(values), ",".join(f"{key}={_text(value)}" for key, value in sorted(values.items())))


def _text(value: Any) -> str:
  return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _merge(a: Variant, b: Variant) -> Variant:
  twice = a.values.keys() & b.values.keys()
  if twice:
    raise ConfigError(f"product: two factors set {', '.join(sorted(twice))}; leave it to one of them")
  return Variant({**a.values, **b.values}, ",".join(filter(None, (a.label, b.label))))


def _name(*parts: str) -> str:
  """Parts joined to a name that any file system and shell takes; what that loses goes into a digest."""
  whole = ",".join(filter(None, parts)) or "run"
  safe = re.sub(r"[^\w.,=+-]", "_", whole).lstrip(".-")
  if safe == whole and len(whole) <= _LONGEST:
    return whole
  return f"{safe[:_LONGEST]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
