"""Denoisers that EBT is compared with: the Diffusion Transformer (DiT), and flow matching with the same network.

python -m ebt_jax.main --config=configs/image_dit.py --workdir=runs/image_dit
python -m ebt_jax.main --config=configs/image_dit.py:flow --workdir=runs/image_flow

They learn all noise levels that they are asked for. `authors` is the paper's baseline, which learns steps below 100 and
is asked at step 199 too. `paper` holds the paper's hyper-parameters and has not been trained here.
"""

from ebt_jax.config import defaults


def get_config(arg=""):
  """`arg`: laptop (default), flow, authors, cifar or paper."""
  arg = arg or "laptop"
  if arg not in ("laptop", "flow", "authors", "cifar", "paper"):
    raise ValueError(f"no recipe {arg!r}; known: laptop, flow, authors, cifar, paper")
  config = defaults()
  config.task = "image"
  config.model.kind = "flow" if arg == "flow" else "dit"
  config.image.update(noise_level=0.1, eval_levels="0.2", train_levels="authors" if arg == "authors" else "asked")
  if arg == "paper":
    config.model.size = "large"
    config.image.update(size=128, patch=16, train_levels="authors", passes=100)
    config.data.update(source="tfds:coco/2014:train", held_out=0.02)
    config.train.update(
      steps=100_000, batch_size=128, learning_rate=1e-4, warmup=10_000, schedule_steps=1_000_000, weight_decay=0.0
    )
    return config
  config.model.update(layers=4, heads=4, width=128)
  config.image.update(size=32, patch=4)
  config.data.held_out = 0.2
  if arg == "cifar":
    config.data.source = "data/images/cifar10.jsonl.xz"
  config.train.update(steps=600, batch_size=16, learning_rate=1e-3, warmup=50, weight_decay=0.0, log_every=50)
  config.checkpoint.every = 200
  return config
