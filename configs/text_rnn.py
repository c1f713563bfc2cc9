"""A recurrent network in the sizes of the paper, with the data and optimiser of text_transformer.py.

  python -m ebt_jax.main --config=configs/text_rnn.py:xxs --workdir=runs/rnn_xxs \
      --config.data.source=data/fineweb_256 --config.data.tokenizer=gpt-neox-20b/tokenizer.json
  python -m ebt_jax.main --config=configs/text_rnn.py:xxs,lstm --workdir=runs/lstm_xxs ...

Its cell is RG-LRU (Griffin and Hawk, arXiv 2402.19427) or, with `,lstm`, an LSTM. The paper names RNNs in its Table 1
and trains none on text, so these learning rates are Transformer++'s.
"""

from configs import text_transformer


def get_config(arg=""):
  """`arg`: a model size, with `,lstm` behind it or without; default xxs."""
  size, comma, cell = arg.partition(",")
  if comma and cell != "lstm":
    raise ValueError(f"no cell {cell!r}; known: lstm, or leave it out for rg_lru")
  config = text_transformer.get_config(size)
  config.model.update(kind="rnn", cell=cell or "rg_lru")
  return config
