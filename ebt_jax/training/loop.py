"""The training loop: data, mesh, state, steps, evaluation, checkpoints, and what a finished run leaves behind."""

import logging
import math
import pathlib
import signal
from typing import Any

import jax
from jax.experimental import multihost_utils
import numpy as np

from ebt_jax import flops, metrics, parallel, record, remote, runs, streams, thinking
from ebt_jax.checkpoint import CheckpointError, Checkpoints
from ebt_jax.clock import Clock
from ebt_jax.config import Config
from ebt_jax.data.loader import Loader
from ebt_jax.errors import UserError
from ebt_jax.evaluation import samples
from ebt_jax.evaluation.evaluator import Evaluator
from ebt_jax.tasks import registry
from ebt_jax.tasks.base import Kept, Task, Thinks
from ebt_jax.training import console
from ebt_jax.training import state as state_lib
from ebt_jax.training.signals import StopSignal
from ebt_jax.training.state import TrainState
from ebt_jax.training.step import compiled_step

log = logging.getLogger(__name__)


class TrainingStopped(UserError, RuntimeError):
  """Training cannot or should not go on; the message says why and what to do."""


class Interrupted(SystemExit):
  """A signal has asked the run to end and the state is saved; the exit code is the shell's for that signal."""


def train(config: Config, workdir: str, tracker: str = "", mirror: str = "") -> dict[str, Any]:
  """Trains until `train.steps`, resuming what `workdir` holds; returns what `final_result.json` holds.

  Args:
    tracker: of experiments, which gets the rows of `metrics.jsonl` too; see `trackers`.
    mirror: address on an object store, which gets all checkpoints too, and which a run goes on from where `workdir`
      holds none; see `remote`.

  Raises:
    ConfigError: the config does not fit the data, the devices, the mirror or the run that is in `workdir`.
    RemoteError: the mirror cannot be read, or has not got the last checkpoint.
    TrainingStopped: too many non-finite steps in a row.
    CheckpointError: nothing intact to resume from, the folder takes no checkpoints, or the last save failed.
  """
  mesh = parallel.make_mesh(config.mesh)
  folder = pathlib.Path(workdir).expanduser()
  copies = remote.Mirror(mirror, folder, config.checkpoint) if mirror else None
  if copies:
    runs.begin_mirror(copies, folder)
  before = record.kept(folder)
  if before and before.config.data != config.data and not runs.has_trained(folder):
    before = None  # nothing was trained on those data
  task = registry.make(config, parallel.shards_of(mesh), before)

  def saved(step):
    runs.note_saved(folder, step)
    if copies:
      copies.send(step)

  checkpoints = Checkpoints(folder / "checkpoints", config.checkpoint, saved)  # refuses a path before it is made
  with runs.owned(folder):
    if done := runs.claim(folder, task.config):
      print(f"{folder}: this run is finished ({config.train.steps} steps); give another --workdir to train again")
    else:
      done = _train(task, mesh, checkpoints, folder, workdir, before, tracker)
    if copies and jax.process_index() == 0:
      copies.finish()
    return done


def _train(
  task: Task,
  mesh: jax.sharding.Mesh,
  checkpoints: Checkpoints,
  folder: pathlib.Path,
  workdir: str,
  before: Kept | None,
  tracker: str,
) -> dict:
  """Trains a run in a folder that this process owns; `before`: what it was trained on until now."""
  config = task.config
  parallel.check_batch(config, mesh)
  data = task.problem.data()
  loader = Loader(data.train, config.train.batch_size, config.seed)
  rows = parallel.process_rows(config.train.batch_size, mesh)
  main = jax.process_index() == 0
  with jax.set_mesh(mesh), checkpoints, StopSignal() as stop:
    abstract = state_lib.abstract(task, mesh)
    parallel.assert_sharded(abstract.params, mesh)
    state, position, clock = _start(task, mesh, abstract, checkpoints)
    start = position.get("step", 0)
    runs.check_start(folder, config, position.get("step"))
    record.check_data(folder, before, config, data, start)
    checkpoints.check_writable()
    if main:  # not before all is known to fit, so that a mistake does not hold the folder
      runs.begin(folder, config, start)
      record.keep(folder, task, data, before)
      if start:
        print(f"resuming from step {start}")
      console.announce(task, data, abstract, mesh)
    step_fn = compiled_step(task, abstract, mesh)
    session = Session(task, folder, mesh, data, checkpoints, clock, position, tracker)

    # The order within a step matters for exact resumption: update, log, diagnose, evaluate, save.
    pending = None
    for step in range(start + 1, config.train.steps + 1):
      batch = parallel.global_batch(loader.batch(step - 1, rows), mesh)
      state, values = step_fn(state, batch)
      if pending:  # read after the next step is dispatched, so that the device never waits for the host
        session.log(*pending)
      pending = step, values
      asked = _agreed(stop.asked, step, config)  # read once: the signal may come at any moment
      last = step == config.train.steps
      evaluates = config.eval.every and step % config.eval.every == 0 and not last
      diagnoses = session.diagnoses and step % config.train.health_every == 0
      saves = last or asked or session.must_save(step)
      if evaluates or saves or diagnoses:
        session.log(*pending)
        pending = None
      if diagnoses:
        session.diagnose(step, state, batch)
      if evaluates:
        session.evaluate(step, state)
      if saves:
        session.save(step, state)
      if asked:
        _close(checkpoints, step)
        if main:
          print(f"stopped by {asked.name} after step {step}; the same command continues", flush=True)
        raise Interrupted(128 + asked)

    results = session.evaluate(config.train.steps, state)
    _close(checkpoints, config.train.steps)
    summary = runs.final_result(
      task, state.params, items=session.items, clock=clock, skipped=int(state.skipped), evals=results, data=data.summary
    )
    if main:
      sample = "no sample: parameters lie on several hosts; use --mode=generate on one"
      if jax.process_count() == 1:
        sample = samples.show(task, state.params, data, folder)
      session.close()
      runs.write_result(folder, summary)
      print(console.ending(task, workdir, results, data, sample))
  return summary


def _start(task: Task, mesh, abstract: TrainState, checkpoints: Checkpoints) -> tuple[TrainState, dict, Clock]:
  """State, position (see `Session.save`) and the clock: of the newest checkpoint, or fresh, without a position."""
  clock = Clock()
  restored = checkpoints.restore(abstract.split())
  if restored:
    start, parts, extra = restored
    clock.load_state_dict(extra.get("clock") or extra["chrono"])
    return TrainState.joined(parts), {"items": clock.train_items, **extra["position"], "step": start}, clock
  state = state_lib.create(task, mesh)
  if task.config.init_from:
    state = state._replace(params=runs.warm_start(task.config, state.params, mesh))
  return state, {}, clock


class Session:
  """What goes on beside the steps of one run: logging, diagnoses of thinking, evaluations, checkpoints."""

  def __init__(
    self, task: Task, folder, mesh, data, checkpoints: Checkpoints, clock: Clock, position: dict, tracker: str
  ):
    self.task, self.config, self.clock, self.items = task, task.config, clock, position.get("items", 0.0)
    self._checkpoints, self._saved_at = checkpoints, clock.wall_seconds
    self._evaluator, self._held_out = Evaluator(task, mesh), data.held_out
    self.diagnoses = self.config.train.health_every if isinstance(task, Thinks) else 0
    if self.diagnoses:
      self._diagnose = jax.jit(task.diagnose, out_shardings=parallel.replicated(mesh))
    self._warned: set[str] = set()
    self._row_flops = task.flops().row["total"]
    self._writer, self._evaluated, self._losses = None, set(), []
    if jax.process_index() == 0:
      self._writer = metrics.MetricsWriter(folder, tracker=tracker, config=self.config.to_dict())
      self._writer.truncate_after(position.get("step", 0))
      if self._writer.rows < position.get("rows", 0):
        log.warning(
          "%s: %d rows up to step %d, but there were %d when its checkpoint was saved: the file has lost rows; put it "
          "back from a copy, or keep this in mind",
          self._writer.path, self._writer.rows, position["step"], position["rows"],
        )  # fmt: skip
      # a run killed after its last row and before its final_result.json has that row already
      rows = [row for row in metrics.read_rows(self._writer.path) if "eval/loss" in row]
      self._evaluated, self._losses = {row["step"] for row in rows}, [(row["step"], row["eval/loss"]) for row in rows]

  def log(self, step: int, values: dict[str, jax.Array]) -> None:
    """Reads the metrics of a step, logs them when a line is due, and stops a run that has gone wrong."""
    values = {k: float(v) for k, v in jax.device_get(values).items()}
    items = values.pop("items")
    self.items += items
    self.clock.tick(step, round(items))
    if values["skipped_in_row"] >= self.config.train.max_bad_steps:
      raise TrainingStopped(
        f"step {step}: the loss or the gradient was not finite for {int(values['skipped_in_row'])} steps in a row "
        "(config.train.max_bad_steps); lower config.train.learning_rate or config.thinking.step_size"
      )
    if not self._writer or step % self.config.train.log_every and step not in (1, self.config.train.steps):
      return
    headline = self.task.problem.headline
    numbers = self.task.problem.numbers({**values, "loss": values["final_loss"]})
    if headline in numbers:
      values[headline] = numbers[headline]
    timing = {"time/wall_seconds": self.clock.wall_seconds}
    used = None
    if math.isfinite(self.clock.items_per_second):  # known from the second step on
      timing["time/items_per_second"] = self.clock.items_per_second
      rate = self.clock.steps_per_second * runs.rows_of_step(self.config)
      used = flops.utilisation(self._row_flops, rate, jax.device_count(), jax.devices()[0].device_kind)
      if used:
        timing["time/utilisation"] = used
    self._writer.write(step, {**{f"train/{k}": v for k, v in values.items()}, **timing})
    print(console.line(self.task, step, values, self.clock, used), flush=True)

  def diagnose(self, step: int, state: TrainState, batch: Any) -> None:
    """Logs how thinking goes on the batch of this step, and warns once of each kind of trouble."""
    with self.clock.pause():
      key = jax.random.fold_in(streams.key_for(self.config.seed, streams.DIAGNOSE), step)
      values = {k: float(v) for k, v in jax.device_get(self._diagnose(state.params, batch, key)).items()}
    if not self._writer:
      return
    self._writer.write(step, {f"health/{k}": v for k, v in values.items()})
    for kind, text in thinking.warnings_for(values, self.config.thinking.steps):
      if kind not in self._warned:
        log.warning("step %d: %s", step, text)
      self._warned.add(kind)

  def evaluate(self, step: int, state: TrainState) -> dict[str, dict[str, Any]]:
    """Results of every held-out set, by name; logged as `eval/NAME`, of all sets but the first as `eval/SET/NAME`."""
    with self.clock.pause():
      results = {name: self._evaluator(state.params, examples) for name, examples in self._held_out.items()}
    if self._writer and step not in self._evaluated:
      row = {"progress/items": self.items, "progress/flops": self._flops_after(step)}
      for i, (name, result) in enumerate(results.items()):
        prefix = "eval" if i == 0 else f"eval/{name}"
        row |= {f"{prefix}/{k}": v for k, v in result.items() if isinstance(v, float)}
      self._writer.write(step, row)
      self._losses.append((step, row["eval/loss"]))
      if "rising" not in self._warned and (text := console.rising(self._losses)):
        log.warning("step %d: %s", step, text)
        self._warned.add("rising")
      if step < self.config.train.steps:
        print(console.evaluated(self.task, step, results), flush=True)
    return results

  def _flops_after(self, step: int) -> float:
    return float(self._row_flops) * runs.rows_of_step(self.config) * step

  def must_save(self, step: int) -> bool:
    """Whether a checkpoint is due by steps or by time; processes agree on the time when a line is due."""
    c = self.config.checkpoint
    if any(n and step % n == 0 for n in (c.every, c.keep_every)):
      return True
    if not c.minutes:
      return False
    late = self.clock.wall_seconds - self._saved_at >= 60 * c.minutes
    return bool(_any_process(late)) if step % self.config.train.log_every == 0 or jax.process_count() == 1 else False

  def save(self, step: int, state: TrainState) -> None:
    """Starts to save; the failure of an earlier save is a warning, and the next one tries again."""
    self._saved_at = self.clock.wall_seconds
    position = {"step": step, "items": self.items, "rows": self._writer.rows if self._writer else 0}
    extra = {"config": self.config.to_dict(), "position": position, "clock": self.clock.state_dict()}
    try:
      self._checkpoints.save(step, state.split(), extra)
    except CheckpointError as e:
      log.warning("%s", e)

  def close(self) -> None:
    self._writer.finish()


def _close(checkpoints: Checkpoints, step: int) -> None:
  """Waits for the last save. Raises CheckpointError unless the checkpoint of `step` is there."""
  checkpoints.close()
  if step not in checkpoints.steps():
    raise CheckpointError(
      f"{checkpoints.directory}: the checkpoint of step {step} was not written (see the warning above); finished "
      "checkpoints are untouched; free space or make the folder writable, and start the same command again"
    )


def _any_process(value: bool) -> bool:
  if jax.process_count() == 1:
    return value
  return bool(multihost_utils.process_allgather(np.array(value)).any())


def _agreed(asked: Any, step: int, config: Config) -> Any:
  """The signal that asks to stop after this step. Processes ask each other when a line is due, so that all stop at the
  same step."""
  if jax.process_count() == 1:
    return asked
  if step % config.train.log_every:
    return None
  found = int(multihost_utils.process_allgather(np.array(int(asked or 0))).max())
  return signal.Signals(found) if found else None
