"""Readers of packages: a small piece of each format, with what a reader must remove."""

import base64
import gzip
import io
import json
import pathlib
import sys
import zlib

import numpy as np
from PIL import Image
import pytest

TOOLS = str(pathlib.Path(__file__).parents[2] / "tools")
sys.path.insert(0, TOOLS)
try:
  import data_readers as read
finally:
  sys.path.remove(TOOLS)


def r_store(*lines):
  vector = b"X\n" + bytes(29) + b"".join(b"\0\4\0\t" + len(x).to_bytes(4, "big") + x for x in lines)
  packed = zlib.compress(vector)
  return len(vector).to_bytes(4, "big") + packed


INFO = """made by
\x1f
File: x.info,  Node: Lists,  Next: More,  Up: Top

1.1 Lists
Use *note list.append(): 3c. and
*note Tuples: e1.

   ---------- Footnotes ----------

   (1) https://example.org
\x1f
File: x.info,  Node: More,  Prev: Lists,  Up: Top

1.2 More

* Menu:

* append: Lists.
\x1f
File: x.info,  Node: Index,  Prev: Lists,  Up: Top

append: 3c.
"""
MAIL = b"""Received: from a
Subject: Re: =3D
 folded
Content-Type: text/plain; charset=iso-8859-1
Content-Transfer-Encoding: quoted-printable

caf=E9 =3D
"""
SYNSET = '00001930 00 a 02 dead_on(a) 0 exact 2 001 @ 1 a 0000 | in every detail; "exact copy"  \n'
GCIDE = (
  rb"""00-database-info
   x
A \A\, n.
   {One}.
   [1913 Webster]
B
   [Obs.] caf"""
  + b"\x92\n"
)
WORDS = " word" * 99
SECTION = "\n$(\n=-=-=-\n  Half adder\n=-=-=-\n$)\n  wex $a wff $.\n"

CASES = {
  "brown": (
    {"p/ca01": b"\n\n\tThe/at Jury/nn said/vbd ,/, ``/`` either/or/cc no/at ''/'' ;/. ;/.\nyes/rb ./.\n\n\n\tA/at"},
    {"ca01": 'The Jury said, "either/or no"; yes.\n\nA'},
  ),
  "austen": (
    {"Rdata.rdb": r_store(b"EMMA", b"", b"By") + r_store(b"Persuasion")},
    {"Emma": "EMMA\n\nBy", "Persuasion": "Persuasion"},
  ),
  "anarchism": (
    {
      "d/secA.md.gz": gzip.compress(f"# **A** _x_ a_b [links](b.md){WORDS}\n[‹ A](c) up".encode()),
      "d/index.md": b"[a](b)",
    },
    {"secA": "# A x a_b links" + WORDS},
  ),
  "gcide": (
    {"g.dict.dz": gzip.compress(GCIDE)},
    {"gcide-0": "A, n.\n   One.\n\nB\n   [Obs.] caf’"},
  ),
  "wordnet": (
    {"w/data.adj": ("  1 licence\n" + SYNSET).encode()},
    {"adj-0": 'dead on, exact: in every detail; "exact copy"'},
  ),
  "ham": (
    {"p/data/easy-ham-1/1.txt": MAIL, "p/data/easy-ham-1/2.txt": MAIL},
    {"easy-ham-1/1.txt": "Subject: Re: =3D folded\n\ncafé ="},
  ),
  "licences": ({"l/gpl-2.0.LICENSE": b"---\nkey: gpl\n---\n\nThe text"}, {"gpl-2.0": "The text"}),
  "kernel_docs": (
    {"d/Documentation/mm/a.rst.gz": gzip.compress(b"a"), "d/Documentation/translations/b.rst": b"b"},
    {"mm/a.rst": "a"},
  ),
  "python_docs": (
    {"x.info.gz": gzip.compress(INFO.encode())},
    {"Lists": "1.1 Lists\nUse list.append() and\nTuples", "More": "1.2 More"},
  ),
  "metamath": (
    {"set.mm": ("$( head $)" + SECTION).encode()},
    {"0: ": "$( head $)", "1: Half adder": SECTION.strip()},
  ),
  "code": ({"d/a.py": b"x = 1\r\n", "d/locale/b.py": b"y"}, {"d/a.py": "x = 1"}),
  "wiki": ({"s.json": json.dumps({"Rome": {"extract": "A city."}}).encode()}, {"Rome": "A city."}),
}


@pytest.mark.parametrize("name", CASES)
def test_texts(name, monkeypatch):
  monkeypatch.setattr(read, "SHORTEST", 1)
  files, expected = CASES[name]
  assert {r["id"]: r["text"] for r in getattr(read, name)(files)} == expected


def test_near_empty_and_repeated_documents_go():
  long = "word " * 50
  assert list(read.cleaned([("a", long), ("b", long + "\n"), ("c", "short")])) == [{"id": "a", "text": long.strip()}]


def test_pages_hold_every_entry():
  entries = [f"{i} " + "x" * 1000 for i in range(20)]
  found = list(read.pages("p", entries))
  assert "\n".join(text for _, text in found) == "\n".join(entries)
  assert len(found) == 3 and len({name for name, _ in found}) == 3


def test_questions():
  gsm = {"doc_id": 3, "doc": {"question": "1 +\u20281?"}, "request": {"context": "shots", "continuation": " 2."}}
  (row,) = read.gsm8k({"r.jsonl.gz": gzip.compress(json.dumps(gsm, ensure_ascii=False).encode())})
  context = "Question: 1 +\u20281?\nAnswer:"
  assert row == {"id": "gsm8k-3", "text": context + " 2.", "context": context, "continuation": " 2."}
  task = {"canary": "C", "examples": [{"input": "( [", "target_scores": {")": 0, "] )": 1, "} } }": 0}}]}
  (row,) = read.dyck({"task.json": json.dumps(task).encode()})
  assert row["context"] + row["continuation"] == "( [ ] )" and row["canary"] == "C"
  assert row["choices"] == [" )", " ] )", " } } }"]


def test_pictures_get_a_margin_and_keep_their_labels():
  pixels = bytes(range(256)) * 7  # two pictures of 28 x 28, with some to spare
  files = {"t10k-images": bytes(16) + pixels[: 2 * 784], "t10k-labels": bytes(8) + bytes([9, 0])}
  first, second = read.fashion_mnist({name: gzip.compress(content) for name, content in files.items()})
  assert (first["label"], first["name"], second["id"]) == (9, "boot", "fashion-mnist-1")
  with Image.open(io.BytesIO(base64.b64decode(second["png"]))) as picture:
    found = np.asarray(picture)
  assert found.shape == (32, 32) and not found[:2].any() and not found[:, -2:].any()
  assert found[2:-2, 2:-2].tobytes() == pixels[784 : 2 * 784]


def test_tokenizer_has_its_publishers_tokens_only():
  tokens = [{"id": i, "content": str(i)} for i in (0, 50276, 50277)]
  (tokenizer,) = read.neox({"t.json": json.dumps({"model": 1, "added_tokens": tokens}).encode()})
  assert tokenizer == {"model": 1, "added_tokens": tokens[:2]}
