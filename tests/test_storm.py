"""A storm of kills, full disks and damaged files: nothing that was said is lost, nothing ends differently.

Training, tokenising and sweeping are hit at random moments and started again with the same command, in one folder until
they finish, then in a new one. EBT_STORM_EVENTS and EBT_STORM_SEED change how often and how.
"""

import collections
import json
import os
import pathlib
import random
import shutil
import signal
import subprocess
import sys
import time

import pytest

from ebt_jax import metrics
from ebt_jax.data.token_folder import MANIFEST, WINDOWS
from experiments.scaling import points
from tests import test_resume
from tests.helpers import REPOSITORY, Done, quickstart, run, write_corpus

EVENTS = int(os.environ.get("EBT_STORM_EVENTS", 105))
SEED = int(os.environ.get("EBT_STORM_SEED", 0))

KILL = """
import os, signal, threading
killer = threading.Timer({after}, os.kill, (os.getpid(), signal.SIGKILL))
killer.daemon = True
killer.start()
"""
# In the middle of a save: some time after it has begun.
KILL_SAVE = """
import os, signal, threading
from ebt_jax.checkpoint import Checkpoints
start = Checkpoints._start
def patched(self, step, *rest):
  if step >= {step}:
    killer = threading.Timer({after}, os.kill, (os.getpid(), signal.SIGKILL))
    killer.daemon = True
    killer.start()
  start(self, step, *rest)
Checkpoints._start = patched
"""
# A file takes no more than some bytes; what is printed goes through pipes, which have no limit.
FULL = """
import os, resource, subprocess
for number in (1, 2):
  cat = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=number)
  os.dup2(cat.stdin.fileno(), number)
  cat.stdin.close()
resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, resource.RLIM_INFINITY))
"""
TOKENISE = """
import os, sys, time
fsync = os.fsync
def slow(file):
  time.sleep(0.004)  # so that kills fall between saved states
  fsync(file)
os.fsync = slow
sys.path.insert(0, {tools!r})
from ebt_jax import cli
import tokenize_text
sys.exit(cli.door(tokenize_text.main, {arguments!r}))
"""


class Storm:
  """Draws events, and counts them and what they did."""

  def __init__(self):
    self.choose = random.Random(SEED)
    self.kinds, self.places = collections.Counter(), collections.Counter()
    self.lost: list[str] = []
    self.different: list[str] = []

  def draw(self, place: str) -> str:
    kind = self.choose.choices(("SIGKILL", "full disk", "damaged file"), (5, 3, 2))[0]
    self.kinds[kind] += 1
    self.places[place] += 1
    return kind

  def size(self, folder: pathlib.Path) -> int:
    """Bytes at which a disk is full: some file of such a folder does not fit."""
    largest = max(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    return round(largest ** self.choose.uniform(0.4, 1))

  def damage(self, path: pathlib.Path) -> str:
    """Flips a bit of a file, cuts it, or removes it."""
    data, how = path.read_bytes(), self.choose.choice(("flipped", "cut", "removed"))
    at = self.choose.randrange(max(1, len(data)))
    if how == "removed" or not data:
      path.unlink()
    elif how == "cut":
      path.write_bytes(data[:at])
    else:
      path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    return f"{path} {how}"

  def __str__(self) -> str:
    kinds, places = (", ".join(f"{n} {k}" for k, n in sorted(c.items())) for c in (self.kinds, self.places))
    return (
      f"storm, seed {SEED}: {sum(self.kinds.values())} events ({kinds}; {places}), lost {len(self.lost)}, "
      f"different {len(self.different)}"
    )


def rows_of(folder: pathlib.Path) -> dict[int, list[dict]]:
  """Rows of a run by step, without times; of a torn file the whole ones."""
  found: dict[int, list[dict]] = {}
  for row in metrics.read_rows(folder / metrics.FILE):
    found.setdefault(row["step"], []).append({k: v for k, v in row.items() if not k.startswith("time/")})
  return found


def left_by(folder: pathlib.Path) -> dict:
  """What a finished run leaves, whatever is committed to the repository meanwhile."""
  found = test_resume.left_by(folder)
  del found["result"]["git"]
  return found


def sealed(folder: pathlib.Path) -> list[int]:
  return sorted(int(p.parent.name) for p in folder.glob("checkpoints/*/checksums.json") if p.parent.name.isdecimal())


def train_in_a_storm(storm: Storm, folder: pathlib.Path, events: int) -> None:
  corpus = write_corpus(folder)

  def flags(name):
    return quickstart(
      f"--config.data.source={corpus}", f"--workdir={folder / name}", "--config.train.steps=24",
      "--config.checkpoint.every=2", "--config.checkpoint.keep=3", "--config.eval.every=6",
      "--config.eval.max_windows=6", "--config.sample.tokens=2", kind="transformer",
    )  # fmt: skip

  assert run(flags("first")).code == 0  # compiles
  begin = time.monotonic()
  assert run(flags("whole")).code == 0
  length, whole = time.monotonic() - begin, left_by(folder / "whole")
  number, n = 0, 0

  def finished(where):
    if left_by(where) != whole:
      storm.different.append(str(where))

  while n < events:
    here = folder / f"run{number}"
    before, rows = sealed(here), rows_of(here)
    kind = storm.draw("training")
    n += 1
    hook, kept = "", before[-1:]
    if kind == "damaged file":
      if len(before) > 1:
        kept = before[-2:-1]
        newest = here / "checkpoints" / str(before[-1])
        storm.damage(storm.choose.choice(sorted(p for p in newest.rglob("*") if p.is_file())))
      elif (here / metrics.FILE).exists():
        with open(here / metrics.FILE, "a") as f:
          f.write('{"step": 3, "train/lo')
      hook = KILL_SAVE.format(step=max(kept, default=0) + 4, after=0.0)
    elif kind == "full disk":
      hook = FULL.format(size=storm.size(folder / "whole"))
    elif storm.choose.random() < 0.5:
      hook = KILL_SAVE.format(
        step=max(kept, default=0) + storm.choose.randint(1, 8), after=storm.choose.uniform(0, 0.2)
      )
    else:
      hook = KILL.format(after=storm.choose.uniform(0.1, 1) * length)
    done = run(flags(f"run{number}"), hook)
    assert done.code in (0, 2, -signal.SIGKILL), f"{kind}: exit code {done.code}\n{done.out}\n{done.err}"
    after = rows_of(here)
    for step in kept:
      if max(sealed(here), default=0) < step or any(after.get(s) != rows[s] for s in rows if s <= step):
        storm.lost.append(f"{kind}: {here} at step {step}")
    if done.code == 0:
      finished(here)
      number += 1
  if (here := folder / f"run{number}").exists():
    done = run(flags(f"run{number}"))
    assert done.code == 0, done
    finished(here)


def tokenise_in_a_storm(storm: Storm, folder: pathlib.Path, events: int) -> None:
  corpus = write_corpus(folder)

  def tokenise(out, hook="") -> Done:
    words = [f"--source={corpus}", f"--out={out}", "--tokenizer=bytes", "--context_length=32", "--held_out=0.2"]
    return run([], hook + TOKENISE.format(tools=str(REPOSITORY / "tools"), arguments=[*words, "--part_tokens=500"]))

  def documents(out) -> int:
    """As many as the folder says are finished."""
    for name in (WINDOWS, MANIFEST):
      if (out / name).exists():
        return sum(c["documents"] for c in json.loads((out / name).read_text())["counts"].values())
    return 0

  begin = time.monotonic()
  assert tokenise(folder / "whole").code == 0
  length = time.monotonic() - begin
  whole = {p.name: p.read_bytes() for p in (folder / "whole").iterdir()}
  number, n = 0, 0

  def finished(out):
    if {p.name: p.read_bytes() for p in out.iterdir()} != whole:
      storm.different.append(str(out))

  while n < events:
    out = folder / f"out{number}"
    before, kind, hook = documents(out), storm.draw("tokenising"), ""
    n += 1
    if kind == "damaged file" and before:
      told = storm.damage(storm.choose.choice(sorted(out.glob("*.*"))))
      done = tokenise(out, KILL.format(after=0.6 * length))
      if done.code not in (0, -signal.SIGKILL):
        # said in one line, which leads on; what was in that folder is not used
        assert "Traceback" not in done.err and str(out) in done.err, (told, done)
        shutil.rmtree(out)
        continue
    else:
      hook = FULL.format(size=storm.size(folder / "whole"))
      if kind != "full disk":
        hook = KILL.format(after=storm.choose.uniform(0, 1) * length)
      done = tokenise(out, hook)
      if documents(out) < before:
        storm.lost.append(f"{kind}: {out}")
    if done.code == 0:
      finished(out)
      number += 1
  if (out := folder / f"out{number}").exists():
    done = tokenise(out)
    assert done.code == 0, done
    finished(out)


def sweep_in_a_storm(storm: Storm, folder: pathlib.Path, events: int) -> None:
  trainer = f"{sys.executable} {REPOSITORY}/tests/experiments/fake_trainer.py"
  env = os.environ | {"PYTHONPATH": str(REPOSITORY), "FAKE_SLEEP": "0.05"}

  def sweep(out, hook="", kill_after=None) -> Done:
    words = ["--study=tiny", f"--workdir={out}", "--jobs=2", f"--launcher={trainer}"]
    start = "runpy.run_module('experiments.scaling.run', run_name='__main__')"
    program = f"{hook}import sys, runpy; sys.argv[1:] = {words!r}; {start}"
    p = subprocess.Popen(
      [sys.executable, "-c", program],
      env=env,
      cwd=REPOSITORY,
      stdout=subprocess.PIPE,
      stderr=subprocess.PIPE,
      text=True,
    )
    try:
      said = p.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
      p.kill()
      said = p.communicate()
    return Done(p.returncode, *said)

  def measured(out) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in ("device_seconds", "git")} for row in points.read(out)]

  def ended(out) -> set[str]:
    return {p.parent.name for p in out.glob("runs/*/final_result.json")}

  begin = time.monotonic()
  assert sweep(folder / "whole").code == 0
  length, whole = time.monotonic() - begin, measured(folder / "whole")
  number, n = 0, 0

  def finished(out):
    if measured(out) != whole:
      storm.different.append(str(out))

  def mended(out, done) -> bool:
    """Deletes the damaged file that an error names."""
    for path in [out / points.STUDY, out / points.FILE, *out.glob("runs/*/final_result.json")]:
      if f"error: {path}: " in done.err and "Traceback" not in done.err:
        path.unlink()
        return True
    return False

  while n < events:
    out = folder / f"study{number}"
    before, kind = ended(out), storm.draw("sweeping")
    n += 1
    if kind == "damaged file" and before:
      results = sorted(out.glob("runs/*/final_result.json"))
      path = storm.choose.choice([p for p in (out / points.STUDY, out / points.FILE) if p.exists()] + results[:1])
      path.write_bytes(path.read_bytes()[: storm.choose.randrange(1, path.stat().st_size - 2)])
      done = sweep(out)
      before -= {path.parent.name}
      assert done.code == 0 or mended(out, done), (path, done)
    elif kind == "full disk":
      done = sweep(out, FULL.format(size=storm.size(folder / "whole")))
    else:
      done = sweep(out, kill_after=storm.choose.uniform(0.3, 1) * length)
    if before - ended(out):
      storm.lost.append(f"{kind}: {out}: {before - ended(out)}")
    if done.code == 0:
      finished(out)
      number += 1
  out = folder / f"study{number}"
  for _ in range(5):
    if not out.exists():
      return
    done = sweep(out)
    if done.code == 0:
      finished(out)
      return
    assert mended(out, done), done
  raise AssertionError(f"{out} does not end: {done}")


@pytest.mark.slow
def test_a_storm_loses_nothing_and_changes_nothing(tmp_path, capsys):
  storm = Storm()
  for part, weight in ((train_in_a_storm, 0.45), (tokenise_in_a_storm, 0.35), (sweep_in_a_storm, 0.2)):
    folder = tmp_path / part.__name__
    folder.mkdir()
    part(storm, folder, max(1, round(weight * EVENTS)))
  with capsys.disabled():
    print(f"\n{storm}")
  assert not storm.lost and not storm.different
