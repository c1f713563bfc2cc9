"""Reads .ckpt and .pt files of PyTorch without PyTorch, and without running what they hold.

Such a file is a zip archive: `data.pkl` describes tensors, whose bytes are files beside it. Before PyTorch 1.6 it was a
row of pickles, with the bytes of all tensors after the last. A pickle can name any function of any package and have it
called. Here a name stands for what this file makes of it, or the file is refused. The only file that unpickles.
"""

from collections.abc import Callable
import io
import pathlib
import pickle
import re
from typing import Any, BinaryIO
import zipfile

import numpy as np

from ebt_jax.config import ConfigError

_TYPES = {
  "DoubleStorage": "<f8",
  "FloatStorage": "<f4",
  "HalfStorage": "<f2",
  "BFloat16Storage": "<u2",  # the upper half of a float32
  "LongStorage": "<i8",
  "IntStorage": "<i4",
  "ShortStorage": "<i2",
  "CharStorage": "i1",
  "ByteStorage": "u1",
  "BoolStorage": "?",
}


_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of before 1.6


class Held(dict):
  """An object of a class that only holds values, such as a namespace of options: its values by name."""

  def __init__(self, *arguments: Any, **values: Any):
    super().__init__(*(a for a in arguments if isinstance(a, dict)), **values)

  def __setstate__(self, state: Any) -> None:
    if isinstance(state, dict):
      self.update(state)


def read(path: pathlib.Path) -> Any:
  """What a file holds: tensors as numpy arrays (bfloat16 as float32), objects that hold values as dicts.

  Raises:
    ConfigError: there is no such file, PyTorch has not written it, it is damaged, or it names a function or a class
      that is not one of those that hold values.
  """
  try:
    with open(path, "rb") as file:
      return (_read_archive if file.peek(2)[:2] == b"PK" else _read_row)(file, path)
  except ConfigError:
    raise
  except FileNotFoundError as e:
    raise ConfigError(f"{path}: no such file") from e
  except _BROKEN as e:
    fix = "fetch it again, or save it again with PyTorch"
    raise ConfigError(f"{path}: cannot be read as a file of PyTorch: {type(e).__name__}: {e}; {fix}") from e


_BROKEN = (
  OSError, zipfile.BadZipFile, pickle.UnpicklingError, ValueError, KeyError, IndexError, EOFError, TypeError,
  AttributeError, OverflowError, MemoryError,
)  # fmt: skip


def _read_archive(file: BinaryIO, path: pathlib.Path) -> Any:
  archive = zipfile.ZipFile(file)
  found = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
  if len(found) != 1:
    raise ValueError(f"expected one data.pkl in it, found {len(found)}")
  root = found[0].removesuffix("data.pkl")
  if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
    raise ValueError("its numbers are big-endian")
  loaded: dict[str, np.ndarray] = {}

  def storage(dtype: str, key: str) -> np.ndarray:
    if key not in loaded:
      loaded[key] = np.frombuffer(archive.read(f"{root}data/{key}"), dtype)
    return loaded[key]

  return _Reader(io.BytesIO(archive.read(found[0])), path, storage).load()


def _read_row(file: BinaryIO, path: pathlib.Path) -> Any:
  """A file of before PyTorch 1.6. Tensors come before their numbers, so they are unpickled twice."""
  dtypes: dict[str, str] = {}

  def noted(dtype: str, key: str) -> None:
    dtypes[key] = dtype

  def unpickled() -> Any:
    return _Reader(file, path, noted).load()

  if unpickled() != _MAGIC:
    raise ValueError("it is no zip archive, and does not begin as older files do")
  _, system, at, _, keys = unpickled(), unpickled(), file.tell(), unpickled(), unpickled()
  if not system.get("little_endian", True):
    raise ValueError("its numbers are big-endian")
  loaded = {}
  for key in keys:
    size = int(np.frombuffer(file.read(8), "<i8")[0]) * np.dtype(dtypes[key]).itemsize
    content = file.read(max(0, size))
    if len(content) != size:
      raise ValueError(f"storage {key} has {len(content)} bytes, expected {size}")
    loaded[key] = np.frombuffer(content, dtypes[key])
  file.seek(at)
  return _Reader(file, path, lambda _, key: loaded[key]).load()


class _Reader(pickle.Unpickler):
  """Unpickles values; of functions and classes only those of `find_class`, all of which are here.

  Args:
    storage: the numbers of a type and a key; where it gives None, tensors are None.
  """

  def __init__(self, file: Any, path: pathlib.Path, storage: Callable[[str, str], np.ndarray | None]):
    super().__init__(file, encoding="utf-8")
    self._path, self._storage = path, storage

  def persistent_load(self, identity: Any) -> np.ndarray | None:
    kind, dtype, key = identity[:3]
    part = identity[5] if len(identity) > 5 else None  # of a larger storage, as the oldest files have them
    if kind != "storage" or dtype not in _TYPES.values() or not re.fullmatch(r"\w+", str(key)) or part is not None:
      raise ValueError(f"expected a storage of numbers, found {identity!r:.80}")
    return self._storage(dtype, key)

  def find_class(self, module: str, name: str) -> Any:
    package = module.partition(".")[0]
    if module == "torch" and name in _TYPES:
      return _TYPES[name]
    if module == "torch._utils" and name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
      return _tensor
    if module == "torch._utils" and name == "_rebuild_parameter":
      return _parameter
    if module == "collections" and name in ("OrderedDict", "defaultdict"):
      return Held
    if (module, name) == ("torch", "Size"):
      return tuple
    if (module, name) == ("argparse", "Namespace") or (package in _TRAINERS and name == "AttributeDict"):
      return Held
    if module == "pathlib" and name in ("Path", "PosixPath", "WindowsPath"):
      return _path_of
    raise ConfigError(
      f"{self._path}: names {module}.{name}, which is not read from such files, since it may run anything; save the "
      "model's state_dict alone, with its options as JSON (--options)"
    )


_TRAINERS = ("pytorch_lightning", "lightning", "lightning_fabric")


def _path_of(*parts: str) -> str:
  return "/".join(parts)


def _parameter(data: np.ndarray, *_: Any) -> np.ndarray:
  return data


def _tensor(storage: np.ndarray | None, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray | None:
  """The numbers of a tensor; refuses one that reaches beyond its storage."""
  if storage is None:
    return None
  if not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)) or len(size) != len(stride):
    raise ValueError(f"a tensor of impossible size {size!r:.60}")
  if 0 in size:
    return np.zeros(size, storage.dtype)
  if offset + sum((n - 1) * s for n, s in zip(size, stride)) >= len(storage):
    raise ValueError(f"a tensor of size {list(size)} is larger than its {len(storage)} numbers")
  strides = [s * storage.itemsize for s in stride]
  array = np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()
  return (array.astype("<u4") << 16).view("<f4") if array.dtype == np.dtype("<u2") else array
