"""Files of pictures and films: those that the items of a source name."""

from collections.abc import Iterator
import glob
import os
from typing import NamedTuple

from ebt_jax.config import ConfigError
from ebt_jax.data.find import KEY, LeftOut, NoSource
from ebt_jax.files import local


class File(NamedTuple):
  """Where a picture is, and a name that does not depend on where the source is stored."""

  path: str
  id: str

  @property
  def label(self) -> str:
    """The folder that it is in; empty at the top of a source."""
    return os.path.dirname(self.id)


def find(source: str, formats: tuple[str, ...], what: str, expected: str) -> tuple[list[File], LeftOut]:
  """Files of a comma-separated list of files, globs and folders (with all below them), in the order of their names.

  Args:
    formats: endings of the files that are read.
    what: one of them, in words.
    expected: what a source may be, in words.

  Raises:
    ConfigError: an item does not exist or holds none.
  """
  found: dict[str, File] = {}
  left_out = LeftOut()
  for item in [s.strip() for s in source.split(",") if s.strip()]:
    path = local(item, KEY)
    if os.path.isdir(path):
      files = [File(f, os.path.relpath(f, path)) for f in _below(path)]
    elif os.path.isfile(path):
      files = [File(path, os.path.basename(path))]
    else:
      files = [File(f, os.path.basename(f)) for f in glob.glob(path, recursive=True) if os.path.isfile(f)]
      if not files:
        raise NoSource(f"{KEY}: no file, folder or match {item!r}; give {expected} ({', '.join(formats)})")
    usable = [f for f in files if f.path.lower().endswith(formats)]
    for file in files:
      if not file.path.lower().endswith(formats):
        left_out.add("files of a kind that is not read", file.id)
    if not usable:
      raise ConfigError(
        f"{KEY}: {item} holds no {what}; expected {', '.join(formats)}; found {str(left_out) or 'nothing at all'}"
      )
    for file in sorted(usable, key=lambda f: f.id):
      found.setdefault(file.path, file._replace(id=file.id.replace(os.sep, "/")))
  if not found:
    raise ConfigError(f"{KEY}: expected {expected}, found {source!r}")
  return list(found.values()), left_out


def _below(folder: str) -> Iterator[str]:
  for parent, inner, names in os.walk(folder):
    inner[:] = sorted(d for d in inner if not d.startswith("."))
    yield from (os.path.join(parent, n) for n in sorted(names) if not n.startswith("."))
