"""Sweeps as data: config overrides that can be combined, and the named training runs that they make.

A sweep is a list of `Variant`s. A variant is a few config keys with their values:

  sizes = named({"small": {"model.width": 64, "model.heads": 1}, "large": {"model.width": 128, "model.heads": 2}})
  sweep = chain(sizes, grid({"train.batch_size": [8, 16]}))
  runs("configs/quickstart.py:ebt", sweep, base={"train.steps": 300}, seeds=[0, 1, 2])

A run is named by its own keys and values. Adding runs to a study therefore never changes the folder of another run.
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
from ebt_jax import modules
from ebt_jax.config import Config, ConfigError

_MAX_NAME = 120  # characters; most file systems allow 255 for a file name, and suffixes are added


@dataclasses.dataclass(frozen=True)
class Variant:
  """Config keys (dotted, without `config.`) with their values, and the `label` that stands for them in names."""

  values: Mapping[str, Any]
  label: str


@dataclasses.dataclass(frozen=True)
class Run:
  """One training run.

  Attributes:
    name: name of its folder. It may end in a digest, so nothing is read out of it.
    config: a config file, `FILE.py` or `FILE.py:arg`.
    overrides: dotted key -> value, on top of the file.
    series: label of the runs that share a config file.
    level: label of the variant, without series and seed. Runs of equal level are compared between series.
  """

  name: str
  config: str
  overrides: Mapping[str, Any]
  series: str = ""
  level: str = ""

  def flags(self) -> list[str]:
    """The flags for `python -m ebt_jax.main`, without `--workdir`."""
    return [f"--config={self.config}"] + [f"--config.{key}={value}" for key, value in self.overrides.items()]

  def resolve(self) -> Config:
    """The checked config. Raises ConfigError, which names the run."""
    try:
      return config_lib.resolve(apply(read_config(self.config), self.overrides))
    except ConfigError as e:
      raise ConfigError(f"run {self.name}: {e}") from e


def grid(axes: Mapping[str, Sequence[Any]]) -> list[Variant]:
  """Every combination of the values of each key."""
  return product(*([Variant({k: v}, f"{k}={_text(v)}") for v in values] for k, values in axes.items()))


def named(variants: Mapping[str, Mapping[str, Any]]) -> list[Variant]:
  """Variants with labels of your own, for sets of keys that would make long names."""
  return [Variant(dict(values), label) for label, values in variants.items()]


def product(*sweeps: Sequence[Variant]) -> list[Variant]:
  """Every combination of one variant from each sweep. Raises ConfigError where two variants set the same key."""
  return functools.reduce(lambda a, b: [_merge(u, v) for u in a for v in b], sweeps, [Variant({}, "")])


def chain(*sweeps: Sequence[Variant]) -> list[Variant]:
  """The variants of all sweeps, one sweep after the other, without duplicates."""
  seen = {}
  for variant in (v for sweep in sweeps for v in sweep):
    seen.setdefault((variant.label, repr(sorted(variant.values.items()))), variant)
  return list(seen.values())


def runs(
  config: str,
  sweep: Iterable[Variant],
  base: Mapping[str, Any] | None = None,
  series: str = "",
  seeds: Sequence[int] = (),
) -> list[Run]:
  """The named runs of a sweep over one config file.

  Args:
    config: a config file, `FILE.py` or `FILE.py:arg`.
    sweep: the variants. Where a variant and `base` set the same key, the variant counts.
    base: overrides that all runs share. They are not part of the names.
    series: first part of each name, to tell the runs of several config files apart.
    seeds: each variant is trained once with each seed; empty: once, with the seed of the config.

  Raises:
    ConfigError: two runs would have the same name, or a variant sets `seed` beside `seeds`.
  """
  out = []
  for variant in sweep:
    for one in product([variant], grid({"seed": seeds})) if seeds else [variant]:
      overrides = {**(base or {}), **one.values}
      out.append(Run(_name(series, one.label), config, overrides, series, variant.label))
  return list(unique(out).values())


def unique(runs: Iterable[Run]) -> dict[str, Run]:
  """Runs by name, without duplicates. Raises ConfigError where two runs of the same name differ."""
  out: dict[str, Run] = {}
  for run in runs:
    other = out.setdefault(run.name, run)
    if other != run:
      mine, theirs = ({"config": r.config, "series": r.series, "level": r.level, **r.overrides} for r in (run, other))
      differ = sorted(k for k in {**mine, **theirs} if mine.get(k) != theirs.get(k))
      raise ConfigError(f"two runs named {run.name!r} differ in {', '.join(differ)}; give one of them another label")
  return out


def read_config(config: str):
  """The ConfigDict of a config file, `FILE[:arg]`.

  Raises:
    ConfigError: there is no such file, it has no `get_config`, or it refuses its argument.
  """
  path, _, arg = config.partition(":")
  if not os.path.isfile(path):
    raise ConfigError(f"config file: no file {path!r} in {os.getcwd()}; expected FILE.py or FILE.py:arg")
  if not path.endswith(".py"):
    raise ConfigError(f"config file: {path} does not end in .py; give a Python file with get_config()")
  parent = os.path.dirname(os.path.dirname(os.path.abspath(path)))
  if parent not in sys.path:  # a config file may import its neighbours as `configs.NAME`, as under ebt_jax.main
    sys.path.append(parent)
  spec = importlib.util.spec_from_file_location("_config_" + re.sub(r"\W", "_", path), path)
  module = importlib.util.module_from_spec(spec)
  sys.modules[spec.name] = module  # dataclasses look their module up there
  try:
    with modules.neighbours(path):
      spec.loader.exec_module(module)
      found = module.get_config(arg) if arg else module.get_config()
  except Exception as e:  # a config file may raise anything
    raise ConfigError(f"config file {config}: {type(e).__name__}: {e}") from e
  if not hasattr(found, "to_dict"):
    raise ConfigError(f"{path}: get_config() gave {found!r}, expected a ConfigDict; end it with `return config`")
  return found


def apply(config: Any, overrides: Mapping[str, Any]) -> Any:
  """Sets dotted keys of a ConfigDict and returns it. Raises ConfigError for a key that the config does not have."""
  for key, value in overrides.items():
    *groups, last = key.split(".")
    try:
      group = functools.reduce(lambda c, name: c[name], groups, config)
      group[last]  # assigning a new key would raise nothing
      with group.ignore_type():  # types are checked, and better explained, in `resolve`
        group[last] = value
    except (KeyError, TypeError, AttributeError):
      near = config_lib.near(f"config.{key}", config_lib.keys())
      raise ConfigError(f"config.{key}: no such key; {near}") from None
  return config


def _text(value: Any) -> str:
  return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _merge(a: Variant, b: Variant) -> Variant:
  twice = a.values.keys() & b.values.keys()
  if twice:
    raise ConfigError(f"product: two sweeps set {', '.join(sorted(twice))}; leave it to one of them")
  return Variant({**a.values, **b.values}, ",".join(filter(None, (a.label, b.label))))


def _name(*parts: str) -> str:
  """The parts, joined to a name that is safe in any file system and shell; a digest replaces what had to be cut."""
  whole = ",".join(filter(None, parts)) or "run"
  safe = re.sub(r"[^\w.,=+-]", "_", whole).lstrip(".-")
  if safe == whole and len(whole) <= _MAX_NAME:
    return whole
  return f"{safe[:_MAX_NAME]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"
