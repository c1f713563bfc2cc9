"""Eight CPU devices for every test, set before JAX looks for devices; heavy compilation is kept small.

Annotations of the modules in `CHECKED` are checked at every call, shapes and dtypes of arrays included.
"""

import os

import jax
import jaxtyping
import pytest

import tests.checked  # noqa: F401  (the hook finds it by name)

if jax.__version_info__ < (0, 11):  # an unknown flag would end the process
  # with optimizations off, these two halve the time of compilation; for processes that tests start, too
  quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
  os.environ["XLA_FLAGS"] = f"{quick} {os.environ.get('XLA_FLAGS', '')}"

CHECKED = ["ebt_jax"]
jaxtyping.install_import_hook(CHECKED, "tests.checked.check")  # before they are imported

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture
def x64():
  """Double precision for one test."""
  jax.config.update("jax_enable_x64", True)
  yield
  jax.config.update("jax_enable_x64", False)


def pytest_xdist_auto_num_workers(config):
  """Folders of tests share the cores, four at most; files that are named run in this process."""
  cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
  return min(4, cores) if all(os.path.isdir(name) for name in config.args) else 0


def pytest_terminal_summary(terminalreporter):
  """One line on parity: how many golden files, and the worst relative error of each precision."""
  errors = {}
  for report in terminalreporter.getreports("passed"):
    for name, value in report.user_properties:
      if name.startswith("golden"):
        errors.setdefault(name, []).append((value, report.nodeid.split("[")[-1].rstrip("]")))
  for name, found in sorted(errors.items()):
    worst, file = max(found)
    terminalreporter.write_line(f"{name}: {len(found)} files, worst relative error {worst:.1e} ({file})")
