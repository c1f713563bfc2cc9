"""A run without running it: shapes of everything, and the compiled training step with its memory and FLOPs."""

import math

import jax

from ebt_jax import flops, parallel, runs
from ebt_jax.config import Config
from ebt_jax.evaluation import samples
from ebt_jax.metrics import si
from ebt_jax.tasks import registry
from ebt_jax.tasks.base import Task
from ebt_jax.training import state as state_lib
from ebt_jax.training.step import compiled_step, make_train_step

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def abstract_batch(task: Task, sharding=None) -> dict[str, jax.ShapeDtypeStruct]:
  """Shapes of a training batch."""
  rows = task.config.train.batch_size
  spec = task.problem.spec()
  return {name: jax.ShapeDtypeStruct((rows, *a.shape), a.dtype, sharding=sharding) for name, a in spec.items()}


def shapes(config: Config) -> str:
  """Traces initialisation, training step, evaluation and what the task shows at the end; a table of parameters."""
  task = registry.make(config)
  batch, state = abstract_batch(task), jax.eval_shape(lambda: state_lib.fresh(task))
  _, metrics = jax.eval_shape(make_train_step(task), state, batch)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), config.train.batch_size))
  jax.eval_shape(task.evaluate, state.params, batch, keys)
  samples.trace(task, state.params)
  rows = [
    f"{parallel.path_name(path):<44} {str(tuple(a.shape)):<24} {a.dtype} {a.size:>13,}"
    for path, a in jax.tree_util.tree_leaves_with_path(state.params)
  ]
  total, blocks = runs.count_parameters(task, state.params)
  rows.append(f"{total:,} parameters, {blocks:,} of them in blocks (the others are look-up tables)")
  rows += task.notes()
  rows.append(f"logged in training: {', '.join(sorted(metrics))}")
  return "\n".join(rows)


def compile_report(config: Config) -> str:
  """Compiles the training step for the mesh of `config` and reports shardings, memory, FLOPs and collectives."""
  mesh = parallel.make_mesh(config.mesh)
  task = registry.make(config, parallel.shards_of(mesh))
  parallel.check_batch(task.config, mesh)
  with jax.set_mesh(mesh):
    state = state_lib.abstract(task, mesh)
    parallel.assert_sharded(state.params, mesh)
    batch = abstract_batch(task, parallel.batch_sharding(mesh))
    compiled = compiled_step(task, state, mesh).lower(state, batch).compile()
  table, whole = parallel.sharding_report(state.params, mesh)
  memory, program = compiled.memory_analysis(), compiled.as_text()
  counts = {name: program.count(f" {name}(") + program.count(f" {name}-start(") for name in COLLECTIVES}
  return "\n".join(
    [
      table,
      f"left whole on every device: {whole:.2%} of parameter bytes",
      f"mesh {dict(mesh.shape)}, {mesh.size} devices of {jax.devices()[0].device_kind}",
      f"memory of each device: arguments {_megabytes(memory.argument_size_in_bytes)}, of which "
      f"{_megabytes(memory.alias_size_in_bytes)} updated in place; temporary {_megabytes(memory.temp_size_in_bytes)}; "
      f"code {_megabytes(memory.generated_code_size_in_bytes)}",
      *_replay_lines(state, mesh),
      *task.notes(),
      *_flops_lines(task, mesh.size),
      f"collectives in the program: {', '.join(f'{k} {v}' for k, v in counts.items() if v) or 'none'}",
    ]
  )


def _replay_lines(state: state_lib.TrainState, mesh: jax.sharding.Mesh) -> list[str]:
  if not state.replay:
    return []
  return [f"replay buffer, in the arguments: {parallel.describe_rows(state.replay.rows, mesh)}"]


def _megabytes(n: int) -> str:
  return f"{n / 1e6:,.1f} MB"


def _flops_lines(task: Task, devices: int) -> list[str]:
  cost, rows, item = task.flops(), runs.rows_of_step(task.config), task.problem.item
  total = rows * cost.row["total"]
  items = rows * math.prod(jax.eval_shape(task.problem.weights, abstract_batch(task)).shape[1:])
  parts = [f"{k} {v / cost.row['total']:.0%}" for k, v in cost.row.items() if k not in ("total", "recomputation")]
  lines = [
    f"FLOPs of a training step: {si(total)} ({si(total / float(items))} for each {item}; {', '.join(parts)}); "
    f"recomputation adds {cost.row['recomputation'] / cost.row['total']:.0%}"
  ]
  if cost.least:
    lines.append(
      f"least that the method needs: {cost.least:g}N for each {item}, N the weights in blocks (one pass: 6N), and "
      "attention and look-up tables"
    )
  lines.append(f"FLOPs of one prediction: {si(cost.prediction['total'])}")
  if top := flops.peak(jax.devices()[0].device_kind):
    lines.append(f"a step takes at least {total / (top * devices):.3g} s at {si(top)}FLOP/s bfloat16 a device")
  return lines
