import json
import pathlib
import re

import numpy as np
import pytest

from ebt_jax.config import ConfigError
from ebt_jax.data.tokenizers import StreamDecoder, load_tokenizer, split_text, token_name

TEXT = "the union — été, 日本語 🙂\n    end <|endoftext|> é§ " + "".join(map(chr, range(0x250)))


@pytest.fixture(params=["bytes", "bpe"])
def tokenizer(request, bpe_path):
  return load_tokenizer("bytes" if request.param == "bytes" else bpe_path)


def test_roundtrip_and_exact_byte_counts(tokenizer):
  ids = tokenizer.encode(TEXT)
  assert ids.dtype == np.int32 and ids.max() < tokenizer.vocab_size
  assert tokenizer.decode(ids) == TEXT
  assert tokenizer.token_bytes.shape == (tokenizer.vocab_size,)
  assert tokenizer.token_bytes[ids].sum() == len(TEXT.encode())
  assert tokenizer.token_bytes[tokenizer.end_of_text] == 0
  np.testing.assert_array_equal(tokenizer.encode_batch(["x", TEXT])[1], ids)


def test_raw_text_holds_no_control_token(tokenizer):
  assert tokenizer.end_of_text not in tokenizer.encode("a<|endoftext|>b</s>")


def test_decode_never_raises(tokenizer):
  end = tokenizer.end_of_text
  ids = [end, *tokenizer.encode("ab"), end, tokenizer.vocab_size + 5, -1]
  assert tokenizer.decode(ids) == "ab"
  assert tokenizer.decode(np.array(tokenizer.encode("é")[:1])) in ("\ufffd", "é")
  assert tokenizer.decode([]) == ""
  assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a?b"


def test_stream_equals_decode(tokenizer):
  rng = np.random.default_rng(0)
  broken = rng.integers(0, tokenizer.vocab_size, 300)  # mostly invalid UTF-8
  for ids in (tokenizer.encode(TEXT), tokenizer.encode("日本")[:-1], broken):
    stream = StreamDecoder(tokenizer)
    parts = [stream.push(int(i)) for i in ids]
    assert "".join(parts) + stream.flush() == tokenizer.decode(ids)


def test_stream_holds_back_incomplete_characters():
  stream = StreamDecoder(load_tokenizer("bytes"))
  assert [stream.push(b) for b in "a🙂".encode()] == ["a", "", "", "", "🙂"]
  assert stream.push(0xE6) == "" and stream.flush() == "\ufffd" and stream.push(65) == "A"


def test_fingerprint_is_the_content(bpe_path, tmp_path):
  copy = tmp_path / "other.json"
  copy.write_bytes(pathlib.Path(bpe_path).read_bytes())
  assert load_tokenizer(str(copy)).fingerprint == load_tokenizer(bpe_path).fingerprint
  spec = json.loads(copy.read_text())
  spec["added_tokens"][-1]["content"] = "§§"
  copy.write_text(json.dumps(spec))
  assert load_tokenizer(str(copy)).fingerprint != load_tokenizer(bpe_path).fingerprint


def test_dropout_of_the_file_is_off(bpe_path, tmp_path):
  spec = json.loads(pathlib.Path(bpe_path).read_text())
  spec["model"]["dropout"] = 0.9
  path = tmp_path / "dropout.json"
  path.write_text(json.dumps(spec))
  np.testing.assert_array_equal(load_tokenizer(str(path)).encode(TEXT), load_tokenizer(bpe_path).encode(TEXT))


@pytest.fixture
def metaspace(tmp_path):
  """Metaspace with byte fallback, as in Llama vocabularies."""
  from tokenizers import Tokenizer, decoders, models, pre_tokenizers

  vocab = {"</s>": 0, "▁": 1, "a": 2, "▁b": 3, "é": 4} | {f"<0x{b:02X}>": 5 + b for b in range(256)}
  vocab |= {"<unk>": 299, "b": 300}
  backend = Tokenizer(models.BPE(vocab, [("▁", "b")], byte_fallback=True, unk_token="<unk>"))
  backend.pre_tokenizer = pre_tokenizers.Metaspace()
  backend.decoder = decoders.Sequence(
    [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
  )
  backend.add_special_tokens(["</s>"])
  path = tmp_path / "tokenizer.json"
  backend.save(str(path))
  return load_tokenizer(str(path))


def test_word_level_vocabulary_with_leading_spaces(metaspace):
  """Spaces count, and streaming keeps them."""
  text = "a b é b日 a"
  ids = metaspace.encode(text)
  assert metaspace.decode(ids) == text
  assert metaspace.vocab_size == 301  # the largest id + 1, not the number of tokens
  assert metaspace.token_bytes[ids].sum() == len(text.encode()) + 1  # Metaspace adds a space in front
  stream = StreamDecoder(metaspace)
  assert "".join(stream.push(int(i)) for i in ids) + stream.flush() == text


def test_text_split_by_token_is_the_text_of_the_whole(metaspace, bpe_path):
  """Of every tokenizer, and of any ids: spaces, characters of several tokens, broken bytes, control tokens."""
  rng = np.random.default_rng(0)
  for tokenizer in (metaspace, load_tokenizer("bytes"), load_tokenizer(bpe_path)):
    texts = ["a b bb", "日本 b", "🙂👩‍👩‍👧 é", "שלום עולם", "b"]
    cases = [tokenizer.encode(t).tolist() for t in texts]
    cases += [rng.integers(-1, tokenizer.vocab_size + 2, 40).tolist() for _ in range(20)]
    cases += [(tokenizer.encode("b日").tolist() + [tokenizer.end_of_text] + tokenizer.encode("日")[:-1].tolist())]
    for ids in cases:
      for cut in (0, 1, len(ids) // 2, len(ids)):
        before, parts = split_text(tokenizer, ids[:cut], ids[cut:])
        assert before + "".join(parts) == tokenizer.decode(ids) and len(parts) == len(ids) - cut
  assert split_text(metaspace, metaspace.encode("a").tolist(), metaspace.encode("b b").tolist()) == ("a", [" b", " b"])
  smile = metaspace.encode("a🙂").tolist()
  assert split_text(metaspace, smile[:2], smile[2:]) == ("a", ["", "", "", "🙂"])
  assert split_text(metaspace, smile, metaspace.encode("b").tolist()) == ("a🙂", [" b"])


def test_a_token_alone_has_a_name_of_its_own(metaspace, bpe_path):
  """Not the text that it decodes to alone, which drops spaces and shows parts of characters alike."""
  assert [token_name(metaspace, i) for i in (1, 2, 3, 300)] == ["' '", "'a'", "' b'", "'b'"]
  assert token_name(metaspace, 5 + 0xE6) == r"b'\xe6'"
  names = [token_name(load_tokenizer("bytes"), i) for i in range(256)]
  assert len(set(names)) == 256 and names[65] == "'A'"


@pytest.mark.parametrize(
  "content, words",
  [
    (None, ["no file", "bytes", "tokenizer.json"]),
    ("{}", ["not a Hugging Face tokenizer.json"]),
    ("\x00\x01", ["not a Hugging Face tokenizer.json"]),
  ],
)
def test_bad_files(tmp_path, content, words):
  path = tmp_path / "t.json"
  if content is not None:
    path.write_text(content)
  with pytest.raises(ConfigError) as e:
    load_tokenizer(str(path))
  for word in ["config.data.tokenizer", "t.json", *words]:
    assert word in str(e.value)


def test_no_end_of_text(bpe_path, tmp_path):
  path = tmp_path / "t.json"
  path.write_text(pathlib.Path(bpe_path).read_text().replace("<|endoftext|>", "<|stop|>"))
  with pytest.raises(ConfigError, match=re.escape("looked for <|endoftext|>, </s>")):
    load_tokenizer(str(path))


def test_special_tokens_come_first(bpe_path, tmp_path, caplog):
  spec = json.loads(pathlib.Path(bpe_path).read_text().replace("<|endoftext|>", "<|end_of_text|>"))
  spec["model"]["vocab"]["</s>"] = 900  # an ordinary piece, as in vocabularies of web pages
  path = tmp_path / "t.json"
  path.write_bytes(b"\xef\xbb\xbf" + json.dumps(spec).encode())  # some editors write this mark
  tokenizer = load_tokenizer(str(path))
  assert tokenizer.end_of_text == spec["added_tokens"][0]["id"] and not caplog.text
  assert tokenizer.decode([900]) == "</s>" and tokenizer.token_bytes[900] == 4
  path.write_text(json.dumps(spec).replace("<|end_of_text|>", "<|stop|>"))
  assert load_tokenizer(str(path)).end_of_text == 900 and "</s> is no special token there" in caplog.text
