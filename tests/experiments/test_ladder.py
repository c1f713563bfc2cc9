"""The ladder is the same each time, as large as asked, never holds training text, and says what is a stand-in."""

import json
import logging
import lzma

import pytest

from ebt_jax.config import ConfigError
from ebt_jax.data.sources import Source, documents
from ebt_jax.data.text import is_held_out
from experiments.thinking import ladder

STAND_INS = ["prose", "legal", "technical", "code", "formal", "shuffled", "noise"]


@pytest.fixture(scope="module")
def bare():
  return ladder.rungs("nowhere", max_bytes=2**16)


def fetched(folder, name, texts):
  (folder / "text").mkdir(exist_ok=True)
  with lzma.open(folder / "text" / f"{name}.jsonl.xz", "wt", encoding="utf-8") as f:
    f.writelines(json.dumps({"id": str(i), "text": t}) + "\n" for i, t in enumerate(texts))


def test_without_downloads(bare, caplog):
  with caplog.at_level(logging.WARNING):
    assert ladder.rungs("nowhere", max_bytes=2**16) == bare
  assert [r.name for r in bare] == STAND_INS
  assert [r.name for r in bare if not r.fetched] == ["legal", "technical", "code", "formal"]
  assert "e-mail is left out" in caplog.text and "fetch_data.py --out=nowhere wiki" in caplog.text
  for rung in bare:
    size = sum(len(t.encode()) for t in rung.documents)
    assert 2**13 < size <= 2**16, rung.name
    assert max(len(t.encode()) for t in rung.documents) <= 2**16 // min(16, len(rung.documents)), rung.name


def test_prose_is_what_the_model_never_saw(bare):
  texts = {d.id: d.text for d in documents("embedded")}
  held_out = [t for i, t in texts.items() if is_held_out(i, 0.02)]
  assert all(any(t.startswith(part) for t in held_out) for part in bare[0].documents)
  with pytest.raises(ConfigError, match="config.data.held_out: found 1e-09.*larger"):
    ladder.rungs("nowhere", held_out=1e-9)


def test_derivations_are_right(bare):
  (formal,) = (r for r in bare if r.name == "formal")
  for text in formal.documents[:50]:
    assert len({eval(line) for line in text.replace("= ", "").splitlines()}) == 1, text


def test_far_end(bare):
  prose, *_, shuffled, noise = bare
  text = "".join(prose.documents)
  assert sorted(shuffled.documents[0]) == sorted(text) and shuffled.documents[0] != text
  assert len(set(noise.documents[0])) == 95


def test_fetched_text_takes_the_place(tmp_path):
  fetched(tmp_path, "wiki", [f"Article {i} é" * 9 for i in range(40)])
  fetched(tmp_path, "licences", ["Whereas é" * 500] * 20)
  by_name = {r.name: r for r in ladder.rungs(str(tmp_path), max_bytes=1600)}
  assert by_name["encyclopedia"].fetched and by_name["legal"].fetched and not by_name["code"].fetched
  assert by_name["legal"].origin.endswith("licences.jsonl.xz")
  assert by_name["legal"].documents == [("Whereas é" * 500)[:90]] * 16  # ten bytes each nine characters
  wiki = by_name["encyclopedia"].documents
  assert 1500 < sum(len(t.encode()) for t in wiki) <= 1600
  assert not wiki[0].startswith("Article 0 ")  # drawn, not the first


def test_written_rungs_are_sources(bare, tmp_path):
  paths = ladder.write_texts(bare, str(tmp_path / "ladder"))
  assert list(paths) == STAND_INS
  for rung in bare:
    assert [d.text for d in Source(paths[rung.name])] == rung.documents
  assert len(list((tmp_path / "ladder").iterdir())) == len(bare)
