"""Compiles a training step of a paper config for many simulated devices, without running it. Prints JSON.

  python -m tools.bench.mesh --devices=8 --size=medium --kind=ebt

Kinds: `transformer` and `ebt` are FSDP over all devices, `authors` is EBT in its authors' formulation with whole
parameters on every device, as in the authors' code.
"""

import collections
import dataclasses
import json
import re
import sys
import time

from ebt_jax import cli
from ebt_jax.config import SIZES
from ebt_jax.training.inspect import COLLECTIVES

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) (\(.*)?\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
_CALLED = re.compile(r"\b(?:body|condition|to_apply|calls|branch_computations)=(\{[^}]*\}|%?[\w.\-]+)")
_SHAPE = re.compile(r"\b(pred|[a-z]+(\d+)\w*)\[([\d,]*)\]")
_TRIPS = re.compile(r"known_trip_count\D+(\d+)")


def collectives(program: str) -> tuple[dict[str, tuple[int, int]], int]:
  """Collectives of a compiled program (HLO text), with the bytes that one device receives.

  Returns:
    Kind -> (operations in the text, their output bytes), with loop bodies counted once; and the bytes of all kinds,
    with loop bodies counted as often as they run, if the compiler knows this number.
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
      # an asynchronous pair is counted at its -done: the shape of its -start also holds the operands
      kind = operation.removesuffix("-done")
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
  import jax

  from configs import text_ebt_s1, text_transformer
  from ebt_jax import parallel
  from ebt_jax.config import MeshConfig, resolve
  from ebt_jax.tasks import registry
  from ebt_jax.training import inspect
  from ebt_jax.training import state as state_lib
  from ebt_jax.training.step import compiled_step
  from tools.bench import authors

  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", devices)
  config = (text_transformer if kind == "transformer" else text_ebt_s1).get_config(size)
  config.train.batch_size = -(-config.train.batch_size // 64) * 64  # 170 rows in the paper do not divide by 64
  config = resolve(config)
  if kind == "authors":
    config = dataclasses.replace(config, mesh=MeshConfig(replica=devices, data=1))
    task = authors.AuthorsText.of(config)
  else:
    task = registry.make(config, devices)
  config, mesh = task.config, parallel.make_mesh(config.mesh)
  parallel.check_batch(config, mesh)
  rows = config.train.batch_size
  with jax.set_mesh(mesh):
    state = state_lib.abstract(task, mesh)
    batch = inspect.abstract_batch(task, parallel.batch_sharding(mesh))
    lowered = compiled_step(task, state, mesh).lower(state, batch)
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


def main(argv):
  parser = cli.Parser(prog="tools.bench.mesh", description=__doc__.split("\n")[0])
  parser.add_argument("--devices", type=cli.at_least(1), default=8)
  parser.add_argument("--size", choices=SIZES, default="medium")
  parser.add_argument("--kind", choices=("transformer", "ebt", "authors"), default="ebt")
  args = parser.parse_args(argv)
  print(json.dumps(measure(args.kind, args.size, args.devices)))


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
