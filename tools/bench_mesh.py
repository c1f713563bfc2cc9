"""Compiles a training step of the paper's configs for many simulated devices, and runs nothing. Prints JSON.

  python tools/bench_mesh.py --devices=8 --size=medium --kind=ebt

Kinds: `transformer` and `ebt` are FSDP over all devices, `authors` is EBT in its authors' formulation with whole
parameters on every device, as their code trains.
"""

import argparse
import collections
import dataclasses
import json
import pathlib
import re
import sys
import time

from ebt_jax.training.ahead import COLLECTIVES

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (\(.*)?\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
_CALLED = re.compile(r"\b(?:body|condition|to_apply|calls|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_TRIPS = re.compile(r"known_trip_count\D+(\d+)")


def collectives(program: str) -> tuple[dict[str, tuple[int, int]], int]:
  """Collectives of a compiled program (HLO text): what each kind gives to one device.

  Returns:
    Kind -> (operations in the text, their output bytes), loop bodies counted once; and the bytes of all of them with
    loop bodies counted as often as they run, where the compiler knows it.
  """
  own, calls, entry, name = collections.Counter(), collections.defaultdict(list), None, None
  found = {}
  for line in program.splitlines():
    if header := _COMPUTATION.match(line):
      name = header[2]
      entry = name if header[1] else entry
    elif instruction := _INSTRUCTION.match(line):
      shape, operation = instruction.groups()
      trips = _TRIPS.search(line) if operation == "while" else None
      for called in _CALLED.findall(line):
        calls[name] += [(c, int(trips[1]) if trips else 1) for c in re.findall(r"[\w.\-]+", called)]
      kind = operation.removesuffix("-done")  # an asynchronous one's result; its start has operands in its shape
      if kind in COLLECTIVES:
        count, size = found.get(kind, (0, 0))
        found[kind] = (count + 1, size + _bytes(shape))
        own[name] += _bytes(shape)

  totals = {}

  def total(name):
    if name not in totals:
      totals[name] = own[name] + sum(times * total(called) for called, times in calls[name])
    return totals[name]

  return found, total(entry)


def _bytes(shape: str) -> int:
  out = 0
  for name, bits, dimensions in _SHAPE.findall(shape):
    size = 8 if name == "pred" else int(bits)
    for n in filter(None, dimensions.split(",")):
      size *= int(n)
    out += size // 8
  return out


def measure(kind: str, size: str, devices: int) -> dict:
  import authors
  import jax
  import jax.numpy as jnp

  from configs import text_ebt_s1, text_transformer
  from ebt_jax import parallel
  from ebt_jax.config import MeshConfig, resolve
  from ebt_jax.tasks.text import make_task
  from ebt_jax.training import state as state_lib
  from ebt_jax.training.step import make_train_step

  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", devices)
  config = (text_transformer if kind == "transformer" else text_ebt_s1).get_config(size)
  config.train.batch_size = -(-config.train.batch_size // 64) * 64  # the paper's 170 rows do not divide
  config = resolve(config)
  if kind == "authors":
    config = dataclasses.replace(config, mesh=MeshConfig(replica=devices, data=1))
    task = authors.AuthorsText(config)
  else:
    task = make_task(config)
  mesh = parallel.make_mesh(config.mesh)
  parallel.check_batch(config, mesh)
  rows, length = config.train.batch_size, config.data.context_length
  with jax.set_mesh(mesh):
    state = state_lib.abstract(task, config, mesh)
    sharding = parallel.batch_sharding(mesh)
    batch = {"tokens": ((rows, length + 1), jnp.int32), "weights": ((rows, length), jnp.float32)}
    batch = {k: jax.ShapeDtypeStruct(*v, sharding=sharding) for k, v in batch.items()}
    outs = (jax.tree.map(lambda s: s.sharding, state), parallel.replicated(mesh))
    lowered = jax.jit(make_train_step(task, config), donate_argnums=0, out_shardings=outs).lower(state, batch)
    start = time.perf_counter()
    program = lowered.compile()
    seconds = time.perf_counter() - start
  memory = program.memory_analysis()
  found, step_bytes = collectives(program.as_text())
  return {
    "name": f"{size}, {devices} devices, {kind}",
    "kind": kind,
    "size": size,
    "devices": devices,
    "rows": rows,
    "arguments_gb": memory.argument_size_in_bytes / 1e9,
    "temporary_gb": memory.temp_size_in_bytes / 1e9,
    "collectives": ", ".join(f"{n} {kind}" for kind, (n, _) in sorted(found.items())) or "none",
    "bytes_of": {kind: size for kind, (_, size) in found.items()},
    "once_gb": sum(size for _, size in found.values()) / 1e9,
    "step_gb": step_bytes / 1e9,
    "compile_s": seconds,
  }


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--devices", type=int, default=8)
  parser.add_argument("--size", default="medium")
  parser.add_argument("--kind", choices=("transformer", "ebt", "authors"), default="ebt")
  args = parser.parse_args()
  sys.path.append(str(pathlib.Path(__file__).resolve().parent.parent))  # for configs/
  print(json.dumps(measure(args.kind, args.size, args.devices)))


if __name__ == "__main__":
  main()
