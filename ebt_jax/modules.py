"""Modules of the user: they come first where they are asked for by name, and take the place of nothing else."""

import ast
from collections.abc import Iterator
import contextlib
from importlib import import_module
from importlib.machinery import ModuleSpec, PathFinder
from importlib.util import module_from_spec
import os
import sys
from types import ModuleType

from ebt_jax.config import ConfigError


def imported(name: str, key: str) -> ModuleType:
  """A module by its dotted name: one below the working directory, or else any that Python finds.

  Args:
    name: such as `package.module`.
    key: what named it, for messages.

  Raises:
    ConfigError: Python has another module of that name already.
    ImportError: there is no such module, or it cannot import what it needs.
  """
  top = name.partition(".")[0]
  spec, there = PathFinder.find_spec(top, [os.getcwd()]), sys.modules.get(top)
  if spec and there and not _same(spec, there):
    raise ConfigError(
      f"{key}: {name} is to be found in {_place(spec)}, but Python has another module {top!r} "
      f"({getattr(there, '__file__', None) or 'its own'}); rename yours"
    )
  if spec and not there:
    _load(spec)
  return import_module(name)


@contextlib.contextmanager
def neighbours(path: str) -> Iterator[None]:
  """Within this, `FOLDER.NAME` is the neighbour NAME of a file in FOLDER, whatever else is called FOLDER.

  This holds for files that import a neighbour so, and for neighbours that they import.
  """
  folder = os.path.dirname(os.path.abspath(path))
  parent, name = os.path.split(folder)
  spec = PathFinder.find_spec(name, [parent])
  there = sys.modules.get(name)
  if name == "ebt_jax" or not spec or there and _same(spec, there) or not _imports_a_neighbour(path, folder, name):
    yield
    return
  before = {k: sys.modules.pop(k) for k in list(sys.modules) if k == name or k.startswith(name + ".")}
  try:
    _load(spec)
    yield
  finally:
    for k in [k for k in sys.modules if k == name or k.startswith(name + ".")]:
      del sys.modules[k]
    sys.modules.update(before)


def _imports_a_neighbour(path: str, folder: str, name: str) -> bool:
  with open(path, "rb") as f:
    try:
      tree = ast.parse(f.read())
    except (SyntaxError, ValueError):
      return False  # running the file will say what is wrong
  wanted = set()
  for node in ast.walk(tree):
    if isinstance(node, ast.ImportFrom) and node.module == name:
      wanted |= {a.name for a in node.names}
    elif isinstance(node, ast.ImportFrom):
      wanted |= _after(name, node.module or "")
    elif isinstance(node, ast.Import):
      wanted |= set().union(*(_after(name, a.name) for a in node.names))
  return any(os.path.exists(os.path.join(folder, w + end)) for w in wanted for end in (".py", ""))


def _after(name: str, dotted: str) -> set[str]:
  """{`b`} of `a.b.c` for the name `a`."""
  parts = dotted.split(".")
  return {parts[1]} if parts[0] == name and len(parts) > 1 else set()


def _load(spec: ModuleSpec) -> None:
  module = module_from_spec(spec)
  sys.modules[spec.name] = module
  try:
    if spec.loader:
      spec.loader.exec_module(module)
  except BaseException:
    del sys.modules[spec.name]
    raise


def _same(spec: ModuleSpec, module: ModuleType) -> bool:
  if spec.submodule_search_locations is not None:
    here = {os.path.realpath(p) for p in spec.submodule_search_locations}
    return bool(here & {os.path.realpath(p) for p in getattr(module, "__path__", ())})
  return bool(getattr(module, "__file__", None)) and os.path.realpath(spec.origin) == os.path.realpath(module.__file__)


def _place(spec: ModuleSpec) -> str:
  return spec.origin or list(spec.submodule_search_locations)[0]
