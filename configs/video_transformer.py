"""Transformer++ and recurrent networks that predict the next frame of films, which EBT is compared with.

python -m ebt_jax.main --config=configs/video_transformer.py --workdir=runs/video_transformer
python -m ebt_jax.main --config=configs/video_transformer.py:rnn --workdir=runs/video_rnn

`paper` holds the paper's hyper-parameters (size xxs) and has not been trained here.
"""

from ebt_jax.config import defaults


def get_config(arg=""):
  """`arg`: shapes (default), rnn or paper."""
  arg = arg or "shapes"
  if arg not in ("shapes", "rnn", "paper"):
    raise ValueError(f"no recipe {arg!r}; known: shapes, rnn, paper")
  config = defaults()
  config.task = "video"
  config.model.kind = "rnn" if arg == "rnn" else "transformer"
  if arg == "paper":
    config.model.size = "xxs"
    config.video.update(features="given", width=3136, places=1)
    config.data.update(source="data/features.npz", context_length=15)
    config.train.update(steps=100_000, batch_size=256, learning_rate=1.2e-3, warmup=10_000, schedule_steps=1_000_000)
    return config
  config.model.update(layers=2, heads=4, width=64)
  config.video.update(size=16, channels=1, rank=64, clips=1000, clip_frames=20, change=True)
  config.data.update(source="shapes", context_length=16, held_out=0.15)
  config.train.update(steps=600, batch_size=16, learning_rate=6e-3, warmup=50, log_every=50)
  config.checkpoint.every = 200
  config.sample.pictures = 4
  return config
