"""One process writes a folder at a time; what a dead one leaves blocks nobody."""

import errno
import fcntl
import json
import os
import signal
import socket
import subprocess
import sys

import pytest

from ebt_jax.config import ConfigError
from ebt_jax.owner import FILE, Owner
from tests.helpers import REPOSITORY

HOLD = (
  "import sys, time; from ebt_jax.owner import Owner; o = Owner(sys.argv[1]); print('held', flush=True); time.sleep(99)"
)


@pytest.fixture
def other(tmp_path):
  """A process that owns a folder."""
  p = subprocess.Popen(
    [sys.executable, "-c", HOLD, tmp_path / "f"],
    env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    stdout=subprocess.PIPE,
    text=True,
  )
  assert p.stdout.readline() == "held\n"
  yield p
  p.kill()
  p.wait()


def test_a_second_process_is_told_who_owns_the_folder(other, tmp_path):
  with pytest.raises(ConfigError) as e:
    Owner(tmp_path / "f")
  told = str(e.value)
  assert told.startswith(
    f"--workdir: {tmp_path}/f is written by process {other.pid} on {socket.gethostname()} since 20"
  )
  assert told.endswith("); wait until it ends, end it, or give another folder") and "\n" not in told
  other.send_signal(signal.SIGKILL)
  other.wait()
  assert (tmp_path / "f" / FILE).exists()  # of the dead one
  with Owner(tmp_path / "f"):
    assert json.loads((tmp_path / "f" / FILE).read_text())["pid"] == os.getpid()
  assert not list((tmp_path / "f").iterdir())


def test_a_lock_on_a_file_that_its_owner_has_removed_is_none(tmp_path, monkeypatch):
  """Between the opening of the file and its lock, the owner ends and a third process comes."""
  first, flock, third = Owner(tmp_path), fcntl.flock, []

  def late(file, how):
    if not third:
      third.append(None)
      first.close()
      third[0] = Owner(tmp_path)
    return flock(file, how)

  monkeypatch.setattr(fcntl, "flock", late)
  with pytest.raises(ConfigError, match=f"process {os.getpid()} "):
    Owner(tmp_path)
  third[0].close()
  Owner(tmp_path).close()


def test_a_file_system_without_locks_is_said(tmp_path, monkeypatch, caplog):
  def none(*_):
    raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

  monkeypatch.setattr(fcntl, "flock", none)
  with Owner(tmp_path):
    assert "has no locks; make sure that no other process writes there" in caplog.text


def test_a_folder_that_cannot_be_made(tmp_path):
  (tmp_path / "file").write_text("")
  with pytest.raises(ConfigError, match="--out: .*file is not a folder"):
    Owner(tmp_path / "file", "--out")


def refused(owned, *words):
  done = subprocess.run(
    [sys.executable, *words],
    cwd=REPOSITORY,
    env=os.environ | {"PYTHONPATH": str(REPOSITORY)},
    capture_output=True,
    text=True,
  )
  assert done.returncode and f"{owned} is written by process {os.getpid()}" in done.stderr, done
  assert "Traceback" not in done.stderr


def test_every_writer_asks(tmp_path):
  """Tokenising, sweeping, points and studies; training is tested in test_runs."""
  text = tmp_path / "t.txt"
  text.write_text("some text")
  with Owner(tmp_path / "f"):
    f = tmp_path / "f"
    refused(f, "tools/tokenize_text.py", f"--source={text}", "--tokenizer=bytes", f"--out={f}")
    refused(f, "-m", "experiments.scaling.run", "--study=tiny", f"--workdir={f}", "--axes=data")
    refused(f, "tools/fetch_data.py", f"--out={f}", "sotu")
