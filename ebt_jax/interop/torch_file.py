"""Reads .ckpt and .pt files of PyTorch without PyTorch, and without running what they hold.

Such a file is a zip archive: `data.pkl` describes tensors, whose bytes are files beside it. A pickle can name any
function of any package and have it called. Here a name stands for what this file makes of it, or the file is refused.
"""

from collections.abc import Callable
import io
import pathlib
import pickle
import re
from typing import Any
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
    ConfigError: there is no such file, it is no zip archive of PyTorch, it is damaged, or it names a function or a
      class that is not one of those that hold values.
  """
  try:
    with zipfile.ZipFile(path) as archive:
      return _read(archive, path)
  except ConfigError:
    raise
  except FileNotFoundError as e:
    raise ConfigError(f"{path}: no such file") from e
  except zipfile.BadZipFile as e:
    fix = "fetch it again, or save it again with PyTorch 1.6 or newer"
    raise ConfigError(f"{path}: is no whole zip archive, as PyTorch writes them; {fix}") from e
  except (OSError, pickle.UnpicklingError, ValueError, KeyError, IndexError, EOFError, TypeError, AttributeError) as e:
    raise ConfigError(f"{path}: cannot be read as a file of PyTorch: {type(e).__name__}: {e}") from e


def _read(archive: zipfile.ZipFile, path: pathlib.Path) -> Any:
  found = [name for name in archive.namelist() if name == "data.pkl" or name.endswith("/data.pkl")]
  if len(found) != 1:
    raise ValueError(f"expected one data.pkl in it, found {len(found)}")
  root = found[0].removesuffix("data.pkl")
  if f"{root}byteorder" in archive.namelist() and archive.read(f"{root}byteorder") != b"little":
    raise ValueError("its numbers are big-endian")
  loaded: dict[str, np.ndarray] = {}

  def storage(identity: Any) -> np.ndarray:
    kind, dtype, key = identity[:3]
    if kind != "storage" or not isinstance(dtype, str) or not re.fullmatch(r"\w+", str(key)):
      raise ValueError(f"expected a storage of numbers, found {identity!r:.80}")
    if key not in loaded:
      loaded[key] = np.frombuffer(archive.read(f"{root}data/{key}"), dtype)
    return loaded[key]

  return _Reader(io.BytesIO(archive.read(found[0])), path, storage).load()


class _Reader(pickle.Unpickler):
  """Unpickles values; of functions and classes only those of `find_class`, all of which are here."""

  def __init__(self, file: Any, path: pathlib.Path, storage: Callable[[Any], np.ndarray]):
    super().__init__(file, encoding="utf-8")
    self._path, self.persistent_load = path, storage

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


def _tensor(storage: np.ndarray, offset: int, size: tuple, stride: tuple, *_: Any) -> np.ndarray:
  """The numbers of a tensor; refuses one that reaches beyond its storage."""
  if not all(isinstance(n, int) and n >= 0 for n in (offset, *size, *stride)) or len(size) != len(stride):
    raise ValueError(f"a tensor of impossible size {size!r:.60}")
  if 0 in size:
    return np.zeros(size, storage.dtype)
  if offset + sum((n - 1) * s for n, s in zip(size, stride)) >= len(storage):
    raise ValueError(f"a tensor of size {list(size)} is larger than its {len(storage)} numbers")
  strides = [s * storage.itemsize for s in stride]
  array = np.lib.stride_tricks.as_strided(storage[offset:], size, strides).copy()
  return (array.astype("<u4") << 16).view("<f4") if array.dtype == np.dtype("<u2") else array
