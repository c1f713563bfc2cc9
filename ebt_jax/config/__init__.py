"""Configuration: `schema` and `tasks` have every key with its default and its checks, `resolve` builds a `Config`."""

from ebt_jax.config.checks import ConfigError, near
from ebt_jax.config.resolve import defaults, differences, key_value, keys, load, resolve, set_keys
from ebt_jax.config.schema import (
  SIZES,
  AuthorsConfig,
  CheckpointConfig,
  Config,
  DataConfig,
  EvalConfig,
  InferenceConfig,
  MeshConfig,
  ModelConfig,
  SampleConfig,
  ThinkingConfig,
  TrainConfig,
)
from ebt_jax.config.tasks import GROUPS, ImageConfig, MaskConfig, SudokuConfig, VideoConfig

__all__ = [
  "GROUPS",
  "SIZES",
  "AuthorsConfig",
  "CheckpointConfig",
  "Config",
  "ConfigError",
  "DataConfig",
  "EvalConfig",
  "ImageConfig",
  "InferenceConfig",
  "MaskConfig",
  "MeshConfig",
  "ModelConfig",
  "SampleConfig",
  "SudokuConfig",
  "ThinkingConfig",
  "TrainConfig",
  "VideoConfig",
  "defaults",
  "differences",
  "key_value",
  "keys",
  "load",
  "near",
  "resolve",
  "set_keys",
]
