"""The second block of a size costs no pages where the first one was freed."""

import ctypes
import subprocess
import sys

import pytest

from tests.helpers import REPOSITORY

BLOCKS = """
import resource, sys, threading
import numpy as np
from ebt_jax import allocator
kept = allocator.keep_freed() if sys.argv[1] == "kept" else False
faults = []
def blocks():
  for _ in range(3):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones(12_000_000)  # 96 MB
    faults.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
thread = threading.Thread(target=blocks)
thread.start()
thread.join()
print(kept, faults[-1])
"""


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
@pytest.mark.parametrize("how, set_by_user, kept", [("kept", {}, True), ("not", {}, False),
                                                   ("kept", {"MALLOC_ARENA_MAX": "4"}, False)])  # fmt: skip
def test_freed_blocks_are_used_again(how, set_by_user, kept):
  found = subprocess.run(
    [sys.executable, "-c", BLOCKS, how], cwd=REPOSITORY, env=set_by_user, capture_output=True, text=True, check=True
  )
  said, faults = found.stdout.split()
  assert said == str(kept) and (int(faults) < 100) == kept
