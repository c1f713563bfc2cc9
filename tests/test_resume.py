"""A run that is killed or hindered, then started again with the same command, ends as one that never was."""

import json
import pathlib
import shutil
import signal

import jax
import numpy as np
import pytest

from ebt_jax import config as config_lib
from ebt_jax import metrics, parallel
from ebt_jax.checkpoint import Checkpoints
from ebt_jax.config import MeshConfig
from ebt_jax.tasks import registry
from ebt_jax.training import state as state_lib
from tests.helpers import quickstart, run, write_corpus

# saves at 3, 6 and 7; evaluates at 2, 4, 6 and 7
EVERY = ("--config.train.steps=7", "--config.checkpoint.every=3", "--config.checkpoint.keep=3", "--config.eval.every=2",
         "--config.eval.max_windows=6", "--config.sample.tokens=2")  # fmt: skip
MODELS = {
    "ebt": ["--config.thinking.learn_step_size=True", "--config.thinking.gradient=each", "--config.thinking.steps=2",
            "--config.thinking.random_steps_min=0", "--config.thinking.replay_rows=6", "--config.thinking.noise=0.5",
            "--config.train.health_every=2"],
    "transformer": [],
    "rnn": ["--config.model.kind=rnn"],
  "infill": ["--config.task=infill", "--config.thinking.replay_rows=6", "--config.train.health_every=2"],
}  # fmt: skip

# Sends a signal before the batch of a step, once the checkpoint of step 3 is whole: the run has rows beyond it.
SIGNAL = """
import os, pathlib, signal, sys, time
from ebt_jax.data.loader import Loader
folder = pathlib.Path(next(a for a in sys.argv if a.startswith("--workdir=")).partition("=")[2])
batch = Loader.batch
def patched(self, step, rows=None):
  if step + 1 == {step}:
    while not (folder / "checkpoints/3/checksums.json").exists():
      time.sleep(0.01)
    os.kill(os.getpid(), signal.{name})
  return batch(self, step, rows)
Loader.batch = patched
"""
# Kills when the second checkpoint has its final name but no checksums.
SEALING = """
import os, signal
from ebt_jax import checkpoint
checksums = checkpoint._checksums
def patched(folder, *rest):
  if folder.name == "6":
    os.kill(os.getpid(), signal.SIGKILL)
  return checksums(folder, *rest)
checkpoint._checksums = patched
"""
# Kills while the second checkpoint is being written.
WRITING = """
import os, signal
from ebt_jax.checkpoint import Checkpoints
start = Checkpoints._start
def patched(self, step, *rest):
  start(self, step, *rest)
  if step == 6:
    while not list(self.directory.glob("6.*")) and not (self.directory / "6").exists():
      pass
    os.kill(os.getpid(), signal.SIGKILL)
Checkpoints._start = patched
"""
# Kills when all is trained and evaluated, and only the last files are missing.
ENDING = """
import os, signal
from ebt_jax.evaluation import text_report
text_report.write_sample = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
"""
# The disk is full while the checkpoint of a step is written.
FULL = """
import errno, os
from ebt_jax import checkpoint
checksums = checkpoint._checksums
def patched(folder, *rest):
  if folder.name == "{step}":
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder / "part"))
  return checksums(folder, *rest)
checkpoint._checksums = patched
"""
# The disk is full when the metrics of step 5 are written.
FULL_METRICS = """
import errno, os
from ebt_jax.metrics import MetricsWriter
write = MetricsWriter.write
def patched(self, step, values):
  if step == 5:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
  write(self, step, values)
MetricsWriter.write = patched
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return write_corpus(tmp_path_factory.mktemp("text"))


def command(corpus, kind, folder):
  return quickstart(
    f"--config.data.source={corpus}",
    f"--workdir={folder}",
    *EVERY,
    *MODELS[kind],
    kind="transformer" if kind in ("transformer", "rnn") else "ebt",
  )


@pytest.fixture(scope="module")
def whole(corpus, tmp_path_factory):
  """What runs that nobody has hindered leave, by kind of model."""
  folder, results = tmp_path_factory.mktemp("whole"), {}
  for kind in MODELS:
    done = run(command(corpus, kind, folder / kind))
    assert done.code == 0, done.err
    results[kind] = left_by(folder / kind)
  return results


def left_by(folder: pathlib.Path) -> dict:
  """Everything of a finished run that must not depend on what happened to it."""
  config = config_lib.load(folder / "config.json")
  mesh = parallel.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  abstract = state_lib.abstract(registry.make(config), mesh).split()
  with Checkpoints(folder / "checkpoints", config.checkpoint) as c:
    step, state, _ = c.restore(abstract)
  result = json.loads((folder / "final_result.json").read_text(encoding="utf-8"))
  assert result["wall_seconds"] > result["train_seconds"] > 0  # of all its parts: the last one may have no step
  rows = metrics.read_rows(folder / "metrics.jsonl")
  return {
    "step": step,
    "state": {jax.tree_util.keystr(p): np.asarray(a).tobytes() for p, a in jax.tree.leaves_with_path(state)},
    "rows": [{k: v for k, v in r.items() if not k.startswith("time/")} for r in rows],
    "result": {k: v for k, v in result.items() if not k.endswith("_seconds")},
    "sample": (folder / "sample.json").read_text(encoding="utf-8"),
  }


def assert_same(found: dict, wanted: dict):
  assert found["step"] == wanted["step"] == 7
  health = [r["step"] for r in found["rows"] if "health/growth" in r]
  assert health in ([], [2, 4, 6])  # of Transformer++ and of EBT
  steps = [1, 2, 2, 3, 4, 4, 5, 6, 6, 7, 7]
  assert [r["step"] for r in found["rows"]] == sorted(steps + health)
  assert found["rows"] == wanted["rows"]
  changed = [name for name in wanted["state"] if found["state"][name] != wanted["state"][name]]
  assert not changed
  assert found == wanted


INTERRUPTIONS = {
  "kill in a step": (SIGNAL.format(step=6, name="SIGKILL"), -signal.SIGKILL, [3]),
  "kill while sealing": (SEALING, -signal.SIGKILL, [6]),  # whole, though nobody says so
  "kill while writing": (WRITING, -signal.SIGKILL, [3, 6]),
  "kill at the end": (ENDING, -signal.SIGKILL, [7]),
  "terminate": (SIGNAL.format(step=5, name="SIGTERM"), 128 + signal.SIGTERM, [5]),
  "interrupt": (SIGNAL.format(step=5, name="SIGINT"), 128 + signal.SIGINT, [5]),
}
CASES = [("transformer", name) for name in INTERRUPTIONS] + [
  ("ebt", "kill in a step"),
  ("infill", "kill in a step"),
  ("rnn", "kill in a step"),
  pytest.param("ebt", "terminate", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("kind, name", CASES)
def test_interrupted_and_started_again(corpus, whole, tmp_path, kind, name):
  hook, code, resumed = INTERRUPTIONS[name]
  flags = command(corpus, kind, tmp_path / "run")
  done = run(flags, hook)
  assert done.code == code, done
  assert not (tmp_path / "run" / "final_result.json").exists()
  if code > 0:
    name = signal.Signals(code - 128).name
    assert f"stopped by {name} after step 5; the same command continues" in done.out and "Traceback" not in done.err
  again = run(flags)
  assert again.code == 0, again.err
  assert any(f"resuming from step {n}\n" in again.out for n in resumed), again.out
  assert_same(left_by(tmp_path / "run"), whole[kind])


def damage(folder: pathlib.Path) -> str:
  """Flips a bit in the largest file of a folder and returns the file's name."""
  path = max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
  data = bytearray(path.read_bytes())
  data[len(data) // 2] ^= 1
  path.write_bytes(data)
  return path.name


def test_a_damaged_checkpoint_is_named_left_alone_and_passed_over(corpus, whole, tmp_path):
  folder = tmp_path / "run"
  flags = command(corpus, "transformer", folder)
  assert run(flags, ENDING).code == -signal.SIGKILL
  shutil.rmtree(folder / "checkpoints/7")
  name = damage(folder / "checkpoints/6")
  damaged = {p.name: p.read_bytes() for p in (folder / "checkpoints/6").rglob("*") if p.is_file()}
  done = run(flags)
  assert done.code == 0 and "resuming from step 3\n" in done.out
  assert f"{folder}/checkpoints/6: damaged checkpoint: file" in done.err and name in done.err
  assert {p.name: p.read_bytes() for p in (folder / "checkpoints/6.damaged").rglob("*") if p.is_file()} == damaged
  assert_same(left_by(folder), whole["transformer"])
  for step in (3, 6, 7):
    damage(folder / "checkpoints" / str(step) / "params")  # evaluation reads nothing else
  lost = run([f"--workdir={folder}", "--mode=eval"])
  assert lost.code == 2 and "no intact checkpoint" in lost.err and "Traceback" not in lost.err


def test_a_checkpoint_of_another_model_is_refused(corpus, tmp_path):
  first, second = tmp_path / "first", tmp_path / "second"
  assert run(command(corpus, "transformer", first), ENDING).code == -signal.SIGKILL
  shutil.copytree(first / "checkpoints", second / "checkpoints")
  before = set(second.rglob("*"))
  done = run([*command(corpus, "transformer", second), "--config.model.width=32"])
  assert done.code == 2 and "Traceback" not in done.err
  assert "holds another model or optimiser" in done.err and "[257, 16], expected float32[257, 32]" in done.err
  assert set(second.rglob("*")) == before


@pytest.mark.parametrize("step", [3, 7])
def test_no_space_for_a_checkpoint(corpus, whole, tmp_path, step):
  """The run goes on to the next save; where it was the last one, the run ends with a message and can be continued."""
  folder = tmp_path / "run"
  flags = command(corpus, "transformer", folder)
  done = run(flags, FULL.format(step=step))
  message = f"the checkpoint of step {step} could not be written: OSError: [Errno 28] No space left on device"
  assert message in done.err and "earlier checkpoints are untouched" in done.err and "Traceback" not in done.err
  if step == 3:
    assert done.code == 0
  else:
    assert done.code == 2 and not (folder / "final_result.json").exists()
    again = run(flags)
    assert again.code == 0 and "resuming from step" in again.out, again
  assert_same(left_by(folder), whole["transformer"])


# A save that cannot even start.
REFUSED = """
from ebt_jax.checkpoint import Checkpoints
start = Checkpoints._start
def patched(self, step, *rest):
  if step == 7:
    raise PermissionError(13, "Permission denied", str(self.directory))
  start(self, step, *rest)
Checkpoints._start = patched
"""


def test_a_last_save_that_cannot_start_is_no_success(corpus, whole, tmp_path):
  flags = command(corpus, "transformer", tmp_path / "run")
  done = run(flags, REFUSED)
  assert done.code == 2 and "the checkpoint of step 7 was not written" in done.err, done
  assert not (tmp_path / "run/final_result.json").exists()
  assert run(flags).code == 0
  assert_same(left_by(tmp_path / "run"), whole["transformer"])


def test_saving_by_time_changes_nothing(corpus, whole, tmp_path):
  flags = command(corpus, "transformer", tmp_path / "run")
  by_time = ["--config.checkpoint.every=0", "--config.checkpoint.minutes=1e-9", "--config.checkpoint.keep=9"]
  assert run([*flags, *by_time]).code == 0
  steps = {int(p.name) for p in (tmp_path / "run/checkpoints").iterdir() if p.name.isdecimal()}
  assert len(steps) > 3  # without `every`
  assert_same(left_by(tmp_path / "run"), whole["transformer"])


def test_no_space_for_metrics(corpus, whole, tmp_path):
  flags = command(corpus, "transformer", tmp_path / "run")
  done = run(flags, FULL_METRICS)
  assert (done.code, done.err) == (2, "error: No space left on device; finished checkpoints are untouched\n")
  assert run(flags).code == 0
  assert_same(left_by(tmp_path / "run"), whole["transformer"])


def test_steps_that_are_not_finite_end_the_run(corpus, tmp_path):
  flags = command(corpus, "transformer", tmp_path / "run")
  done = run([*flags, "--config.train.learning_rate=1e38", "--config.train.max_bad_steps=3"])
  assert done.code == 2 and "Traceback" not in done.err
  assert "not finite for 3 steps in a row (config.train.max_bad_steps); lower config.train.learning_rate" in done.err
  assert not (tmp_path / "run/final_result.json").exists()
  rows = metrics.read_rows(tmp_path / "run/metrics.jsonl")
  assert [r["train/skipped_in_row"] for r in rows if "train/loss" in r][-1] == 2  # what led there is on record


# The batch of step 2 holds tokens that no table has, which makes a loss that is not finite.
POISON = """
from ebt_jax.data.loader import Loader
plain = Loader.batch
def poisoned(self, step, rows=None):
  batch = plain(self, step, rows)
  return {**batch, "tokens": batch["tokens"] + 1000000} if step + 1 == 2 else batch
Loader.batch = poisoned
"""


def test_a_skipped_step_is_counted_also_after_a_resume(corpus, tmp_path):
  flags = command(corpus, "transformer", tmp_path / "run")
  assert run(flags, POISON + SIGNAL.format(step=6, name="SIGKILL")).code == -signal.SIGKILL
  again = run(flags)
  assert again.code == 0 and "resuming from step 3\n" in again.out, again
  rows = [r for r in metrics.read_rows(tmp_path / "run/metrics.jsonl") if "train/loss" in r]
  assert [r["train/skipped"] for r in rows] == [0, 1, 1, 1, 1, 1, 1]
  assert [r["train/skipped_in_row"] for r in rows] == [0, 1, 0, 0, 0, 0, 0]
  assert left_by(tmp_path / "run")["result"]["skipped_steps"] == 1


def test_what_does_not_change_training_may_change(corpus, whole, tmp_path):
  """Eight devices instead of one, and another rhythm of logging and saving; equal but for the order of sums."""
  folder = tmp_path / "run"
  flags = command(corpus, "transformer", folder)
  assert run(flags, SIGNAL.format(step=6, name="SIGKILL")).code == -signal.SIGKILL
  eight = "import jax; jax.config.update('jax_num_cpu_devices', 8)"
  more = ["--config.mesh.data=4", "--config.mesh.model=2", "--config.train.log_every=7", "--config.checkpoint.every=2"]
  done = run([*flags, *more], eight)
  assert done.code == 0 and "resuming from step 3\n" in done.out and "mesh: replica 1, data 4, model 2" in done.out
  loss = [r["train/loss"] for r in metrics.read_rows(folder / "metrics.jsonl") if "train/loss" in r]
  assert len(loss) == 4 and loss[-1] == pytest.approx(whole["transformer"]["rows"][-2]["train/loss"], rel=1e-4)
