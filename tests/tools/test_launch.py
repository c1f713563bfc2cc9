"""The SkyPilot task: its parts, and that its commands are ours, on one node and on two."""

import os
import pathlib
import subprocess

import pytest

from ebt_jax import flags
from ebt_jax.config import resolve, set_keys
from ebt_jax.sweep import read_config
from tests.helpers import REPOSITORY

yaml = pytest.importorskip("yaml")
TASK = yaml.safe_load((REPOSITORY / "tools/launch/sky.yaml").read_text(encoding="utf-8"))
ENVIRONMENT = {"BUCKET": "b", "RUN": "small", "SETTINGS": "data.source=/bucket/data train.batch_size=64"}


def started(folder: pathlib.Path, **environment: str) -> tuple[list[str], dict[str, str]]:
  """The words and the JAX variables of the command that `run` starts, with a python that tells them."""
  stub = folder / "python"
  stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"; env | grep ^JAX_ | sort\n')
  stub.chmod(0o755)
  known = {name: str(value or "") for name, value in TASK["envs"].items()}
  path = {"PATH": f"{folder}:{os.environ['PATH']}"}
  done = subprocess.run(
    ["bash", "-euo", "pipefail", "-c", TASK["run"]], env={**path, **known, **ENVIRONMENT, **environment},
    capture_output=True, text=True, check=True,
  )  # fmt: skip
  lines = done.stdout.splitlines()
  words = [line for line in lines if not line.startswith("JAX_")]
  return words, dict(line.split("=", 1) for line in lines if line.startswith("JAX_"))


def test_the_parts_of_the_task():
  assert set(TASK) == {"name", "resources", "num_nodes", "workdir", "envs", "file_mounts", "setup", "run"}
  assert {name for name, value in TASK["envs"].items() if value is None} == {"BUCKET", "RUN"}  # a user must give them
  assert TASK["file_mounts"] == {"/bucket": {"name": "${BUCKET}", "mode": "MOUNT"}} and TASK["workdir"] == "."
  assert "pip install -e" in TASK["setup"]


@pytest.mark.parametrize("nodes", [1, 2])
def test_its_command_is_ours(nodes, tmp_path):
  sky = {"SKYPILOT_NUM_NODES": str(nodes), "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"[: 8 * nodes + nodes - 1]}
  words, variables = started(tmp_path, **sky, SKYPILOT_NODE_RANK=str(nodes - 1))
  assert words[:2] == ["-m", "ebt_jax.main"]
  found = flags.parse(words[2:])
  assert (found.mode, found.workdir, found.distributed) == ("train", "/bucket/runs/small", nodes == 2)
  config = set_keys(resolve(read_config(str(REPOSITORY / found.config))), found.set)
  assert (config.data.source, config.train.batch_size) == ("/bucket/data", 64)
  two = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:8476", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "1"}
  assert variables == (two if nodes == 2 else {})


def test_skypilot_reads_the_task():
  """Where SkyPilot is installed: the task as it would be sent, with what a user gives."""
  sky = pytest.importorskip("sky")
  asked = {"BUCKET": "some-bucket", "RUN": "small"}
  task = sky.Task.from_yaml_config({**TASK, "envs": {**TASK["envs"], **asked}, "file_mounts": {}})
  (resources,) = task.resources
  assert task.num_nodes == 1 and task.run == TASK["run"] and resources.use_spot
  assert resources.accelerators == {"H100": 8} and task.envs["RUN"] == "small"
