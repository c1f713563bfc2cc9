"""Transformer++ with the paper's hyper-parameters (tables D.1 to D.3); text_ebt_s1.py says how to make the data.

  python -m ebt_jax.main --config=configs/text_transformer.py:xxs --workdir=runs/transformer_xxs \
      --config.data.source=data/fineweb_256 --config.data.tokenizer=gpt-neox-20b/tokenizer.json

The paper reports validation perplexities 51.9, 42.2, 28.6, 20.6 and 17.0 for xxs to large on RedPajama (Fig. 5a);
these have not been reproduced here.
"""

from ebt_jax.config import defaults

# size: (learning rate, rows of a batch); the paper gives no batch size for the two smallest and xl
RECIPES = {
  "4xs": (2.4e-3, 32),
  "3xs": (1.8e-3, 32),
  "xxs": (1.2e-3, 32),
  "xs": (9e-4, 46),
  "small": (6e-4, 90),
  "medium": (3e-4, 170),
  "large": (2.5e-4, 256),
  "xl": (2e-4, 256),
}


def get_config(arg=""):
  """`arg`: a model size; default xxs."""
  size = arg or "xxs"
  if size not in RECIPES:
    raise ValueError(f"no recipe for size {size!r}; known: {', '.join(RECIPES)}")
  learning_rate, batch_size = RECIPES[size]
  config = defaults()
  config.seed = 33
  config.model.update(kind="transformer", size=size, vocab_size=50277)
  config.data.update(
    source="data/fineweb_256",
    tokenizer="gpt-neox-20b/tokenizer.json",
    context_length=256,
    layout="document",
    held_out=0.0005,
  )
  config.train.update(
      steps=105_000, batch_size=batch_size, learning_rate=learning_rate, warmup=10_000, schedule_steps=1_000_000,
      final_ratio=0.1, beta1=0.9, beta2=0.999, eps=1e-8, weight_decay=0.01, clip=1.0, log_every=50,
  )  # fmt: skip
  config.eval.every = 15_000
  config.checkpoint.update(every=5_000, keep=2, keep_every=15_000)
  return config
