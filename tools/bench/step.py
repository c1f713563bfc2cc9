"""Times one training step of EBT and Transformer++: the rows of suite `train` to check after a change.

  python -m tools.bench.step [--layers 4 --heads 4 --width 256 --context 256 --batch 8 --repeats 7] [--out bench.json]

Rivals run in turn and medians are compared, so that a busy machine slows all of them. Memory is the temporary memory of
the compiled program. Compile time is without tracing.
"""

import sys

from ebt_jax import allocator, cli, files
from tools.bench import rivals, timing


def main(argv):
  parser = cli.Parser(prog="tools.bench.step", description=__doc__.split("\n")[0])
  for name, default in dict(layers=4, heads=4, width=256, context=256, batch=8, repeats=7).items():
    parser.add_argument(f"--{name}", type=cli.at_least(1), default=default)
  parser.add_argument("--out", type=cli.path, help="also write the numbers as JSON")
  args = parser.parse_args(argv)
  shape = {k: getattr(args, k) for k in ("layers", "heads", "width", "context", "batch")}
  shape |= {"vocab": 257, "dtype": "float32"}

  others = [rivals.transformer(shape), *(rivals.ebt(shape, n) for n in (2, 16))]
  others += [rivals.ebt(shape, n, "last") for n in (2, 3, 16)]
  others.append(rivals.ebt(shape, 2, model={"variant": "time_embed"}, note=", time_embed", landscapes=2))
  steps = rivals.Steps(others, limit_gb=float("inf"))
  steps.run(args.repeats)
  steps.compare()
  print(", ".join(f"{k} {v}" for k, v in timing.machine().items()))
  print(timing.table(steps.rows, rivals.STEP + rivals.COST, f"{rivals.described(shape)}, {args.repeats} rounds"))
  if args.out:
    files.write_json(args.out, {"shape": shape, "machine": timing.machine(), "rows": steps.rows})


if __name__ == "__main__":
  allocator.keep_freed()  # as in training
  sys.exit(cli.door(main, sys.argv[1:]))
