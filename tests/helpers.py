"""Runs of `python -m ebt_jax.main` (or another module) for tests: a tiny text, a tiny model, and a process that forks a
child for each run.

Importing JAX takes longer than a tiny run, and so does compiling. `run` therefore asks one server process, which has
imported everything and computed nothing, to fork a child for each command; children share a compilation cache.
"""

import atexit
import functools
import json
import os
import pathlib
import random
import runpy
import subprocess
import sys
import tempfile
import typing

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
TINY = (
  "--config.model.layers=1",
  "--config.model.heads=2",
  "--config.model.width=16",
  "--config.model.head_gain=0.1",
  "--config.data.context_length=16",
  "--config.data.held_out=0.1",
  "--config.train.batch_size=4",
  "--config.train.warmup=1",
  "--config.train.steps=6",
  "--config.train.log_every=1",
  "--config.checkpoint.every=2",
  "--config.sample.tokens=6",
  "--config.sample.prompt_tokens=6",
)


class Done(typing.NamedTuple):
  """A finished run: exit code (negative: killed by that signal) and what it wrote."""

  code: int
  out: str
  err: str


def write_corpus(folder: pathlib.Path, documents: int = 120) -> pathlib.Path:
  """A .jsonl of short texts, always the same."""
  words = "the state of our union people energy model thinks about every next word and then descends".split()
  choose = random.Random(0)
  rows = [{"text": " ".join(choose.choices(words, k=choose.randint(10, 40)))} for _ in range(documents)]
  path = folder / "corpus.jsonl"
  path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
  return path


def quickstart(*arguments: str, kind: str = "ebt") -> list[str]:
  """Flags of a tiny run of configs/quickstart.py, where `ebt` is the paper's; later flags count."""
  return [
    f"--config={REPOSITORY}/configs/quickstart.py:{'paper' if kind == 'ebt' else kind}",
    *TINY,
    *map(str, arguments),
  ]


def run(arguments, hook: str = "", cwd: pathlib.Path = REPOSITORY, module: str = "ebt_jax.main", **env: str) -> Done:
  """Runs a module with these flags, after the Python statements of `hook`, in a child of the server."""
  server, folder = _server()
  request = {"arguments": list(map(str, arguments)), "hook": hook, "cwd": str(cwd), "module": module, "env": env}
  server.stdin.write(json.dumps(request) + "\n")
  server.stdin.flush()
  code = int(server.stdout.readline())
  return Done(code, *((pathlib.Path(folder) / name).read_text(encoding="utf-8") for name in ("out", "err")))


def with_data_sets(program: str, folder: pathlib.Path, *arguments: str) -> None:
  """Runs a program that prepares and reads TFDS data sets in a folder, and asserts that it ends well.

  A process of its own: the folder is read from the environment, and a builder's name is taken for ever.
  """
  env = os.environ | {"TFDS_DATA_DIR": str(folder), "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
  command = [sys.executable, "-c", program, *arguments]
  done = subprocess.run(command, check=False, env=env, capture_output=True, text=True, timeout=120)
  assert done.returncode == 0, done.stdout + done.stderr


def environment(folder) -> dict[str, str]:
  """Of a process that runs main: one CPU device, quick compilation, a cache of programs in `folder`."""
  return os.environ | {
    "PYTHONPATH": os.pathsep.join(p for p in sys.path if p),
    "JAX_PLATFORMS": "cpu",
    "JAX_NUM_CPU_DEVICES": "1",
    "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
    "JAX_COMPILATION_CACHE_DIR": f"{folder}/programs",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
  }


@functools.cache
def _server():
  folder = tempfile.TemporaryDirectory()
  server = subprocess.Popen(
    [sys.executable, __file__, folder.name],
    stdin=subprocess.PIPE,
    stdout=subprocess.PIPE,
    text=True,
    env=environment(folder.name),
  )

  def end():
    server.stdin.close()
    server.wait()
    folder.cleanup()

  atexit.register(end)
  return server, folder.name


def _serve(folder: str) -> None:
  import grain  # noqa: F401
  import ml_collections  # noqa: F401
  import tensorboardX  # noqa: F401

  import ebt_jax.evaluation.commands  # noqa: F401
  import ebt_jax.main
  import ebt_jax.training.inspect
  import ebt_jax.training.loop
  import experiments.runner.pool
  import experiments.scaling.points  # noqa: F401

  for line in sys.stdin:
    child = os.fork()
    if not child:
      request = json.loads(line)
      for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{folder}/{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
      os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
      os.chdir(request["cwd"])
      sys.path[0] = request["cwd"]  # as `python -m` does
      sys.argv = [request["module"], *request["arguments"]]
      os.environ |= request["env"]
      exec(request["hook"], {})
      if request["module"] != "ebt_jax.main":
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
        sys.exit()
      sys.exit(ebt_jax.main.run())
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
  _serve(sys.argv[1])
