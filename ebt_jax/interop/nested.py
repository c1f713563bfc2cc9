"""Arrays by path as a tree of dicts, with the layers of a model stacked."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ebt_jax.config import ConfigError


def nested(flat: Mapping[str, Any], stacks: Mapping[str, list]) -> dict:
  """A tree of the arrays in `flat`, and of those in `stacks`, one for each layer, stacked; paths have `/` in them.

  Raises:
    ConfigError: a layer of a stack is None.
  """
  flat, tree = dict(flat), {}
  for name, stack in stacks.items():
    if any(a is None for a in stack):
      raise ConfigError(f"{name}: layer {[a is None for a in stack].index(True)} is missing from the arrays")
    flat[name] = np.stack(stack)
  for path, array in flat.items():
    *folders, leaf = path.split("/")
    node = tree
    for folder in folders:
      node = node.setdefault(folder, {})
    node[leaf] = array
  return tree
