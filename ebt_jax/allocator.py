"""Memory that is freed stays with the process, for the next step to use.

A step on CPUs asks the C library for the same large block each time. glibc returns such blocks to the system, which
clears each of their pages before it hands them out again: up to a quarter of the processor time of a small step. The
price is that threads share one heap, which makes compiling with several of them slower (tools/RESULTS.md).
"""

import ctypes
import os

# `man mallopt`: one heap for all threads (others hold no large blocks), no maps of their own, none of it given back
_OPTIONS = ((-8, 1), (-4, 0), (-1, 2**31 - 1))
_USERS = ("MALLOC_", "glibc.malloc.arena", "glibc.malloc.mmap", "glibc.malloc.trim")


def keep_freed() -> bool:
  """Whether glibc keeps what is freed from now on; call it before threads start.

  False with another C library, and where the user has set such an option of glibc.
  """
  mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
  settings = [*os.environ, *os.environ.get("GLIBC_TUNABLES", "").split(":")]
  if mallopt is None or any(name.startswith(_USERS) for name in settings):
    return False
  return all([mallopt(*option) for option in _OPTIONS])
