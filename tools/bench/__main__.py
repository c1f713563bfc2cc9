"""Measures this package and its rivals, in one process and in turn. tools/README.md describes the suites.

  python -m tools.bench --suite=train,sizes,vocab,attention,decode,mesh [--rounds=5] [--out=build/bench]

The rival of every suite is EBT in its authors' formulation (tools/bench/authors.py). A step is the loss and the
gradient of one batch; the optimiser is left out. Ratios are to Transformer++ at the same shape.
"""

import argparse
import os
import pathlib
import sys

import jax

from ebt_jax import files
from ebt_jax.config import SIZES
from tools.bench import timing
from tools.bench.rivals import SHAPE
from tools.bench.suites import SUITES


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--suite", default=",".join(SUITES), help="comma-separated: " + ", ".join(SUITES))
  parser.add_argument("--rounds", type=int, default=5, help="rounds after one warm-up round")
  parser.add_argument("--out", default="build/bench", help="folder for SUITE.json and figures")
  for name in SHAPE:
    parser.add_argument(f"--{name}", type=int, help="of every suite; each has its own default")
  parser.add_argument("--size", choices=SIZES, help="layers, heads and width by name")
  parser.add_argument("--dtype", default="float32", help="of matrix products: float32 or bfloat16")
  parser.add_argument("--sizes", default="4xs,3xs,xxs", help="of suite sizes")
  parser.add_argument("--only", default="", help="names or parts of names to run, separated by semicolons")
  parser.add_argument("--devices", default="8,64", help="of suite mesh")
  parser.add_argument("--mesh_sizes", default="medium,xl", help="of suite mesh")
  parser.add_argument("--max_gb", type=float, default=0.0, help="programs that need more are compiled and not run")
  parser.add_argument(
    "--torch", nargs="?", const=sys.executable, default="", help="train, decode: PyTorch too; optionally its python"
  )
  args = parser.parse_args()
  asked = dict(vars(args))
  unknown = set(args.suite.split(",")) - set(SUITES)
  if unknown:
    parser.error(f"--suite: no suite {', '.join(sorted(unknown))}; known: {', '.join(SUITES)}")
  jax.config.update("jax_enable_compilation_cache", False)  # compile times are measured
  if not args.max_gb:
    args.max_gb = 0.85 * timing.memory_available() / 1e9 if jax.default_backend() == "cpu" else float("inf")
  out = pathlib.Path(args.out)
  os.makedirs(out, exist_ok=True)
  machine = timing.machine()
  print(", ".join(f"{k} {v}" for k, v in machine.items()))
  for name in args.suite.split(","):
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
  main()
