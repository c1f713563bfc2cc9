import bz2
import gzip
import json
import lzma

import pytest

from ebt_jax.config import ConfigError
from ebt_jax.data.answers import Fields
from ebt_jax.data.sources import Source, documents
from tests.helpers import with_data_sets


def lines(*texts, key="text"):
  return "".join(json.dumps({key: t}) + "\n" for t in texts).encode()


def write(path, content):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(content)
  return str(path)


def test_embedded():
  found = list(documents("embedded"))
  assert len(found) == 249 and found[0].id == "1790-Washington-1"
  assert [d.id for d in found] == sorted(d.id for d in found)
  assert found[0].text.startswith("Fellow-Citizens of the Senate")
  assert [d.id for d in documents("embedded", max_documents=2)] == ["1790-Washington-1", "1790-Washington-2"]


def test_all_formats_and_ids(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet as pq

  write(tmp_path / "b.txt", "\ufeffone\r\ntwö\n".encode())
  write(tmp_path / "sub" / "a.txt", b"deep")
  write(tmp_path / "c.jsonl", lines("x", "", "y") + b"\n" + lines("z"))
  write(tmp_path / "d.jsonl.gz", gzip.compress(lines("gz")))
  write(tmp_path / "e.jsonl.xz", lzma.compress(lines("xz")))
  pq.write_table(pa.table({"text": ["p", None, "q"], "n": [1, 2, 3]}), tmp_path / "f.parquet")
  write(tmp_path / "notes.md", b"files of another kind are left out and counted")
  expected = [
    ("b.txt", "one\ntwö\n"),
    ("c.jsonl:1", "x"),
    ("c.jsonl:3", "y"),
    ("c.jsonl:5", "z"),
    ("d.jsonl.gz:1", "gz"),
    ("e.jsonl.xz:1", "xz"),
    ("f.parquet:1", "p"),
    ("f.parquet:3", "q"),
    ("sub/a.txt", "deep"),
  ]
  source = Source(str(tmp_path))
  fractions, found = zip(*((source.fraction, (d.id, d.text)) for d in source))
  assert list(found) == expected
  assert list(fractions) == sorted(fractions) and fractions[-1] == 1.0 and source.size > 0
  assert str(source.left_out) == "files of a kind that is not read: 1 (notes.md), rows without text: 2"
  # ids are the same however the files are named, and no file is read twice
  assert [d.id for d in documents(f"{tmp_path}/**/*.txt")] == ["b.txt", "sub/a.txt"]
  assert [d.id for d in documents(f"{tmp_path}/c.jsonl, {tmp_path}/b.txt,{tmp_path}/*.txt")] == [
    "c.jsonl:1",
    "c.jsonl:3",
    "c.jsonl:5",
    "b.txt",
  ]
  assert [d.id for d in documents(str(tmp_path), max_documents=3)] == [i for i, _ in expected[:3]]


def test_all_that_a_folder_holds_is_read_or_counted(tmp_path):
  import pyarrow as pa

  write(tmp_path / "elsewhere/linked.txt", b"linked")
  root = tmp_path / "corpus"
  packed = pa.compress(lines("zst"), codec="zstd", asbytes=True)
  write(root / "UPPER.TXT", b"upper")
  write(root / "a/b/c/deep.ndjson", lines("deep"))
  write(root / "array.json", json.dumps([{"text": "one"}, {"text": "two"}], indent=1).encode())
  write(root / "c4.json.gz", gzip.compress(lines("c4", "c5")))
  write(root / "d.txt.bz2", bz2.compress(b"bz2"))
  write(root / "e.jsonl.zst", packed + packed)  # two frames, as parallel compressors write
  write(root / "lines.json", lines("l1", "l2"))
  write(root / "one.json", json.dumps({"text": "single"}, indent=1).encode())
  write(root / "tokenizer.json", b'{"model": {}}')
  write(root / ".git/config.txt", b"hidden")
  write(root / ".hidden.txt", b"hidden")
  write(root / "empty.txt", b"")
  write(root / "white.txt", b" \n")
  write(root / "blank.jsonl", b"\n")
  write(root / "page.html", b"<p>")
  write(root / "table.csv", b"a,b")
  write(root / "sub/x.txt", b"x")
  (root / "link").symlink_to(tmp_path / "elsewhere")
  (root / "circle").symlink_to(root)
  (root / "twice").symlink_to(root / "sub")
  (root / "gone.txt").symlink_to(tmp_path / "nowhere")
  source = Source(str(root))
  assert [(d.id, d.text) for d in source] == [
    ("UPPER.TXT", "upper"),
    ("a/b/c/deep.ndjson:1", "deep"),
    ("array.json:1", "one"),
    ("array.json:2", "two"),
    ("c4.json.gz:1", "c4"),
    ("c4.json.gz:2", "c5"),
    ("d.txt.bz2", "bz2"),
    ("e.jsonl.zst:1", "zst"),
    ("e.jsonl.zst:2", "zst"),
    ("lines.json:1", "l1"),
    ("lines.json:2", "l2"),
    ("link/linked.txt", "linked"),
    ("one.json:1", "single"),
    ("sub/x.txt", "x"),
  ]
  assert source.left_out.counts == {
    "hidden": 2,
    "broken links": 1,
    "empty files": 1,
    "files of a kind that is not read": 2,
    "links to folders that are read already": 2,
    "files of white space": 1,
    "files without a row": 1,
    "JSON files without 'text'": 1,
  }
  assert "(page.html, table.csv)" in str(source.left_out)
  # a pattern that matches folders reads them, with the same ids
  assert [d.id for d in documents(f"{root}/s*")] == ["sub/x.txt"]
  # what a user names is not left out
  for name in ("empty.txt", "white.txt", "blank.jsonl", "tokenizer.json", "gone.txt"):
    with pytest.raises(ConfigError, match=name):
      list(documents(str(root / name)))
  with pytest.raises(ConfigError, match="holds nothing to read.*found files of a kind that is not read: 1 .x.md."):
    write(tmp_path / "only/x.md", b"x")
    documents(str(tmp_path / "only"))
  with pytest.raises(ConfigError, match="holds no text; found files of white space: 1"):
    write(tmp_path / "white/x.txt", b" ")
    list(documents(str(tmp_path / "white")))


def test_a_name_with_a_comma(tmp_path):
  path = write(tmp_path / "a,b.txt", b"x")
  assert [d.id for d in documents(path)] == ["a,b.txt"]


def test_separators_of_editors_do_not_cut_rows(tmp_path):
  text = "a\u2028b\u2029c\x85d\x0ce\x1cf\x0bg"
  raw = "".join(json.dumps({"text": t}, ensure_ascii=False) + "\r\n" for t in (text, "second"))
  path = write(tmp_path / "a.jsonl", b"\xef\xbb\xbf" + raw.encode())
  assert [(d.id, d.text) for d in documents(path)] == [("a.jsonl:1", text), ("a.jsonl:2", "second")]
  path = write(tmp_path / "b.jsonl", lines("nul\0", "half\ud800"))
  assert [d.text for d in documents(path)] == ["nul\0", "half\ud800"]


def test_integers_of_any_length(tmp_path):
  path = write(tmp_path / "a.jsonl", b'{"id": ' + b"9" * 5000 + b', "text": "x"}\n{"text": 7' + b"0" * 5000 + b"}\n")
  found = documents(path)
  assert next(found).text == "x"
  with pytest.raises(ConfigError, match="a.jsonl:2: 'text' holds float"):
    next(found)
  path = write(tmp_path / "b.jsonl", b'{"text": "x", "more": ' + b"[" * 100_000 + b"\n")
  with pytest.raises(ConfigError, match="b.jsonl:1: not JSON"):
    list(documents(path))


def test_every_type_of_text_in_parquet(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet as pq

  texts = ["caf\u00e9", None, "caf\u00e9", "b"]
  kinds = [pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.binary_view(),
           pa.dictionary(pa.int32(), pa.string()), pa.dictionary(pa.int8(), pa.large_string())]  # fmt: skip
  for kind in kinds:
    plain = pa.array(texts, pa.string())
    array = plain.dictionary_encode().cast(kind) if pa.types.is_dictionary(kind) else plain.cast(kind)
    pq.write_table(pa.table({"text": array}), tmp_path / "a.parquet")
    assert [(d.id, d.text) for d in documents(str(tmp_path / "a.parquet"))] == [
      ("a.parquet:1", "caf\u00e9"),
      ("a.parquet:3", "caf\u00e9"),
      ("a.parquet:4", "b"),
    ], kind
  pq.write_table(pa.table({"text": pa.array([b"ok", b"\xff"], pa.binary())}), tmp_path / "b.parquet")
  with pytest.raises(ConfigError, match="b.parquet:2: not UTF-8 at byte 0"):
    list(documents(str(tmp_path / "b.parquet")))


def test_other_text_key(tmp_path):
  path = write(tmp_path / "a.jsonl", lines("x", key="content"))
  assert [d.text for d in documents(path, Fields("content"))] == ["x"]


BAD = {
  "empty.txt": (b"", ["is empty", "remove it"]),
  "white.txt": (b" \n", ["white space", "remove it"]),
  "binary.txt": (b"ab\0c", ["binary", "byte 2", "iconv"]),
  "latin.txt": ("caf\xe9".encode("latin-1"), ["not UTF-8 at byte 3", "0xe9", "iconv"]),
  "latin.jsonl": (lines("ok") + b'{"text": "\xe9"}\n', ["latin.jsonl:2", "not UTF-8 at byte 25"]),
  "broken.jsonl": (lines("ok") + b"{\n", ["broken.jsonl:2", "not JSON", "one JSON object a line"]),
  "list.jsonl": (b"[1]\n", ["list.jsonl:1", "expected a JSON object, found list"]),
  "blank.jsonl": (b"\n\n", ["holds no line"]),
  "cut.jsonl.gz": (gzip.compress(lines("x" * 1000))[:-12], ["cut.jsonl.gz", "broken", "again"]),
  "cut.jsonl.xz": (b"not xz", ["cut.jsonl.xz", "broken", "again"]),
  "bad.parquet": (b"PAR1 no", ["not a Parquet file"]),
  "utf16.txt": ("h\u4e00".encode("utf-16"), ["UTF-16", "byte-order mark", "iconv -f UTF-16"]),
  "utf16.jsonl": ("{}\n".encode("utf-16"), ["UTF-16", "byte-order mark"]),
  "cut.jsonl.zst": (b"\x28\xb5\x2f\xfd\x00xxxxxxxxxx", ["cut.jsonl.zst", "broken", "again"]),
  "pointer.txt": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", ["Git LFS", "git lfs pull"]),
  "page.html": (b"<p>", ["unknown extension", ".jsonl.xz"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_content_names_key_file_and_fix(tmp_path, name):
  content, words = BAD[name]
  path = write(tmp_path / name, content)
  with pytest.raises(ConfigError) as e:
    list(documents(path))
  for word in ["config.data.source", path, *words]:
    assert word in str(e.value)


def test_missing_text_key(tmp_path):
  import pyarrow as pa
  import pyarrow.parquet as pq

  pq.write_table(pa.table({"body": ["p"], "n": [1]}), tmp_path / "f.parquet")
  pq.write_table(pa.table({"text": [1]}), tmp_path / "g.parquet")
  for path, words in {
    write(tmp_path / "a.jsonl", lines("x", key="body")): ["a.jsonl:1", "no key 'text'", "found body"],
    write(tmp_path / "b.jsonl", b'{"text": 3}\n'): ["b.jsonl:1", "holds int"],
    str(tmp_path / "f.parquet"): ["no column 'text'", "found body, n"],
    str(tmp_path / "g.parquet"): ["holds int64, expected string"],
  }.items():
    with pytest.raises(ConfigError) as e:
      list(documents(path))
    for word in ["config.data.text_key", *words]:
      assert word in str(e.value)


def test_missing_files_show_what_is_near(tmp_path):
  many = tmp_path / "many"
  many.mkdir()
  for i in range(99):
    (many / f"{i}.txt").touch()
  with pytest.raises(ConfigError, match="known: 0.txt, .* and 69 more$"):
    documents(f"{many}/corpus.jsonl")
  write(tmp_path / "train.jsonl", lines("x"))
  (tmp_path / "none").mkdir()
  for source, words in {
    f"{tmp_path}/trian.jsonl": ["no file or folder", "train.jsonl"],
    f"{tmp_path}/*.txt": ["nothing matches", "train.jsonl"],
    f"{tmp_path}/nowhere/a.txt": ["nowhere does not exist"],
    f"{tmp_path}/none": ["holds nothing to read; expected .txt", "found nothing at all"],
    " , ": ["embedded"],
  }.items():
    with pytest.raises(ConfigError) as e:
      documents(source)
    for word in ["config.data.source", *words]:
      assert word in str(e.value)


TFDS = """
import sys
import tensorflow_datasets as tfds
from ebt_jax.config import ConfigError
from ebt_jax.data.answers import Fields
from ebt_jax.data.sources import documents

class TinyText(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")
  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))
  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(7), "test": self._generate_examples(2)}
  def _generate_examples(self, n):
    for i in range(n):
      yield i, {"text": f"caf\u00e9 {i}"}

def error(source, *arguments):
  try:
    list(documents(source, *arguments))
  except ConfigError as e:
    print(e)
    return str(e)

missing = error("tfds:tiny_text")
assert "config.data.source" in missing and "not prepared" in missing and "array_record" in missing, missing
TinyText(file_format="array_record").download_and_prepare()
found = list(documents("tfds:tiny_text"))
assert sorted(d.text for d in found) == [f"caf\u00e9 {i}" for i in range(7)], found
assert [d.id for d in found][:2] == ["tiny_text:train:1", "tiny_text:train:2"], found
assert len(list(documents("tfds:tiny_text:1.0.0:test"))) == 2
assert len(list(documents("tfds:tiny_text:train[:3]"))) == 3
assert len(list(documents("tfds:tiny_text", max_documents=4))) == 4
assert "found test, train" in error("tfds:tiny_text:valid")
assert "did you mean tiny_text" in error("tfds:tiny_texd")
assert "text_key" in error("tfds:tiny_text", Fields("body")) and "found text" in error("tfds:tiny_text", Fields("body"))
assert "tensorflow" not in sys.modules
"""


def test_tfds(tmp_path):
  with_data_sets(TFDS, tmp_path)
