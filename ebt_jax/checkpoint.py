"""Checkpoints: written in the background, atomic, verified when read. The only file that imports orbax.

A checkpoint is the folder `<directory>/<step>`. Each item, a named tree of arrays ("params", "training"), has its own
folder within, so that one can be read without the others. The caller's JSON is in orbax's metadata. `checksums.json`
lists every file with its size and CRC-32, so that a truncated, changed or missing file is found before it is used.
"""

from collections.abc import Callable, Iterable
import concurrent.futures
import json
import logging
import os
import pathlib
import time
from typing import Any
import zlib

import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint import v1 as ocp

from ebt_jax import files
from ebt_jax.config import CheckpointConfig
from ebt_jax.errors import UserError

log = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
_WHOLE = "state"  # older checkpoints have this one item: a tree with `params` at its top, beside the training state

# orbax logs every stage of a save, and the tracebacks of errors that reach the caller as a CheckpointError
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class CheckpointError(UserError, RuntimeError):
  """A checkpoint could not be written or read; the text names the folder, the cause and the fix."""


class Checkpoints:
  """The checkpoints of one run.

  Opening and reading leave the folder as it is, so that the checkpoints of a finished or running run may be read at any
  time; the first `save` makes the folder and removes what a killed save left there. In a multi-process run every
  process calls the same methods with the same steps, and all see the same folder.

  Args:
    directory: folder of the checkpoints, on a local or shared disk; one folder a step within.
    config: the newest `keep` checkpoints, and those whose step is a multiple of `keep_every`, are kept.
    saved: called with the step of each checkpoint that is complete, on process 0 and another thread.

  Raises:
    CheckpointError: the path holds a character that orbax takes for a pattern.
  """

  def __init__(
    self, directory: str | os.PathLike, config: CheckpointConfig, saved: Callable[[int], None] | None = None
  ):
    self.directory = pathlib.Path(directory).absolute()
    if character := files.pattern_in(self.directory):
      raise CheckpointError(
        f"{self.directory}: the path of checkpoints holds {character!r}, which orbax takes for a pattern, so that "
        "what it saves may not load; expected none of * ? [ \\ in it; rename the folder"
      )
    self._config, self._saved = config, saved
    self._writer: ocp.training.Checkpointer | None = None
    self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._pending: tuple[int, concurrent.futures.Future] | None = None
    self._current: int | None = None  # step that this object saved or restored last
    self._damaged: set[int] = set()  # found by restore, moved aside by the next save

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind: type[BaseException] | None, *_) -> None:
    try:
      self.close()
    except CheckpointError as e:
      if kind is None:
        raise
      log.warning("%s", e)  # the error that ended the run matters more

  def steps(self) -> list[int]:
    """Steps that have a complete checkpoint, ascending; a save in progress is not among them."""
    if not self.directory.exists():
      return []
    return sorted(int(p.name) for p in self.directory.iterdir() if p.name.isdecimal() and p.is_dir())

  def check_writable(self) -> None:
    """Makes the folder and a file in it. Raises CheckpointError where that fails, before hours of training."""
    probe = self.directory / f"probe.{os.getpid()}"
    try:
      self.directory.mkdir(parents=True, exist_ok=True)
      probe.write_bytes(b"")
      probe.unlink()
    except OSError as e:
      raise CheckpointError(
        f"{self.directory}: checkpoints cannot be written here: {_brief(e)}; make the folder writable, or remove what "
        "is in its place"
      ) from e

  def save(self, step: int, trees: dict[str, Any], extra: dict[str, Any]) -> bool:
    """Starts to write a checkpoint; the arrays' buffers may be donated as soon as this returns.

    Any step may be saved. Waits for the previous save first. Damaged checkpoints that `restore` passed over are moved
    aside to `<step>.damaged`; checkpoints of the same or a later step, which belong to another course of the run, to
    `<step>.old`.

    Args:
      step: training steps done.
      trees: a tree of `jax.Array` for each item, as `{"params": ..., "training": ...}`.
      extra: what else a resumed run needs, in types that JSON has.

    Returns:
      False if this very step is what this object saved or restored last, in which case nothing is written.

    Raises:
      CheckpointError: the previous save failed in the background (this one has been started all the same), or this
        one could not be started.
      TypeError: a leaf is not a `jax.Array`, or `extra` has a type that JSON does not have.
    """
    _check_arguments(trees, extra)
    failure = self._wait()
    started = step != self._current
    if started:
      try:
        self._start(step, trees, extra)
      except Exception as e:
        self._forget_writer()
        raise self._error_of(step, e) from e
    if failure:
      raise failure
    return started

  def restore(
    self, abstract: dict[str, Any], step: int | None = None
  ) -> tuple[int, dict[str, Any], dict[str, Any]] | None:
    """Reads the newest intact checkpoint; a damaged one is named in a warning, left as it is and passed over.

    Only the items that are asked for are verified and read: `{"params": ...}` alone reads no optimiser and no replay
    buffer. Waits for a save in progress; if that save failed, a warning says so.

    Args:
      abstract: a tree of `jax.ShapeDtypeStruct` for each item to read; each leaf's sharding says where it goes (None:
        the first device), whatever mesh it was saved from. To read older checkpoints, the tree of "training" must be
        a dict.
      step: read this step and no other.

    Returns:
      (step, trees, extra), or None if there is no checkpoint.

    Raises:
      CheckpointError: the folder holds another model, every checkpoint is damaged, or `step` does not exist or is
        damaged.
    """
    failure = self._wait()
    if failure:
      log.warning("%s", failure)
    steps = self.steps()
    if step is not None and step not in steps:
      raise CheckpointError(f"{self.directory}: no checkpoint of step {step}; found steps {steps}")
    problems = []
    for n in [step] if step is not None else reversed(steps):
      folder = self.directory / str(n)
      problem = _damage(folder, abstract.keys()) if jax.process_index() == 0 else None
      # all processes must read the same checkpoint, so the first one decides
      if not multihost_utils.broadcast_one_to_all(np.int32(problem is not None)):
        try:
          trees, extra, complete = _load(folder, abstract)
          self._current = n if complete else None
          return n, trees, extra
        except CheckpointError:
          raise
        except Exception as e:
          problem = _brief(e)
          if jax.process_count() > 1 or (folder / CHECKSUMS).exists():
            # its files are as they were written: the cause lies elsewhere and would stop an older checkpoint too
            raise CheckpointError(f"{folder}: the files are intact but cannot be loaded: {problem}") from e
      problems.append(f"{folder}: damaged checkpoint: {problem or 'see the log of process 0'}")
      log.warning("%s; it is left as it is and the checkpoint before it is tried", problems[-1])
      self._damaged.add(n)
    if not problems:
      return None
    raise CheckpointError(
      "no intact checkpoint:\n  "
      + "\n  ".join(problems)
      + "\nrestore the files from a copy, or start in an empty folder"
    )

  def close(self) -> None:
    """Waits for the save in progress; raises CheckpointError if it failed. May be called again."""
    failure = self._wait()
    self._forget_writer()
    self._pool.shutdown()
    if failure:
      raise failure

  def _start(self, step: int, trees: dict[str, Any], extra: dict[str, Any]) -> None:
    self._move_aside(step)
    if self._writer is None:
      policies = ocp.training.preservation_policies
      keep = [policies.LatestN(self._config.keep)]
      if self._config.keep_every:
        keep.append(policies.EveryNSteps(self._config.keep_every))
      self._writer = ocp.training.Checkpointer(
        self.directory, preservation_policy=policies.AnyPreservationPolicy(keep), cleanup_tmp_directories=True
      )
    metadata = {"items": sorted(trees), "leaves": _leaves(trees), "extra": extra}
    response = self._writer.save_checkpointables_async(step, trees, force=True, custom_metadata=metadata)
    self._pending = step, self._pool.submit(self._finish, response, step, metadata["leaves"])

  def _finish(self, response: Any, step: int, leaves: dict[str, list]) -> None:
    _seal(response, self.directory / str(step), leaves)
    if self._saved and jax.process_index() == 0:
      self._saved(step)

  def _wait(self) -> CheckpointError | None:
    """Waits for the save in progress and returns its error, if it failed."""
    if self._pending is None:
      return None
    step, future = self._pending
    try:
      future.result()
      self._current = step
      return None
    except Exception as e:
      self._forget_writer()
      error = self._error_of(step, e)
      error.__cause__ = e
      return error
    finally:
      self._pending = None

  def _forget_writer(self) -> None:
    """Closes orbax's writer; the next save opens another, which reads what the folder then holds."""
    writer, self._writer = self._writer, None
    for end in (writer.wait, writer.close) if writer else ():
      try:
        end()
      except Exception as e:  # not news: the future of the save has raised it
        log.debug("orbax: %s", e)

  def _move_aside(self, step: int) -> None:
    """Renames damaged checkpoints and those of this and later steps, which orbax would count or overwrite."""
    moves = {n: "damaged" if n in self._damaged else "old" for n in self.steps() if n in self._damaged or n >= step}
    if moves:
      self._forget_writer()
      multihost_utils.sync_global_devices("checkpoints listed")
      if jax.process_index() == 0:
        for n, why in moves.items():
          target = _unused(self.directory / f"{n}.{why}")
          (self.directory / str(n)).rename(target)
          log.warning("%s: moved to %s", self.directory / str(n), target.name)
      multihost_utils.sync_global_devices("checkpoints moved")
    self._damaged.clear()

  def _error_of(self, step: int, cause: Exception) -> CheckpointError:
    try:
      kept = [n for n in self.steps() if n != step]
    except OSError:
      kept = []
    return CheckpointError(
      f"{self.directory}: the checkpoint of step {step} could not be written: {_brief(cause)}; "
      f"earlier checkpoints are untouched (steps {kept}); free space or make the folder writable, "
      "the next save tries again"
    )


def _check_arguments(trees: dict[str, Any], extra: dict[str, Any]) -> None:
  for path, leaf in jax.tree_util.tree_leaves_with_path(trees):
    if not isinstance(leaf, jax.Array):
      raise TypeError(f"checkpoint tree {_name(path)}: expected a jax.Array, found {type(leaf).__name__}")
  try:
    json.dumps(extra)
  except (TypeError, ValueError) as e:
    raise TypeError(f"checkpoint extra: expected types that JSON has; {e}") from e


def _seal(response: Any, folder: pathlib.Path, leaves: dict[str, list]) -> None:
  """Waits until a checkpoint has its final name, opens all its arrays, and writes the checksums of its files."""
  try:
    response.result()
  except Exception:
    _wait_until_still(folder)
    raise
  if jax.process_index() == 0:
    found = _leaves(ocp.checkpointables_metadata(folder).metadata)
    missing = [name for name, leaf in leaves.items() if found.get(name) != leaf]
    if missing:
      raise RuntimeError(
        f"orbax reports success, but {len(missing)} of {len(leaves)} arrays are not there: {missing[0]}"
      )
    files.replace_text(folder / CHECKSUMS, json.dumps(_checksums(folder), indent=1))


def _wait_until_still(folder: pathlib.Path) -> None:
  """Waits while a failed save still writes: orbax reports the first error when other items are not finished."""
  before = None
  for _ in range(120):
    try:
      now = sorted((str(p), p.stat().st_size) for p in folder.parent.glob(f"{folder.name}.*/**/*"))
    except OSError:  # a file got another name meanwhile
      now = None
    if now is not None and now == before:
      return
    before = now
    time.sleep(0.5)


def _damage(folder: pathlib.Path, items: Iterable[str]) -> str | None:
  """What is wrong with the files that reading `items` needs; None if they are as written, or have no checksums."""
  if not (folder / CHECKSUMS).exists():
    return None  # killed between the rename and the checksums: loading will show
  try:
    expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    found = _checksums(folder, items)
  except (OSError, ValueError) as e:
    return f"{CHECKSUMS} or a file that it lists cannot be read: {_brief(e)}"
  for name, (size, checksum) in expected.items():
    if name not in found and needed(name, items):
      return f"file {name} is missing"
    if name in found and found[name][0] != size:
      return f"file {name} has {found[name][0]} bytes, expected {size}"
    if name in found and found[name][1] != checksum:
      return f"file {name} has changed (CRC-32 {found[name][1]:08x}, expected {checksum:08x})"
  return None


def needed(name: str, items: Iterable[str] | None) -> bool:
  """Whether reading `items` (None: all) needs a file: one of their folders, or one that all items share."""
  return items is None or "/" not in name or name.partition("/")[0] in (*items, _WHOLE)


def _checksums(folder: pathlib.Path, items: Iterable[str] | None = None) -> dict[str, tuple[int, int]]:
  """(size in bytes, CRC-32) of each file that reading `items` (None: all) needs, by its path within the checkpoint."""
  names = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
  names = [n for n in names if not n.startswith(CHECKSUMS) and needed(n, items)]
  with concurrent.futures.ThreadPoolExecutor(4) as pool:  # reading and zlib release the interpreter's lock
    return dict(zip(names, pool.map(lambda n: checksum(folder / n), names)))


def checksum(path: pathlib.PurePath) -> tuple[int, int]:
  """Size in bytes and CRC-32 of a file."""
  size, checksum = 0, 0
  with path.open("rb") as f:
    while block := f.read(1 << 22):
      size, checksum = size + len(block), zlib.crc32(block, checksum)
  return size, checksum


def _load(folder: pathlib.Path, abstract: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], bool]:
  """Trees and extra of a checkpoint, and whether they are all it holds; CheckpointError if it is of another model."""
  saved = ocp.checkpointables_metadata(folder).custom_metadata
  if not saved or "leaves" not in saved:
    raise ValueError("its metadata is missing or was written by another program")
  leaves, expected = saved["leaves"], _leaves(abstract)
  whole = "items" not in saved
  if whole:
    leaves = {k if k.split("/")[0] == "params" else f"training/{k}": v for k, v in leaves.items()}
  found = {k: v for k, v in leaves.items() if k.split("/")[0] in abstract}
  wrong = [k for k in sorted({**found, **expected}) if found.get(k) != expected.get(k)]
  if wrong:
    lines = [f"{k}: found {_shape(found.get(k))}, expected {_shape(expected.get(k))}" for k in wrong[:5]]
    raise CheckpointError(
      f"{folder}: holds another model or optimiser; {len(wrong)} of {len(expected)} leaves differ:\n  "
      + "\n  ".join(lines)
      + "\nuse the config.json of the run that wrote it, or another folder"
    )
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or here), abstract)
  if whole:
    trees = _load_parts(folder, target)
  else:
    trees = {name: ocp.load(folder, tree, checkpointable_name=name) for name, tree in target.items()}
  return trees, saved["extra"], found.keys() == leaves.keys()


def _load_parts(folder: pathlib.Path, target: dict[str, Any]) -> dict[str, Any]:
  """Reads items of a checkpoint of the older form, from its one tree `{"params": ..., **training}`."""
  tree = {"params": target["params"]} if "params" in target else {}
  some = ocp.options.PyTreeOptions(loading=ocp.options.PyTreeOptions.Loading(partial_load=True))
  with ocp.Context(pytree_options=some):
    tree = ocp.load(folder, {**tree, **target.get("training", {})}, checkpointable_name=_WHOLE)
  parts = {"params": tree.pop("params", None), "training": tree}
  return {name: parts[name] for name in target}


def _leaves(tree: Any) -> dict[str, list]:
  """[shape, dtype] of each leaf by its path, in a form that JSON leaves unchanged."""
  return {_name(path): [list(x.shape), str(x.dtype)] for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path: tuple) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _shape(leaf: list | None) -> str:
  return f"{leaf[1]}{leaf[0]}" if leaf else "nothing"


def _unused(path: pathlib.Path) -> pathlib.Path:
  """`path`, with a number added if that name is taken."""
  return next(p for i in range(1 << 30) if not (p := path.with_name(path.name + (f"-{i + 1}" if i else ""))).exists())


def _brief(error: Exception) -> str:
  """Type and first line of an error, short enough for one line."""
  text = (str(error).strip() or repr(error)).splitlines()[0]
  return f"{type(error).__name__}: {text[:300]}"
