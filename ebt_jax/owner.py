"""One process at a time writes a folder, and is named to the others.

The lock is the operating system's, on `owner.json` in the folder: it ends with the process, however the process ends,
so what a killed process leaves there blocks nobody. On network file systems it counts on all machines, where the mount
has locks (NFS has; Lustre with `-o flock`).
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import pathlib
import shlex
import socket
import sys

from ebt_jax.config import ConfigError

log = logging.getLogger(__name__)

FILE = "owner.json"
_TAKEN = (errno.EAGAIN, errno.EACCES)
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)


class Owner:
  """Holds a folder until `close` or the end of the process; a context manager.

  Args:
    folder: it is made if it does not exist.
    flag: what has named the folder, for messages.
    file: name of the lock; folders that several kinds of results share have one for each.

  Raises:
    ConfigError: another process holds the folder (the text names host, process, since when, its command), or the
      folder cannot be made.
  """

  def __init__(self, folder: str | os.PathLike, flag: str = "--workdir", file: str = FILE):
    self._path = pathlib.Path(folder) / file
    try:
      self._path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as e:
      raise ConfigError(f"{flag}: {folder} is not a folder; choose another name") from e
    except OSError as e:
      raise ConfigError(f"{flag}: {folder} cannot be made ({e.strerror}); choose another folder") from e
    self._lock: int | None = _lock(self._path, flag)
    with contextlib.suppress(OSError):  # on a full disk the lock holds all the same
      _describe(self._lock)

  def __enter__(self) -> "Owner":
    return self

  def __exit__(self, *_) -> None:
    self.close()

  def close(self) -> None:
    """Gives the folder back; may be called again."""
    lock, self._lock = self._lock, None
    if lock is not None:
      with contextlib.suppress(OSError):
        self._path.unlink()
      os.close(lock)


def _lock(path: pathlib.Path, flag: str) -> int:
  """A descriptor of the locked file."""
  while True:
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # not the folder itself: NFS locks only what is open to write
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as e:
      told = _read(file)
      if e.errno in _NO_LOCKS:
        log.warning("%s: this file system has no locks; make sure that no other process writes there", path.parent)
        return file
      os.close(file)
      if e.errno in _TAKEN:
        raise ConfigError(
          f"{flag}: {path.parent} is written by {told}; wait until it ends, end it, or give another folder"
        ) from e
      raise
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file), os.stat(path)):
        return file
    os.close(file)  # its owner has removed it meanwhile: the name stands for another file, or for none


def _describe(file: int) -> None:
  """Writes who this process is."""
  now = datetime.datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
  who = {"host": socket.gethostname(), "pid": os.getpid(), "since": now, "command": shlex.join(sys.argv)[:500]}
  os.ftruncate(file, 0)
  os.pwrite(file, (json.dumps(who) + "\n").encode(), 0)


def _read(file: int) -> str:
  """The owner in words."""
  try:
    who = json.loads(os.pread(file, 1 << 16, 0))
    return f"process {who['pid']} on {who['host']} since {who['since']} ({who['command']})"
  except (OSError, ValueError, KeyError, TypeError):
    return "another process"
