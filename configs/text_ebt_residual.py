"""A residual text EBT: its energy contains Transformer++, and thinking starts at what the context predicts.

  python -m ebt_jax.main --config=configs/text_ebt_residual.py:xxs --workdir=runs/residual_xxs \
      --config.data.source=data/fineweb_256 --config.data.tokenizer=gpt-neox-20b/tokenizer.json
  python -m ebt_jax.main --config=configs/text_ebt_residual.py:laptop --workdir=runs/residual_laptop

This is not the paper's EBT (text_ebt_s1.py, text_ebt_s2.py): ebt_jax/models/autoregressive.py has its formula. All else
is the recipe of text_transformer.py, and a training step costs three times as many FLOPs as Transformer++'s. `laptop`
trains on 2 million bytes of the embedded text, as text_ebt_s2.py does.
"""

from configs import text_ebt_s2, text_transformer
from ebt_jax.config import defaults


def get_config(arg=""):
  """`arg`: a model size, or `laptop`; default xxs."""
  config = text_ebt_s2.get_config("laptop") if arg == "laptop" else text_transformer.get_config(arg)
  config.model.update(kind="ebt", residual=True, head_gain=0.1)
  config.thinking = defaults().thinking
  config.thinking.update(start="context", steps=1, gradient="each", step_size=5.0, learn_step_size=True)
  return config
