"""What all config groups share: the error, and checks of single values that name their key."""

from __future__ import annotations

from collections.abc import Iterable
import difflib

from ebt_jax.errors import UserError


class ConfigError(UserError, ValueError):
  """A config value is unknown, ill-typed or impossible; the text names the key and the fix."""


def near(name: str, names: Iterable[str]) -> str:
  """`did you mean ...?` for a mistyped name, or else the names that exist, at most 30 of them."""
  names = sorted(names)
  close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
  if close:
    return f"did you mean {' or '.join(close)}?"
  return f"known: {', '.join(names[:30])}" + (f" and {len(names) - 30} more" if len(names) > 30 else "")


class Checks:
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
