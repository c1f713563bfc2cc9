"""Which tokens words are made of."""

import numpy as np

from ebt_jax.data.tokenizers import Tokenizer, split_text


def of_tokens(tokenizer: Tokenizer) -> tuple[np.ndarray, np.ndarray]:
  """bool [vocab_size] each: whether a token is a word or a part of one, and whether it begins one (with a space).

  Letters and digits are parts of words, and so are bytes of characters beyond ASCII.
  """
  if tokenizer.pieces is not None:
    pieces = list(tokenizer.pieces)
  else:
    before = tokenizer.encode("a")[-1:].tolist()
    pieces = [split_text(tokenizer, before, [i])[1][0].encode() for i in range(tokenizer.vocab_size)]
  inside = np.array([bool(p.strip()) and all(b > 127 or chr(b).isalnum() for b in p.strip()) for p in pieces])
  begins = np.array([p[:1].isspace() for p in pieces]) & inside
  return inside, begins
