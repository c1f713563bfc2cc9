"""The base of all errors that a user can mend, and how several are reported at once."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any


class UserError(Exception):
  """A flag, a config key, a file or the machine is not as it must be; the text names it, what was found, and the fix.

  `ebt_jax.cli.door` shows it as one message and exit code 2. Every other exception is a fault of the program, and keeps
  its traceback.

  Attributes:
    parts: the errors that this one reports at once; empty where it is a single one.
  """

  parts: Sequence["UserError"] = ()


def together(kind: type[UserError], check: Callable[[Any], None], parts: Iterable[Any]) -> None:
  """Calls `check` with every part, and only then raises the errors of this kind, as one: each on a line of its own."""
  found = []
  for part in parts:
    try:
      check(part)
    except kind as e:
      found += e.parts or [e]
  if len(found) == 1:
    raise found[0]
  if found:
    several = kind("\n  ".join([f"{len(found)} mistakes:", *map(str, found)]))
    several.parts = found
    raise several
