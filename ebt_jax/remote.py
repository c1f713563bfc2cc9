"""Runs on object stores (gs://, s3://, az://, hf://): the mirror of a run that is trained, and copies of runs to read.

A store has neither locks nor a rename, so a run is trained in a folder of the machine, and its mirror, which has the
same layout, is what another machine goes on from. All that is sent is read back. The checksums of a checkpoint are sent
last: without them it does not count. The only file that knows epath; other folders, such as a mounted disk, work too.
"""

from collections.abc import Iterable, Iterator
import contextlib
import hashlib
import json
import logging
import os
import pathlib
import re
import shutil
from typing import Any
import zlib

from etils import epath

from ebt_jax import checkpoint, files, weights
from ebt_jax import config as config_lib
from ebt_jax.config import CheckpointConfig, ConfigError
from ebt_jax.errors import UserError

log = logging.getLogger(__name__)

CHECKPOINTS, EVENTS, RUN = "checkpoints", "tensorboard", "config.json"
_OF_THIS_MACHINE = re.compile(r"owner\.json|probe\..*|.*\.part")


class RemoteError(UserError, RuntimeError):
  """A store cannot be read or written, or does not hold what it should; the text names the address and the fix."""


class Mirror:
  """The mirror of one run; used by the one process that owns the run's folder.

  Args:
    address: of the store, or another folder.
    folder: of the run.
    keep: the newest checkpoints, and those at multiples of `keep_every`, stay in the mirror.
  """

  def __init__(self, address: str, folder: pathlib.Path, keep: CheckpointConfig):
    self._there, self._folder, self._keep = epath.Path(address), folder, keep

  def begin(self) -> str:
    """Fetches the run where the folder holds none; returns a line that says so, or nothing.

    Raises:
      ConfigError: the mirror is of another run than the folder, or is ahead of it.
      RemoteError: it cannot be reached.
    """
    there, here = self._there, self._folder
    with _reached(there):
      if (there / weights.FILE).exists():
        raise ConfigError(f"--mirror: {there} is an exported model; give another address")
      steps = _steps(there)
      if not steps:
        return ""
      if not (here / RUN).exists():
        _pull_checkpoint(there, here, max(steps))
        _pull_files(there, here)
        return f"fetched step {max(steps)} from {there}"
      theirs = config_lib.resolve(json.loads((there / RUN).read_text()))
      if differ := config_lib.differences(theirs, config_lib.load(here / RUN), places=False):
        raise ConfigError(
          f"--mirror: {there} holds another run than {here}; give another address. It differs in (there -> here):\n  "
          + "\n  ".join(differ)
        )
      if max(steps) > (own := max(_steps(here), default=0)):
        raise ConfigError(
          f"--mirror: {there} is at step {max(steps)}, and {here} at step {own}; give an empty --workdir to go on from "
          "the mirror, or another --mirror"
        )
    return ""

  def send(self, step: int) -> None:
    """Sends a checkpoint that is complete, with the run's other files. A failure is a warning."""
    try:
      self._send(step)
    except UserError as e:
      log.warning("--mirror: step %d: %s; the run goes on, and the next checkpoint tries again", step, e)

  def finish(self) -> None:
    """Sends what is not there yet. Raises RemoteError unless the newest checkpoint then is."""
    try:
      self._send(max(_steps(self._folder)))
    except UserError as e:
      raise RemoteError(f"--mirror: {e}; {self._folder} is whole, and the same command sends it again") from e

  def _send(self, step: int) -> None:
    there, here = self._there / CHECKPOINTS / str(step), self._folder / CHECKPOINTS / str(step)
    seal = (here / checkpoint.CHECKSUMS).read_text(encoding="utf-8")
    with _reached(self._there):
      if later := [n for n in _steps(self._there) if n > step]:
        raise RemoteError(f"{self._there} is at step {max(later)}, later than {step}: another run writes there")
      _push_files(self._folder, self._there)
      if (there / checkpoint.CHECKSUMS).exists():
        if (there / checkpoint.CHECKSUMS).read_text() == seal:
          return
        (there / checkpoint.CHECKSUMS).unlink()
      for name, expected in json.loads(seal).items():
        _push(here / name, there / name, tuple(expected))
      (there / checkpoint.CHECKSUMS).write_text(seal)
      steps = _steps(self._there)
      if step not in steps:
        raise RemoteError(f"{there}: its checksums were sent, but are not there")
      for n in steps[: -self._keep.keep]:
        if not (self._keep.keep_every and n % self._keep.keep_every == 0):
          (self._there / CHECKPOINTS / str(n) / checkpoint.CHECKSUMS).unlink()
          (self._there / CHECKPOINTS / str(n)).rmtree()


def folder_of(address: str, step: int | None = None) -> pathlib.Path:
  """A copy on this machine of a run on a store, with what parameters need and neither optimiser nor replay buffer.

  Args:
    address: of a run or an exported folder.
    step: of the checkpoint; None: the newest.

  Raises:
    RemoteError: there is no run, no such checkpoint, or the store cannot be reached.
  """
  there = epath.Path(address)
  here = _cache() / f"{there.name}-{hashlib.sha256(str(there).encode()).hexdigest()[:12]}"
  with _reached(there):
    if not (there / RUN).exists():
      raise RemoteError(f"{there}: holds no run (no {RUN}); give the address of a run or of an exported folder")
    _pull_files(there, here)
    for name in set(_small_files(here)) - set(_small_files(there)):
      (here / name).unlink()
    if (here / weights.FILE).exists():
      return here
    steps = _steps(there)
    if not steps or (step is not None and step not in steps):
      raise RemoteError(f"{there}: no checkpoint of step {step}; found steps {steps}" if steps else
                        f"{there}: no complete checkpoint; its run has not sent one yet")  # fmt: skip
    wanted = max(steps) if step is None else step
    for n in _steps(here):
      if n != wanted:
        shutil.rmtree(here / CHECKPOINTS / str(n))
    _pull_checkpoint(there, here, wanted, ["params"])
  return here


def _cache() -> pathlib.Path:
  return pathlib.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ebt_jax" / "runs"


@contextlib.contextmanager
def _reached(there: Any) -> Iterator[None]:
  """Errors of a store as RemoteError: every kind of store has its own."""
  try:
    yield
  except UserError:
    raise
  except ImportError as e:
    package = files.STORES.get(str(there).partition("://")[0], "fsspec")
    raise RemoteError(f"{there}: cannot be reached ({e}); run `pip install {package}`") from e
  except Exception as e:
    said = (str(e).strip() or repr(e)).splitlines()[0][:300]
    raise RemoteError(
      f"{there}: cannot be read or written: {type(e).__name__}: {said}; check the name and your rights"
    ) from e


def _steps(there: Any) -> list[int]:
  """Steps whose checkpoint is complete."""
  try:
    names = [path.name for path in (there / CHECKPOINTS).iterdir()]
  except (FileNotFoundError, NotADirectoryError):
    return []
  found = sorted(int(name) for name in names if name.isdecimal())
  return [n for n in found if (there / CHECKPOINTS / str(n) / checkpoint.CHECKSUMS).exists()]


def _small_files(folder: Any) -> list[str]:
  """All files of a run but its checkpoints, by their paths within; the config, which makes it one, is the last."""
  out = []
  for path in folder.iterdir():
    if path.is_dir():
      out += [f"{EVENTS}/{p.name}" for p in path.iterdir()] if path.name == EVENTS else []
    elif not _OF_THIS_MACHINE.fullmatch(path.name):
      out.append(path.name)
  return sorted(out, key=lambda name: (name == RUN, name))


def _push_files(here: pathlib.Path, there: Any) -> None:
  for name in _small_files(here):
    content = (here / name).read_bytes()  # of this moment: the run appends to some of them
    _make_folder(there / name)
    (there / name).write_bytes(content)
    if (there / name).read_bytes() != content:
      raise RemoteError(f"{there / name}: what was sent cannot be read back")


def _pull_files(there: Any, here: pathlib.Path) -> None:
  for name in _small_files(there):
    _copy(there / name, here / name)


def _pull_checkpoint(there: Any, here: pathlib.Path, step: int, items: Iterable[str] | None = None) -> None:
  """The files that reading some items (None: all) needs."""
  there, here = there / CHECKPOINTS / str(step), here / CHECKPOINTS / str(step)
  seal = (there / checkpoint.CHECKSUMS).read_text()
  for name, expected in json.loads(seal).items():
    if checkpoint.needed(name, items) and _known(here / name) != tuple(expected):
      found = _copy(there / name, here / name)
      if found != tuple(expected):
        raise RemoteError(f"{there / name}: has changed since it was sent: {found}, expected {tuple(expected)}")
  (here / checkpoint.CHECKSUMS).write_text(seal, encoding="utf-8")


def _known(path: pathlib.Path) -> tuple[int, int] | None:
  return checkpoint.checksum(path) if path.exists() else None


def _make_folder(there: Any) -> None:
  """Of a file; stores have none, and some would make a bucket."""
  if not files.is_remote(there):
    there.parent.mkdir(parents=True, exist_ok=True)


def _push(here: pathlib.Path, there: Any, expected: tuple[int, int]) -> None:
  _make_folder(there)
  with here.open("rb") as source, there.open("wb") as target:
    shutil.copyfileobj(source, target, 1 << 22)
  if (found := checkpoint.checksum(there)) != expected:
    raise RemoteError(f"{there}: what was sent cannot be read back: size and CRC-32 {found}, expected {expected}")


def _copy(there: Any, here: pathlib.Path) -> tuple[int, int]:
  """Fetches a file, which appears whole; returns its size and CRC-32."""
  here.parent.mkdir(parents=True, exist_ok=True)
  part, size, checksum = here.with_name(f"{here.name}.{os.getpid()}.part"), 0, 0
  with there.open("rb") as source, part.open("wb") as target:
    while block := source.read(1 << 22):
      target.write(block)
      size, checksum = size + len(block), zlib.crc32(block, checksum)
  os.replace(part, here)
  return size, checksum
