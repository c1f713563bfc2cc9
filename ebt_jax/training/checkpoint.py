"""Checkpoints: written in the background, atomic, checked when read. The only file that knows orbax.

A checkpoint is the folder `<directory>/<step>`: the state as orbax writes it, the
caller's JSON beside it, and `checksums.json`, which names every file with its size and
CRC-32, so that a truncated, changed or missing file is found before it is trusted.
"""

import concurrent.futures
import json
import logging
from typing import Any
import zlib

from etils import epath
import jax
from jax.experimental import multihost_utils
import numpy as np
from orbax.checkpoint import v1 as ocp

from ebt_jax.config import CheckpointConfig

log = logging.getLogger(__name__)

CHECKSUMS = "checksums.json"
_STATE = "state"  # the name under which orbax keeps the arrays

# orbax tells every stage of a save, and shows tracebacks of what arrives here as a CheckpointError
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)


class CheckpointError(RuntimeError):
  """A checkpoint could not be written or read; the text names the folder, the cause and the fix."""


class Checkpoints:
  """The checkpoints of one run.

  Opening and reading leave the folder as it is, so that a finished or running run may
  be read at any time; the first `save` makes it and clears what a killed save left.
  Every process of a multi-process run calls the same methods with the same steps.

  Args:
    directory: folder of the checkpoints, one folder a step within.
    config: `keep` newest checkpoints and every `keep_every`-th step are kept.
  """

  def __init__(self, directory, config: CheckpointConfig):
    self.directory = epath.Path(directory).absolute()
    self._config = config
    self._writer: ocp.training.Checkpointer | None = None
    self._pool = concurrent.futures.ThreadPoolExecutor(1, "checkpoint")
    self._pending: tuple[int, concurrent.futures.Future] | None = None
    self._intact: set[int] = set()  # saved or restored by this object
    self._damaged: set[int] = set()  # found by restore, moved aside by the next save

  def __enter__(self) -> "Checkpoints":
    return self

  def __exit__(self, kind, *_) -> None:
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

  def save(self, step: int, state: Any, extra: dict[str, Any]) -> bool:
    """Starts to write a checkpoint; the state's buffers may be donated as soon as this returns.

    Waits for the save before it. A damaged checkpoint that `restore` has passed over is
    moved aside to `<step>.damaged`, an older one of the same step to `<step>.old`.

    Args:
      step: training steps done.
      state: tree of `jax.Array`.
      extra: what else a resumed run needs, as JSON can hold it.

    Returns:
      False when this object has saved or restored this very step already.

    Raises:
      CheckpointError: an earlier save failed in the background (this one has been
        started all the same), or this one could not be started.
      TypeError: a leaf is no `jax.Array` or `extra` is no JSON.
    """
    _check_arguments(state, extra)
    failure = self._wait()
    started = step not in self._intact
    if started:
      try:
        self._start(step, state, extra)
      except Exception as e:
        self._forget_writer()
        raise self._error_of(step, e) from e
    if failure:
      raise failure
    return started

  def restore(self, abstract_state: Any, step: int | None = None) -> tuple[int, Any, dict[str, Any]] | None:
    """Reads the newest intact checkpoint; a damaged one is named in a warning and left as it is.

    Waits for a save in progress; should it have failed, the log says so.

    Args:
      abstract_state: tree of `jax.ShapeDtypeStruct`; each leaf's sharding says where it
        goes (None: the first device), whatever the mesh it was saved from.
      step: read this step and no other.

    Returns:
      (step, state, extra), or None where there is no checkpoint.

    Raises:
      CheckpointError: another model is in the folder, every checkpoint is damaged, or
        `step` does not exist or is damaged.
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
      problem = _damage(folder) if jax.process_index() == 0 else None
      # all processes must take the same checkpoint, so the first one decides
      if not multihost_utils.broadcast_one_to_all(np.int32(problem is not None)):
        try:
          state, extra = _load(folder, abstract_state)
          self._intact.add(n)
          return n, state, extra
        except CheckpointError:
          raise
        except Exception as e:
          problem = _brief(e)
          if jax.process_count() > 1 or (folder / CHECKSUMS).exists():
            # its files are as they were written: the cause lies elsewhere, and an older one would fail alike
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

  def _start(self, step: int, state: Any, extra: dict[str, Any]) -> None:
    self._move_aside(step)
    if self._writer is None:
      policies = ocp.training.preservation_policies
      keep = [policies.LatestN(self._config.keep)]
      if self._config.keep_every:
        keep.append(policies.EveryNSteps(self._config.keep_every))
      self._writer = ocp.training.Checkpointer(
        self.directory, preservation_policy=policies.AnyPreservationPolicy(keep), cleanup_tmp_directories=True
      )
    response = self._writer.save_checkpointables_async(
      step, {_STATE: state}, force=True, custom_metadata={"leaves": _leaves(state), "extra": extra}
    )
    self._pending = step, self._pool.submit(_finish, response, self.directory / str(step))

  def _wait(self) -> CheckpointError | None:
    """Waits for the save in progress and returns its error, if it failed."""
    if self._pending is None:
      return None
    step, future = self._pending
    try:
      future.result()
      self._intact.add(step)
      return None
    except Exception as e:
      self._forget_writer()
      error = self._error_of(step, e)
      error.__cause__ = e
      return error
    finally:
      self._pending = None

  def _forget_writer(self) -> None:
    """Closes orbax; the next save opens it anew, with what the folder then holds."""
    writer, self._writer = self._writer, None
    for end in (writer.wait, writer.close) if writer else ():
      try:
        end()
      except Exception as e:  # known already: the save's future has raised it
        log.debug("orbax: %s", e)

  def _move_aside(self, step: int) -> None:
    """Renames damaged checkpoints and one of this very step, which orbax would count or overwrite."""
    moves = {n: "damaged" if n in self._damaged else "old" for n in self.steps() if n in self._damaged or n == step}
    if moves:
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


def _check_arguments(state: Any, extra: dict[str, Any]) -> None:
  for path, leaf in jax.tree_util.tree_leaves_with_path(state):
    if not isinstance(leaf, jax.Array):
      raise TypeError(f"checkpoint state {_name(path)}: expected a jax.Array, found {type(leaf).__name__}")
  try:
    json.dumps(extra)
  except (TypeError, ValueError) as e:
    raise TypeError(f"checkpoint extra: expected what JSON can hold; {e}") from e


def _finish(response: ocp.AsyncResponse, folder: epath.Path) -> None:
  """Waits until a checkpoint has its final name, then writes the checksums of its files."""
  response.result()
  if jax.process_index() == 0:
    part = folder / f"{CHECKSUMS}.part"
    part.write_text(json.dumps(_checksums(folder), indent=1))
    part.rename(folder / CHECKSUMS)


def _damage(folder: epath.Path) -> str | None:
  """What is wrong with a checkpoint's files; None when they are as written (or were never sealed)."""
  if not (folder / CHECKSUMS).exists():
    return None  # killed between the rename and the seal: loading will tell
  try:
    expected = json.loads((folder / CHECKSUMS).read_text())
    found = _checksums(folder)
  except (OSError, ValueError) as e:
    return f"{CHECKSUMS} or a file it names cannot be read: {_brief(e)}"
  for name, (size, checksum) in expected.items():
    if name not in found:
      return f"file {name} is missing"
    if found[name][0] != size:
      return f"file {name} has {found[name][0]} bytes, expected {size}"
    if found[name][1] != checksum:
      return f"file {name} has changed (CRC-32 {found[name][1]:08x}, expected {checksum:08x})"
  return None


def _checksums(folder: epath.Path) -> dict[str, tuple[int, int]]:
  """(size in bytes, CRC-32) of each file of a checkpoint, by its path within."""
  names = sorted(n for n in _files(folder) if not n.startswith(CHECKSUMS))
  with concurrent.futures.ThreadPoolExecutor(4) as pool:  # reading and zlib release the interpreter
    return dict(zip(names, pool.map(lambda n: _checksum(folder / n), names)))


def _checksum(path: epath.Path) -> tuple[int, int]:
  size, checksum = 0, 0
  with path.open("rb") as f:
    while block := f.read(1 << 22):
      size, checksum = size + len(block), zlib.crc32(block, checksum)
  return size, checksum


def _files(folder: epath.Path, prefix: str = ""):
  for p in folder.iterdir():
    if p.is_dir():
      yield from _files(p, f"{prefix}{p.name}/")
    else:
      yield prefix + p.name


def _load(folder: epath.Path, abstract_state: Any) -> tuple[Any, dict[str, Any]]:
  """Reads one checkpoint. Raises CheckpointError when it holds another model."""
  saved = ocp.checkpointables_metadata(folder).custom_metadata
  if not saved or "leaves" not in saved:
    raise ValueError("its metadata is missing or was written by another program")
  found, expected = saved["leaves"], _leaves(abstract_state)
  wrong = [k for k in sorted({**found, **expected}) if found.get(k) != expected.get(k)]
  if wrong:
    lines = [f"{k}: found {_shape(found.get(k))}, expected {_shape(expected.get(k))}" for k in wrong[:5]]
    raise CheckpointError(
      f"{folder}: holds another model or optimiser; {len(wrong)} of {len(expected)} leaves differ:\n  "
      + "\n  ".join(lines)
      + "\nuse the config.json of the run that wrote it, or another folder"
    )
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  target = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding or here), abstract_state)
  return ocp.load(folder, target, checkpointable_name=_STATE), saved["extra"]


def _leaves(tree: Any) -> dict[str, list]:
  """[shape, dtype] of each leaf by its path, equal before and after JSON."""
  return {_name(path): [list(x.shape), str(x.dtype)] for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _shape(leaf: list | None) -> str:
  return f"{leaf[1]}{leaf[0]}" if leaf else "nothing"


def _unused(path: epath.Path) -> epath.Path:
  """`path`, with a number after it if that name is taken."""
  return next(p for i in range(1 << 30) if not (p := path.with_name(path.name + (f"-{i + 1}" if i else ""))).exists())


def _brief(error: Exception) -> str:
  """Type and first line of an error, short enough for one line."""
  text = (str(error).strip() or repr(error)).splitlines()[0]
  return f"{type(error).__name__}: {text[:300]}"
