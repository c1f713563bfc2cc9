"""Bidirectional EBT that takes noise away from pictures.

python -m ebt_jax.main --config=configs/image_ebt.py --workdir=runs/image_ebt
python -m ebt_jax.main --config=configs/image_ebt.py:residual --workdir=runs/image_residual
python tools/fetch_data.py --out=data cifar10
python -m ebt_jax.main --config=configs/image_ebt.py:cifar --workdir=runs/image_cifar

`laptop` (the default) learns crops of the photographs in this package; `residual` is the same with an energy that
contains a one-pass denoiser; `cifar` learns CIFAR-10. `paper` holds the paper's hyper-parameters (large, 128 pixels,
patches of 16, COCO prepared as array_record) and has not been trained here.
"""

from configs import image_dit


def get_config(arg=""):
  """`arg`: laptop (default), residual, cifar or paper."""
  if arg not in ("", "laptop", "residual", "cifar", "paper"):
    raise ValueError(f"no recipe {arg!r}; known: laptop, residual, cifar, paper")
  config = image_dit.get_config("laptop" if arg == "residual" else arg)
  config.model.kind = "ebt"
  config.thinking.update(start="input", start_scale=0.1)
  if arg == "paper":
    config.thinking.update(steps=1, step_size=3000.0, learn_step_size=True, step_size_lr_multiplier=9000.0)
    config.train.weight_decay = 0.01
    return config
  config.thinking.update(
    steps=2, gradient="each", step_size=1000.0, learn_step_size=True, step_size_lr_multiplier=3000.0
  )
  if arg == "residual":
    config.model.residual = True
    config.thinking.update(start="context", steps=1, step_size=1.0, step_size_lr_multiplier=1.0)
  return config
