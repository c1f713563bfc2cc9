"""What tokens keep of a text: lost characters are counted, and bits/byte is of the bytes that were given."""

import json
import logging
import math

import numpy as np
import pytest

from ebt_jax.config import Config, ConfigError, DataConfig, set_keys
from ebt_jax.data import coverage
from ebt_jax.data.text import build
from ebt_jax.data.tokenizers import load_tokenizer
from ebt_jax.tasks.text import TextProblem

TEXTS = ["the state of the union", "The \u0434\u043e\u043c state", "UNION \u00e9"]


def save(backend, path):
  backend.save(str(path))
  return str(path)


@pytest.fixture
def lossy(tmp_path):
  """Words with an unknown token, all in lower case."""
  from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

  vocab = {"[UNK]": 0, "the": 1, "state": 2, "of": 3, "union": 4, "</s>": 5}
  backend = Tokenizer(models.WordLevel(vocab, "[UNK]"))
  backend.normalizer = normalizers.Lowercase()
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  backend.add_special_tokens(["</s>"])
  return save(backend, tmp_path / "lossy.json")


def lost(spec, texts=TEXTS):
  tokenizer = load_tokenizer(spec)
  return [c.lost for c in coverage.measure(texts, tokenizer.encode_batch(texts), tokenizer)]


def test_lost_characters_are_counted(lossy, bpe_path, tmp_path):
  assert lost("bytes") == [{}, {}, {}] == lost(bpe_path)
  assert lost("bytes", ["a\ud800b"]) == [{"\ud800": 1}]
  assert lost(lossy) == [
    {},
    {"T": 1, " ": 1, "\u0434": 1, "\u043e": 1, "\u043c": 1},  # the letters of "[UNK]" do not stand in for others
    {**dict.fromkeys("UNIO", 1), "N": 2, " ": 1, "\u00e9": 1},
  ]
  # the same number of bytes, and other characters
  from tokenizers import Tokenizer, normalizers

  backend = Tokenizer.from_file(bpe_path)
  backend.normalizer = normalizers.Lowercase()
  assert lost(save(backend, tmp_path / "lower.json")) == [{}, {"T": 1}, {**dict.fromkeys("UIO", 1), "N": 2}]


def test_bits_per_byte_are_of_the_bytes_that_were_given(lossy, tmp_path, caplog):
  path = tmp_path / "corpus.jsonl"
  path.write_text("".join(json.dumps({"text": TEXTS[i % 3]}) + "\n" for i in range(60)))
  keys = [f"data.source={path}", f"data.tokenizer={lossy}", "data.held_out=0.3", "data.context_length=4",
          "model.vocab_size=6"]  # fmt: skip
  problem = TextProblem(set_keys(Config(), keys))
  with caplog.at_level(logging.WARNING):
    data = problem.data()
  given = 20 * sum(len(t.encode()) for t in TEXTS)
  bad = 20 * (1 + 1 + 6 + 5 + 1 + 2)
  s = data.summary
  assert s["text_bytes"] == given == s["train_bytes"] + s["held_out_bytes"]
  assert s["lost_bytes"] == bad and s["lost_share"] == bad / given
  assert s["lost_most"] == {"' '": 40, "N": 40, "I": 20, "O": 20, "T": 20}
  assert f"lossy.json loses {bad} of {given} bytes of text ({bad / given:.2%})" in data.lines[1]
  assert f"{bad / given:.1%} of the text's bytes are lost" in caplog.text and "such as bytes" in caplog.text
  held = data.held_out["held_out"]
  rows = held.rows(np.arange(len(held)))
  np.testing.assert_allclose(rows["bytes"].sum(), s["held_out_bytes"], rtol=1e-5)
  per_token = rows["bytes"].sum() / rows["weights"].sum()
  assert problem.numbers({"loss": 1.0, "bytes_per_token": per_token})["bits_per_byte"] == pytest.approx(
    s["held_out_tokens"] / math.log(2) / s["held_out_bytes"]
  )
  assert s["unigram_bits_per_byte"] == pytest.approx(
    s["unigram_nats_per_token"] * s["held_out_tokens"] / math.log(2) / s["held_out_bytes"]
  )
  caplog.clear()
  with caplog.at_level(logging.WARNING):
    problem.examples_of(str(path))
  assert "corpus.jsonl: " in caplog.text and "are lost in tokens" in caplog.text


def test_nothing_lost_changes_nothing(corpus, caplog):
  config = DataConfig(source=corpus, context_length=16, held_out=0.3)
  data = build(config, load_tokenizer("bytes"))
  assert data.summary["lost_bytes"] == 0 and data.summary["left_out"] == {} and not caplog.text
  assert coverage.scale(data.counts["train"]) == 1 == coverage.scale({"documents": 3})  # of an older folder


def test_a_text_that_cannot_be_encoded_at_all(tmp_path):
  from tokenizers import Tokenizer, models

  backend = Tokenizer(models.Unigram([("a", -1.0), ("</s>", -2.0)], None, False))
  backend.add_special_tokens(["</s>"])
  tokenizer = load_tokenizer(save(backend, tmp_path / "t.json"))
  with pytest.raises(ConfigError, match="config.data.tokenizer: t.json cannot encode the text"):
    tokenizer.encode("xyz")
