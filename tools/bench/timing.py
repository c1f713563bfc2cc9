"""Functions that the benchmarks share: timing in turn, medians with their range, tables."""

import os
import platform
import time

import jax
import numpy as np


def interleaved(calls, rounds: int, warm_up: int = 1) -> dict[str, list[float]]:
  """Seconds of each round for each of `calls` (name -> function that returns when its work is done).

  Rivals take turns, so that a busy machine slows all of them.
  """
  times = {name: [] for name in calls}
  for i in range(warm_up + rounds):
    for name, call in calls.items():
      start = time.perf_counter()
      call()
      if i >= warm_up:
        times[name].append(time.perf_counter() - start)
  return times


def summary(times) -> dict[str, float]:
  return {"seconds": float(np.median(times)), "low": float(min(times)), "high": float(max(times))}


def compiled(function, *args):
  """The compiled function, and the seconds of compilation without tracing."""
  lowered = jax.jit(function).lower(*args)
  start = time.perf_counter()
  program = lowered.compile()
  return program, time.perf_counter() - start


def memory_mb(program) -> float:
  """Memory that a program needs beside its arguments and results."""
  return program.memory_analysis().temp_size_in_bytes / 1e6


def memory_available() -> float:
  """Available bytes of this machine; infinite if the system does not say."""
  try:
    with open("/proc/meminfo", encoding="utf-8") as f:
      return next(1024.0 * int(line.split()[1]) for line in f if line.startswith("MemAvailable"))
  except (OSError, StopIteration):
    return float("inf")


def machine() -> dict[str, object]:
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  device = jax.devices()[0]
  return {
      "architecture": platform.machine(), "cores": cores, "device": device.device_kind, "devices": len(jax.devices()),
      "jax": jax.__version__,
  }  # fmt: skip


# header, key of a row, format
TIMES = (("s/step", "seconds", ".3f"), ("min..max", ("low", "high"), ".3f"))


def table(rows, columns, name: str = "") -> str:
  """Rows (dicts) as text; a missing value is a blank cell."""

  def cell(row, key, form):
    if isinstance(key, tuple):
      cells = [cell(row, k, form) for k in key]
      return "..".join(cells) if all(cells) else ""
    value = row.get(key)
    return "" if value is None else format(value, form)

  lines = [[name, *(header for header, _, _ in columns)]]
  lines += [[str(row["name"]), *(cell(row, key, form) for _, key, form in columns)] for row in rows]
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]

  def aligned(line):
    return [line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))]

  notes = [f"  {row['name']}: {row['note']}" for row in rows if row.get("note")]
  return "\n".join(["  ".join(aligned(line)).rstrip() for line in lines] + notes)
