"""The training loop: data, mesh, state, steps, evaluation, checkpoints, and what a finished run leaves behind."""

import json
import logging
import math
import pathlib
import platform
import signal
import subprocess
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from ebt_jax import config as config_lib
from ebt_jax import flops, metrics, parallel, streams, thinking
from ebt_jax.chrono import Chrono
from ebt_jax.config import Config, ConfigError
from ebt_jax.data.loader import TextLoader
from ebt_jax.evaluation import report
from ebt_jax.evaluation.evaluator import Evaluator
from ebt_jax.tasks import text
from ebt_jax.training import state as state_lib
from ebt_jax.training.checkpoint import CheckpointError, Checkpoints
from ebt_jax.training.step import make_train_step

log = logging.getLogger(__name__)


class TrainingStopped(RuntimeError):
  """Training cannot or should not go on; the text says why and what to do."""


class Interrupted(SystemExit):
  """SIGTERM came and the state is saved; the exit code is the shell's for that signal."""


def train(config: Config, workdir: str) -> dict[str, Any]:
  """Trains until `train.steps`, resuming what `workdir` holds; returns what `final_result.json` holds.

  Raises:
    ConfigError: the config does not fit the data, the devices or the run that is in `workdir`.
    TrainingStopped: too many non-finite steps in a row.
    CheckpointError: nothing intact to resume from, or the last save failed.
  """
  folder = pathlib.Path(workdir)
  config, tokenizer = text.with_tokenizer(config)
  claim(folder, config)
  done = folder / "final_result.json"
  if done.exists():
    print(f"{folder}: this run is finished ({config.train.steps} steps); give another --workdir to train anew")
    return json.loads(done.read_text(encoding="utf-8"))

  mesh = parallel.make_mesh(config.mesh)
  parallel.check_batch(config, mesh)
  task = text.make_task(config)
  data = text.load_data(config, tokenizer)
  loader = TextLoader(data.train, config.train.batch_size, config.seed, config.model.vocab_size)
  rows = parallel.process_rows(config.train.batch_size, mesh)
  chrono = Chrono()
  main_process = jax.process_index() == 0
  checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint)
  with jax.set_mesh(mesh), checkpoints, _StopSignal() as stop:
    abstract = state_lib.abstract(task, config, mesh)
    parallel.assert_sharded(abstract.params, mesh)
    restored = checkpoints.restore(abstract)
    if main_process:  # not before all is known to fit, so that a mistake does not hold the folder
      metrics.write_json(folder / "config.json", config.to_dict())
    if restored:
      start, state, extra = restored
      chrono.load_state_dict(extra["chrono"])
      if main_process:
        print(f"resuming from step {start}")
    else:
      start, state = 0, state_lib.create(task, config, mesh)
    if main_process:
      _announce(config, data.summary, abstract, mesh)

    shardings = jax.tree.map(lambda s: s.sharding, abstract)
    step_fn = jax.jit(
      make_train_step(task, config), donate_argnums=0, out_shardings=(shardings, parallel.replicated(mesh))
    )
    evaluator = Evaluator(task, config, mesh, data.held_out, tokenizer.token_bytes)
    writer, evaluated = None, set()
    if main_process:
      writer = metrics.MetricsWriter(folder)
      writer.truncate_after(start)
      # a run killed after its last row and before its final_result.json has that row already
      evaluated = {row["step"] for row in metrics.read_rows(writer.path) if "eval/loss" in row}

    def finish(pending):
      """Reads the metrics of a step that the device has been working on meanwhile."""
      step, values, bytes_per_token = pending
      values = {k: float(v) for k, v in jax.device_get(values).items()}
      chrono.tick(step, int(values.pop("tokens")))
      if values["skipped_in_row"] >= config.train.max_bad_steps:
        raise TrainingStopped(
          f"step {step}: the loss or the gradient was not finite for {int(values['skipped_in_row'])} steps in a row "
          "(config.train.max_bad_steps); lower config.train.learning_rate or config.thinking.step_size"
        )
      if step % config.train.log_every and step not in (1, config.train.steps):
        return
      values["bits_per_byte"] = values["final_loss"] / math.log(2) / bytes_per_token
      if writer:
        timing = {"time/wall_seconds": chrono.wall_seconds}
        if math.isfinite(chrono.tokens_per_second):  # known from the second step on
          timing["time/tokens_per_second"] = chrono.tokens_per_second
          used = flops.utilisation(config, chrono.tokens_per_second, jax.device_count(), jax.devices()[0].device_kind)
          if used:
            timing["time/utilisation"] = used
        writer.write(step, {**{f"train/{k}": v for k, v in values.items()}, **timing})
        print(_line(step, config, values, chrono, timing.get("time/utilisation")), flush=True)

    looks = config.train.health_every if config.model.kind == "ebt" else 0
    health_fn = jax.jit(task.health, out_shardings=parallel.replicated(mesh)) if looks else None
    advised = set()

    def look(step, batch):
      """Logs how thinking goes on the batch of this step, and warns, once for each kind of trouble."""
      with chrono.pause():
        key = jax.random.fold_in(streams.key_for(config.seed, streams.DIAGNOSE), step)
        values = {k: float(v) for k, v in jax.device_get(health_fn(state.params, batch, key)).items()}
      if writer:
        writer.write(step, {f"health/{k}": v for k, v in values.items()})
      for text in thinking.advice(values, config.thinking.steps):
        if main_process and text.split("(")[0] not in advised:
          log.warning("step %d: %s", step, text)
        advised.add(text.split("(")[0])

    def evaluate(step):
      with chrono.pause():
        result = evaluator(state.params)
      if writer and step not in evaluated:
        writer.write(step, {f"eval/{k}": v for k, v in result.items() if isinstance(v, float)})
      return result

    def save(step):
      try:
        extra = {"config": config.to_dict(), "position": {"step": step}, "chrono": chrono.state_dict()}
        checkpoints.save(step, state, extra)
      except CheckpointError as e:  # an earlier save; training goes on and the next one tries again
        log.warning("%s", e)

    # the order within a step matters for exact resumption: update, log, evaluate, save
    pending = None
    for step in range(start + 1, config.train.steps + 1):
      rows_here = loader.batch(step - 1, rows)
      batch = parallel.global_batch(rows_here, mesh)
      state, values = step_fn(state, batch)
      if pending:
        finish(pending)
      n_bytes = float((tokenizer.token_bytes[rows_here["tokens"][:, 1:]] * rows_here["weights"]).sum())
      pending = (step, values, n_bytes / max(1.0, float(rows_here["weights"].sum())))
      stopping = _agreed(stop.asked, step, config)  # read once: the signal may come at any moment
      evaluates = config.eval.every and step % config.eval.every == 0 and step < config.train.steps
      saves = config.checkpoint.every and step % config.checkpoint.every == 0
      looking = looks and step % looks == 0
      if evaluates or saves or stopping or looking or step == config.train.steps:
        finish(pending)
        pending = None
      if looking:
        look(step, batch)
      if evaluates:
        result = evaluate(step)
        if main_process:
          print(f"step {step}  held-out {result['loss']:.4f} nats/token, {result['bits_per_byte']:.4f} bits/byte")
      if saves or step == config.train.steps or stopping:
        save(step)
      if stopping:
        checkpoints.close()
        if main_process:
          print(f"stopped by SIGTERM after step {step}; the same command continues", flush=True)
        raise Interrupted(128 + signal.SIGTERM)

    result = evaluate(config.train.steps)
    checkpoints.close()
    summary = _summary(config, state, data.summary, chrono, result)
    if main_process:
      sample = "no sample: parameters lie on several hosts; use --mode=generate on one"
      if jax.process_count() == 1:
        sample = report.write_sample(task, state.params, data.held_out, tokenizer, folder)
      writer.close()
      metrics.write_json(done, summary)
      print(report.ending(config, workdir, result, data.summary, sample))
  return summary


def _agreed(asked: bool, step: int, config: Config) -> bool:
  """Whether to stop after this step. Processes ask each other when a line is due, so that all stop at the same one."""
  if jax.process_count() == 1:
    return asked
  return step % config.train.log_every == 0 and bool(multihost_utils.process_allgather(np.array(asked)).any())


def claim(folder: pathlib.Path, config: Config) -> None:
  """Makes `folder`; refuses one that holds a run of another config."""
  try:
    folder.mkdir(parents=True, exist_ok=True)
  except (FileExistsError, NotADirectoryError) as e:
    raise ConfigError(f"--workdir: {folder} is not a folder; choose another name") from e
  path = folder / "config.json"
  if path.exists():
    found = config_lib.load(path)
    differ = config_lib.differences(found, config)
    if differ:
      raise ConfigError(
        f"--workdir: {folder} holds a run of another config; give another folder. It differs in (there -> here):\n  "
        + "\n  ".join(differ)
      )


class _StopSignal:
  """Remembers a SIGTERM until the loop looks."""

  def __init__(self):
    self.asked = False

  def __enter__(self) -> "_StopSignal":
    try:
      self._before = signal.signal(signal.SIGTERM, self._handle)
    except ValueError:  # not in the main thread: whoever runs us there handles signals
      self._before = None
    return self

  def __exit__(self, *_) -> None:
    if self._before is not None:
      signal.signal(signal.SIGTERM, self._before)

  def _handle(self, *_):
    self.asked = True


def count_parameters(params: Any) -> tuple[int, int]:
  """All parameters, and those that are not a vocabulary table."""
  tables = ("embed", "to_embed", "output")
  sizes = {k: sum(math.prod(a.shape) for a in jax.tree.leaves(v)) for k, v in params["model"].items()}
  inner = sum(math.prod(a.shape) for a in jax.tree.leaves(params.get("thinking", {})))
  total = sum(sizes.values()) + inner
  return total, total - sum(n for k, n in sizes.items() if k in tables)


def _announce(config, data, abstract, mesh):
  total, inner = count_parameters(abstract.params)
  m = config.model
  name = f"{m.kind} {m.variant}" if m.kind == "ebt" else m.kind
  shape = ", ".join(f"{k} {v}" for k, v in mesh.shape.items())
  print(
    f"model: {name}, {m.layers} layers, width {m.width}, {metrics.si(total)} parameters ({metrics.si(inner)} in blocks)"
  )
  print(
    f"data: {metrics.si(data['train_tokens'])} training tokens, {metrics.si(data['held_out_tokens'])} held out "
    f"({data['held_out_documents']} documents); unigram entropy {data['unigram_nats_per_token']:.4f} nats/token, "
    f"{data['unigram_bits_per_byte']:.4f} bits/byte"
  )
  if abstract.replay:
    print(f"replay buffer: {parallel.describe_rows(abstract.replay.rows, mesh)}")
  print(f"mesh: {shape} on {jax.device_count()} {jax.devices()[0].platform} device(s)", flush=True)
  if jax.device_count() > 1:
    table, whole = parallel.sharding_report(abstract.params, mesh)
    print(f"{table}\nleft whole on every device: {whole:.2%} of parameter bytes", flush=True)


def _line(step, config, values, chrono, used):
  parts = [
    f"step {step}/{config.train.steps}",
    f"loss {values['loss']:.4f}",
    f"bits/byte {values['bits_per_byte']:.4f}",
  ]
  if "energy_gap" in values:
    parts.append(f"energy gap {values['energy_gap']:+.4f}")
  speed = chrono.tokens_per_second
  parts.append(f"{metrics.si(speed) if math.isfinite(speed) else '?'} tokens/s")
  if used:
    parts.append(f"{used:.1%} of peak FLOPs")
  parts.append(f"ETA {chrono.eta(config.train.steps)}")
  if values["skipped"]:
    parts.append(f"{int(values['skipped'])} skipped")
  return "  ".join(parts)


def _summary(config, state, data, chrono, result):
  total, inner = count_parameters(state.params)
  steps = config.train.steps
  return {
    "task": config.task,
    "model": config.to_dict()["model"],
    "params": total,
    "params_non_embedding": inner,
    "steps": steps,
    "tokens": steps * config.train.batch_size * config.data.context_length,
    "flops": float(steps * flops.train_step(config)),
    "wall_seconds": chrono.wall_seconds,
    "train_seconds": chrono.train_seconds,
    "skipped_steps": int(state.skipped),
    "eval": result,
    "data": data,
    "versions": {"python": platform.python_version(), "jax": jax.__version__, "numpy": np.__version__},
    "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
    "git": _git(),
  }


def _git() -> str:
  """The commit of this program; empty where it is not run from a repository."""
  command = ["git", "describe", "--always", "--dirty"]
  try:
    found = subprocess.run(command, cwd=pathlib.Path(__file__).parent, capture_output=True, text=True)
  except OSError:  # git is not installed
    return ""
  return found.stdout.strip() if found.returncode == 0 else ""
