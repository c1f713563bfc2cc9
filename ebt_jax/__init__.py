"""Energy-Based Transformers in JAX (arXiv 2507.02092).

What a library user calls: `load` for a trained run; for energies of their own `think`, `think_and_verify`, spaces of
candidates, and their configs. The rest of the package is reached by its modules; `ebt_jax/README.md` is the map.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
  from ebt_jax.config import InferenceConfig, ThinkingConfig
  from ebt_jax.thinking import Euclidean, PerLandscape, Randomness, Simplex, think, think_and_verify
  from ebt_jax.use.load import load

  __version__: str

_WHERE = {
  "ebt_jax.config": ("InferenceConfig", "ThinkingConfig"),
  "ebt_jax.use.load": ("load",),
  "ebt_jax.thinking": ("Euclidean", "PerLandscape", "Randomness", "Simplex", "think", "think_and_verify"),
}

__all__ = [
  "Euclidean",
  "InferenceConfig",
  "PerLandscape",
  "Randomness",
  "Simplex",
  "ThinkingConfig",
  "__version__",
  "load",
  "think",
  "think_and_verify",
]


def __getattr__(name: str) -> Any:
  """Imports a name when it is first used: reading a config should not wait for JAX."""
  if name == "__version__":
    from importlib import metadata

    return metadata.version("ebt_jax")
  for module, names in _WHERE.items():
    if name in names:
      return getattr(importlib.import_module(module), name)
  raise AttributeError(f"module 'ebt_jax' has no attribute {name!r}")
