"""Which files a text source has: files, globs and folders, and what is left out of them."""

from collections.abc import Iterable, Iterator
import dataclasses
import glob
import os
import re
from typing import Any, NamedTuple

from ebt_jax.config import ConfigError, DataConfig, near
from ebt_jax.files import local

KEY = "config.data.source"
PACKED = (".gz", ".bz2", ".xz", ".zst")
FORMATS = (".txt", ".jsonl", ".ndjson", ".json", ".parquet")
EXPECTED = f"{', '.join(FORMATS[:4])} (compressed too, as .jsonl.xz: {', '.join(PACKED)}) or .parquet"
_SHOWN = 3  # names beside each reason


class NoSource(ConfigError):
  """There is no such file or folder."""


class File(NamedTuple):
  """A file to read.

  Attributes:
    path: where it is.
    id: first part of the ids of its documents, which does not depend on where the source is stored.
    named: whether the user named it or matched it with a pattern; else it was found in a folder.
  """

  path: str
  id: str
  named: bool

  @property
  def format(self) -> str:
    """`.jsonl` of `a.JSONL.gz`; empty where it is unknown."""
    name = self.path.lower()
    inner = name.removesuffix(self.packing)
    found = next((e for e in FORMATS if inner.endswith(e)), "")
    return "" if self.packing and found == ".parquet" else found

  @property
  def packing(self) -> str:
    """`.gz` of `a.jsonl.gz`; empty where it is not compressed."""
    return next((p for p in PACKED if self.path.lower().endswith(p)), "")


class LeftOut:
  """What a source holds and does not give: how many of each reason, and the first names."""

  def __init__(self):
    self.counts: dict[str, int] = {}
    self._names: dict[str, list[str]] = {}

  def add(self, reason: str, name: str = "") -> None:
    """Counts one thing more. A name is given for files; things without one, such as rows, are counted alone."""
    self.counts[reason] = self.counts.get(reason, 0) + 1
    names = self._names.setdefault(reason, [])
    if name and len(names) < _SHOWN:
      names.append(name.encode("utf-8", "backslashreplace").decode())  # names that are not UTF-8 can be printed

  @classmethod
  def of(cls, found: dict[str, dict[str, Any]]) -> "LeftOut":
    """What `as_dict` has written."""
    out = cls()
    out.counts = {reason: f["count"] for reason, f in found.items()}
    out._names = {reason: list(f["names"]) for reason, f in found.items()}
    return out

  def copy(self) -> "LeftOut":
    other = LeftOut()
    other.counts = dict(self.counts)
    other._names = {k: list(v) for k, v in self._names.items()}
    return other

  def as_dict(self) -> dict[str, dict[str, Any]]:
    """Reason -> `count` and the first `names`."""
    return {reason: {"count": n, "names": self._names[reason]} for reason, n in self.counts.items()}

  def __str__(self) -> str:
    return describe(self.as_dict())


def describe(left_out: dict[str, dict[str, Any]]) -> str:
  """`hidden: 2 (.git, .cache), rows without text: 3`, of `LeftOut.as_dict()`; empty where nothing is left out."""
  parts = []
  for reason, found in left_out.items():
    count, names = found["count"], found["names"]
    shown = f" ({', '.join(names)}{', ...' if count > len(names) else ''})" if names else ""
    parts.append(f"{reason}: {count:,}{shown}")
  return ", ".join(parts)


def find_files(source: str) -> tuple[list[File], LeftOut]:
  """Files of a comma-separated list of files, globs and folders. A file or folder may have commas in its own name.

  Folders are searched with all that is below them. Links to folders are followed, unless they lead to a folder that is
  read under its own name. What is hidden (a name that starts with a dot) or of a kind that is not read is left out.

  Returns:
    Each file once, items in the order given, the files of an item in the order of their ids; what is left out.

  Raises:
    ConfigError: an item does not exist, matches nothing or holds nothing to read, or a named file's extension is
      unknown.
  """
  whole = os.path.exists(os.path.expanduser(source.strip())) and source.strip()
  items = [source.strip()] if whole else [s.strip() for s in source.split(",") if s.strip()]
  if not items:
    raise ConfigError(f"{KEY}: expected `embedded`, files, globs, folders or tfds:NAME, found {source!r}")
  found: dict[str, File] = {}
  left_out = LeftOut()
  for item in items:
    path = local(item, KEY)
    if os.path.isdir(path):
      matches = list(_folder(path, "", left_out, item))
      if not matches:
        raise ConfigError(
          f"{KEY}: folder {item} holds nothing to read; expected {EXPECTED}; found {str(left_out) or 'nothing at all'}"
        )
    elif os.path.isfile(path):
      matches = [File(path, os.path.basename(path), True)]
    elif glob.has_magic(path):
      root = path[: re.search(r"[*?\[]", path).start()].rpartition(os.sep)[0] or os.sep * os.path.isabs(path) or "."
      matches = []
      for match in glob.glob(path, recursive=True):
        name = os.path.relpath(match, root)
        if os.path.isfile(match):
          matches.append(File(match, name, True))
        elif os.path.isdir(match) and "**" not in path:  # with `**`, what is in it matches by itself
          matches += _folder(match, name, left_out, match)
      if not matches:
        raise NoSource(f"{KEY}: nothing matches {item!r}; {_nearby(path)}")
    elif os.path.lexists(path):
      raise ConfigError(f"{KEY}: {item} is not a file or folder that can be read (a broken link, or a device)")
    else:
      raise NoSource(f"{KEY}: no file or folder {item!r}; {_nearby(path)}")
    for file in sorted(matches, key=_by_id):
      if not file.format:
        raise ConfigError(f"{KEY}: {file.path} has an unknown extension; expected {EXPECTED}")
      found.setdefault(file.path, file._replace(id=file.id.replace(os.sep, "/")))
  return list(found.values()), left_out


def located(source: str, places: Iterable[str | os.PathLike]) -> str:
  """A source whose relative paths are those below the first of some folders in which there is something at them."""
  return next((found for place in places if (found := _below(source, place)) != source), source)


def as_meant(data: DataConfig, trained: DataConfig, places: Iterable[str | os.PathLike]) -> DataConfig:
  """`data` with the paths of sources that it shares with `trained` as those were meant: below `places`."""
  if data.source == trained.source:
    data = dataclasses.replace(data, source=located(data.source, places))
  if data.held_out_sources == trained.held_out_sources:
    found = {name: located(source, places) for name, source in data.more_held_out.items()}
    data = dataclasses.replace(data, held_out_sources=";".join(f"{k}={v}" for k, v in found.items()))
  return data


def _below(source: str, place: str | os.PathLike) -> str:
  if source == "embedded" or source.startswith("tfds:"):
    return source
  if os.path.exists(os.path.join(place, source)):
    return os.path.join(place, source)
  if glob.has_magic(str(place)) or "," in str(place):  # they would mean something else within a source
    return source
  paths = [os.path.join(place, os.path.expanduser(s.strip())) for s in source.split(",") if s.strip()]
  return ",".join(paths) if all(os.path.exists(p) or glob.glob(p, recursive=True) for p in paths) else source


def _by_id(file: File) -> str:
  return file.id


def _folder(path: str, name: str, left_out: LeftOut, item: str) -> Iterator[File]:
  """The files below a folder that can be read; `name` is the folder's own part of ids."""
  if os.path.exists(os.path.join(path, "windows.json")):
    raise ConfigError(f"{KEY}: {item} holds tokens, not text; it can only be the whole data.source")
  seen = {os.path.realpath(path)}
  folders = [(path, name)]
  while folders:
    links = []
    for top, prefix in folders:
      for parent, inner, files in os.walk(top, onerror=_unreadable):
        within = os.path.normpath(os.path.join(prefix, os.path.relpath(parent, top)))
        for d in sorted(inner):
          full, shown = os.path.join(parent, d), os.path.normpath(os.path.join(within, d))
          if d.startswith("."):
            left_out.add("hidden", shown)
          elif os.path.islink(full):
            links.append((full, shown))
        inner[:] = sorted(d for d in inner if not d.startswith("."))
        for f in sorted(files):
          file = File(os.path.join(parent, f), os.path.normpath(os.path.join(within, f)), False)
          reason = _why_not(file, f)
          if reason:
            left_out.add(reason, file.id)
          else:
            yield file
    folders = []
    for full, shown in links:
      real = os.path.realpath(full)
      if any(_contains(a, real) or _contains(real, a) for a in seen):
        left_out.add("links to folders that are read already", shown)
      else:
        seen.add(real)
        folders.append((full, shown))


def _contains(folder: str, path: str) -> bool:
  return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _why_not(file: File, name: str) -> str:
  """Why a file of a folder is not read; empty where it is."""
  if name.startswith("."):
    return "hidden"
  if not os.path.exists(file.path):
    return "broken links"
  if not os.path.isfile(file.path):
    return "neither file nor folder"
  if not file.format:
    return "files of a kind that is not read"
  return "" if os.path.getsize(file.path) else "empty files"


def _unreadable(error: OSError) -> None:
  raise ConfigError(f"{KEY}: {error.filename}: cannot be read ({error.strerror}); change its permissions") from error


def _nearby(path: str) -> str:
  """A hint for a path that does not exist: similar names in its folder, or what the folder holds."""
  folder, _, name = path.rpartition(os.sep)
  folder = folder or ("." if not path.startswith(os.sep) else os.sep)
  if glob.has_magic(folder):
    return "check the folder's name"
  if not os.path.isdir(folder):
    return f"its folder {folder} does not exist"
  names = os.listdir(folder)
  return f"in {folder}: {near(name, names)}" if names else f"{folder} is empty"
