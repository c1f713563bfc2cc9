"""Launchers: the TPU script against a gcloud that preempts, and a Slurm task in submitit's local executor."""

import os
import pathlib
import subprocess
import sys

import pytest

from ebt_jax.config import ConfigError
from ebt_jax.sweep import Run
from experiments.runner import confined, launch
from experiments.runner.launch import Task
from experiments.scaling import studies
from tests.helpers import REPOSITORY

SCRIPT = REPOSITORY / "tools/launch/tpu_pod.sh"
# Takes the next line of `states` at each describe and the next exit code of `codes` at each ssh.
GCLOUD = """#!/usr/bin/env bash
cd "$(dirname "$0")"
take() { head -n 1 "$1"; sed -i 1d "$1"; }
case "$4" in
  describe) state=$(take states); [ "$state" != MISSING ] && echo "$state" ;;
  *) printf '%s\\n' "${*:4}" >> calls; [ "$4" != ssh ] || exit "$(take codes)" ;;
esac
"""


def pod(folder: pathlib.Path, states: str, codes: str, *words: str, **env: str):
  """Exit code, calls of gcloud and errors of the script, with the states and exit codes that it meets."""
  for name, text in (("gcloud", GCLOUD), ("states", states), ("codes", codes), ("calls", "")):
    (folder / name).write_text(text.replace(" ", "\n") + "\n" if name in ("states", "codes") else text)
  (folder / "gcloud").chmod(0o755)
  environment = (
    os.environ | {"PATH": f"{folder}:{os.environ['PATH']}", "TPU_WAIT": "0", "TPU_TYPE": "v5litepod-16"} | env
  )
  done = subprocess.run([SCRIPT, "pod", "zone", *words], env=environment, capture_output=True, text=True, timeout=30)
  return done, (folder / "calls").read_text().splitlines()


TRAIN = ("python", "-m", "ebt_jax.main", "--config=a b.py:x", "--workdir=/mnt/r,seed=0", "--distributed")
SSH = "ssh pod --zone=zone --worker=all --command=cd ebt_jax && flock .ebt_jax.lock "
SSH += r"python -m ebt_jax.main --config=a\ b.py:x"


def test_a_preempted_slice_is_created_again_and_the_command_continues(tmp_path):
  states = "MISSING CREATING READY PREEMPTED PREEMPTED MISSING READY"
  done, calls = pod(tmp_path, states, "0 255 0 0", *TRAIN, TPU_SETUP="setup", TPU_SPOT="1")
  assert done.returncode == 0 and "pod was preempted (exit code 255)" in done.stderr
  create = "create pod --zone=zone --accelerator-type=v5litepod-16 --version=tpu-ubuntu2204-base --spot"
  setup = "ssh pod --zone=zone --worker=all --command=setup"
  assert [calls[i] for i in (0, 1, 3, 4, 5)] == [create, setup, "delete pod --zone=zone --quiet", create, setup]
  assert calls[2] == calls[6] and calls[2].startswith(SSH) and len(calls) == 7


@pytest.mark.parametrize("codes, code, tries", [("2", 2, 1), ("1 1 1", 1, 3), ("1 0", 0, 2)])
def test_a_command_that_fails_without_preemption_is_tried_at_most_three_times(tmp_path, codes, code, tries):
  done, calls = pod(tmp_path, "READY " * 6, codes, *TRAIN)
  assert done.returncode == code and len(calls) == tries


def test_dry_run_of_the_pod(tmp_path):
  done, calls = pod(tmp_path, "", "", *TRAIN, TPU_DRY_RUN="1")
  lines = done.stdout.splitlines()
  assert done.returncode == 0 and not calls and lines[0].startswith("gcloud compute tpus tpu-vm create pod --zone=zone")
  assert "flock\\ .ebt_jax.lock" in lines[1] and len(lines) == 2
  assert pod(tmp_path, "", "")[0].returncode == 2


def test_a_slurm_task_trains_a_run(tmp_path, monkeypatch):
  pytest.importorskip("submitit")
  monkeypatch.chdir(REPOSITORY)
  monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(REPOSITORY), *filter(None, sys.path)]))
  fake = [sys.executable, f"{REPOSITORY}/tests/experiments/fake_trainer.py"]
  good, bad = (
    Task(Run(n, studies.SERIES["ebt"], {"train.steps": s, "eval.every": 2}), tmp_path, fake)
    for n, s in (("good", 4), ("bad", 0))
  )
  jobs = launch.slurm([good, bad], tmp_path, 2, {"timeout_min": 1}, cluster="local")
  assert jobs[0].result() == 0 and good.done
  with pytest.raises(Exception, match="bad: exit code 1: .*train.steps: expected more than 0, found 0"):
    jobs[1].result()


def test_a_slurm_array_is_submitted(tmp_path, monkeypatch):
  """To an sbatch that keeps the script it was given."""
  pytest.importorskip("submitit")
  for name, text in (("srun", ""), ("sbatch", f"cat $1 > {tmp_path}/script; echo Submitted batch job 12")):
    (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
    (tmp_path / name).chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  tasks = [Task(Run(n, studies.SERIES["ebt"], {}), tmp_path / "study") for n in "abc"]
  jobs = launch.slurm(tasks, tmp_path / "study", 2, {"timeout_min": 60, "gpus_per_node": 1, "slurm_partition": "gpu"})
  script = (tmp_path / "script").read_text()
  assert [j.job_id for j in jobs] == ["12_0", "12_1", "12_2"]
  for line in ("--array=0-2%2", "--time=60", "--gpus-per-node=1", "--partition=gpu", "--job-name=study"):
    assert f"#SBATCH {line}\n" in script
  with pytest.raises(ConfigError, match="--slurm: .*partitoin"):
    launch.slurm(tasks, tmp_path / "study", 2, {"slurm_partitoin": "gpu"})


CHILD = "import os, time; print(os.getpid(), os.sched_getaffinity(0), flush=True); time.sleep(20); print('outlived')"
PARENT = f"""
import os, subprocess, sys, time
run = [sys.executable, "-c", {CHILD!r}]
subprocess.Popen([sys.executable, {confined.__file__!r}, str(os.getpid()), sys.argv[1], *run], start_new_session=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="asks the kernel for a signal")
def test_a_run_stays_on_its_cores_and_ends_with_its_sweep():
  core = min(os.sched_getaffinity(0))
  parent = subprocess.Popen([sys.executable, "-c", PARENT, str(core)], stdout=subprocess.PIPE, text=True)
  pid, cores = parent.stdout.readline().split(maxsplit=1)
  assert cores == f"{{{core}}}\n"
  parent.kill()
  assert parent.stdout.read() == ""  # returns when the run has ended too, and closed what it wrote to
  parent.wait()
  gone = subprocess.run([sys.executable, confined.__file__, pid, "", "true"])  # this process is not its parent
  unknown = subprocess.run(
    [sys.executable, confined.__file__, str(os.getpid()), "", "no_such_program"], capture_output=True, text=True
  )
  assert (gone.returncode, unknown.returncode) == (143, 1)
  assert unknown.stderr == "no_such_program: No such file or directory\n"


def test_slurm_that_is_not_there(tmp_path, monkeypatch):
  monkeypatch.setitem(sys.modules, "submitit", None)
  with pytest.raises(ConfigError, match="needs the package submitit; run `pip install submitit`"):
    launch.slurm([], tmp_path, 1, {})
