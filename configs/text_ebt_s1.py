"""System 1 text EBT with the paper's hyper-parameters (tables D.1 to D.3): two landscapes, a loss after each step.

  python tools/tokenize_text.py --source='fineweb/*.parquet' --tokenizer=gpt-neox-20b/tokenizer.json \
      --context_length=256 --layout=document --out=data/fineweb_256
  python -m ebt_jax.main --config=configs/text_ebt_s1.py:xxs --workdir=runs/s1_xxs \
      --config.data.source=data/fineweb_256 --config.data.tokenizer=gpt-neox-20b/tokenizer.json

Sizes: xxs xs small medium large xl (also 4xs, 3xs). A run has 105,000 steps, as in the paper's scaling over sizes.
The paper reports validation perplexities 57.5, 44.6, 30.3, 22.2 and 17.8 for xxs to large on RedPajama (Fig. 5a);
these have not been reproduced here. With this step size the first losses are in the thousands and fall during warm-up.
"""

from configs import text_transformer


def get_config(arg=""):
  """`arg`: a model size; default xxs."""
  config = text_transformer.get_config(arg)
  config.model.kind = "ebt"
  config.model.variant = "time_embed"
  config.thinking.update(
    steps=2, landscapes=2, gradient="each", step_size=500.0, learn_step_size=True, step_size_lr_multiplier=1500.0
  )
  return config
