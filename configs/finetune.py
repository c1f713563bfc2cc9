"""Trains a text model further on prompts with answers, or on chats. Only answers are learnt.

  python -m ebt_jax.main --config=configs/finetune.py:runs/quickstart --workdir=runs/answers \
      --config.data.source=questions.jsonl --config.data.prompt_key=question --config.data.text_key=answer
  python -m ebt_jax.main --config=configs/finetune.py:runs/quickstart --workdir=runs/chat \
      --config.data.source=chats.jsonl --config.data.text_key=messages

Model, tokenizer and way to think are those of the run (or exported folder) after the colon. The learning rate is a
tenth of its own. In chats, `messages` is a list of {"role": ..., "content": ...}, and what an assistant says is learnt.
"""

import pathlib

from ebt_jax import runs
from ebt_jax.config import DataConfig, defaults


def get_config(arg=""):
  """`arg`: the folder to start from."""
  if not arg:
    raise ValueError("name the run to start from, such as configs/finetune.py:runs/quickstart")
  config = defaults()
  config.update(runs.config_of(arg).to_dict())
  own = pathlib.Path(arg) / "tokenizer.json"
  tokenizer = str(own) if own.exists() else config.data.tokenizer
  length = config.data.context_length
  config.data.update(vars(DataConfig()))
  config.data.update(source="", tokenizer=tokenizer, context_length=length, layout="document", held_out=0.05)
  config.init_from, config.init_skip = arg, ""
  config.train.update(
    steps=300,
    learning_rate=config.train.learning_rate / 10,
    warmup=30,
    schedule="cosine",
    schedule_steps=0,
    log_every=50,
  )
  config.eval.every = 100
  config.checkpoint.every = 100
  return config
