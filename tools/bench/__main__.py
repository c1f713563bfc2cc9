"""Measures this package and its rivals, in one process and in turn. tools/README.md describes the suites.

  python -m tools.bench --suite=train,sizes,vocab,attention,decode,recurrent,image,mesh [--rounds=5] [--out=build/bench]

The rival of every suite is EBT in its authors' formulation (tools/bench/authors.py). A step is the loss and the
gradient of one batch; the optimiser is left out. Ratios are to Transformer++ at the same shape; of pictures, to DiT.
"""

import argparse
import os
import pathlib
import sys

import jax

from ebt_jax import allocator, cli, files
from ebt_jax.config import SIZES, near
from tools.bench import timing
from tools.bench.rivals import SHAPE
from tools.bench.suites import SUITES

TIMED = ("train", "sizes", "vocab", "attention", "decode", "recurrent")  # suites that run something
# flag: the suites that use it
USED_BY = {
  **dict.fromkeys(("context", "vocab"), TIMED),
  **dict.fromkeys(("batch", "dtype", "rounds"), (*TIMED, "image")),
  **dict.fromkeys(("layers", "heads", "width", "size"), ("train", "vocab", "attention", "decode", "recurrent")),
  "only": ("train", "vocab", "attention", "recurrent", "image"),
  "max_gb": ("train", "sizes", "vocab", "attention", "recurrent", "image"),
  "sizes": ("sizes",),
  "torch": ("train", "decode", "image"),
  "devices": ("mesh",),
  "mesh_sizes": ("mesh",),
}


def names_of(known):
  """The type of a flag that lists some of these names, separated by commas."""

  def names(text):
    for name in text.split(","):
      if name not in known:
        raise argparse.ArgumentTypeError(f"no {name!r}; {near(name, known)}")
    return text

  return names


def numbers(text):
  """The type of a flag that lists positive integers, separated by commas."""
  for part in text.split(","):
    cli.at_least(1)(part)
  return text


def main(argv):
  parser = cli.Parser(prog="tools.bench", description=__doc__.split("\n")[0])
  parser.add_argument(
    "--suite", type=names_of(SUITES), default=",".join(SUITES), help="comma-separated: " + ", ".join(SUITES)
  )
  parser.add_argument("--rounds", type=cli.at_least(1), default=5, help="rounds after one warm-up round")
  parser.add_argument(
    "--out", type=cli.path, default=pathlib.Path("build/bench"), help="folder for SUITE.json and figures"
  )
  for name in SHAPE:
    parser.add_argument(f"--{name}", type=cli.at_least(1), help="of every suite; each has its own default")
  parser.add_argument("--size", choices=SIZES, help="layers, heads and width by name")
  parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of matrix products")
  parser.add_argument("--sizes", type=names_of(SIZES), default="4xs,3xs,xxs", help="of suite sizes")
  parser.add_argument("--only", default="", help="names or parts of names to run, separated by semicolons")
  parser.add_argument("--devices", type=numbers, default="8,64", help="of suite mesh")
  parser.add_argument("--mesh_sizes", type=names_of(SIZES), default="medium,xl", help="of suite mesh")
  parser.add_argument("--max_gb", type=float, default=0.0, help="programs that need more are compiled and not run")
  parser.add_argument(
    "--torch",
    nargs="?",
    const=sys.executable,
    default="",
    help="train, decode, image: PyTorch too; optionally its python",
  )
  args = parser.parse_args(argv)
  asked = {**vars(args), "out": str(args.out)}
  suites = args.suite.split(",")
  for name, using in USED_BY.items():
    if getattr(args, name) != parser.get_default(name) and not set(using) & set(suites):
      parser.error(f"--{name}: suite {args.suite} does not use it, only {', '.join(using)}; leave it out")
  jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured
  if not args.max_gb:
    args.max_gb = 0.85 * timing.memory_available() / 1e9 if jax.default_backend() == "cpu" else float("inf")
  out = args.out
  os.makedirs(out, exist_ok=True)
  machine = timing.machine()
  print(", ".join(f"{k} {v}" for k, v in machine.items()))
  for name in suites:
    print(f"\n{name}: {SUITES[name].__doc__}")
    found = SUITES[name](args)
    path = out / f"{name}.json"
    settings = {"machine": machine, **asked}
    if kept := files.keep_others(path, settings):
      print(f"results of other settings that were there are kept as {kept}")
    files.write_json(path, {"suite": name, "machine": machine, "settings": settings, **found})
  try:
    from tools.bench import figures
  except ImportError as e:
    print(f"no figures ({e}): pip install matplotlib, then python -m tools.bench.figures {out}")
  else:
    print("\nfigures:", *figures.draw(out))


if __name__ == "__main__":
  allocator.keep_freed()  # as in training
  sys.exit(cli.door(main, sys.argv[1:]))
