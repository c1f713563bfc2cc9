"""Several processes make one run: they train as one process does, and stop together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests import helpers

pytestmark = pytest.mark.slow


def start(folder, workdir, processes, *flags):
  """Processes with four devices in all."""
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    port = s.getsockname()[1]
  command = [sys.executable, "-m", "ebt_jax.main", *helpers.quickstart(f"--workdir={workdir}", *flags)]
  env = helpers.environment(folder) | {"JAX_NUM_CPU_DEVICES": str(4 // processes)}
  cluster = {"JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}", "JAX_NUM_PROCESSES": str(processes)}
  return [
      subprocess.Popen(
          command + ["--distributed"] * (processes > 1),
          env=env | (cluster | {"JAX_PROCESS_ID": str(i)} if processes > 1 else {}),
          cwd=helpers.REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
      )
      for i in range(processes)
  ]  # fmt: skip


def rows(workdir):
  lines = (workdir / "metrics.jsonl").read_text().splitlines()
  return [{k: v for k, v in json.loads(line).items() if not k.startswith("time/")} for line in lines]


def test_two_processes_train_as_one_and_stop_together(tmp_path):
  corpus = f"--config.data.source={helpers.write_corpus(tmp_path)}"
  one, two = tmp_path / "one", tmp_path / "two"
  (alone,) = start(tmp_path, one, 1, corpus)
  out = alone.communicate(timeout=300)[0]
  assert alone.returncode == 0, out

  def both(*flags, interrupt=False):
    pair = start(tmp_path, two, 2, corpus, *flags)
    if interrupt:  # one of them is told, both stop
      deadline = time.time() + 240
      while time.time() < deadline and not (two / "metrics.jsonl").exists():
        time.sleep(0.05)
      pair[1].send_signal(signal.SIGTERM)
    outs = [p.communicate(timeout=300)[0] for p in pair]
    return [p.returncode for p in pair], outs

  codes, outs = both(interrupt=True)
  assert codes == [128 + signal.SIGTERM] * 2, outs
  assert "stopped by SIGTERM after step" in outs[0] and "step 1/" not in outs[1]
  codes, outs = both()
  assert codes == [0, 0], outs
  assert "resuming from step" in outs[0]
  found, wanted = rows(two), rows(one)
  assert [r["step"] for r in found] == [r["step"] for r in wanted]
  for a, b in zip(found, wanted):
    assert a == pytest.approx(b, rel=1e-4, abs=1e-5)
  assert os.path.exists(two / "final_result.json")
  codes, outs = both("--mode=eval", "--set=eval.batch_size=2")
  assert codes == [0, 0] and "written to" in outs[0] and "tokens in" not in outs[1], outs
