"""The command line of EleutherAI's evaluation harness, which knows our models (`pip install -e '.[lm-eval]'`).

  python -m ebt_jax.use.lm_eval run --model ebt_jax --model_args run=runs/quickstart,steps=2 --tasks TASK \\
      --include_path FOLDER_OF_TASKS

All flags are the harness's. `--model_args`: `run`, the folder of a run or an exported one; `steps`, `candidates` and
`until`, how it thinks.
"""

import sys

from ebt_jax import cli
from ebt_jax.errors import UserError


def main(argv: list[str]) -> None:
  """Runs the harness. Raises UserError where it is not installed."""
  try:
    from lm_eval.__main__ import cli_evaluate
  except ImportError as e:
    raise UserError("the package `lm-eval` is not installed; run `pip install lm-eval`") from e
  from ebt_jax.use import harness  # noqa: F401  the harness knows the model from here on

  cli_evaluate()


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
