"""The recipe that all series of the scaling studies share: bytes, one trunk, warm-up and then a constant learning rate.

The learning rate does not fall after its warm-up, so an evaluation in the middle of a run has the loss that a shorter
run would have ended with. Under a cosine schedule this holds for the last evaluation only. Axis `decay` of the studies
trains separate runs with a cosine schedule to check whether this changes the comparison.
Model sizes, batch sizes, steps and learning rates are set by studies.py.
"""

from ebt_jax.config import defaults


def get_config(arg=""):
  """The config of a series.

  Args:
    arg: `transformer`; `rnn` (RG-LRU) or `lstm` in its place; `ebt` (the paper's System 1); `ebt_s2` (random number of
      steps, loss on the last one); or `residual` (the energy contains Transformer++; one step from what the context
      predicts). With `_muon` behind it, matrices in blocks are trained by Muon.
  """
  name, muon, _ = arg.partition("_muon")
  config = defaults()
  config.train.update(warmup=100, schedule="constant", log_every=20, health_every=0)
  config.data.context_length = 64
  config.eval.max_windows = 512  # the same windows for every run
  config.checkpoint.update(every=200, keep=1)
  config.sample.tokens = 0
  config.train.optimizer = "muon" if muon else "adamw"
  match name or "ebt":
    case "transformer" | "rnn":
      config.model.kind = name
    case "lstm":
      config.model.update(kind="rnn", cell="lstm")
    case "ebt":
      config.model.update(kind="ebt", variant="time_embed", head_gain=0.1)
      # the paper's step size of 500 starts at a loss in the thousands and ends no lower at this scale
      config.thinking.update(
        steps=2, landscapes=2, gradient="each", step_size=5.0, learn_step_size=True, step_size_lr_multiplier=15.0
      )
    case "ebt_s2":
      config.model.update(kind="ebt", head_gain=0.1)
      config.thinking.update(
        steps=3, random_steps_min=2, random_step_size=2.0, gradient="last", step_size=5.0, learn_step_size=False
      )
    case "residual":
      config.model.update(kind="ebt", residual=True, head_gain=0.0)
      config.thinking.update(steps=1, start="context", gradient="each", step_size=5.0, learn_step_size=True)
    case _:
      known = "transformer, rnn, lstm, ebt, ebt_s2, residual"
      raise ValueError(f"no recipe {arg!r}; known: {known}, each with _muon or without")
  return config
