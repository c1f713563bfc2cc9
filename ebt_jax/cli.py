"""What all commands share: how flags are parsed, what paths mean, and the door through which errors reach the user."""

import argparse
from collections.abc import Callable
import os
import pathlib
import signal
import sys
import traceback
import typing

from ebt_jax import files, terminal
from ebt_jax.config import ConfigError, near
from ebt_jax.errors import UserError

USAGE = 2  # exit code of everything that the user can mend; a launcher does not try such a command again
INTERRUPTED = 128 + signal.SIGINT


class Parser(argparse.ArgumentParser):
  """An ArgumentParser that says in one message what is wrong, and names the nearest flag."""

  def error(self, message: str) -> typing.NoReturn:
    raise ConfigError(message.removeprefix("argument "))

  def parse_args(self, args=None, namespace=None) -> argparse.Namespace:
    """Flags by name. Raises ConfigError where a flag is unknown, missing, or has an impossible value."""
    found, rest = self.parse_known_args(args, namespace)
    if rest:
      self.refuse(rest)
    return found

  def refuse(self, rest: list[str]) -> typing.NoReturn:
    """Raises ConfigError about the first argument that is no flag."""
    flag = rest[0].partition("=")[0]
    if not flag.startswith("-"):
      raise ConfigError(f"{flag}: not a flag; flags look like --name=value")
    shown = (action for action in self._actions if action.help != argparse.SUPPRESS)
    known = [option for action in shown for option in action.option_strings if option.startswith("--")]
    raise ConfigError(f"{flag}: no such flag; {near(flag, known)}")


def local(text: str) -> str:
  """The type of a flag that is a file or a folder of this machine, or empty; `~` is the home folder."""
  try:
    return files.local(text)
  except UserError as e:
    raise argparse.ArgumentTypeError(str(e)) from e


def path(text: str) -> pathlib.Path:
  """`local`, for a flag that may not be empty."""
  if not text:
    raise argparse.ArgumentTypeError("expected a path, found nothing")
  return pathlib.Path(local(text))


def anywhere(text: str) -> str:
  """The type of a flag that is the address of an object store, a path of this machine, or empty."""
  return text if files.is_remote(text) else local(text)


def at_least(low: int) -> Callable[[str], int]:
  """The type of a flag that is an integer of at least `low`."""

  def integer(text: str) -> int:
    try:
      value = int(text)
    except ValueError as e:
      raise argparse.ArgumentTypeError(f"expected an integer, found {text[:40]!r}") from e
    if value < low:
      raise argparse.ArgumentTypeError(f"expected {low} or more, found {value}")
    return value

  return integer


def door(command: Callable[..., int | None], *arguments, kept: str = "") -> int:
  """Runs a command and returns its exit code: its own (None: 0), 2 for what a user can mend, 130 for Ctrl-C.

  Args:
    command: its errors become one message on standard error, unless they are faults of the program.
    *arguments: of the command.
    kept: what the user need not worry about, added to errors that can strike at any moment.
  """
  terminal.accept_any_text()
  kept = f"; {kept}" if kept else ""
  try:
    code = command(*arguments) or 0
    sys.stdout.flush()  # here, where a closed pipe can still be told
    return code
  except UserError as e:
    message = str(e)
  except BrokenPipeError:  # the reader, such as `head`, has seen enough
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 128 + signal.SIGPIPE
  except OSError as e:
    message = f"{e.filename}: " if e.filename else ""
    message += f"{e.strerror or e}{kept}"
  except KeyboardInterrupt:
    print(f"interrupted{kept}", file=sys.stderr)
    return INTERRUPTED
  except Exception as e:
    message = _of_machine(e)
    if not message:
      raise
    message += kept
  print(f"error: {message}", file=sys.stderr)
  return USAGE


def _of_machine(error: Exception) -> str:
  """What to say of an error of devices or memory; empty for all others."""
  text = " ".join(str(error).split())
  if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in text:  # of numpy and Python, or of XLA
    said = f" ({text[:200]})" if text else ""
    return f"out of memory{said}; lower the batch size or the context length, or set model.remat=true"
  lost = ("Gloo", "coordination service", "CoordinationService", "heartbeat")
  if type(error).__name__ == "JaxRuntimeError" and any(word in text for word in lost):
    return f"the processes of this run have lost each other, see what the others say ({text[:200]})"
  file = traceback.extract_tb(error.__traceback__)[-1].filename.replace(os.sep, "/")
  if isinstance(error, (RuntimeError, AssertionError)) and file.endswith("jax/_src/xla_bridge.py"):
    asked = os.environ.get("JAX_PLATFORMS", "")
    said = text or f"no device of JAX_PLATFORMS={asked} was found"
    return f"JAX cannot start: {said}; install the plugin of the platform, or set JAX_PLATFORMS to another, such as cpu"
  if isinstance(error, ValueError) and file.endswith("jax/_src/config.py"):  # read when JAX is imported
    return f"JAX refuses a variable of the environment: {text}"
  return ""
