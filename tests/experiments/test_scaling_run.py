"""A sweep that is killed, hindered or changed loses no run, trains none twice and mixes none up."""

import json
import math
import os
import pathlib
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time

import pytest

from ebt_jax import sweep
from ebt_jax.config import ConfigError
from ebt_jax.errors import UserError
from experiments.runner.launch import Task
from experiments.scaling import points, studies
from experiments.scaling import run as runner
from tests.helpers import REPOSITORY, environment, run

FAKE = f"{sys.executable} {REPOSITORY}/tests/experiments/fake_trainer.py"


@pytest.fixture(autouse=True)
def from_the_root(monkeypatch):
  monkeypatch.chdir(REPOSITORY)
  monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))


def command(folder, *more, study="tiny", launcher=FAKE):
  words = [
    sys.executable,
    "-m",
    "experiments.scaling.run",
    f"--study={study}",
    f"--workdir={folder}",
    "--jobs=2",
    *more,
  ]
  return words + [f"--launcher={launcher}"] * bool(launcher)


def done(*words, **env):
  python, _, module, *flags = words
  found = run(flags, module=module, **env)
  return subprocess.CompletedProcess(words, *found)


def measured(folder: pathlib.Path) -> list[dict]:
  """The points without what a clock has measured, and the state of the repository."""
  return [{k: v for k, v in row.items() if k not in ("device_seconds", "git")} for row in points.read(folder)]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
  """The tiny study, undisturbed."""
  folder = tmp_path_factory.mktemp("whole") / "study"
  os.chdir(REPOSITORY)
  out = done(*command(folder), PYTHONPATH=str(REPOSITORY))
  assert out.returncode == 0, out.stderr
  return folder


def test_a_study_is_trained_once_and_collected(whole):
  rows = measured(whole)
  assert len(rows) == 12 * 8  # evaluated at each step
  runs = {r["run"]: r for r in rows}
  assert len(runs) == 12 and {len((whole / "runs" / n / "starts").read_text().split()) for n in runs} == {1}
  row = runs["ebt,1x24,batch4,steps8,seed=1"]
  n = 7 * 24**2
  assert (row["series"], row["kind"], row["seed"], row["step"], row["end"]) == ("ebt", "ebt", 1, 8, True)
  assert row["level"] == "1x24,batch4,steps8"
  assert (row["items"], row["batch_items"], row["width"], row["thinking_steps"]) == (8 * 4 * 16, 64, 24, 2)
  assert row["flops_paper"] == 40 * n * row["items"] and row["flops"] == 35 * n * row["items"]
  assert row["hard/loss"] == 2 * row["loss"] == pytest.approx(2 * math.log(row["perplexity"]))  # all that was evaluated
  assert (row["item"], row["unit"], row["headline"], row["devices"]) == ("frame", "nats/frame", "perplexity", 2)
  all_rows = [r for r in points.read(whole) if r["run"] == row["run"]]
  assert [r["device_seconds"] for r in all_rows] == pytest.approx([2 * 40e-9 * n * 64 * (i + 1) for i in range(8)])
  other = runs["transformer,1x24,batch4,steps8,seed=1"]
  assert other["flops_paper"] == 6 * n * row["items"] and other["thinking_steps"] == 0
  again = done(*command(whole))
  assert again.returncode == 0 and "12 done; ETA 0s" in again.stdout and measured(whole) == rows


def test_killed_three_times_and_continued(whole, tmp_path):
  folder = tmp_path / "study"
  choose = random.Random(0)

  def started():
    return sum(len(p.read_text().split()) for p in folder.glob("runs/*/starts"))

  for i in range(3):
    before = started()
    p = subprocess.Popen(
      command(folder), env=os.environ | {"FAKE_SLEEP": "0.2"}, start_new_session=True, stdout=subprocess.DEVNULL
    )
    while started() == before and p.poll() is None:
      time.sleep(0.05)
    time.sleep(choose.uniform(0.2, 1))
    assert p.poll() is None  # else there is nothing to kill
    os.kill(p.pid, signal.SIGKILL)  # its runs are left to themselves
    p.wait()
  assert not (folder / points.FILE).exists()
  last = done(*command(folder))
  assert last.returncode == 0, last.stderr
  assert measured(folder) == measured(whole)
  starts = [(folder / "runs" / n / "starts").read_text().split() for n in {r["run"] for r in measured(folder)}]
  assert any(len(s) > 1 for s in starts)  # a kill did hit a run


def test_a_failed_run_is_reported_and_does_not_stop_the_rest(whole, tmp_path):
  folder = tmp_path / "study"
  out = done(*command(folder), FAKE_FAIL="ebt,1x32,batch4,steps8,seed=0")
  assert out.returncode == 1
  assert "failed: ebt,1x32,batch4,steps8,seed=0: exit code 1: error: config.model: refused ebt,1x32" in out.stdout
  assert len({r["run"] for r in measured(folder)}) == 11
  assert done(*command(folder)).returncode == 0 and measured(folder) == measured(whole)


def test_sigterm_ends_the_runs_and_keeps_what_is_done(tmp_path):
  p = subprocess.Popen(
    command(tmp_path / "s"), env=os.environ | {"FAKE_SLEEP": "0.05"}, stdout=subprocess.PIPE, text=True
  )
  while "running" not in p.stdout.readline():
    pass
  time.sleep(1)
  p.terminate()
  assert p.wait(30) == 143 and "runs save their state" in (out := p.stdout.read()) and "points in" in out
  locks = [path.stem for path in (tmp_path / "s/locks").iterdir()]
  assert locks and all(Task(sweep.Run(n, "", {}), tmp_path / "s").lock() for n in locks)  # nobody trains on


def test_a_dry_run_prints_what_would_be_started_and_starts_nothing(tmp_path):
  out = done(
    *command(tmp_path / "s", "--dry_run", "--gpus=2", "--axes=width", "--set", "data.max_tokens=999", launcher="")
  )
  head, *lines = out.stdout.splitlines()
  assert head.startswith("# 0 of 12 runs are done; 1.17GFLOPs to go; 2 at once") and len(lines) == 12
  words = shlex.split(lines[1])
  assert words[0] == "CUDA_VISIBLE_DEVICES=1" and words[words.index(sys.executable) :][:3] == [
    sys.executable,
    "-m",
    "ebt_jax.main",
  ]
  assert (
    "--config.data.max_tokens=999" in words
    and words[-1] == f"--workdir={tmp_path}/s/runs/transformer,1x24,batch4,steps8,seed=0"
  )
  assert not (tmp_path / "s").exists()
  away = done(*command(tmp_path / "s", "--dry_run", launcher="tools/launch/tpu_pod.sh pod zone")).stdout.splitlines()[1]
  assert away.startswith("tools/launch/tpu_pod.sh pod zone python -m ebt_jax.main ") and away.endswith(" --distributed")


def test_a_users_config_joins_without_a_change_of_the_package(tmp_path):
  mine = tmp_path / "mine.py"
  mine.write_text(
    "from experiments.scaling import recipe\ndef get_config(arg=''):\n  return recipe.get_config('ebt_s2')\n"
  )
  out = done(*command(tmp_path / "s", f"--join=mine={mine}", "--axes=data"))
  assert out.returncode == 0, out.stderr
  assert {r["series"] for r in measured(tmp_path / "s")} == {"transformer", "ebt", "mine"}


def test_goes_on_from_its_two_files_in_a_new_folder(whole, tmp_path):
  """Runs whose points are there are not trained again; nothing of them is lost; other values are refused."""
  folder, gone = tmp_path / "study", "ebt,1x24,batch4,steps8,seed=1"
  folder.mkdir()
  shutil.copy(whole / points.STUDY, folder)
  lines = (whole / points.FILE).read_text().splitlines(keepends=True)
  half = lambda line: gone in line and '"end": true' in line  # a run without its last point is not done
  (folder / points.FILE).write_text("".join(line for line in lines if not half(line)))
  out = done(*command(folder))
  assert out.returncode == 0 and "# 11 runs have their points, but no folder" in out.stdout, out.stderr
  assert [path.name for path in (folder / "runs").iterdir()] == [gone] and measured(folder) == measured(whole)
  out = done(*command(folder, "--set", "train.clip=2.0"))
  assert out.returncode == 2 and "with other values of train.clip" in out.stderr


def test_another_study_in_the_same_folder_is_refused(whole):
  out = done(*command(whole, "--set", "train.clip=2.0"))
  assert out.returncode == 2 and "with other values of train.clip; give another folder, or delete" in out.stderr


@pytest.mark.parametrize(
  "more, message",
  [
    (["--axes=widht"], "--axes: no axis 'widht' in study tiny; did you mean width?"),
    (["--join=mine"], "--join: expected LABEL=FILE[:ARG], found 'mine'"),
    (["--join=mine=no.py"], "no file 'no.py'"),
    (["--join=ebt=no.py"], "--join: the label 'ebt' is taken by experiments/scaling/recipe.py:ebt; give another label"),
    (
      [f"--join=a={studies.RECIPE}", "--join=a=no.py"],
      "--join: the label 'a' is taken by experiments/scaling/recipe.py",
    ),
    (["--set", "train.steps=9"], "--set train.steps: axis data of study tiny sets config.train.steps itself"),
    (["--set", "seed=9"], "--set seed: axis data of study tiny sets config.seed itself"),
    (["--set", "train.clip"], "--set train.clip: expected KEY=VALUE"),
    (["--set", "train.stpes=9"], "--set train.stpes=9: no such key; did you mean train.steps"),
    (["--set", "train.clip=x"], "--set train.clip: expected float, found 'x' (str)"),
    (["--jobs=0"], "--jobs: expected 1 or more, found 0"),
    (["--job=x"], "--jobs: expected an integer, found 'x'"),
    (["--jbos=2"], "--jbos: no such flag; did you mean --jobs"),
    (["--workdir=gs://b/s"], "--workdir: gs://b/s is a remote path"),
    (["--join=a=gs://b/c.py"], "--join: gs://b/c.py is a remote path"),
    (["--join=a\n=c.py"], "--join: the label 'a\\n' begins or ends with a space"),
    (["--join=$x$=c.py"], "--join: the label '$x$' begins with _ or holds $"),
    (["--launcher=no_such_program x"], "--launcher: no program 'no_such_program' is found"),
    (["--launcher='x"], "cannot be split into words (No closing quotation)"),
    (["--gpus=1", "--slurm", "timeout_min=1"], "--gpus: shares the GPUs of this machine, and --slurm runs elsewhere"),
    (["--launcher=env", "--slurm"], "--slurm: tasks of an array have no --launcher"),
    (["--study=json:loads"], "--study: json:loads is no function without arguments"),
    (["--study=os:getcwd"], "--study: os:getcwd returned str, expected an experiments.scaling.studies.Study"),
  ],
)
def test_mistakes_are_found_before_anything_starts(tmp_path, more, message):
  with pytest.raises(UserError) as e:
    runner.main(["--study=tiny", f"--workdir={tmp_path}/s", *more])
  assert message in str(e.value) and not (tmp_path / "s").exists()


def test_a_key_that_other_axes_set_is_free():
  """Axis thinking sets the number of thinking steps, the data axis does not."""
  laptop = studies.get("laptop")
  laptop.check_extra(["thinking.steps"], ["data", "width"])
  with pytest.raises(ConfigError, match="axis thinking of study laptop sets config.thinking.steps itself"):
    laptop.check_extra(["thinking.steps"], ["data", "thinking"])


def test_what_another_version_wrote_is_named(whole, tmp_path):
  """A missing key is an error that says which key and which file; it is never a wrong number."""
  folder = tmp_path / "study"
  shutil.copytree(whole, folder)
  path = folder / "runs/ebt,1x24,batch4,steps8,seed=1/final_result.json"
  result = json.loads(path.read_text())
  path.write_text(json.dumps({k: v for k, v in result.items() if k not in ("items", "devices")} | {"tokens": 512}))
  with pytest.raises(ConfigError, match="seed=1/final_result.json: no key items, devices; another version"):
    points.collect(folder)
  study = json.loads((folder / points.STUDY).read_text())
  for described in study["runs"].values():
    del described["level"]
  (folder / points.STUDY).write_text(json.dumps(study))
  with pytest.raises(ConfigError, match="study.json, run transformer,1x24,.*: no key level"):
    points.collect(folder)
  (folder / points.FILE).write_text('{"run": "ebt", "tokens": 3}\n')
  with pytest.raises(ConfigError, match="points.jsonl, line 1: no key series, level"):
    points.read(folder)


def test_rows_of_one_step_are_one_point_and_what_is_not_finite_is_left_out(whole, tmp_path):
  folder = tmp_path / "run"
  shutil.copytree(whole / "runs/ebt,1x24,batch4,steps8,seed=1", folder)
  with open(folder / "metrics.jsonl", "a") as f:
    f.write('{"step": 8, "eval/far/loss": 7.5, "eval/far/bits": "nan"}\n{"step": 9, "eval/loss": "nan"}\n')
  rows = points.of_run(folder)
  assert len(rows) == 8 and rows[-1]["far/loss"] == 7.5 and "far/bits" not in rows[-1] and rows[-1]["loss"] > 0


@pytest.mark.parametrize("name", [points.STUDY, points.FILE, "runs/ebt,1x24,batch4,steps8,seed=1/final_result.json"])
def test_a_damaged_file_is_named_and_its_deletion_leads_on(whole, tmp_path, name):
  folder = tmp_path / "study"
  shutil.copytree(whole, folder)
  (folder / name).write_bytes((folder / name).read_bytes()[:40])
  out = done(*command(folder))
  assert out.returncode == 2 and f"error: {folder / name}: " in out.stderr and "delete it" in out.stderr, out
  assert "Traceback" not in out.stderr
  (folder / name).unlink()
  assert done(*command(folder)).returncode == 0 and measured(folder) == measured(whole)


def test_a_folder_whose_runs_could_not_be_saved_is_refused(tmp_path):
  with pytest.raises(ConfigError, match=r"--workdir: .*a\[1\]/s holds '\[', .* rename the folder"):
    runner.main(["--study=tiny", f"--workdir={tmp_path}/a[1]/s", "--axes=data"])
  assert not (tmp_path / "a[1]").exists()


@pytest.mark.parametrize("name", ["tiny", "quick", "laptop", "images", "video"])
def test_studies(name):
  """Every run resolves; series differ in the model and nothing else; the axes that need a law have the levels."""
  study = studies.get(name)
  plan = study.runs(study.series)
  for axis, of_series in plan.items():
    configs = {s: [r.resolve() for r in rs] for s, rs in of_series.items()}
    first, *others = configs.values()
    for other in others:
      for a, b in zip(first, other, strict=True):
        assert (a.train, a.data, a.eval, a.seed) == (b.train, b.data, b.eval, b.seed)
        assert (a.model.layers, a.model.width) == (b.model.layers, b.model.width)
    if name == "laptop" and axis in ("data", "batch"):
      assert {c.seed for c in configs["ebt"]} == {0, 1, 2}


@pytest.mark.slow
def test_killed_three_times_with_the_real_trainer(tmp_path):
  """What `test_killed_three_times_and_continued` says, of `ebt_jax.main` itself."""
  env = environment(tmp_path)
  for name in ("calm", "killed"):
    for i in range(3 * (name == "killed")):
      p = subprocess.Popen(command(tmp_path / name, launcher="", study="tiny"), env=env, stdout=subprocess.DEVNULL)
      time.sleep(random.uniform(5, 25))
      p.kill()
      p.wait()
    out = done(*command(tmp_path / name, launcher=""), **env)
    assert out.returncode == 0, out.stdout + out.stderr
  assert measured(tmp_path / "killed") == measured(tmp_path / "calm")


@pytest.mark.slow
def test_an_axis_of_the_quick_study_from_training_to_its_page(tmp_path):
  pytest.importorskip("matplotlib")
  out = done(*command(tmp_path / "s", study="quick", launcher=""), "--axes=data")
  assert out.returncode == 0, out.stdout + out.stderr
  out = done(sys.executable, "-m", "experiments.scaling.report", str(tmp_path / "s"))
  assert out.returncode == 0, out.stderr
  text = (tmp_path / "s/report.html").read_text(encoding="utf-8")
  assert "6 of 24 runs" in text and "<b>Data.</b>" in text
