"""The door of every command: what a user can mend is one line and code 2; faults of the program keep a traceback."""

import argparse
import errno
import pathlib
import runpy
import subprocess
import sys

import jax
import pytest

from ebt_jax import cli, files
from ebt_jax.config import ConfigError, resolve, set_keys
from ebt_jax.errors import UserError

ROOT = pathlib.Path(__file__).parents[1]
COMMANDS = {  # command: a mistake in its flags, and what is said of it
  "-m ebt_jax.main": ("--promt=x", "--promt: no such flag; did you mean --prompt"),
  "-m ebt_jax.use.lm_eval": ("run --model ebt_jax", "`lm-eval` is not installed; run `pip install lm-eval`"),
  "-m experiments.scaling.run": ("--studdy=x", "the following arguments are required: --study, --workdir"),
  "-m experiments.scaling.report": ("gs://bucket/study", "gs://bucket/study is a remote path"),
  "-m experiments.scaling.best": ("nowhere", "nowhere/study.json: cannot be read as a study (No such file"),
  "-m experiments.scaling.points": ("nowhere", "nowhere/study.json: cannot be read as a study (No such file"),
  "-m experiments.thinking.train": ("--jobs=0", "--jobs: expected 1 or more, found 0"),
  "-m experiments.thinking.longer": (
    "--last=99",
    "--last: expected more than --first=3 and at most --steps=16",
  ),
  "-m experiments.thinking.recipes": ("--workdir=nowhere", "nowhere/recipes holds no finished run"),
  "-m experiments.thinking.shift": ("--windows=0", "--windows: expected 1 or more, found 0"),
  "-m experiments.thinking.landscape": ("--grid=1", "--grid: expected 2 or more points on each axis, found 1"),
  "-m experiments.thinking.ablation": ("--widnows=3", "--widnows: no such flag; did you mean --windows"),
  "-m experiments.thinking.verification": ("--workdir=nowhere", "nowhere/models holds no finished run s2"),
  "-m experiments.thinking.verifier": ("--workdir=nowhere", "nowhere/models holds no finished run s1"),
  "-m experiments.thinking.uncertainty": ("--workdir=~nobody_/x", "there is no home folder of ~nobody_"),
  "-m experiments.thinking.later": ("--workdir=nowhere", "nowhere/later holds no finished run"),
  "-m experiments.thinking.controls": ("--workdir=nowhere", "nowhere/models holds no finished run transformer"),
  "-m experiments.reasoning.train": ("--set=5x5", "--set: no set '5x5'; known: 4x4"),
  "-m experiments.reasoning.study": ("--windows=0", "--windows: expected 1 or more, found 0"),
  "-m experiments.reasoning.page": ("nowhere.json", "nowhere.json"),
  "-m experiments.facets.train": ("--jobs=0", "--jobs: expected 1 or more, found 0"),
  "-m experiments.facets.study": ("--windows=0", "--windows: expected 1 or more, found 0"),
  "-m experiments.facets.page": ("nowhere", "nowhere"),
  "-m experiments.reasoning.picture": ("", "the following arguments are required: run"),
  "-m experiments.infilling.train": ("--jobs=0", "--jobs: expected 1 or more, found 0"),
  "-m experiments.infilling.spans": ("--workdir=nowhere", "nowhere"),
  "-m experiments.denoising.train": ("--jobs=0", "--jobs: expected 1 or more, found 0"),
  "-m experiments.denoising.study": ("", "the following arguments are required: --out"),
  "-m experiments.denoising.page": ("nowhere", "nowhere"),
  "-m experiments.denoising.frechet": ("--level=low", "--level: expected a number above 0, at most 1, found 'low'"),
  "-m experiments.denoising.probe": ("--pictures=0", "--pictures: expected 1 or more, found 0"),
  "-m experiments.denoising.uncertainty": ("--workdir=nowhere", "nowhere/models/runs holds no finished run MODEL"),
  "-m experiments.downstream.study": ("--data=nowhere", "no set (*.jsonl.xz) in nowhere"),
  "-m experiments.downstream.shots": ("--data=nowhere", "no set (*.jsonl.xz) in nowhere"),
  "-m experiments.downstream.best_of": ("--questions=nowhere.jsonl", "--questions: no file nowhere.jsonl"),
  "-m experiments.video.train": ("--set=shaeps", "--set: no set 'shaeps'; did you mean shapes"),
  "-m experiments.video.study": ("--sets=shaeps --workdir=nowhere", "--sets: no set 'shaeps'; did you mean shapes"),
  "-m experiments.video.speed": ("--frames=0", "--frames: expected 1 or more, found 0"),
  "-m experiments.runner.cost": ("", "error"),
  "tools/tokenize_text.py": (
    "--source=x --tokenizer=bytes --out=y --held_out=2",
    "--held_out: expected a fraction",
  ),
  "tools/decode_images.py": ("--source=nowhere --out=x", "no file, folder or match 'nowhere'"),
  "tools/fetch_data.py": ("sotuu", "unknown set 'sotuu'; did you mean sotu"),
  "tools/figures/idea.py": ("nowhere/x.svg", "nowhere/x.svg: No such file or directory"),
  "-m tools.bench": ("--suite=train --devices=8", "--devices: suite train does not use it, only mesh; leave it out"),
  "-m tools.bench.step": ("--width=16 --heads=3", "config.model.width: 16 must divide by heads (3)"),
  "-m tools.bench.mesh": ("--size=huge", "--size: invalid choice: 'huge'"),
  "-m tools.bench.figures": (".", ".: no train.json, decode.json or sizes.json; run `python -m tools.bench --out=.`"),
}
DONE_ELSEWHERE = {"-m experiments.runner.cost"}  # no command of users


def programs() -> set[str]:
  """How each program of the repository is started: every file that ends with a call of its own."""
  found = set()
  for folder in ("ebt_jax", "experiments", "tools"):
    for path in (ROOT / folder).rglob("*.py"):
      if 'if __name__ == "__main__":' in path.read_text(encoding="utf-8"):
        name = path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__main__")
        script = (path.parent / "__init__.py").exists() or folder == "experiments" or "bench" in name
        found.add(f"-m {name}" if script else str(path.relative_to(ROOT)))
  return found


def test_every_program_is_here():
  # one runs where this package is not installed, one may not import what it mutates, one is started by sweeps alone
  others = {"-m tools.bench.pytorch", "-m tools.mutation", "-m experiments.runner.confined"}
  assert programs() - others == COMMANDS.keys()
  for command in COMMANDS:
    path = ROOT / command if not command.startswith("-m") else ROOT / command[3:].replace(".", "/")
    path = path / "__main__.py" if path.is_dir() else path.with_suffix(".py")
    assert "cli.door(" in path.read_text(encoding="utf-8"), command


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - DONE_ELSEWHERE))
def test_a_mistake_is_one_line_and_code_2(command, tmp_path, tmp_path_factory, monkeypatch, capsys):
  flags, words = COMMANDS[command]
  owning = command.startswith(("-m experiments.thinking", "-m experiments.video.study")) and "train" not in command
  if owning or command.endswith((".downstream.study", ".downstream.shots", ".frechet", ".probe", ".uncertainty")):
    # it owns its results until this process ends
    flags += f" --out={tmp_path_factory.mktemp('results')}"
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "argv", [command, *flags.split()])
  monkeypatch.setitem(sys.modules, "lm_eval", None)  # as if it were not installed
  monkeypatch.setattr(sys, "path", [str(ROOT / "tools"), *sys.path])
  cache = jax.config.jax_compilation_cache_dir
  try:
    with pytest.raises(SystemExit) as e:
      if command.startswith("-m "):
        runpy.run_module(command[3:], run_name="__main__", alter_sys=True)
      else:
        runpy.run_path(str(ROOT / command), run_name="__main__")
  finally:
    jax.config.update("jax_compilation_cache_dir", cache)
  said = capsys.readouterr().err.splitlines()
  assert e.value.code == 2 and len(said) == 1 and said[0].startswith("error: ") and words in said[0], said
  assert not list(tmp_path.iterdir())


def raising(error):
  def command(*_):
    raise error

  return command


@pytest.mark.parametrize(
  "error, code, said",
  [
    (ConfigError("config.x: wrong"), 2, "error: config.x: wrong\n"),
    (OSError(errno.ENOSPC, "No space left on device"), 2, "error: No space left on device; all is kept\n"),
    (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "error: /x: Permission denied; all is kept\n"),
    (IsADirectoryError(errno.EISDIR, "Is a directory", "/x"), 2, "error: /x: Is a directory; all is kept\n"),
    (KeyboardInterrupt(), 130, "interrupted; all is kept\n"),
    (MemoryError(), 2, "error: out of memory; lower the batch size"),
    (RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes."), 2, "out of memory (RES"),
  ],
)
def test_the_door(error, code, said, capsys):
  assert cli.door(raising(error), kept="all is kept") == code
  assert said in capsys.readouterr().err


@pytest.mark.parametrize("error", [KeyError("x"), RuntimeError("x"), ValueError("x"), AssertionError("x")])
def test_faults_of_the_program_keep_their_traceback(error):
  with pytest.raises(type(error)):
    cli.door(raising(error))


def test_a_closed_pipe_ends_quietly():
  program = "import sys; from ebt_jax import cli; sys.exit(cli.door(lambda: print('x\\n' * 10**6)))"
  done = subprocess.run(f'{sys.executable} -c "{program}" | head -1; echo ${{PIPESTATUS[0]}}', shell=True, cwd=ROOT,
                        executable="/bin/bash", capture_output=True, text=True)  # fmt: skip
  assert (done.stdout, done.stderr) == ("x\n141\n", "")


def test_paths(monkeypatch):
  monkeypatch.setenv("HOME", "/home/me")
  assert cli.path("~/x") == pathlib.Path("/home/me/x") and cli.local("") == ""
  for text in ("gs://b/x", "s3://b", "~nobody_/x"):
    with pytest.raises(argparse.ArgumentTypeError):
      cli.path(text)
  with pytest.raises(argparse.ArgumentTypeError, match="expected a path, found nothing"):
    cli.path("")


@pytest.mark.parametrize(
  "text, said",
  [("{", "Expecting property name"), ("[]", "expected a JSON object, found list"), ("[" * 10**5, "nested too deeply"),
   ('{"a": ' + "9" * 5000 + "}", "an integer of more than 4300 digits"), ("\xff", "cannot be read as a note")],
)  # fmt: skip
def test_json_that_cannot_be_read(tmp_path, text, said):
  (tmp_path / "x.json").write_text(text, encoding="latin-1")
  with pytest.raises(UserError, match="x.json: cannot be read as a note") as e:
    files.read_json(tmp_path / "x.json", "a note", "write it again")
  assert said in str(e.value) and str(e.value).endswith("; write it again") and "\n" not in str(e.value)


def test_all_mistakes_of_a_config_at_once():
  with pytest.raises(ConfigError) as e:
    resolve({"model": {"norm": "x"}, "train": {"beta1": 2.0}, "data": {"held_out": 0.0}})
  text = str(e.value)
  assert text.startswith("3 mistakes:\n") and text.count("\n") == 3
  assert all(key in text for key in ("config.model.norm", "config.train.beta1", "config.data.held_out"))
  with pytest.raises(ConfigError) as e:
    set_keys(resolve({}), ["eval.stesp=1", "train.steps=x", f"seed={2**63}", "eval.steps=2"])
  assert str(e.value).startswith("3 mistakes:\n") and "2^63" in str(e.value)
  for source, said in (("a=x;a=y", "a is named twice"), ("held_out=x", "held_out is the split of data.source")):
    with pytest.raises(ConfigError, match=said):
      resolve({"data": {"held_out_sources": source}})
