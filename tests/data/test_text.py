import dataclasses

import numpy as np
import pytest

from ebt_jax.config import ConfigError, DataConfig
from ebt_jax.data import text
from ebt_jax.data.sources import Document, Source, documents
from ebt_jax.data.text import build, is_held_out
from ebt_jax.data.tokenizers import load_tokenizer
from ebt_jax.data.windows import Assembler, Windows, from_flat, limit, token_dtype

BYTES = load_tokenizer("bytes")
END = 256


def assemble(layout, context_length, texts):
  assembler = Assembler(layout, context_length, END, token_dtype(257))
  for t in texts:
    assembler.add(BYTES.encode(t))
  assembler.finish()
  return from_flat(*assembler.drain(), layout, context_length)


def targets(windows):
  return [int(t) for part in windows.targets() for t in part]


def decoded(windows):
  """Documents of packed windows, from the valid targets alone."""
  return BYTES.decode([t if t != END else 10 for t in targets(windows)]).removesuffix("\n").split("\n")


def test_held_out_is_a_stable_property_of_the_id():
  ids = [f"doc{i}" for i in range(20000)]
  held = {i for i in ids if is_held_out(i, 0.02)}
  assert 300 < len(held) < 500
  assert held == {i for i in reversed(ids) if is_held_out(i, 0.02)}
  assert held < {i for i in ids if is_held_out(i, 0.05)}
  # written down, so that a new release keeps every old split
  assert [d.id for d in documents("embedded") if is_held_out(d.id, 0.02)] == [
    "1854-Pierce-1",
    "1884-Arthur-1",
    "1894-Cleveland-1",
    "1956-Eisenhower-2",
    "1967-Johnson-1",
    "2003-Bush-1",
  ]


@pytest.mark.parametrize("context_length", [2, 3, 4, 5, 6, 7, 12, 13, 14, 50])
def test_packed_windows_have_each_token_as_a_target_once(context_length):
  texts = ["abc", "", "defgh", "ij"]
  windows = assemble("packed", context_length, texts)
  stream = [END, *b"abc", END, END, *b"defgh", END, *b"ij", END]
  assert targets(windows) == stream[1:]
  assert windows.lengths.dtype == np.int32 and windows.lengths.sum() == len(stream) - 1
  assert set(windows.lengths[:-1]) <= {context_length} and windows.lengths[-1] > 0
  for i, row in enumerate(windows.tokens):
    full = stream[i * context_length : i * context_length + context_length + 1]
    np.testing.assert_array_equal(row, full + [END] * (context_length + 1 - len(full)))


def test_document_layout():
  windows = assemble("document", 4, ["abcdefg", "", "x", "abc", "abcde"])
  np.testing.assert_array_equal(windows.tokens, [[*b"abcde"], [*b"abc", END, END], [*b"abcde"]])
  np.testing.assert_array_equal(windows.lengths, [4, 2, 4])
  assert targets(windows) == [*b"bcde", *b"bc", *b"bcde"]


def test_no_document_gives_no_window():
  for layout in ("packed", "document"):
    windows = assemble(layout, 4, [])
    assert windows.tokens.shape == (0, 5) and len(windows) == 0


def test_limit():
  windows = Windows(np.zeros((4, 6), np.uint16), np.array([5, 3, 5, 5], np.int32))
  for n, lengths in {5: [5], 6: [5, 1], 8: [5, 3], 9: [5, 3, 1], 99: [5, 3, 5, 5]}.items():
    assert limit(windows, n).lengths.tolist() == lengths
    assert len(limit(windows, n).tokens) == len(lengths)


def test_token_dtype():
  assert token_dtype(65535) == np.uint16 and token_dtype(65536) == np.int32


@pytest.mark.parametrize("tokenizer_name", ["bytes", "bpe"])
def test_build_splits_by_document(corpus, bpe_path, tokenizer_name):
  tokenizer = load_tokenizer("bytes" if tokenizer_name == "bytes" else bpe_path)
  config = DataConfig(source=corpus, tokenizer=tokenizer_name, context_length=32, held_out=0.2)
  data = build(config, tokenizer)
  every = {d.id: d.text for d in documents(corpus)}
  for windows, held in ((data.train, False), (data.held_out, True)):
    expected = [t for i, t in every.items() if is_held_out(i, 0.2) == held]
    assert windows.tokens.dtype == np.uint16 and windows.tokens.shape[1] == 33
    found = [t for part in windows.targets() for t in part]
    ends = [i for i, t in enumerate(found) if t == tokenizer.end_of_text]
    assert [tokenizer.decode(found[a + 1 : b]) for a, b in zip([-1, *ends], ends)] == expected
    name = "held_out" if held else "train"
    assert data.summary[f"{name}_documents"] == len(expected) == len(ends)
    assert data.summary[f"{name}_tokens"] == len(found) and data.summary[f"{name}_windows"] == len(windows)
    assert data.summary[f"{name}_bytes"] == sum(len(t.encode()) for t in expected)


def test_summary_is_the_cost_under_the_training_frequencies(corpus):
  data = build(DataConfig(source=corpus, context_length=16, held_out=0.2, layout="document"), BYTES)
  train, held = targets(data.train), targets(data.held_out)
  p = [(train.count(v) + 1) / (len(train) + 257) for v in range(257)]
  nats = -sum(np.log(p[t]) for t in held)
  np.testing.assert_allclose(data.summary["unigram_nats_per_token"], nats / len(held))
  np.testing.assert_allclose(data.summary["unigram_bits_per_byte"], nats / np.log(2) / len(held))


def test_split_survives_more_documents_and_limits(corpus):
  def held(**changes):
    return set(decoded(build(DataConfig(source=corpus, context_length=16, held_out=0.3, **changes), BYTES).held_out))

  assert held(max_documents=20) < held()
  assert held(max_tokens=500) == held()


def test_max_tokens(corpus):
  config = DataConfig(source=corpus, context_length=32, held_out=0.2)
  full, cut = build(config, BYTES), build(dataclasses.replace(config, max_tokens=1000), BYTES)
  assert targets(cut.train) == targets(full.train)[:1000] and cut.summary["train_tokens"] == 1000
  assert targets(cut.held_out) == targets(full.held_out)


def test_few_documents_are_cut_at_line_ends(tmp_path):
  path = tmp_path / "book.txt"
  content = "".join(f"line {i} " + "x" * (i % 100) + "\n" for i in range(6000)) + "word " * 20000 + "y" * 40000
  path.write_text(content)
  pieces = list(text.split_documents(Source(str(path)), str(path)))
  assert "".join(p.text for p in pieces) == content
  assert [p.id for p in pieces] == [f"book.txt#{k}" for k in range(len(pieces))]
  assert all(0 < len(p.text) <= text.PIECE for p in pieces) and len(pieces) < len(content) / text.PIECE * 1.2
  assert all(p.text.endswith("\n") for p in pieces[:15])
  data = build(DataConfig(source=str(path), held_out=0.2), BYTES)
  assert data.summary["train_documents"] + data.summary["held_out_documents"] == len(pieces)


def test_ten_documents_stay_whole_whatever_the_limit(corpus):
  assert [d.id for d in text.split_documents(Source(corpus, max_documents=2), corpus)] == [
    "doc00.txt",
    "doc01.txt",
  ]


def test_batches_of_the_tokenizer_change_nothing(corpus, monkeypatch):
  docs = [Document(f"d{i}", f"text {i}") for i in range(20)]
  whole = list(text.tokenized(iter(docs), BYTES, 0.3))
  monkeypatch.setattr(text, "_BATCH", 10)
  small = list(text.tokenized(iter(docs), BYTES, 0.3))
  splits = ["held_out" if is_held_out(d.id, 0.3) else "train" for d in docs]
  assert [e.split for e in whole] == [e.split for e in small] == splits
  assert [BYTES.decode(e.ids) for e in small] == [d.text for d in docs] == [BYTES.decode(e.ids) for e in whole]


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"held_out": 1e-6}, ["config.data.held_out", "60 for training and 0 for evaluation", "max_documents"]),
    ({"held_out": 0.999999}, ["config.data.held_out", "0 for training and 60 for evaluation"]),
    ({"layout": "document", "context_length": 10**6}, ["config.data.context_length", "longest document", "targets"]),
    ({"context_length": 10**6}, ["config.data.context_length", "training text", "or less"]),
  ],
)
def test_impossible_settings(corpus, changes, words):
  with pytest.raises(ConfigError) as e:
    build(DataConfig(**{"source": corpus, "context_length": 16, "held_out": 0.2} | changes), BYTES)
  for word in words:
    assert word in str(e.value)


def test_longest_context_is_exact(corpus):
  for layout, held_out in (("packed", 0.2), ("packed", 0.8), ("document", 0.2)):
    config = DataConfig(source=corpus, held_out=held_out, layout=layout, context_length=10**6)
    with pytest.raises(ConfigError) as e:
      build(config, BYTES)
    longest = int(str(e.value).split(" to ")[1].split(" or less")[0])
    data = build(dataclasses.replace(config, context_length=longest), BYTES)
    assert longest in data.train.lengths or layout == "document" and longest in data.held_out.lengths
    with pytest.raises(ConfigError):
      build(dataclasses.replace(config, context_length=longest + 1), BYTES)
