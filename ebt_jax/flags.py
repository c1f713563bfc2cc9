"""The flags of `ebt_jax.main`: their help page, and how they are parsed."""

import argparse
import functools
from importlib import metadata
import typing

from ebt_jax import cli, files
from ebt_jax import config as config_lib
from ebt_jax.config import Config, ConfigError
from ebt_jax.trackers import TRACKERS

MODES = ("train", "eval", "generate", "export", "import", "shapes", "compile")
# flag: the modes that use it; flags that are not listed are used by every mode
USED_BY = {
  "tracker": ("train",),
  "mirror": ("train",),
  "model": ("eval", "generate", "export", "shapes"),
  "checkpoint_step": ("eval", "generate", "export"),
  "source": ("eval",),
  "out": ("eval", "generate", "export", "import"),
  "from": ("import",),
  "options": ("import",),
  "half": ("export",),
} | dict.fromkeys(("prompt", "prompts_file", "max_tokens", "temperature", "top_k", "top_p", "seed"), ("generate",))
REMOVED = {"thinking_steps": "eval.steps=", "candidates": "eval.candidates=", "eval": "eval."}  # flag: now --set ...

DESCRIPTION = """\
Train and use Energy-Based Transformers and the baselines they are compared with.

modes:
  train     train the run in --workdir, or continue it (the default)
  eval      evaluate a trained run on its held-out data, or on --source
  generate  answer prompts with a trained run: continue or fill texts, solve puzzles, denoise pictures
  export    write a trained run as a folder to share: safetensors, config, tokenizer, model card
  import    make such a folder of a checkpoint of the authors' PyTorch code
  shapes    trace a run without computing, and print its parameters
  compile   compile a training step without running it, and print its memory, FLOPs and communication

Flags are written --flag=value or --flag value.
"""
EXAMPLES = """\
examples:
  python -m ebt_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
  python -m ebt_jax.main --config=configs/quickstart.py:transformer --workdir=runs/baseline --set train.steps=900 seed=1
  python -m ebt_jax.main --model=bundled --mode=generate --prompt="The people of"
  python -m ebt_jax.main --workdir=runs/quickstart --mode=eval --set eval.steps=2
  python -m ebt_jax.main --workdir=runs/quickstart --mode=generate --prompt="The people of" --set eval.candidates=8
  python -m ebt_jax.main --workdir=runs/quickstart --mode=export --out=shared/quickstart
  python -m ebt_jax.main --config=configs/text_ebt_s1.py:small --mode=compile --set mesh.model=2

ebt_jax/config/schema.py has every config key with its meaning and its default.
"""


class _Parser(cli.Parser):
  def refuse(self, rest: list[str]) -> typing.NoReturn:
    flag, equals, value = rest[0].partition("=")
    name = flag.lstrip("-")
    if name in REMOVED:
      value = value if equals else "".join(rest[1:2])
      raise ConfigError(f"{flag}: was removed; use --set {REMOVED[name]}{value}")
    if name.startswith("config."):
      config_lib.set_keys(Config(), [f"{name}={value}"])  # raises: the key is unknown, or has moved
    super().refuse(rest)


class _Key(argparse.Action):
  """Collects `--config.KEY=VALUE` as the assignment `config.KEY=VALUE`."""

  def __call__(self, parser, flags, value, flag=None):
    flags.keys.append(f"{self.dest}={self.const if value == [] else value}")


def _workdir(text: str) -> str:
  if files.is_remote(text):
    raise argparse.ArgumentTypeError(
      f"{text} is a remote path, expected one of this machine; to train, give it as --mirror beside a --workdir of "
      "this machine; to read a run, as --model"
    )
  return cli.local(text)


def _parser() -> _Parser:
  parser = _Parser(
    prog="python -m ebt_jax.main",
    usage="python -m ebt_jax.main --config=FILE.py[:ARG] --workdir=DIR [--mode=MODE] [--set KEY=VALUE ...] [flags]",
    description=DESCRIPTION,
    epilog=EXAMPLES,
    formatter_class=functools.partial(argparse.RawDescriptionHelpFormatter, max_help_position=32, width=120),
    allow_abbrev=False,
  )
  parser.add_argument("--version", action="version", version=f"ebt_jax {_version()}")
  flag = parser.add_argument_group("every mode").add_argument
  flag("--mode", default="train", metavar="MODE", help=" | ".join(MODES))
  flag(
    "--config",
    type=cli.local,
    metavar="FILE.py[:ARG]",
    help="config file (default: that of the run in --workdir)",
  )
  flag("--workdir", type=_workdir, default="", metavar="DIR", help="folder of the run: checkpoints, metrics, results")
  flag(
    "--model",
    type=cli.anywhere,
    default="",
    metavar="NAME",
    help="in place of --workdir, a trained run that is only read: its folder, also gs:// or s3://, or one that comes "
    "with the package: bundled, bundled/transformer",
  )
  flag("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="config keys, e.g. train.steps=100")
  key = {"action": _Key, "default": argparse.SUPPRESS}
  flag("--config.KEY", **key, metavar="VALUE", help="the same, on top of --config; also --config.KEY, --noconfig.KEY")
  flag("--distributed", action="store_true", help="call jax.distributed.initialize first (TPU pods, clusters)")
  flag = parser.add_argument_group("train").add_argument
  flag(
    "--mirror",
    type=cli.anywhere,
    default="",
    metavar="ADDRESS",
    help="gs://, s3:// or another folder, which gets all checkpoints too, and which a new machine goes on from",
  )
  flag("--tracker", choices=("", *TRACKERS), default="", metavar="NAME", help="also log to: " + " | ".join(TRACKERS))
  flag = parser.add_argument_group("eval, generate, export").add_argument
  flag(
    "--checkpoint_step",
    type=cli.at_least(-1),
    default=-1,
    metavar="N",
    help="of which checkpoint (default: the newest)",
  )
  flag = parser.add_argument_group("eval").add_argument
  flag("--source", default="", help="evaluate on other data, written like config.data.source")
  flag = parser.add_argument_group("generate").add_argument
  flag(
    "--prompt",
    action="append",
    default=[],
    metavar="TEXT",
    help="text to continue, or with a _ for each blank token, or a puzzle; repeatable",
  )
  flag(
    "--prompts_file",
    type=cli.local,
    default="",
    metavar="FILE",
    help="text file, one prompt a line; a folder of pictures",
  )
  flag("--max_tokens", type=int, default=200, metavar="N", help="most tokens for each prompt (default: 200)")
  flag("--temperature", type=float, default=0.8, metavar="T", help="more than 0; greedy is --top_k=1 (default: 0.8)")
  flag("--top_k", type=int, default=0, metavar="K", help="sample from the K likeliest tokens (default: from all)")
  flag("--top_p", type=float, default=1.0, metavar="P", help="sample from the fewest tokens that have this probability")
  flag("--seed", type=int, default=0, metavar="N", help="seed of candidates and samples (default: 0)")
  flag(
    "--out",
    type=cli.local,
    default="",
    metavar="PATH",
    help="generate: answers, as .json or as a page (.html); eval: a page; export, import: the folder to make",
  )
  flag = parser.add_argument_group("export").add_argument
  flag("--half", action="store_true", help="round parameters to 16 bits")
  flag = parser.add_argument_group("import").add_argument
  flag("--from", type=cli.local, default="", metavar="FILE", help="their .ckpt or .pt, or an .npz")
  flag("--options", type=cli.local, default="", metavar="FILE", help="JSON of their options, if FILE has none")
  for name in config_lib.keys():
    boolean = isinstance(functools.reduce(getattr, name.split(".")[1:], Config()), bool)
    parser.add_argument(f"--{name}", **key, nargs="?" if boolean else None, const="true", help=argparse.SUPPRESS)
    if boolean:
      parser.add_argument(f"--no{name}", **key, dest=name, nargs=0, const="false", help=argparse.SUPPRESS)
  parser.set_defaults(keys=[])
  return parser


def _version() -> str:
  try:
    return metadata.version("ebt_jax")
  except metadata.PackageNotFoundError:
    return "(not installed)"


def parse(argv: list[str]) -> argparse.Namespace:
  """Flags by name; `keys` has the assignments of `--config.KEY=VALUE`, `set` those of `--set`.

  Raises:
    ConfigError: a flag is unknown, ill-typed, or not used by the mode.
  """
  parser = _parser()
  flags = parser.parse_args(argv)
  if flags.mode not in MODES:
    raise ConfigError(f"--mode: no mode {flags.mode!r}; expected {'|'.join(MODES)}")
  if flags.model and flags.workdir:
    raise ConfigError("--model: names a run that is only read, and --workdir another; give one of them")
  for name, modes in USED_BY.items():
    if flags.mode not in modes and getattr(flags, name) != parser.get_default(name):
      raise ConfigError(f"--{name}: mode {flags.mode} does not use it, only {', '.join(modes)}; leave it out")
  return flags
