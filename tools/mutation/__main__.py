"""Changes one place of a module at a time and asks the module's quick tests whether they notice.

    pip install cosmic-ray
    python -m tools.mutation --count=20 --module=ebt_jax/losses.py,ebt_jax/scaling.py

The mutants are cosmic-ray's. Its own runner starts a new interpreter for each, which here takes longer than most tests;
this one imports JAX once, forks a child for each mutant, and shares compiled programs between them. The working tree is
never changed: mutants live in a copy of it.
"""

import argparse
import os
import pathlib
import shutil
import signal
import subprocess
import sys
import tempfile
import time

REPOSITORY = pathlib.Path(__file__).resolve().parents[2]


def copy_tree(to: pathlib.Path) -> None:
  """All files that git tracks or does not ignore."""
  listed = ["git", "-C", str(REPOSITORY), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
  for name in subprocess.run(listed, check=True, capture_output=True, text=True).stdout.split("\0"):
    if name and (REPOSITORY / name).is_file():
      (to / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copy2(REPOSITORY / name, to / name)


def passes(copy: pathlib.Path, tests: list[str], seconds: float) -> bool | None:
  """Whether the tests of a copy pass, run in a forked child; None: not done after `seconds` (then a mutant is dead)."""
  child = os.fork()
  if not child:
    os.setsid()
    with open(copy / "pytest.out", "w", encoding="utf-8") as out:
      os.dup2(out.fileno(), 1)
      os.dup2(out.fileno(), 2)
    os.chdir(copy)
    sys.path[0] = str(copy)
    sys.dont_write_bytecode = True
    import pytest

    os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
  done, status, end = 0, 0, time.monotonic() + seconds
  try:
    while not done and time.monotonic() < end:
      done, status = os.waitpid(child, os.WNOHANG)
      time.sleep(0.05)
  finally:  # also where somebody presses Ctrl-C
    if not done:
      os.killpg(child, signal.SIGKILL)
      os.waitpid(child, 0)
  return status == 0 if done else None


def main() -> int:
  from tools.mutation.table import TABLE

  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--module", default=",".join(TABLE), help="modules of tools/mutation/table.py; default: all")
  parser.add_argument("--count", type=int, default=20, help="mutants of each module")
  parser.add_argument("--seed", type=int, default=0)
  parser.add_argument("--by_hand", action="store_true", help="the mutants of tools/mutation/by_hand.py instead")
  options = parser.parse_args()
  modules = options.module.split(",")
  if unknown := [m for m in modules if m not in TABLE]:
    parser.error(f"--module: {', '.join(unknown)} not in tools/mutation/table.py, which has {', '.join(TABLE)}")

  try:
    from tools.mutation import by_hand, mutants
  except ModuleNotFoundError as error:
    parser.error(f"no module {error.name!r}; pip install cosmic-ray")

  scores = []
  with tempfile.TemporaryDirectory() as folder:
    os.environ |= {
      "JAX_PLATFORMS": "cpu",
      "JAX_COMPILATION_CACHE_DIR": f"{folder}/programs",
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    import flax  # noqa: F401  (everything slow that tests import, but nothing of this package)
    import grain  # noqa: F401
    import jax  # noqa: F401
    import jaxtyping  # noqa: F401
    import optax  # noqa: F401
    import orbax.checkpoint  # noqa: F401
    import scipy.stats  # noqa: F401

    copy = pathlib.Path(folder) / "copy"
    copy_tree(copy)
    for module in modules:
      source = (copy / module).read_text(encoding="utf-8")
      found = by_hand.of(module, source) if options.by_hand else mutants.sample(source, options.count, options.seed)
      if not found:
        continue
      started = time.monotonic()
      if not passes(copy, TABLE[module], 3600):
        print((copy / "pytest.out").read_text(encoding="utf-8")[-2000:])
        print(f"error: the tests of {module} fail without a mutation: {' '.join(TABLE[module])}", file=sys.stderr)
        return 2
      limit, survived = 30 + 3 * (time.monotonic() - started), []
      print(f"{module}: {len(found)} mutants, tests take {time.monotonic() - started:.0f} s", flush=True)
      for number, mutant in enumerate(found):
        (copy / module).write_text(mutant.source, encoding="utf-8")
        os.utime(copy / module, (started_at := time.time() + number + 1, started_at))  # no old bytecode is taken for it
        result = passes(copy, TABLE[module], limit)
        if result:
          survived.append(mutant)
          print(f"survived:\n{mutant.change}", flush=True)
      (copy / module).write_text(source, encoding="utf-8")
      scores.append((module, len(found), len(found) - len(survived)))
  for module, count, killed in scores:
    print(f"{module:36} {killed:3} of {count:3} killed")
  print(f"{'all':36} {sum(s[2] for s in scores):3} of {sum(s[1] for s in scores):3} killed")
  return 0


if __name__ == "__main__":
  sys.exit(main())
