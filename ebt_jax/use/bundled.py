"""Models that come with the package, by name: `bundled` (an EBT) and `bundled/transformer`; see `ebt_jax/bundled/`."""

import pathlib

from ebt_jax import files
from ebt_jax.config import ConfigError

NAME, DEFAULT = "bundled", "ebt"
FOLDER = pathlib.Path(__file__).parents[1] / NAME


def names() -> list[str]:
  """What `folder_of` knows, the default first."""
  found = sorted(path.parent.name for path in FOLDER.glob("*/config.json"))
  return [NAME, *(f"{NAME}/{name}" for name in found if name != DEFAULT)]


def folder_of(model: str | pathlib.Path, step: int | None = None) -> pathlib.Path:
  """The folder of a trained run: that of a model in the package, a copy of one on an object store, or `model` itself.

  A folder of one's own that is called so is `./bundled`.

  Args:
    step: of the checkpoint to copy; None: the newest.

  Raises:
    ConfigError: no such model comes with the package, or the folder holds no run.
    RemoteError: the store holds no run, or cannot be reached.
  """
  text = str(model)
  if files.is_remote(text):
    from ebt_jax import remote  # not before it is asked for: it waits for JAX

    return remote.folder_of(text, step)
  name = DEFAULT if text == NAME else text.removeprefix(f"{NAME}/")
  inside = text.startswith(NAME) and (text == NAME or text != name)
  folder = FOLDER / name if inside else pathlib.Path(model).expanduser()
  if not (folder / "config.json").exists():
    said = "no such model comes with the package" if inside else "the folder holds no run (no config.json)"
    raise ConfigError(f"{text}: {said}; name the folder of a run, or one of {', '.join(names())}")
  return folder
