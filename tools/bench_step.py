"""Times one training step of EBT beside Transformer++, in one process.

  python tools/bench_step.py [--layers 4 --heads 4 --width 256 --context 256 --batch 8 --repeats 7] [--out bench.json]

Rivals are run in turn and medians compared, so that a busy machine slows all alike. Memory is the compiled program's
temporary memory; compile time is that of the gradient, tracing left out.
"""

import argparse
import json

import jax
import jax.numpy as jnp
import numpy as np
import timing

from ebt_jax import flops
from ebt_jax.config import resolve
from ebt_jax.tasks.text import make_task


def rivals(shape):
  """Name -> config. `shape` has layers, heads, width, context, batch."""

  def config(kind="ebt", variant="default", **thinking):
    model = {k: shape[k] for k in ("layers", "heads", "width")}
    return resolve({
        "model": {**model, "kind": kind, "variant": variant, "vocab_size": 257},
        "thinking": thinking,
        "data": {"context_length": shape["context"]},
        "train": {"batch_size": shape["batch"]},
    })

  last = dict(gradient="last", learn_step_size=False)
  return {
      "transformer++": config("transformer"),
      "default, each, 2 steps": config(steps=2),
      "default, each, 16 steps": config(steps=16),
      "default, last, 2 steps": config(steps=2, **last),
      "default, last, 3 steps": config(steps=3, **last),
      "default, last, 16 steps": config(steps=16, **last),
      "time_embed, each, 2 landscapes": config(variant="time_embed", steps=2, landscapes=2),
  }


def prepare(config):
  """(compiled gradient, its arguments, compile seconds)."""
  task = make_task(config)
  params = task.init(jax.random.key(0))
  shape = (config.train.batch_size, config.data.context_length)
  tokens = np.random.default_rng(0).integers(0, 256, (shape[0], shape[1] + 1)).astype(np.int32)
  args = (params, {"tokens": jnp.asarray(tokens), "weights": jnp.ones(shape)}, jax.random.key(1))
  compiled, seconds = timing.compiled(jax.grad(task.loss, has_aux=True), *args)
  return compiled, args, seconds


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  for name, default in dict(layers=4, heads=4, width=256, context=256, batch=8, repeats=7).items():
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--out", help="also write the numbers as JSON")
  args = parser.parse_args()
  shape = vars(args)

  programs = {name: (config, *prepare(config)) for name, config in rivals(shape).items()}
  call = lambda compiled, inputs: lambda: jax.block_until_ready(compiled(*inputs))
  calls = {name: call(compiled, inputs) for name, (_, compiled, inputs, _) in programs.items()}
  times = timing.interleaved(calls, args.repeats)

  base = timing.summary(times["transformer++"])["seconds"]
  base_flops = flops.train_step(programs["transformer++"][0])
  rows = []
  for name, (config, compiled, _, compile_s) in programs.items():
    row = {"name": name, **timing.summary(times[name]), "flops_ratio": flops.train_step(config) / base_flops}
    row |= {"temporary_mb": timing.memory_mb(compiled), "compile_seconds": compile_s}
    rows.append({**row, "ratio": row["seconds"] / base})
  columns = (
      *timing.TIMES, ("ratio", "ratio", ".2f"), ("FLOPs", "flops_ratio", ".2f"), ("temp MB", "temporary_mb", ".0f"),
      ("compile s", "compile_seconds", ".1f"),
  )  # fmt: skip
  print(", ".join(f"{k} {v}" for k, v in timing.machine().items()))
  print(f"layers {args.layers}, width {args.width}, context {args.context}, batch {args.batch}, {args.repeats} rounds")
  print(timing.table(rows, columns))
  if args.out:
    with open(args.out, "w", encoding="utf-8") as f:
      json.dump({"shape": shape, "jax": jax.__version__, "rows": rows}, f, indent=2)


if __name__ == "__main__":
  main()
