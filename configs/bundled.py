"""The two models that come with the package, `--model=bundled` and `--model=bundled/transformer`; minutes on a laptop.

  python -m ebt_jax.main --config=configs/bundled.py --workdir=runs/bundled
  python -m ebt_jax.main --config=configs/bundled.py:transformer --workdir=runs/bundled_transformer

Both read bytes, see the same batches of the embedded text and have the same blocks; more of both than the quickstart.
"""

from configs import quickstart


def get_config(arg=""):
  """`arg`: `ebt` (default; a residual energy) or `transformer`."""
  config = quickstart.get_config(arg)
  config.model.update(layers=3, heads=4, width=128)
  config.data.context_length = 128
  config.train.update(steps=1200, batch_size=16, learning_rate=2.4e-3, warmup=100, log_every=100)
  config.checkpoint.every = 300
  return config
