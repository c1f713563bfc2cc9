"""Models of the authors' PyTorch code as folders that every mode reads."""

from collections.abc import Mapping, Sequence
import json
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import files, parallel, record, torch_file, weights
from ebt_jax.config import Config, ConfigError, set_keys
from ebt_jax.interop import reference
from ebt_jax.tasks import registry
from ebt_jax.use.export import new_folder


def import_model(path: str, out: str, options: str = "", keys: Sequence[str] = ()) -> Config:
  """Writes a model of theirs as a folder for evaluation, generation and `init_from`, and returns its config.

  Args:
    path: their .ckpt or .pt file, or an .npz of their `state_dict` (names may begin with `param/`).
    out: the folder to make; it appears whole or not at all.
    options: a JSON file of their command-line options; it overrides those that the file holds.
    keys: `KEY=VALUE` of the config, such as `data.tokenizer=...`.

  Raises:
    ConfigError: a file cannot be read, an option is missing, or the parameters do not fit the options.
  """
  arrays, found = read_weights(pathlib.Path(path))
  if options:
    found |= files.read_json(options, "their options", "give a JSON object of option names and values")
  try:
    config, params = reference.config_of(arrays, **found)
  except KeyError as e:
    raise ConfigError(f"--options: {e} is missing; give the options that the model was trained with") from e
  task = registry.make(set_keys(config, keys))
  params = _fitting(task, params)
  with new_folder(pathlib.Path(out)) as folder:
    weights.write(folder, params, 0)
    files.write_json(folder / record.CONFIG, task.config.to_dict())
    try:
      record.keep(folder, task, None)
    except ConfigError:  # a vocabulary that is not here yet; evaluation will ask for it
      pass
  return task.config


def read_weights(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
  """Their arrays by name, and the options that the file holds. Raises ConfigError where it cannot be read."""
  if path.suffix == ".npz":
    try:
      with np.load(path) as z:  # refuses pickles
        options = json.loads(str(z["meta"])).get("hparams", {}) if "meta" in z.files else {}
        names = [n for n in z.files if n.startswith("param/")] or [n for n in z.files if n != "meta"]
        return {n.removeprefix("param/"): z[n] for n in names}, options
    except (OSError, ValueError, KeyError) as e:
      raise ConfigError(f"--from: {path} cannot be read: {type(e).__name__}: {e}") from e
  try:
    found = torch_file.read(path)
  except ConfigError as e:
    raise ConfigError(f"--from: {e}") from e
  if not isinstance(found, Mapping) or not isinstance(state := found.get("state_dict", found), Mapping):
    raise ConfigError(f"--from: {path} holds no state_dict")
  options = found.get("hyper_parameters", {}) if "state_dict" in found else {}
  options = options.get("hparams", options)  # some trainers keep the options as one of their arguments
  # their trainer puts the model below `model`
  arrays = {n.removeprefix("model."): a for n, a in state.items() if isinstance(a, np.ndarray)}
  return arrays, dict(options) if isinstance(options, Mapping) else {}


_leaves = jax.tree_util.tree_leaves_with_path


def _fitting(task: Any, params: Any) -> Any:
  """The parameters in the types of the task. Raises ConfigError unless it has all of them, of the same shapes."""
  expected = jax.eval_shape(task.init, jax.random.key(0))
  there, here = ({parallel.path_name(p): a.shape for p, a in _leaves(tree)} for tree in (params, expected))
  if there != here:
    differ = sorted(set(there.items()) ^ set(here.items()))
    raise ConfigError(f"--from: the parameters do not fit the model that the options describe: {differ[:4]}")
  return jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), params, expected)
