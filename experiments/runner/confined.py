"""Becomes another program, on some cores, that gets SIGTERM when the process that started it dies (Linux).

  python experiments/runner/confined.py PARENT CORES COMMAND ...     CORES: 0,2,3, or nothing for all of them

A program of its own: a function that runs between fork and exec may deadlock, since JAX has threads.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main(parent: str, cores: str, *command: str) -> None:
  if cores:
    os.sched_setaffinity(0, [int(core) for core in cores.split(",")])
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != int(parent):  # it has died before the line above
      sys.exit(128 + signal.SIGTERM)
  try:
    os.execvp(command[0], command)
  except OSError as e:
    sys.exit(f"{command[0]}: {e.strerror}")


if __name__ == "__main__":
  main(*sys.argv[1:])
