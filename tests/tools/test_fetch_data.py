"""tools/fetch_data.py with a client that copies local packages: reading, checking, resuming, errors."""

import dataclasses
import hashlib
import io
import json
import lzma
import pathlib
import sys
import tarfile
import zipfile

import pytest

from ebt_jax.data.sources import documents

TOOLS = str(pathlib.Path(__file__).parents[2] / "tools")
sys.path.insert(0, TOOLS)
try:
  import data_readers
  import data_sets
  import fetch_data
finally:
  sys.path.remove(TOOLS)

FILES = {"texts/b.txt": "second é " * 30, "texts/a.txt": "first " * 40, "other/c.txt": "no"}
COPY = "import shutil, sys; open(sys.argv[2], 'a').write(sys.argv[3] + '\\n'); shutil.copy(sys.argv[1], '.')"


def tar(path, mode):
  with tarfile.open(path, mode) as t:
    for name, text in FILES.items():
      entry = tarfile.TarInfo("./" + name)
      entry.size = len(text.encode())
      t.addfile(entry, io.BytesIO(text.encode()))


def wheel(path):
  with zipfile.ZipFile(path, "w") as z:
    for name, text in FILES.items():
      z.writestr(name, text)


def deb(path):
  tar(path.with_suffix(".tar"), "w:xz")
  parts = {"debian-binary": b"2.0", "control.tar.xz": b"odd", "data.tar.xz": path.with_suffix(".tar").read_bytes()}
  path.with_suffix(".tar").unlink()
  with open(path, "wb") as f:
    f.write(b"!<arch>\n")
    for name, content in parts.items():
      f.write(f"{name:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode())
      f.write(content + b"\n" * (len(content) % 2))


MAKE = {"x.whl": wheel, "x.tgz": lambda p: tar(p, "w:gz"), "x_2%3a1-1_all.deb": deb}


def row(name):
  text = FILES[f"texts/{name}.txt"].strip()
  return json.dumps({"id": name, "text": text}, ensure_ascii=False) + "\n"


GOOD = data_sets.DataSet(
  about="two texts",
  client="pip",
  package="letters",
  version="1",
  files="texts/*.txt",
  read=data_readers.plain,
  licence="CC0",
  documents=2,
  bytes=sum(len(FILES[f"texts/{n}.txt"].strip().encode()) for n in "ab"),
  sha256=hashlib.sha256((row("a") + row("b")).encode()).hexdigest(),
)


@pytest.fixture
def calls(tmp_path, monkeypatch):
  """Sets `letters` and `wrong`, and a client for both; returns the calls made to it."""
  log = tmp_path / "calls"
  log.touch()
  wheel(tmp_path / "letters.whl")
  deb(tmp_path / "letters_2%3a1-1_all.deb")
  copy = lambda name: [sys.executable, "-c", COPY, str(tmp_path / name), str(log)]
  monkeypatch.setattr(
    fetch_data,
    "CLIENTS",
    {"pip": (copy("letters.whl"), "==", ""), "apt": (copy("letters_2%3a1-1_all.deb"), "=", "")},
  )
  wrong = dataclasses.replace(GOOD, documents=3, package="wrong")
  monkeypatch.setattr(fetch_data, "SETS", {"letters": GOOD, "wrong": wrong})
  monkeypatch.setattr(fetch_data, "GROUPS", {"all": ("wrong", "letters")})
  return lambda: log.read_text().split()


def run(tmp_path, *names):
  return fetch_data.main([f"--out={tmp_path / 'out'}", *names])


@pytest.mark.parametrize("name", MAKE)
def test_archives_read_alike(tmp_path, name):
  MAKE[name](tmp_path / name)
  found = fetch_data.members(tmp_path / name, "texts/*")
  assert list(found.items()) == [(n, FILES[n].encode()) for n in ("texts/a.txt", "texts/b.txt")]
  with pytest.raises(fetch_data.FetchError, match="holds no file 'words/"):
    fetch_data.members(tmp_path / name, "words/*")


def test_fetched_once_as_a_source(tmp_path, calls, capsys):
  assert run(tmp_path, "letters") == 0
  path = tmp_path / "out/text/letters.jsonl.xz"
  assert [d.text for d in documents(str(path))] == [FILES["texts/a.txt"].strip(), FILES["texts/b.txt"].strip()]
  assert "CC0" in capsys.readouterr().out
  record = json.loads((tmp_path / "out/sources.json").read_text())["letters"]
  assert record["licence"] == "CC0" and record["sha256"] == GOOD.sha256 and record["verified"]
  before = path.stat().st_mtime_ns
  assert run(tmp_path, "letters") == 0
  assert path.stat().st_mtime_ns == before and calls() == ["letters==1"]
  assert sorted(p.name for p in (tmp_path / "out").rglob("*")) == [
    *("letters-1", "letters.jsonl.xz", "letters.whl", "packages", "sources.json", "text")
  ]


@pytest.mark.parametrize("damage", [b"", b"not xz", lzma.compress(b"{}\n")])
def test_damaged_file_is_made_again(tmp_path, calls, damage):
  run(tmp_path, "letters")
  path = tmp_path / "out/text/letters.jsonl.xz"
  whole = path.read_bytes()
  for content in (damage, whole[:-30]):
    path.write_bytes(content)
    assert run(tmp_path, "letters") == 0 and path.read_bytes() == whole
  assert len(calls()) == 1  # from the package, which is still there


def test_broken_package_is_fetched_again(tmp_path, calls, capsys):
  archive = tmp_path / "out/packages/letters-1/letters.whl"
  archive.parent.mkdir(parents=True)
  archive.write_bytes(b"PK cut short")
  assert run(tmp_path, "letters") == 1 and "letters.whl is broken" in capsys.readouterr().err
  assert run(tmp_path, "letters") == 0 and len(calls()) == 1


def test_other_content_is_refused_and_the_rest_goes_on(tmp_path, calls, capsys):
  path = tmp_path / "out/text/wrong.jsonl.xz"
  path.parent.mkdir(parents=True)
  path.write_bytes(b"old")
  assert run(tmp_path, "all") == 1
  printed = capsys.readouterr()
  for words in ("wrong: found 2 documents", "expected 3 documents", "1 of 2 failed: wrong"):
    assert words in printed.err
  assert "letters: 2 documents" in printed.out
  assert path.read_bytes() == b"old" and not list(tmp_path.rglob("*.part"))


def test_kill_leaves_the_old_file(tmp_path, calls, monkeypatch):
  def killed(files):
    yield {"id": "a", "text": "a"}
    raise KeyboardInterrupt

  run(tmp_path, "letters")
  path = tmp_path / "out/text/letters.jsonl.xz"
  before = path.read_bytes()
  monkeypatch.setitem(fetch_data.SETS, "letters", dataclasses.replace(GOOD, read=killed, sha256="new"))
  with pytest.raises(KeyboardInterrupt):
    run(tmp_path, "letters")
  assert path.read_bytes() == before and not list(tmp_path.rglob("*.part"))


def test_any_version(tmp_path, calls, monkeypatch, capsys):
  newer = dataclasses.replace(GOOD, client="apt", version="1:0", sha256="another")
  monkeypatch.setitem(fetch_data.SETS, "letters", newer)
  for _ in range(2):
    assert run(tmp_path, "letters", "--any_version") == 0
  assert calls() == ["letters"]
  record = json.loads((tmp_path / "out/sources.json").read_text())["letters"]
  assert record["version"] == "2:1-1" and not record["verified"] and record["documents"] == 2
  assert run(tmp_path, "letters") == 1  # without the flag, only the table's will do
  assert "expected 2 documents" in capsys.readouterr().err


def test_errors_name_the_fix(tmp_path, calls, monkeypatch, capsys):
  with pytest.raises(fetch_data.FetchError, match="unknown set 'leters'; did you mean letters"):
    run(tmp_path, "leters")
  monkeypatch.setitem(fetch_data.CLIENTS, "pip", (["no-such-client"], "@", "install Node.js"))
  assert run(tmp_path, "letters") == 1
  assert "`no-such-client` is not on this machine; install Node.js" in capsys.readouterr().err
  fails = [sys.executable, "-c", "import sys; sys.exit('no such host')"]
  monkeypatch.setitem(fetch_data.CLIENTS, "pip", (fails, "@", ""))
  assert run(tmp_path, "letters") == 1
  assert "no such host; check the network" in capsys.readouterr().err


def test_the_table():
  groups = data_sets.GROUPS
  assert sorted(n for names in groups.values() for n in names) == sorted(data_sets.SETS)
  assert all(len(s.sha256) == 64 and s.documents and s.licence for s in data_sets.SETS.values())
  evaluated = {n for n in groups["downstream"] if n != "neox-tokenizer"}
  assert {n for n, s in data_sets.SETS.items() if s.to.startswith("downstream/")} == evaluated
  assert set(fetch_data.wanted(["prose", "sotu"])) == set(groups["prose"])
