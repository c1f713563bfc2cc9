"""Times one training step of EBT beside Transformer++, in one process.

  python tools/bench_step.py [--layers 4 --heads 4 --width 256 --context 256 --batch 8 --repeats 7] [--out bench.json]

Rivals are run in turn and medians compared, so that a busy machine slows all alike. Memory is the compiled program's
temporary memory; compile time is that of the gradient, tracing left out.
"""

import argparse
import json
import platform
import time

import jax
import jax.numpy as jnp
import numpy as np

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
  lowered = jax.jit(jax.grad(task.loss, has_aux=True)).lower(*args)
  start = time.perf_counter()
  compiled = lowered.compile()
  return compiled, args, time.perf_counter() - start


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  for name, default in dict(layers=4, heads=4, width=256, context=256, batch=8, repeats=7).items():
    parser.add_argument(f"--{name}", type=int, default=default)
  parser.add_argument("--out", help="also write the numbers as JSON")
  args = parser.parse_args()
  shape = vars(args)

  programs = {name: (config, *prepare(config)) for name, config in rivals(shape).items()}
  times = {name: [] for name in programs}
  for i in range(args.repeats + 1):
    for name, (_, compiled, inputs, _) in programs.items():
      start = time.perf_counter()
      jax.block_until_ready(compiled(*inputs))
      if i:  # the first round warms up
        times[name].append(time.perf_counter() - start)

  base = float(np.median(times["transformer++"]))
  base_flops = flops.train_step(programs["transformer++"][0])
  rows = []
  for name, (config, compiled, _, compile_s) in programs.items():
    t = times[name]
    rows.append({
        "name": name,
        "seconds": float(np.median(t)),
        "spread": [min(t), max(t)],
        "ratio": float(np.median(t)) / base,
        "flops_ratio": flops.train_step(config) / base_flops,
        "temporary_mb": compiled.memory_analysis().temp_size_in_bytes / 1e6,
        "compile_seconds": compile_s,
    })
  print(f"{platform.machine()}, {jax.devices()[0].device_kind}, {len(jax.devices())} device(s), jax {jax.__version__}")
  print(f"layers {args.layers}, width {args.width}, context {args.context}, batch {args.batch}, {args.repeats} rounds")
  print(f"{'':<32}{'s/step':>8}{'min..max':>16}{'ratio':>8}{'FLOPs':>8}{'temp MB':>9}{'compile s':>11}")
  for r in rows:
    low, high = r["spread"]
    print(
        f"{r['name']:<32}{r['seconds']:>8.3f}{low:>9.3f}..{high:.3f}{r['ratio']:>8.2f}{r['flops_ratio']:>8.2f}"
        f"{r['temporary_mb']:>9.0f}{r['compile_seconds']:>11.1f}"
    )
  if args.out:
    with open(args.out, "w", encoding="utf-8") as f:
      json.dump({"shape": shape, "jax": jax.__version__, "rows": rows}, f, indent=2)


if __name__ == "__main__":
  main()
