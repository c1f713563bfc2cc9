"""Looking before leaping: shapes without computing, and the compiled step without running it."""

import jax
import jax.numpy as jnp

from ebt_jax import flops, parallel
from ebt_jax.config import Config
from ebt_jax.metrics import si
from ebt_jax.tasks import text
from ebt_jax.training import loop
from ebt_jax.training import state as state_lib
from ebt_jax.training.step import make_train_step

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")


def _prepared(config: Config):
  """Task, and an abstract batch; the tokenizer is read only where the vocabulary is not given."""
  if not config.model.vocab_size:
    config, _ = text.with_tokenizer(config)
  b, s = config.train.batch_size, config.data.context_length
  batch = {"tokens": ((b, s + 1), jnp.int32), "weights": ((b, s), jnp.float32)}
  return config, text.make_task(config), batch


def shapes(config: Config) -> str:
  """Traces initialisation, training step, evaluation and generation; returns a table of parameters."""
  config, task, batch = _prepared(config)
  batch = {k: jax.ShapeDtypeStruct(*v) for k, v in batch.items()}
  state = jax.eval_shape(lambda: state_lib.fresh(task, config))
  _, metrics = jax.eval_shape(make_train_step(task, config), state, batch)

  def keys(rows):
    return jax.eval_shape(lambda: jax.random.split(jax.random.key(0), rows))

  jax.eval_shape(task.evaluate, state.params, batch, keys(config.train.batch_size))
  prompt = jax.ShapeDtypeStruct((1, config.data.context_length), jnp.int32)
  length = jax.ShapeDtypeStruct((1,), jnp.int32)
  cache = jax.eval_shape(
    lambda p, t, n: task.prefill(p, t, n, config.data.context_length), state.params, prompt, length
  )
  jax.eval_shape(
    lambda p, c, n, k: task.append(p, c, task.propose(p, c, k).logits.argmax(-1)), state.params, cache, length, keys(1)
  )
  rows = [
    f"{jax.tree_util.keystr(path, simple=True, separator='/'):<44} {str(tuple(a.shape)):<24} {a.dtype} {a.size:>13,}"
    for path, a in jax.tree_util.tree_leaves_with_path(state.params)
  ]
  total, inner = loop.count_parameters(state.params)
  rows.append(f"{total:,} parameters, {inner:,} of them in no vocabulary table")
  rows.append(f"logged in training: {', '.join(sorted(metrics))}")
  return "\n".join(rows)


def compile_report(config: Config) -> str:
  """Compiles the training step for the mesh of `config` and reports shardings, memory, FLOPs and collectives."""
  config, task, batch = _prepared(config)
  mesh = parallel.make_mesh(config.mesh)
  parallel.check_batch(config, mesh)
  with jax.set_mesh(mesh):
    state = state_lib.abstract(task, config, mesh)
    parallel.assert_sharded(state.params, mesh)
    sharding = parallel.batch_sharding(mesh)
    batch = {k: jax.ShapeDtypeStruct(*v, sharding=sharding) for k, v in batch.items()}
    outs = (jax.tree.map(lambda s: s.sharding, state), parallel.replicated(mesh))
    step = jax.jit(make_train_step(task, config), donate_argnums=0, out_shardings=outs)
    compiled = step.lower(state, batch).compile()
  table, whole = parallel.sharding_report(state.params, mesh)
  memory = compiled.memory_analysis()
  program = compiled.as_text()
  counts = {name: program.count(f" {name}(") + program.count(f" {name}-start(") for name in COLLECTIVES}

  def megabytes(n):
    return f"{n / 1e6:,.1f} MB"

  return "\n".join(
    [
      table,
      f"left whole on every device: {whole:.2%} of parameter bytes",
      f"mesh {dict(mesh.shape)}, {mesh.size} devices of {jax.devices()[0].device_kind}",
      f"memory of each device: arguments {megabytes(memory.argument_size_in_bytes)}, of which "
      f"{megabytes(memory.alias_size_in_bytes)} updated in place; temporary {megabytes(memory.temp_size_in_bytes)}; "
      f"code {megabytes(memory.generated_code_size_in_bytes)}",
      *(
        [f"replay buffer, in the arguments: {parallel.describe_rows(state.replay.rows, mesh)}"] if state.replay else []
      ),
      *_flops_lines(config, task, mesh.size),
      f"collectives in the program: {', '.join(f'{k} {v}' for k, v in counts.items() if v) or 'none'}",
    ]
  )


def _flops_lines(config: Config, task, devices: int) -> list[str]:
  stores = config.model.kind == "ebt" and text.stores(task)
  total, row = flops.train_step(config), flops.train_row(config, stores)
  tokens = config.train.batch_size * config.data.context_length
  parts = ", ".join(f"{name} {value / row['total']:.0%}" for name, value in row.items() if name in flops.PARTS)
  lines = [
    f"FLOPs of a training step: {si(total)} ({si(total / tokens)} for each token; {parts}); recomputation adds "
    f"{row['recomputation'] / row['total']:.0%}",
    f"least that the method needs: {flops.least(config):g}N for each token, N the weights in blocks (Transformer++: 6N), "
    "and attention and vocabulary",
    f"FLOPs of a written token: {si(flops.token(config)['total'])}",
  ]
  if top := flops.peak(jax.devices()[0].device_kind):
    lines.append(f"a step takes at least {total / (top * devices):.3g} s at {si(top)}FLOP/s bfloat16 a device")
  return lines
