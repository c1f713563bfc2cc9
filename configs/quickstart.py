"""A byte-level model of the embedded text, small enough for a laptop.

python -m ebt_jax.main --config=configs/quickstart.py --workdir=runs/quickstart
python -m ebt_jax.main --config=configs/quickstart.py:transformer --workdir=runs/quickstart_transformer
"""

from ebt_jax.config import defaults


def get_config(arg=""):
  """`arg`: `ebt` (default) or `transformer`."""
  config = defaults()
  config.model.kind = arg or "ebt"
  config.model.size = "4xs"
  config.model.head_gain = 0.1  # the first loss is near ln 256 instead of in the thousands
  # with these, thinking settles: loss at the last step only, random numbers of steps, random step sizes
  config.thinking.update(
    steps=3, random_steps_min=2, random_step_size=2.0, gradient="last", step_size=5.0, learn_step_size=False
  )
  config.train.update(steps=500, batch_size=32, learning_rate=2.4e-3, warmup=60, log_every=50)
  config.data.context_length = 64
  config.checkpoint.every = 100
  return config
