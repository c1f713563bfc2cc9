"""What runs cost, found out in a process of its own: the pool starts other processes, and must not have started JAX."""

from collections.abc import Sequence
import json
import os
import subprocess
import sys
from typing import NamedTuple

from ebt_jax import cli
from ebt_jax.config import ConfigError
from ebt_jax.sweep import Run


class Cost(NamedTuple):
  """Of a whole training run."""

  flops: float
  steps: int
  headline: str  # name of the number that is shown


def costs(runs: Sequence[Run]) -> list[Cost]:
  """The costs of runs, in their order. Raises ConfigError where the config of one of them is wrong."""
  asked = json.dumps([{"name": r.name, "config": r.config, "overrides": dict(r.overrides)} for r in runs])
  command = [sys.executable, "-m", "experiments.runner.cost"]
  env = os.environ | {"JAX_PLATFORMS": "cpu"}  # shapes alone are needed, and accelerators are for the runs
  done = subprocess.run(command, input=asked, env=env, capture_output=True, text=True)
  if done.returncode == cli.USAGE:
    raise ConfigError(done.stderr.strip().removeprefix("error: "))
  if done.returncode:
    raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr}")
  return [Cost(*row) for row in json.loads(done.stdout.splitlines()[-1])]


def main() -> None:
  """Reads runs from standard input and prints their costs, as JSON."""
  from ebt_jax import runs as runs_lib
  from ebt_jax.tasks import registry

  found, seen = [], {}
  for row in json.load(sys.stdin):
    run = Run(name=row["name"], config=row["config"], overrides=row["overrides"])
    config = run.resolve()
    key = json.dumps(config.to_dict() | {"seed": 0}, sort_keys=True)  # seeds cost the same
    if key not in seen:
      task = registry.make(config)
      step = runs_lib.rows_of_step(task.config) * task.flops().row["total"]
      seen[key] = Cost(float(config.train.steps * step), config.train.steps, task.problem.headline)
    found.append(seen[key])
  print(json.dumps(found))


if __name__ == "__main__":
  sys.exit(cli.door(main))
