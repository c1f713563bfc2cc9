"""System 2 text EBT: trained for thinking longer (paper tables D.2 to D.4), and a small version for a laptop.

  python -m ebt_jax.main --config=configs/text_ebt_s2.py:xxs --workdir=runs/s2_xxs \
      --config.data.source=data/fineweb_256 --config.data.tokenizer=gpt-neox-20b/tokenizer.json
  python -m ebt_jax.main --config=configs/text_ebt_s2.py:laptop --workdir=runs/s2_laptop

Each regulariser has its own switch: `random_step_size=1`, `random_steps_min=0`, `noise=0` and `replay_rows=0` turn off
random step sizes, random numbers of steps, Langevin noise and the replay buffer. text_ebt_s1.py says how to make the
data. Batch 128 and 1,000,000 steps are those of the paper's thinking experiments, which have not been reproduced here.
`laptop` trains on 2 million bytes of the embedded text; experiments/README.md says what such models reach.
"""

from configs import text_transformer
from ebt_jax.config import defaults


def get_config(arg=""):
  """`arg`: a model size, or `laptop`; default xxs."""
  if arg == "laptop":
    config = defaults()
    config.model.update(size="4xs", head_gain=0.1)
    config.train.update(steps=2000, batch_size=16, learning_rate=2.4e-3, warmup=60, log_every=100)
    config.data.context_length = 64
    config.checkpoint.every = 500
    config.thinking.noise = 1.0
  else:
    config = text_transformer.get_config(arg)
    config.model.variant = "time_embed"
    config.train.update(batch_size=128, steps=1_000_000)
    config.thinking.noise = 3.0
    config.thinking.replay_gb = 10.0  # 192 rows of 256 x 50,277 floats; the paper keeps 192 rows on each device
  config.model.kind = "ebt"
  config.thinking.update(
      steps=3, landscapes=1, random_steps_min=2, random_step_size=2.0, gradient="last", step_size=5.0,
      learn_step_size=False, replay_rows=192, replay_fraction=0.5,
  )  # fmt: skip
  if arg == "laptop":  # more than the paper's 2 or 3 steps: longer thinking then gains more (experiments/README.md)
    config.thinking.update(steps=10, replay_rows=96)
  return config
