"""Files of PyTorch, old and new: numbers are read, and pickles that call anything are refused."""

import collections
import contextlib
import dataclasses
import io
import os
import pathlib
import pickle
import sys
import types
from typing import Any
import zipfile

import numpy as np
import pytest

from ebt_jax import torch_file
from ebt_jax.config import ConfigError


@dataclasses.dataclass
class Part:
  """A tensor that is a part of the numbers of a larger one."""

  storage: np.ndarray
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]


class Runs:
  """Calls something when it is unpickled."""

  def __init__(self, function, *arguments):
    self.call = function, arguments

  def __reduce__(self):
    return self.call


def _rebuild_tensor_v2(*arguments):
  raise AssertionError("only its name is written")


@contextlib.contextmanager
def pickler(dtype: str, old: bool):
  """A function that pickles as PyTorch does, arrays as tensors, and the list of their numbers, which it fills."""
  torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
  storage = type(dtype, (), {"__module__": "torch"})
  rebuild = types.FunctionType(_rebuild_tensor_v2.__code__, {}, "_rebuild_tensor_v2")
  rebuild.__module__, rebuild.__qualname__ = "torch._utils", "_rebuild_tensor_v2"
  setattr(torch, dtype, storage)
  utils._rebuild_tensor_v2 = rebuild
  stored = []

  class Stored(pickle.Pickler):
    def persistent_id(self, value):
      return value[1] if isinstance(value, tuple) and value[:1] == ("a storage",) else None

    def reducer_override(self, value):
      if not isinstance(value, np.ndarray | Part):
        return NotImplemented
      if isinstance(value, np.ndarray):
        value = Part(value, 0, value.shape, tuple(s // value.itemsize for s in value.strides))
      stored.append(value.storage)
      identity = ("storage", storage, str(len(stored) - 1), "cpu", value.storage.size, *((None,) if old else ()))
      place = value.offset, value.shape, value.strides
      return rebuild, (("a storage", identity), *place, False, collections.OrderedDict())

  def write(content, out):
    Stored(out, protocol=2).dump(content)

  with pytest.MonkeyPatch.context() as patch:
    patch.setitem(sys.modules, "torch", torch)
    patch.setitem(sys.modules, "torch._utils", utils)
    yield write, stored


def write_checkpoint(path: pathlib.Path, content: Any, dtype: str = "FloatStorage") -> None:
  """`content` as PyTorch writes it: arrays become tensors, whose numbers are files of the archive."""
  out = io.BytesIO()
  with pickler(dtype, old=False) as (write, stored):
    write(content, out)
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("model/data.pkl", out.getvalue())
    for i, array in enumerate(stored):
      archive.writestr(f"model/data/{i}", array.tobytes("A"))


def write_old(path: pathlib.Path, content: Any, dtype: str = "FloatStorage") -> None:
  """`content` as PyTorch wrote it before 1.6."""
  with pickler(dtype, old=True) as (write, stored), open(path, "wb") as file:
    for part in (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True}, content):
      write(part, file)
    write([str(i) for i in range(len(stored))], file)
    for array in stored:
      file.write(np.int64(array.size).tobytes() + array.tobytes("A"))


WRITERS = [write_checkpoint, write_old]


@pytest.mark.parametrize("write", WRITERS)
def test_numbers_of_tensors_are_read(write, tmp_path):
  whole = np.arange(12, dtype=np.float32).reshape(3, 4)
  part = Part(np.arange(8, dtype=np.float32), 2, (2, 3), (1, 2))
  write(tmp_path / "a.pt", {"whole": whole, "turned": whole.T, "none": np.zeros((0, 2), np.float32), "part": part})
  found = torch_file.read(tmp_path / "a.pt")
  np.testing.assert_array_equal(found["whole"], whole)
  np.testing.assert_array_equal(found["turned"], whole.T)
  assert found["none"].shape == (0, 2) and found["part"].tolist() == [[2, 4, 6], [3, 5, 7]]
  halves = np.array([1.0, -2.5, 3e30], np.float32).view(np.uint32) >> 16
  write(tmp_path / "b.pt", {"a": halves.astype(np.uint16)}, "BFloat16Storage")
  np.testing.assert_allclose(torch_file.read(tmp_path / "b.pt")["a"], [1.0, -2.5, 3e30], rtol=1e-2)


@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("call", [(os.system, "touch here"), (eval, "1 + 1"), (getattr, "", "join")])
def test_a_pickle_that_calls_something_is_refused(call, write, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write(tmp_path / "bad.pt", {"state_dict": {"a": np.ones(2, np.float32)}, "more": Runs(*call)})
  with pytest.raises(ConfigError, match=rf"^\S+bad.pt: names \w+\.{call[0].__name__}, which is not read"):
    torch_file.read(tmp_path / "bad.pt")
  assert os.listdir(tmp_path) == ["bad.pt"]


@pytest.mark.parametrize("write", WRITERS)
def test_broken_files_are_named(write, tmp_path):
  write(tmp_path / "a.pt", {"a": np.ones(50, np.float32)})
  content = (tmp_path / "a.pt").read_bytes()
  for size in (len(content) // 2, len(content) - 4):
    (tmp_path / "cut.pt").write_bytes(content[:size])
    with pytest.raises(ConfigError, match="cut.pt: cannot be read as a file of PyTorch: .*; fetch it again"):
      torch_file.read(tmp_path / "cut.pt")
  with pytest.raises(ConfigError, match="nothing.pt: no such file"):
    torch_file.read(tmp_path / "nothing.pt")
  write(tmp_path / "c.pt", {"a": Part(np.ones(4, np.float32), 0, (5,), (1,))})
  with pytest.raises(ConfigError, match=r"a tensor of size \[5\] is larger than its 4 numbers"):
    torch_file.read(tmp_path / "c.pt")
  (tmp_path / "text.pt").write_bytes(pickle.dumps("a text"))
  with pytest.raises(ConfigError, match="text.pt: .*is no zip archive, and does not begin as older files do"):
    torch_file.read(tmp_path / "text.pt")
