"""EBT that predicts the next frame of films.

python -m ebt_jax.main --config=configs/video_ebt.py --workdir=runs/video_ebt
python -m ebt_jax.main --config=configs/video_ebt.py:residual --workdir=runs/video_residual
python -m ebt_jax.main --config=configs/video_ebt.py:residual --workdir=runs/my_film --config.data.source=film.mp4

`shapes` (the default) learns moving shapes that are made here; `residual` is the same with an energy that contains
Transformer++; `futures` learns a set where two futures are as likely, each row from the best of several starts. `paper`
holds the paper's hyper-parameters (size xxs, features of the SD-VAE given in an .npz) and has not been trained here.
"""

from configs import video_transformer


def get_config(arg=""):
  """`arg`: shapes (default), residual, futures or paper."""
  arg = arg or "shapes"
  if arg not in ("shapes", "residual", "futures", "paper"):
    raise ValueError(f"no recipe {arg!r}; known: shapes, residual, futures, paper")
  config = video_transformer.get_config("paper" if arg == "paper" else "")
  config.model.kind = "ebt"
  if arg == "paper":  # System 1
    config.model.variant = "time_embed"
    config.thinking.update(
      steps=2, landscapes=2, gradient="each", step_size=30_000.0, learn_step_size=True,
      step_size_lr_multiplier=90_000.0,
    )  # fmt: skip
    config.thinking.authors.update(noise_embedding=True, eval_noise=True)
    config.train.learning_rate = 4e-4  # a third of that of Transformer++
    return config
  config.model.head_gain = 0.1
  config.train.learning_rate = 6e-3 if arg == "residual" else 1e-2
  config.thinking.update(
    start="input", start_scale=0.3, steps=2, gradient="each", step_size=30.0, learn_step_size=True,
    step_size_lr_multiplier=90.0,
  )  # fmt: skip
  if arg == "futures":
    config.data.source = "futures"
    config.thinking.update(start="noise", start_scale=1.0, explore=4)
  if arg == "residual":  # the energy contains what Transformer++ predicts, where thinking starts
    config.model.update(residual=True, head_gain=0.0)
    config.thinking.update(start="context", steps=1, step_size=1.0, step_size_lr_multiplier=1.0)
  return config
