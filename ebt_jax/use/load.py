"""Trained runs as Python objects."""

from collections.abc import Mapping
import pathlib
from typing import Any

import jax

from ebt_jax import config as config_lib
from ebt_jax import parallel, runs
from ebt_jax.config import ConfigError, MeshConfig
from ebt_jax.use import bundled
from ebt_jax.use.image import ImageModel
from ebt_jax.use.infill import InfillModel
from ebt_jax.use.sudoku import SudokuModel
from ebt_jax.use.text import TextModel
from ebt_jax.use.video import VideoModel

MODELS = {"text": TextModel, "infill": InfillModel, "sudoku": SudokuModel, "image": ImageModel, "video": VideoModel}


def load(folder: str | pathlib.Path, step: int | None = None, settings: Mapping[str, Any] | None = None) -> Any:
  """A trained run, ready to use on the first device.

  Args:
    folder: of a run that `python -m ebt_jax.main` has trained, exported or imported, also on an object store, such as
      "gs://bucket/run"; or "bundled" and "bundled/transformer", which come with the package.
    step: of the checkpoint; None: the newest that is intact.
    settings: config keys that differ from training, such as `{"eval.candidates": 8, "eval.steps": 4}`.

  Returns:
    By the task of the run a `use.text.TextModel`, `use.infill.InfillModel`, `use.sudoku.SudokuModel`,
    `use.image.ImageModel` or `use.video.VideoModel`.

  Raises:
    ConfigError: there is no run, a setting is wrong, or the task has no model of this kind.
    CheckpointError: there is no intact checkpoint.
    RemoteError: the store holds no run, or cannot be reached.
  """
  folder = bundled.folder_of(folder, step)
  config = config_lib.set_keys(runs.config_of(folder), [f"{k}={v}" for k, v in (settings or {}).items()])
  if config.task not in MODELS:
    raise ConfigError(
      f"load: {folder} is a run of task {config.task!r}; there are models of {', '.join(MODELS)}. "
      "Use ebt_jax.runs.open_run for its task and parameters"
    )
  mesh = parallel.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    return MODELS[config.task](runs.open_run(folder, step, config, mesh))
