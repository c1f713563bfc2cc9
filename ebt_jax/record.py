"""What a run was trained on, remembered in its folder: the problem's files, and `data.json`, a fingerprint of the data.

A run is then used with its own files, its data are found from any working directory, and other data are noticed.
"""

import hashlib
import logging
import os
import pathlib
from typing import Any

from ebt_jax import config as config_lib
from ebt_jax import files
from ebt_jax.config import Config, ConfigError
from ebt_jax.tasks import registry
from ebt_jax.tasks.base import Data, Kept, Task

log = logging.getLogger(__name__)

CONFIG, DATA = "config.json", "data.json"


def kept(folder: pathlib.Path) -> Kept | None:
  """What a run remembers of its problem: little for runs of older versions, None where there is no run.

  Raises:
    ConfigError: a file of the folder cannot be read.
  """
  if not (folder / CONFIG).exists():
    return None
  config = config_lib.load(folder / CONFIG)
  try:
    found = files.parse_json((folder / DATA).read_bytes())
    # relative to the run first: a folder that was moved or copied with its run is there
    places = (pathlib.Path(os.path.normpath(folder.absolute() / found["place"])), pathlib.Path(found["absolute_place"]))
    places = tuple(p for p in dict.fromkeys(places) if p.is_dir())
    return Kept(folder, config, places, found["files"], found["fingerprint"])
  except FileNotFoundError:
    return Kept(folder, config)
  except (OSError, ValueError, KeyError) as e:
    raise ConfigError(f"{folder / DATA}: cannot be read ({e}); restore it, or delete it to go on without") from e


def keep(folder: pathlib.Path, task: Task, data: Data | None, before: Kept | None = None) -> None:
  """Writes what `kept` reads: the problem's files, and what the data are.

  Args:
    data: what is trained on, or None where nothing is.
    before: what the folder remembers already. Paths keep their meaning if the config still has the same.
  """
  same = before and before.places and before.config.data == task.config.data
  place = before.places[0] if same else pathlib.Path.cwd()
  content = task.problem.files()
  for name, bytes_ in content.items():
    files.replace_bytes(folder / name, bytes_)
  remembered = {
    "place": os.path.relpath(place, folder.absolute()),
    "absolute_place": str(place),
    "files": _digests(content),
    "fingerprint": data.fingerprint if data else {},
  }
  files.write_json(folder / DATA, remembered)


def _digests(content: dict[str, bytes]) -> dict[str, str]:
  return {name: hashlib.sha256(bytes_).hexdigest() for name, bytes_ in content.items()}


def check_data(folder: pathlib.Path, before: Kept | None, config: Config, data: Data, start: int) -> None:
  """Refuses to go on with other data than a run has seen, or has been given under another name.

  Raises:
    ConfigError: names what differs.
  """
  changed = _changes(before, data)
  if changed and (start or before.config.data != config.data):
    raise ConfigError(
      f"config.data: {folder} was trained on other data (then -> now: {changed}); put the old data back, or train on "
      f"the new data in another --workdir; --config.init_from={folder} starts there with these parameters"
    )


def data_of(task: Task, folder: pathlib.Path) -> Data:
  """The data of a run, with a warning where they are not those that it was trained on."""
  data = task.problem.data()
  if changed := _changes(kept(folder), data):
    log.warning(
      "the data are not those that %s was trained on (then -> now: %s); it may have seen some of what it is evaluated "
      "on; put the old data back, or use --source",
      *(folder, changed),
    )
  return data


def _changes(before: Kept | None, data: Data) -> str:
  """`name: there -> here` of what both know and differ in."""
  there, here = (_flat(f) for f in (before.fingerprint if before else {}, data.fingerprint))
  return ", ".join(
    f"{name}: {str(there[name])[:12]} -> {str(here[name])[:12]}"
    for name in there
    if there[name] != "" != here.get(name, "") and there[name] != here[name]
  )


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
  out = {}
  for name, value in tree.items():
    out |= _flat(value, f"{prefix}{name} ") if isinstance(value, dict) else {prefix + name: value}
  return out


def compares_data(folder: pathlib.Path) -> bool:
  """Whether training in a folder can compare data, so that it matters what they are and not where they are."""
  before = kept(folder)
  return before is not None and bool(before.fingerprint)


def warn_of_other_files(config: Config, folder: pathlib.Path) -> None:
  """Of a warm start: parameters mean something else where the files of the two problems differ.

  Args:
    config: of the run that starts.
    folder: of the run that its parameters come from.
  """
  theirs = kept(folder)
  if theirs is None or not (theirs.files or theirs.fingerprint):
    return
  mine = _digests(registry.make(config).problem.files())
  if mine != theirs.files:
    names = ", ".join(sorted({*mine, *theirs.files}))
    log.warning(
      "config.init_from: %s was trained with another %s than this run, so parameters that belong to it mean something "
      "else; use the same file, or leave them out with config.init_skip",
      *(config.init_from, names),
    )
