"""The one recipe of the scaling studies: bytes, one trunk, warm-up and then a constant learning rate.

The learning rate does not fall, so that an evaluation on the way is what a shorter run would have ended with; under a
cosine only the last one is. Axis `decay` of the studies checks what that leaves out.
Sizes, batches, steps and learning rates come from studies.py.
"""

from ebt_jax.config import defaults


def get_config(arg=""):
  """`arg`: `transformer`, `ebt` (the paper's System 1) or `ebt_s2` (random steps, last one learnt)."""
  config = defaults()
  config.train.update(warmup=100, schedule="constant", log_every=20, health_every=0)
  config.data.context_length = 64
  config.eval.max_windows = 512  # the same ones for every run
  config.checkpoint.update(every=200, keep=1)
  config.sample.tokens = 0
  match arg or "ebt":
    case "transformer":
      config.model.kind = "transformer"
    case "ebt":
      config.model.update(kind="ebt", variant="time_embed", head_gain=0.1)
      # the paper's step size of 500 starts at a loss in the thousands, and ends no lower at this scale
      config.thinking.update(
        steps=2, landscapes=2, gradient="each", step_size=5.0, learn_step_size=True, step_size_lr_multiplier=15.0
      )
    case "ebt_s2":
      config.model.update(kind="ebt", head_gain=0.1)
      config.thinking.update(
        steps=3, random_steps_min=2, random_step_size=2.0, gradient="last", step_size=5.0, learn_step_size=False
      )
    case _:
      raise ValueError(f"no recipe {arg!r}; known: transformer, ebt, ebt_s2")
  return config
