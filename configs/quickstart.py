"""A byte-level model on the embedded text, on a laptop.

  python -m ebt_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
  python -m ebt_jax.main --config=configs/quickstart.py:transformer --workdir=runs/quickstart_transformer
"""

from ebt_jax.config import defaults


def get_config(arg=""):
  """`arg`: `ebt` (default) or `transformer`."""
  config = defaults()
  config.model.kind = arg or "ebt"
  config.model.size = "4xs"
  config.model.head_gain = 0.1  # starts near ln 256 instead of in the thousands
  config.thinking.update(steps=2, landscapes=1, gradient="each", step_size=5.0, step_size_lr_multiplier=15.0)
  config.train.update(steps=400, batch_size=32, learning_rate=2.4e-3, warmup=60, log_every=20)
  config.data.context_length = 64
  config.checkpoint.every = 100
  return config
