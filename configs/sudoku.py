"""Sudoku: EBT, and its rivals of the same trunk and data.

  python -m ebt_jax.main --config=configs/sudoku.py:4x4 --workdir=runs/sudoku_4x4
  python -m ebt_jax.main --config=configs/sudoku.py:4x4,looped --workdir=runs/sudoku_4x4_looped
  python -m ebt_jax.main --config=configs/sudoku.py:9x9 --workdir=runs/sudoku_9x9
  python -m ebt_jax.main --workdir=runs/sudoku_4x4 --mode=eval --set eval.candidates=8
  python -m ebt_jax.main --workdir=runs/sudoku_4x4 --mode=generate --prompt=0010400003001030

Training sees puzzles with many givens; the held-out set `out_of_distribution` has few. `4x4` takes minutes on a laptop,
`9x9` about half an hour of one core, and `9x9,judge` three quarters of an hour.
"""

from ebt_jax.config import defaults

SIZES = {
  "4x4": {"size": 4, "givens_min": 8, "givens_max": 10, "harder_min": 5, "harder_max": 6, "boards": 2000},
  "6x6": {"size": 6, "givens_min": 16, "givens_max": 22, "harder_min": 8, "harder_max": 13, "boards": 2000},
  "9x9": {"size": 9, "givens_min": 31, "givens_max": 42, "harder_min": 17, "harder_max": 30, "boards": 2000},
}
KINDS = ("ebt", "judge", "feedforward", "looped", "recursive", "ired")


def get_config(arg=""):
  """`arg`: `SIZE` or `SIZE,KIND`.

  `ebt` (default): the paper's update. `judge`: the same, and its energy learns to tell right boards from wrong ones, so
  that below 0 means solved. `feedforward`: one pass of a masked Transformer++. `looped`: several passes with
  tied blocks and a loss after each. `recursive`: the same with a latent stream, as in a Tiny Recursive Model. `ired`:
  several landscapes, smooth to sharp; steps that raise the energy are not taken; energies of right boards against those
  of wrong ones (after arXiv 2406.11179).
  """
  size, _, kind = (arg or "4x4").partition(",")
  kind = kind or "ebt"
  if size not in SIZES or kind not in KINDS:
    raise ValueError(
      f"no Sudoku {arg!r}; known: {', '.join(SIZES)}, each alone or with {', '.join(KINDS)} after a comma"
    )
  config = defaults()
  config.task = "sudoku"
  config.sudoku.update(SIZES[size])
  config.model.kind = {"feedforward": "transformer", "looped": "looped", "recursive": "looped"}.get(kind, "ebt")
  config.data.held_out = 0.15 if size == "4x4" else 0.02  # there are 288 grids of 4x4
  config.thinking.update(steps=3, step_size=5.0, gradient="each")
  if size == "4x4":
    config.model.update(layers=3, heads=4, width=64)
    config.train.update(steps=800, batch_size=64, learning_rate=2e-3, warmup=50, log_every=50, health_every=0)
    config.eval.steps = 16
  else:
    config.model.update(layers=4, heads=4, width=128)
    config.train.update(steps=5000, batch_size=16, learning_rate=2e-3, warmup=200, log_every=100, health_every=0)
    config.eval.update(steps=16, batch_size=64)
    config.thinking.steps = 2
    config.sudoku.units = True
  if kind == "recursive":
    config.model.latent_updates = 2
  if kind == "judge":
    config.thinking.update(contrast=1.0, contrast_of="each")
  if kind == "ired":
    config.model.variant = "adaln"
    config.thinking.update(landscapes=4, steps=4, noise=0.5, noise_falls=True, contrast=0.5)
    config.eval.accept = "lower"
  return config
