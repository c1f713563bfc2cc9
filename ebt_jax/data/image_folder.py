"""A folder of decoded pictures that `tools/decode_images.py` writes and `data.source` names.

`{train,held_out}.pixels` are flat uint8 of `[n, size, size, channels]`, `{train,held_out}.labels` flat little-endian
int32. `pictures.json` says how much of each is finished, and whether all is.
"""

import os
from typing import Any

import numpy as np

from ebt_jax import files
from ebt_jax.config import ConfigError, DataConfig, ImageConfig
from ebt_jax.data import pictures
from ebt_jax.data.find import KEY, LeftOut
from ebt_jax.data.picture_items import Items
from ebt_jax.data.text import is_held_out
from ebt_jax.errors import UserError

STATE = "pictures.json"
SPLITS = ("train", "held_out")


def is_folder(source: str) -> bool:
  """Whether a source is a folder of decoded pictures, finished or not."""
  return os.path.isfile(os.path.join(os.path.expanduser(source), STATE))


def arguments(data: DataConfig, image: ImageConfig) -> dict[str, Any]:
  """What a folder's content depends on."""
  return {"size": image.size, "channels": image.channels, "held_out": data.held_out}


def open_folder(data: DataConfig, image: ImageConfig) -> tuple[tuple, tuple, dict[str, Any]]:
  """Pixels and labels of both splits, memory-mapped, and a summary.

  Raises:
    ConfigError: the folder is unfinished or damaged, or was made with other settings than the config's.
  """
  folder = os.path.expanduser(data.source)
  state = _state(folder)
  if not state["finished"]:
    raise ConfigError(f"{KEY}: {data.source} is unfinished; run tools/decode_images.py again")
  made, wanted = state["arguments"], arguments(data, image)
  for name, value in wanted.items():
    if made[name] != value:
      group = "data" if name == "held_out" else "image"
      raise ConfigError(
        f"config.{group}.{name}: {value}, but {data.source} was made with {made[name]}; set it to that, or decode again"
      )
  counts = state["counts"]
  shape = (image.size, image.size, image.channels)
  splits = [
    (_map(folder, f"{s}.pixels", np.uint8, (counts[s], *shape)), _map(folder, f"{s}.labels", "<i4", (counts[s],)))
    for s in SPLITS
  ]
  summary = {"train_pictures": counts["train"], "held_out_pictures": counts["held_out"], "unit": "pictures",
             "split": "held out by picture", "left_out": state["left_out"]}  # fmt: skip
  return *splits, summary


def _map(folder, name, dtype, shape):
  path = os.path.join(folder, name)
  size = int(np.prod(shape)) * np.dtype(dtype).itemsize
  found = os.path.getsize(path) if os.path.isfile(path) else -1
  if found != size:
    raise ConfigError(
      f"{path}: expected {size} bytes, found {'no file' if found < 0 else found}; delete {folder}, and make it again "
      "with tools/decode_images.py"
    )
  return np.memmap(path, dtype, "r", shape=shape)


def _state(folder: str) -> dict[str, Any]:
  try:
    return files.read_json(
      os.path.join(folder, STATE),
      "a state of decoding",
      f"delete {folder}, and make it again with tools/decode_images.py",
    )
  except UserError as e:
    raise ConfigError(str(e)) from e


class Writer:
  """Decodes pictures into a folder, or goes on where a killed process has stopped.

  Attributes:
    items: the pictures of the source.
    done: pictures that are finished, decoded or left out.
    left_out: what is left out and why.
  """

  def __init__(self, folder: str, items: Items, data: DataConfig, image: ImageConfig):
    """Raises ConfigError: the folder was begun with another source or other settings."""
    self._folder, self._image, self._held_out, self._most = folder, image, data.held_out, data.max_bad
    self.items, self.left_out = items, items.left_out
    self._arguments = {**arguments(data, image), "source": data.source, "files": len(items)}
    self.done = self.bad = 0
    self._counts = dict.fromkeys(SPLITS, 0)
    self._waiting: dict[str, list] = {s: [] for s in SPLITS}
    os.makedirs(folder, exist_ok=True)
    self.finished = False
    if is_folder(folder):
      state = _state(folder)
      if state["arguments"] != self._arguments:
        other = next(k for k, v in self._arguments.items() if state["arguments"].get(k) != v)
        raise ConfigError(
          f"--out: {folder} was begun with {other}={state['arguments'].get(other)}, found {self._arguments[other]}; "
          "give the same flags, or choose another folder"
        )
      self.done, self.bad, self.finished = state["done"], state["bad"], state["finished"]
      self._counts, self.left_out = state["counts"], LeftOut.of(state["left_out"])

  def step(self) -> None:
    """Decodes the next picture."""
    name = self.items.name(self.done)
    try:
      row = self.items.read(self.done, self._image)
      self._waiting["held_out" if is_held_out(name, self._held_out) else "train"].append(row)
    except pictures.BadPicture as e:
      self.left_out.add(str(e), name)
      self.bad += 1
    self.done += 1

  def commit(self) -> None:
    """Writes what is decoded, over anything that lies behind the finished part, and then the state."""
    pixel_bytes = self._image.size**2 * self._image.channels
    for split, rows in self._waiting.items():
      old = self._counts[split]
      pixels = b"".join(p.tobytes() for p, _ in rows)
      labels = np.array([label for _, label in rows], "<i4").tobytes()
      for kind, content, size in (("pixels", pixels, pixel_bytes), ("labels", labels, 4)):
        self._append(f"{split}.{kind}", old * size, content)
      self._counts[split] += len(rows)
      rows.clear()
    self._write()

  def _append(self, name, offset, content):
    path = os.path.join(self._folder, name)
    with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as f:
      f.truncate(offset)
      f.seek(offset)
      f.write(content)
      f.flush()
      os.fsync(f.fileno())

  def _write(self):
    state = {
      "arguments": self._arguments,
      "done": self.done,
      "bad": self.bad,
      "counts": self._counts,
      "left_out": self.left_out.as_dict(),
      "finished": self.finished,
    }
    files.write_json(os.path.join(self._folder, STATE), state)

  def finish(self) -> dict[str, Any]:
    """Returns the counts. Raises ConfigError: too many are bad, or a split is empty; what is decoded is kept."""
    self.commit()
    pictures.refuse_bad(self.left_out, self.bad, len(self.items), self._most)
    for split, fix in (("train", "lower"), ("held_out", "raise")):
      if not self._counts[split]:
        raise ConfigError(
          f"--held_out: {self._held_out} leaves no picture for {split}; {fix} it, or give more pictures"
        )
    self.finished = True
    self._write()
    return dict(self._counts)
