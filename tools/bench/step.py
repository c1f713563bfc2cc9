"""Times one training step of EBT and Transformer++: the rows of suite `train` to check after a change.

  python -m tools.bench.step [--layers 4 --heads 4 --width 256 --context 256 --batch 8 --repeats 7] [--out bench.json]

Rivals run in turn and medians are compared, so that a busy machine slows all of them. Memory is the temporary memory of
the compiled program. Compile time is without tracing.
"""

import argparse
import json

from tools.bench import rivals, timing


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  for name, default in dict(layers=4, heads=4, width=256, context=256, batch=8, repeats=7).items():
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--out", help="also write the numbers as JSON")
  args = parser.parse_args()
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
    with open(args.out, "w", encoding="utf-8") as f:
      json.dump({"shape": shape, "machine": timing.machine(), "rows": steps.rows}, f, indent=2)


if __name__ == "__main__":
  main()
