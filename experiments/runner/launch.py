"""Starts training runs: as processes of this machine, or as tasks of a Slurm array.

Both ways give a run the same command, folder and log, and hold a lock while it trains. The training process itself owns
the lock. A sweep that was killed and started again therefore waits for runs that are still training; it never starts a
run twice.
"""

from collections.abc import Mapping, Sequence
import dataclasses
import fcntl
import functools
import os
import pathlib
import shlex
import signal
import subprocess
import sys
from typing import IO, Any

from ebt_jax import config as config_lib
from ebt_jax import files
from ebt_jax.config import ConfigError
from ebt_jax.owner import Owner
from ebt_jax.sweep import Run
from experiments.runner import confined


def own(folder: pathlib.Path) -> Owner:
  """Owns the folder of a sweep. Raises ConfigError where another sweep does, or where its runs could not be saved."""
  if character := files.pattern_in(folder):
    raise ConfigError(
      f"--workdir: {folder.absolute()} holds {character!r}, which the library of checkpoints takes for a pattern; "
      "expected none of * ? [ \\ in it; rename the folder"
    )
  return Owner(folder)


@dataclasses.dataclass(frozen=True)
class Slot:
  """Where one process runs: the CPU cores that it may use (empty: all) and its GPU, if any, as CUDA names it."""

  cores: tuple[int, ...] = ()
  gpu: str | None = None

  @property
  def environment(self) -> dict[str, str]:
    return {} if self.gpu is None else {"CUDA_VISIBLE_DEVICES": self.gpu}


def slots(jobs: int, gpus: int = 0) -> list[Slot]:
  """`jobs` slots that share the cores and the first `gpus` GPUs that this process may use, equally.

  Raises:
    ConfigError: CUDA_VISIBLE_DEVICES names fewer GPUs.
  """
  cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
  each = max(1, len(cores) // jobs)
  visible = os.environ.get("CUDA_VISIBLE_DEVICES")
  names = list(map(str, range(gpus))) if visible is None else [n.strip() for n in visible.split(",") if n.strip()]
  if len(names) < gpus:
    raise ConfigError(
      f"--gpus: {gpus} asked for, CUDA_VISIBLE_DEVICES={visible} has {len(names)}; change one of the two"
    )

  def share(i):
    return tuple(cores[(i * each) % len(cores) :][:each]) if cores else ()

  return [Slot(share(i), names[i % gpus] if gpus else None) for i in range(jobs)]


@dataclasses.dataclass(frozen=True)
class Task:
  """One run and how it is started.

  Attributes:
    run: the training run.
    folder: the folder that holds `runs/`, `logs/` and `locks/`.
    launcher: words before the command, such as the script for a TPU pod.
  """

  run: Run
  folder: pathlib.Path
  launcher: Sequence[str] = ()

  @property
  def workdir(self) -> pathlib.Path:
    return self.folder / "runs" / self.run.name

  @property
  def log(self) -> pathlib.Path:
    return self.folder / "logs" / f"{self.run.name}.log"

  @property
  def done(self) -> bool:
    return (self.workdir / "final_result.json").exists()

  def check(self) -> None:
    """Raises ConfigError where the run's folder holds it with other values of what its sweep sets."""
    path = self.workdir / "config.json"
    if not path.exists():
      return
    there, here = config_lib.load(path).to_dict(), self.run.resolve().to_dict()

    def value(config, key):
      return functools.reduce(lambda group, name: group[name], key.split("."), config)

    keys = [k for k in self.run.overrides if value(there, k) != value(here, k)]
    if keys:
      differ = ", ".join(f"{k} ({value(there, k)!r} there, {value(here, k)!r} here)" for k in keys)
      raise ConfigError(f"--workdir: {self.workdir} holds this run with other values of {differ}; give another folder")

  @property
  def _programs(self) -> dict[str, str]:
    """A compilation cache for all runs: seeds of the same size share their compiled programs."""
    folder = str((self.folder / "programs").absolute())
    return {"JAX_COMPILATION_CACHE_DIR": folder, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}

  def command(self) -> list[str]:
    """The words of the command. A launcher runs it on other machines, on every host of a pod."""
    python = ["python"] if self.launcher else [sys.executable]
    program = [*python, "-m", "ebt_jax.main", *self.run.flags(), f"--workdir={self.workdir}"]
    return [*self.launcher, *program, *(["--distributed"] if self.launcher else [])]

  def shown(self, slot: Slot) -> str:
    """The command for a shell, with the GPU and the cores that `start` sets."""
    words = [f"{k}={v}" for k, v in slot.environment.items()]
    words += ["taskset", "-c", ",".join(map(str, slot.cores))] if slot.cores else []
    return shlex.join([*words, *self.command()])

  def lock(self) -> IO | None:
    """The open lock file of this run; None while another process holds the lock."""
    path = self.folder / "locks" / f"{self.run.name}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    file = open(path, "a")
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
      file.close()
      return None
    return file

  def start(self, slot: Slot, lock: IO) -> subprocess.Popen:
    """Starts the run and hands the lock to it. When this process dies, the run gets SIGTERM: it saves and ends."""
    self.log.parent.mkdir(parents=True, exist_ok=True)
    confinement = [sys.executable, "-I", confined.__file__, str(os.getpid()), ",".join(map(str, slot.cores))]
    with lock, open(self.log, "a", encoding="utf-8") as log:
      log.write(f"$ {self.shown(slot)}\n")
      log.flush()
      return subprocess.Popen(
        [*confinement, *self.command()],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        env={**self._programs, **os.environ, **slot.environment},
        pass_fds=[lock.fileno()],
        start_new_session=True,  # Ctrl-C reaches the sweep alone, which then asks its runs to end
      )

  def last_words(self) -> str:
    """The last line of the log that is not empty."""
    lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines() if self.log.exists() else []
    return next((line.strip() for line in reversed(lines) if line.strip()), "no output")


class SlurmTask:
  """A run as a task of a Slurm array. When it is preempted, it saves, ends and is queued again."""

  def __init__(self, task: Task):
    self.task = task
    self._process: subprocess.Popen | None = None

  def __call__(self) -> int:
    if self.task.done:
      return 0
    lock = self.task.lock()
    if lock is None:
      raise RuntimeError(f"{self.task.workdir}: another process trains this run")
    self._process = self.task.start(Slot(), lock)
    code = self._process.wait()
    if not self.task.done:
      raise RuntimeError(f"{self.task.run.name}: exit code {code}: {self.task.last_words()}")
    return code

  def checkpoint(self) -> Any:
    """Called by submitit when the time limit is reached or the task is preempted."""
    from submitit.helpers import DelayedSubmission

    if self._process:
      self._process.send_signal(signal.SIGTERM)
      self._process.wait()
    return DelayedSubmission(SlurmTask(self.task))


def slurm(
  tasks: Sequence[Task], folder: pathlib.Path, jobs: int, parameters: Mapping[str, Any], cluster: str | None = None
):
  """Submits one array and returns its jobs.

  Args:
    tasks: the runs to train.
    folder: folder of the study, on a file system that all nodes share.
    jobs: number of tasks that run at the same time.
    parameters: parameters of submitit, such as `timeout_min`, `gpus_per_node` and `slurm_partition`.
    cluster: executor of submitit; default: Slurm. Tests use "local".

  Raises:
    ConfigError: submitit is not installed, Slurm is not found, or submitit refuses a parameter.
  """
  try:
    import submitit
  except ImportError as e:
    raise ConfigError("--slurm: needs the package submitit; run `pip install submitit`") from e
  try:
    executor = submitit.AutoExecutor(folder / "slurm", cluster=cluster or "slurm")
    array = {"slurm_array_parallelism": jobs} if executor.cluster == "slurm" else {}
    executor.update_parameters(name=folder.name, **array, **parameters)
  except (RuntimeError, NameError, TypeError, ValueError) as e:
    raise ConfigError(f"--slurm: {e}") from e
  return executor.submit_array([SlurmTask(t) for t in tasks])
