"""The command line: `python -m ebt_jax.main --config=configs/NAME.py[:arg] --workdir=DIR [--mode=train] ...`."""

import os
import sys

if __name__ == "__main__" and sys.path[0] in ("", os.getcwd()):
  # `python -m` looks in the working directory first, where a user's random.py or jax.py would be taken for the library
  sys.path.append(sys.path.pop(0))

import argparse
import dataclasses
import logging
import traceback

from ebt_jax import allocator, cli, sweep
from ebt_jax import config as config_lib
from ebt_jax import flags as flags_lib
from ebt_jax.config import Config, ConfigError, MeshConfig
from ebt_jax.errors import UserError


def read_config(flags: argparse.Namespace) -> Config:
  """The config of --config, or of the run in --workdir, with the keys that the flags set.

  Raises:
    ConfigError: there is no config, its file fails, a key is unknown, or a value is ill-typed or impossible.
  """
  folder = _folder(flags)
  run = os.path.join(folder, "config.json")
  if flags.config:
    return config_lib.set_keys(_load(flags.config), flags.keys + flags.set)
  if flags.keys:
    key = flags.keys[0].removeprefix("config.")
    raise ConfigError(f"--config.{key}: needs --config=FILE; on top of the run in --workdir, use --set {key}")
  if folder and os.path.exists(run):
    config = config_lib.load(run)
    if flags.mode != "train":  # a run can be used on other devices than it was trained on
      config = dataclasses.replace(config, mesh=MeshConfig())
    return config_lib.set_keys(config, flags.set)
  raise ConfigError(
    "--config: give a config file (see configs/), or a --workdir with a run whose config.json is then used; "
    f"found config={flags.config!r}, workdir={flags.workdir!r}"
  )


def _step(flags: argparse.Namespace) -> int | None:
  """Of the checkpoint that is asked for; None: the newest."""
  return None if flags.checkpoint_step < 0 else flags.checkpoint_step


def _folder(flags: argparse.Namespace) -> str:
  """The folder of the run that --workdir or --model names; empty where neither is given."""
  if not flags.model:
    return flags.workdir
  from ebt_jax.use import bundled

  try:
    return str(bundled.folder_of(flags.model, _step(flags)))
  except UserError as e:
    raise ConfigError(f"--model: {e}") from e


def _load(name: str):
  """The ConfigDict of `FILE.py[:ARG]`; errors name the nearest file, or the line of the file that failed."""
  path = name.partition(":")[0]
  folder = os.path.dirname(path) or "."
  if not os.path.isdir(folder):
    raise ConfigError(f"--config: no file {path!r}; there is no folder {folder!r} here ({os.getcwd()})")
  if not os.path.isfile(path):
    files = [os.path.join(os.path.dirname(path), f) for f in os.listdir(folder) if f.endswith(".py")]
    near = config_lib.near(path, files) if files else f"{folder!r} holds no .py file"
    raise ConfigError(f"--config: no file {path!r}; {near}")
  try:
    return sweep.read_config(name)
  except ConfigError as e:
    raise ConfigError(_config_file_error(path, e)) from e


def _config_file_error(path: str, error: ConfigError) -> str:
  cause = error.__cause__
  if isinstance(cause, SyntaxError) and cause.filename:
    return f"{cause.filename}, line {cause.lineno}: {cause.msg}"
  frames = traceback.extract_tb(cause.__traceback__) if cause else []
  lines = [f.lineno for f in frames if os.path.abspath(f.filename) == os.path.abspath(path)]
  return f"{path}, line {lines[-1]}: {type(cause).__name__}: {cause}" if lines else str(error)


def start(config: Config, flags: argparse.Namespace) -> None:
  """Does what --mode asks for."""
  from ebt_jax import parallel
  from ebt_jax.evaluation import commands
  from ebt_jax.evaluation.asked import Asked
  from ebt_jax.training import inspect, loop
  from ebt_jax.use.sampling import Sampling

  folder = _folder(flags)
  if flags.mode in ("train", "eval", "generate", "export") and not folder:
    raise ConfigError(f"--workdir: mode {flags.mode} needs the folder of a run")
  if flags.distributed:
    parallel.initialize_distributed()
  step = _step(flags)
  match flags.mode:
    case "train":
      allocator.keep_freed()
      loop.train(config, flags.workdir, flags.tracker, flags.mirror)
    case "eval":
      commands.evaluate(folder, config, step, flags.source, flags.out, keep=not flags.model)
    case "generate":
      sampling = Sampling(flags.temperature, flags.top_k, flags.top_p)
      asked = Asked(flags.prompt, flags.prompts_file, flags.max_tokens, sampling, flags.seed, flags.out)
      commands.generate(folder, config, step, asked._replace(home="." if flags.model else folder))
    case "export":
      commands.export(folder, step, flags.out, flags.half)
    case "shapes":
      parallel.print_once(inspect.shapes(config))
    case "compile":
      parallel.print_once(inspect.compile_report(config))


def main(argv: list[str]) -> None:
  """Does what the flags in `argv` ask for."""
  flags = flags_lib.parse(argv)
  if flags.mode == "import":  # the config is made of the authors' options
    from ebt_jax.evaluation import commands

    return commands.import_model(getattr(flags, "from"), flags.out, flags.options, flags.set)
  start(read_config(flags), flags)


def run() -> int:
  """Runs the command in `sys.argv`; returns the exit code."""
  logging.basicConfig(format="%(levelname)s: %(message)s")  # of the warnings of libraries
  code = cli.door(main, sys.argv[1:], kept="finished checkpoints are untouched")
  if code and "jax" in sys.modules:  # else no other process has been met
    from ebt_jax import parallel

    parallel.leave(code)
  return code


if __name__ == "__main__":
  sys.exit(run())
