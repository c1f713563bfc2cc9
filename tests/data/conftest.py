import pytest


@pytest.fixture(scope="session")
def bpe_path(tmp_path_factory):
  """A tiny byte-level BPE vocabulary, with the traps that real files hold: truncation, padding, added tokens."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

  backend = Tokenizer(models.BPE())
  backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = decoders.ByteLevel()
  trainer = trainers.BpeTrainer(
    vocab_size=320,
    initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    special_tokens=["<|endoftext|>"],
    show_progress=False,
  )
  backend.train_from_iterator(["the state of the union — the end of the world, été"] * 20, trainer)
  backend.add_tokens(["    ", "é§"])
  backend.enable_truncation(4)
  backend.enable_padding(length=64)
  path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
  backend.save(str(path))
  return str(path)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
  """A folder of 60 small text files of unequal length."""
  folder = tmp_path_factory.mktemp("corpus")
  for i in range(60):
    text = f"Text {i} — " + f"word{i * i} " * (5 + 7 * i % 90) + "\n"
    (folder / f"doc{i:02d}.txt").write_text(text, encoding="utf-8")
  return str(folder)
