"""Infilling of the embedded text by models that see both sides, small enough for a laptop.

  python -m ebt_jax.main --config=configs/infill.py:ebt --workdir=runs/infill
  python -m ebt_jax.main --config=configs/infill.py:transformer --workdir=runs/infill_transformer
  python -m ebt_jax.main --config=configs/infill.py:diffusion --workdir=runs/infill_diffusion
  python -m ebt_jax.main --workdir=runs/infill --mode=generate --prompt="The ____ of the ______ States"
  python -m ebt_jax.main --workdir=runs/infill --mode=eval --set eval.steps=8 mask.layout=spans mask.rate_max=0.2

`transformer` is a masked Transformer++ with a loss on every blank alike; `diffusion` the same one with the objective
and the sampler of masked diffusion (MDLM). Both fill in one pass, or in `eval.steps` passes.
"""

from ebt_jax.config import defaults


def get_config(arg=""):
  """`arg`: `ebt` (default), `transformer` or `diffusion`."""
  arg = arg or "ebt"
  if arg not in ("ebt", "transformer", "diffusion"):
    raise ValueError(f"no infilling {arg!r}; known: ebt, transformer, diffusion")
  config = defaults()
  config.task = "infill"
  config.model.update(kind="ebt" if arg == "ebt" else "transformer", layers=3, heads=4, width=128)
  config.thinking.update(steps=2, step_size=5.0, gradient="each")
  if arg == "diffusion":
    config.mask.update(weighting="row", unmasking="ancestral")
  config.train.update(steps=1500, batch_size=32, learning_rate=2e-3, warmup=100, log_every=50, health_every=0)
  config.data.context_length = 64
  config.checkpoint.every = 250
  return config
