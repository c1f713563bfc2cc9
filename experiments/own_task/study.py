"""A scaling study of one's own task: thinking beside one pass, over the width of the model.

python -m experiments.scaling.run --study=experiments.own_task.study:study --workdir=runs/sudoku_scaling --jobs=2
python -m experiments.scaling.report runs/sudoku_scaling
"""

from ebt_jax.sweep import named
from experiments.scaling.studies import Axis, Study

CONFIG = "experiments/own_task/sudoku.py"


def study() -> Study:
  widths = named({f"width{w}": {"model.width": w, "train.steps": 300, "eval.every": 100} for w in (16, 32, 64)})
  return Study(
    "sudoku",
    "4x4 Sudoku: an energy of the whole board beside a predictor with the same trunk.",
    {},
    [Axis("width", "Width", "width", widths, seeds=3)],
    {"direct": f"{CONFIG}:direct", "ebt": f"{CONFIG}:ebt"},
  )
