"""Parameters as a safetensors file, which any library can read: `model.safetensors` of an exported folder."""

import hashlib
import os
import pathlib
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from ebt_jax import files, parallel
from ebt_jax.checkpoint import CheckpointError

FILE = "model.safetensors"
_FIX = "export the run again, or fetch the file again"


def write(folder: pathlib.Path, params: Any, step: int, half: bool = False) -> int:
  """Writes all arrays by path (`model.embed.embedding`); returns the size of the file in bytes.

  Args:
    half: arrays of 32 bits are written with 16, and reading widens them again; single numbers stay as they are.
  """
  arrays = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(params):
    array = np.asarray(jax.device_get(leaf))
    if half and array.ndim and array.dtype == np.float32:
      array = array.astype(np.float16)
    arrays[_name(path)] = array.copy()  # contiguous
  metadata = {"format": "ebt_jax", "step": str(step), "sha256": _digest(arrays)}
  content = safetensors.numpy.save(arrays, metadata)
  files.replace_bytes(folder / FILE, content)
  return len(content)


def digest(folder: pathlib.Path) -> str:
  """SHA-256 of the names, types and numbers that a file was written with, in hex; `read` checks it."""
  with safetensors.safe_open(os.fspath(folder / FILE), "np") as file:
    return file.metadata()["sha256"]


def read(folder: pathlib.Path, abstract: Any) -> tuple[int, Any]:
  """The step and the parameters of a folder.

  Args:
    abstract: pytree of `jax.ShapeDtypeStruct` with the sharding of each parameter.

  Raises:
    CheckpointError: the file is damaged, or is of another model.
  """
  path = folder / FILE
  try:
    with safetensors.safe_open(os.fspath(path), "np") as file:
      metadata = file.metadata() or {}
      arrays = {name: file.get_tensor(name) for name in file.keys()}
  except (OSError, safetensors.SafetensorError) as e:
    raise CheckpointError(f"{path}: cannot be read ({e}); {_FIX}") from e
  if "sha256" in metadata and metadata["sha256"] != _digest(arrays):
    raise CheckpointError(f"{path}: its content has changed since it was written; {_FIX}")
  wanted = {_name(p): leaf for p, leaf in jax.tree_util.tree_leaves_with_path(abstract)}
  wrong = [f"{name}: missing, expected {_shown(wanted[name])}" for name in wanted if name not in arrays]
  wrong += [f"{name}: found {_shown(arrays[name])}, not in this model" for name in arrays if name not in wanted]
  wrong += [
    f"{name}: found {_shown(a)}, expected {_shown(wanted[name])}"
    for name, a in arrays.items()
    if name in wanted and (a.shape != wanted[name].shape or not _widens(a.dtype, wanted[name].dtype))
  ]
  if wrong:
    shown = "\n  ".join(wrong[:8]) + (f"\n  and {len(wrong) - 8} more" if len(wrong) > 8 else "")
    raise CheckpointError(f"{path}: is of another model than config.json beside it:\n  {shown}\n{_FIX}")

  def placed(p, leaf):
    return jax.device_put(arrays[_name(p)].astype(leaf.dtype), leaf.sharding)

  return int(metadata.get("step", 0)), jax.tree_util.tree_map_with_path(placed, abstract)


def _name(path: Any) -> str:
  return parallel.path_name(path).replace("/", ".")


def _shown(array: Any) -> str:
  return f"{np.dtype(array.dtype).name}{list(array.shape)}"


def _widens(there: np.dtype, here: np.dtype) -> bool:
  """Whether nothing is lost: equal types, or 16 bits that become 32."""
  return there == here or (there == np.float16 and here == np.float32)


def _digest(arrays: dict[str, np.ndarray]) -> str:
  digest = hashlib.sha256()
  for name in sorted(arrays):
    digest.update(f"{name} {_shown(arrays[name])} ".encode())
    digest.update(arrays[name].tobytes())
  return digest.hexdigest()
