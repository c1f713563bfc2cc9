"""Who may import whom: the table of `ebt_jax/README.md`, and where each heavy package may be used."""

import ast
import pathlib
import re

import pytest

REPOSITORY = pathlib.Path(__file__).parent.parent
PACKAGE = REPOSITORY / "ebt_jax"
# package: where it may be imported, and whether at the top of a file
PACKAGES = {
  "flax": ("models/", "top"),
  "optax": ("training/optimizer.py", "top"),
  "orbax": ("checkpoint.py", "top"),
  "safetensors": ("weights.py", "top"),
  "grain": ("data/", "inside"),
  "tensorflow_datasets": ("data/", "inside"),
  "array_record": ("data/", "inside"),
  "pyarrow": ("data/", "inside"),
  "tokenizers": ("data/", "inside"),
  "PIL": ("data/", "inside"),
  "av": ("data/", "inside"),
  "tensorboardX": ("metrics.py", "inside"),
  "wandb": ("trackers.py", "inside"),
  "trackio": ("trackers.py", "inside"),
  "ml_collections": ("main.py config/", "inside"),
  "scipy": ("scaling.py", "top"),
  "pickle": ("torch_file.py", "top"),
  "etils": ("remote.py", "top"),
}
NEVER = {"configs", "experiments", "tests", "tools", "torch", "tensorflow"}
WITHOUT_JAX = (
  "config/",
  "files.py",
  "owner.py",
  "terminal.py",
  "clock.py",
  "metrics.py",
  "trackers.py",
  "page.py",
  "flops.py",
  "sweep.py",
  "scaling.py",
  "main.py",
  "flags.py",
  "cli.py",
  "errors.py",
  "allocator.py",
  "torch_file.py",
  "data/",
  "interop/",
)


def imports(path: pathlib.Path) -> list[tuple[str, bool]]:
  """(dotted name, at the top of the file) of everything that a file imports."""
  tree, out = ast.parse(path.read_text(encoding="utf-8")), []
  for node in ast.walk(tree):
    if isinstance(node, ast.Import):
      names = [a.name for a in node.names]
    elif isinstance(node, ast.ImportFrom):
      assert not node.level, f"{path}: relative import"
      names = [f"{node.module}.{a.name}" for a in node.names]
    else:
      continue
    out += [(name, node in tree.body) for name in names]
  return out


FILES = {str(p.relative_to(PACKAGE)): imports(p) for p in sorted(PACKAGE.rglob("*.py"))}


def room(path: str) -> str:
  """`training` of `training/loop.py` and of `ebt_jax.training.loop`."""
  return path.removeprefix("ebt_jax.").split("/")[0].split(".")[0]


def table() -> dict[str, set[str]]:
  """Room -> rooms it may import, from the README."""
  out = {}
  for line in (PACKAGE / "README.md").read_text(encoding="utf-8").splitlines():
    cells = [c.strip() for c in line.strip("|").split("|")]
    if line.startswith("| `") and len(cells) == 3:
      may = {w for w in re.findall(r"\w+", cells[2].split(";")[0])} - {"nothing"}
      for name in re.findall(r"`([\w./]+)`", cells[0]):
        out[room(name.strip("/"))] = may
  return out


def test_the_table_names_every_room():
  rooms = {room(f) for f in FILES} - {"__init__"}
  assert table().keys() == rooms
  for name, may in table().items():
    assert may <= rooms, name


@pytest.mark.parametrize("name", sorted(table()))
def test_a_room_imports_what_the_table_allows(name):
  used = {}
  for file, names in FILES.items():
    if room(file) == name:
      for dotted, _ in names:
        if dotted.startswith("ebt_jax."):
          used.setdefault(room(dotted), file)
  used.pop(name, None)
  assert used.keys() <= table()[name], {r: f for r, f in used.items() if r not in table()[name]}


def test_packages_stay_where_they_belong():
  seen = set()
  for file, names in FILES.items():
    for dotted, top in names:
      package = dotted.split(".")[0]
      assert package not in NEVER, f"{file} imports {dotted}"
      assert not (package == "jax" and file.startswith(WITHOUT_JAX)), f"{file} imports {dotted}"
      if package in PACKAGES:
        where, how = PACKAGES[package]
        seen.add(package)
        assert file.startswith(tuple(where.split())), f"{file} imports {dotted}, allowed in {where}"
        assert how == "top" or not top, f"{file} imports {dotted} at its top, allowed inside functions"
  assert seen >= {"flax", "orbax", "grain", "tensorflow_datasets"}  # the names above are those in use
