"""A byte-level model of the embedded text, small enough for a laptop.

python -m ebt_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
python -m ebt_jax.main --config=configs/quickstart.py:paper --workdir=runs/quickstart_paper
python -m ebt_jax.main --config=configs/quickstart.py:transformer --workdir=runs/quickstart_transformer
"""

from ebt_jax.config import defaults


def get_config(arg=""):
  """`arg`: `ebt` (default; a residual energy), `paper` (the paper's energy and System 2) or `transformer`."""
  arg = arg or "ebt"
  if arg not in ("ebt", "paper", "transformer"):
    raise ValueError(f"no quickstart {arg!r}; known: ebt, paper, transformer")
  config = defaults()
  config.model.kind = "transformer" if arg == "transformer" else "ebt"
  config.model.size = "4xs"
  config.model.head_gain = 0.1  # the first loss is near ln 256 instead of in the thousands
  if arg == "ebt":  # the energy contains what Transformer++ predicts, where thinking starts
    config.model.residual = True
    config.thinking.update(start="context", steps=1, gradient="each", step_size=5.0, learn_step_size=True)
  else:  # with these, thinking settles: loss at the last step only, random numbers of steps, random step sizes
    config.thinking.update(
      steps=3, random_steps_min=2, random_step_size=2.0, gradient="last", step_size=5.0, learn_step_size=False
    )
  config.train.update(steps=500, batch_size=32, learning_rate=2.4e-3, warmup=60, log_every=50)
  config.data.context_length = 64
  config.checkpoint.every = 100
  return config
