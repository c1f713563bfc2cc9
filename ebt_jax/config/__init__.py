"""Configuration: `schema` has every key with its default and its checks, `resolve` builds a checked `Config`."""

from ebt_jax.config.resolve import defaults, differences, key_value, keys, load, near, resolve, set_keys
from ebt_jax.config.schema import (
  SIZES,
  AuthorsConfig,
  CheckpointConfig,
  Config,
  ConfigError,
  DataConfig,
  EvalConfig,
  InferenceConfig,
  MaskConfig,
  MeshConfig,
  ModelConfig,
  SampleConfig,
  ThinkingConfig,
  TrainConfig,
)

__all__ = [
  "SIZES",
  "AuthorsConfig",
  "CheckpointConfig",
  "Config",
  "ConfigError",
  "DataConfig",
  "EvalConfig",
  "InferenceConfig",
  "MaskConfig",
  "MeshConfig",
  "ModelConfig",
  "SampleConfig",
  "ThinkingConfig",
  "TrainConfig",
  "defaults",
  "differences",
  "key_value",
  "keys",
  "load",
  "near",
  "resolve",
  "set_keys",
]
