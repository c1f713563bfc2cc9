"""The command line: `python -m ebt_jax.main --config=configs/NAME.py[:arg] --workdir=DIR [--mode=train] ...`."""

import dataclasses
import functools
import logging
import os
import sys
import traceback

from absl import app, flags
from absl import logging as absl_logging

from ebt_jax import config as config_lib
from ebt_jax.config import Config, ConfigError

MODES = ("train", "eval", "generate", "shapes", "compile")

_MODE = flags.DEFINE_enum("mode", "train", MODES, "What to do.")
_WORKDIR = flags.DEFINE_string("workdir", "", "Folder of the run: checkpoints, metrics, results.")
_DISTRIBUTED = flags.DEFINE_bool("distributed", False, "Call jax.distributed.initialize first (pods, clusters).")
_STEP = flags.DEFINE_integer("checkpoint_step", -1, "eval, generate: the checkpoint to use; -1: the newest.")
_THINKING_STEPS = flags.DEFINE_integer("thinking_steps", 0, "eval, generate: thinking steps; 0: as trained.")
_CANDIDATES = flags.DEFINE_integer(
  "candidates",
  0,
  "eval, generate: candidates for each token, of which the one of lowest energy is kept; 0: as configured.",
)
_EVAL = flags.DEFINE_multi_string(
  "eval", [], "eval, generate: a key of config.eval as key=value, e.g. --eval=tolerance=0.01; may be repeated."
)
_SOURCE = flags.DEFINE_string("source", "", "eval: another text than the run's held-out split (as config.data.source).")
_PROMPT = flags.DEFINE_multi_string("prompt", [], "generate: text to continue; may be repeated.")
_PROMPTS_FILE = flags.DEFINE_string("prompts_file", "", "generate: a text file with one prompt a line.")
_MAX_TOKENS = flags.DEFINE_integer("max_tokens", 200, "generate: tokens written at most for each prompt.")
_TEMPERATURE = flags.DEFINE_float("temperature", 0.8, "generate: more than 0; greedy text is --top_k=1.")
_TOP_K = flags.DEFINE_integer("top_k", 0, "generate: draw from the k likeliest tokens; 0: all.")
_TOP_P = flags.DEFINE_float("top_p", 1.0, "generate: draw from the fewest tokens that hold this probability.")
_SEED = flags.DEFINE_integer("seed", 0, "generate: seed of candidates and samples.")
_OUT = flags.DEFINE_string("out", "", "generate: also write text and energies as JSON to this file.")


def _define_config():
  try:
    from ml_collections import config_flags  # absent on some accelerator images
  except ImportError:
    return flags.DEFINE_string("config", None, "Needs the package ml-collections: pip install ml-collections")
  return config_flags.DEFINE_config_file("config", None, "Config file, e.g. configs/quickstart.py.", lock_config=True)


_CONFIG = _define_config()


def _config() -> Config:
  """From --config, or from the run in --workdir."""
  if _CONFIG.value is not None:
    try:
      return config_lib.resolve(_CONFIG.value)
    except OSError as e:  # kept by ml_collections until somebody looks at the config
      raise ConfigError(f"--config: the config file cannot be loaded: {e.__cause__ or e}") from e
  if _WORKDIR.value and os.path.exists(os.path.join(_WORKDIR.value, "config.json")):
    config = config_lib.load(os.path.join(_WORKDIR.value, "config.json"))
    # a run can be used on other devices than it was trained on
    return config if _MODE.value == "train" else dataclasses.replace(config, mesh=config_lib.MeshConfig())
  raise ConfigError(
    "--config: give a config file (see configs/), or a --workdir with a run whose config.json is then used; "
    f"found config={_CONFIG.value!r}, workdir={_WORKDIR.value!r}"
  )


def _need_workdir() -> str:
  if not _WORKDIR.value:
    raise ConfigError(f"--workdir: mode {_MODE.value} needs the folder of a run")
  return _WORKDIR.value


def _as_used() -> Config:
  """The config with what --eval, --thinking_steps and --candidates ask for."""
  values = _config().to_dict()
  for asked in _EVAL.value:
    key, _, value = asked.partition("=")
    if key not in values["eval"]:
      raise ConfigError(f"--eval={asked}: no such key; {config_lib.near(key, values['eval'])}")
    old = values["eval"][key]
    try:
      values["eval"][key] = type(old)(value)
    except ValueError:
      raise ConfigError(f"--eval={asked}: expected {type(old).__name__}, found {value!r}") from None
  for name, key, asked in (
    ("thinking_steps", "steps", _THINKING_STEPS.value),
    ("candidates", "candidates", _CANDIDATES.value),
  ):
    if asked < 0:
      raise ConfigError(f"--{name}: expected 1 or more (0: as configured), found {asked}")
    values["eval"][key] = asked or values["eval"][key]
  return config_lib.resolve(values)


def main(argv):
  if len(argv) > 1:
    raise ConfigError(f"{argv[1]}: not a flag; flags look like --name=value")
  config = _as_used() if _MODE.value in ("eval", "generate") else _config()
  if _DISTRIBUTED.value:
    from ebt_jax import parallel

    parallel.initialize_distributed()
  step = None if _STEP.value < 0 else _STEP.value
  match _MODE.value:
    case "train":
      from ebt_jax.training import loop

      loop.train(config, _need_workdir())
    case "eval":
      from ebt_jax.training import offline

      offline.evaluate(config, _need_workdir(), step, _SOURCE.value)
    case "generate":
      from ebt_jax.evaluation.sampling import Sampling
      from ebt_jax.training import offline

      how = Sampling(_TEMPERATURE.value, _TOP_K.value, _TOP_P.value)
      prompts = offline.read_prompts(_PROMPT.value, _PROMPTS_FILE.value)
      offline.generate(config, _need_workdir(), step, prompts, _MAX_TOKENS.value, how, _SEED.value, _OUT.value)
    case "shapes":
      from ebt_jax.training import ahead

      print(ahead.shapes(config))
    case "compile":
      from ebt_jax.training import ahead

      print(ahead.compile_report(config))


def run() -> None:
  """Entry point: errors that a user can mend are one message and exit code 2."""

  def parse(argv):
    try:
      _check_config_file(argv)
      return flags.FLAGS(argv)
    except ConfigError:
      raise
    except Exception as e:  # a config file may raise anything
      raise ConfigError(_flag_error(argv, e)) from e

  def guarded(argv):
    _quieten()
    # absl prints a traceback for what main raises; these are for people
    from ebt_jax.training.checkpoint import CheckpointError
    from ebt_jax.training.loop import TrainingStopped

    try:
      main(argv)
    except (ConfigError, CheckpointError, TrainingStopped) as e:
      print(f"error: {e}", file=sys.stderr)
      sys.exit(2)
    except OSError as e:
      where = f"{e.filename}: " if e.filename else ""
      print(f"error: {where}{e.strerror or e}; finished checkpoints are untouched", file=sys.stderr)
      sys.exit(2)
    except KeyboardInterrupt:
      print("interrupted; finished checkpoints are untouched", file=sys.stderr)
      sys.exit(130)

  try:
    app.run(guarded, flags_parser=parse)
  except ConfigError as e:
    print(f"error: {e}", file=sys.stderr)
    sys.exit(2)


def _quieten() -> None:
  """Logs warnings and worse in plain words: absl, which takes over logging in `app.run`, shows every INFO of JAX."""
  if not flags.FLAGS["verbosity"].present:
    absl_logging.set_verbosity(absl_logging.WARNING)
  absl_logging.get_absl_handler().setFormatter(logging.Formatter("%(levelname)s: %(message)s"))


def _config_file(argv: list[str]) -> str | None:
  """The file that --config names."""
  for i, arg in enumerate(argv):
    name, equals, value = arg.partition("=")
    if name in ("--config", "-config"):
      return (value if equals else "".join(argv[i + 1 : i + 2])).partition(":")[0]
  return None


def _check_config_file(argv: list[str]) -> None:
  path = _config_file(argv)
  if path is None:
    return
  if os.path.isfile(path):  # a config file may import its neighbours as `configs.NAME`, wherever main is started
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(path))))
    return
  folder = os.path.dirname(path) or "."
  try:
    files = [os.path.join(os.path.dirname(path), f) for f in os.listdir(folder) if f.endswith(".py")]
  except OSError:
    raise ConfigError(f"--config: no file {path!r}; there is no folder {folder!r} here ({os.getcwd()})") from None
  near = config_lib.near(path, files) if files else f"{folder!r} holds no .py file"
  raise ConfigError(f"--config: no file {path!r}; {near}")


def _flag_error(argv: list[str], error: Exception) -> str:
  """Names the key of a `--config.a.b=` override that is unknown or ill-typed, or the line of the config file."""
  path, known = _config_file(argv), config_lib.keys()
  for arg in argv[1:]:
    name, _, value = arg.lstrip("-").partition("=")
    if name.startswith("config."):
      if name not in known and name.removeprefix("no") not in known:
        return f"{name}: no such key; {config_lib.near(name, known)}"
      if path is None:
        return f"{name}: a key is set on top of a config file; give --config=FILE before it"
      if str(error).startswith(f"flag --{name}={value}: "):
        expected = functools.reduce(getattr, name.split(".")[1:], Config())
        return f"{name}: expected {type(expected).__name__}, found {value!r}"
  chain = [error]  # ml_collections and absl wrap errors of the file and put tracebacks into their texts
  while chain[-1].__context__:
    chain.append(chain[-1].__context__)
  lines = [
    f.lineno
    for e in chain
    for f in traceback.extract_tb(e.__traceback__)
    if path and os.path.abspath(f.filename) == os.path.abspath(path)
  ]
  first = next(e for e in chain if "Traceback" not in str(e))
  message = f"{type(first).__name__}: {' '.join(str(first).split())}"
  if lines:
    return f"{path}, line {lines[-1]}: {message}"
  if isinstance(first, SyntaxError):
    return f"{first.filename}, line {first.lineno}: {first.msg}"
  return str(error) if isinstance(error, flags.Error) else f"--config={path}: {message}"


if __name__ == "__main__":
  run()
