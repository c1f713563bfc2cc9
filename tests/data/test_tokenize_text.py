import os
import pathlib
import re
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from ebt_jax import cli
from ebt_jax.config import ConfigError, DataConfig, resolve, set_keys
from ebt_jax.data.text import build
from ebt_jax.data.token_folder import MANIFEST
from ebt_jax.data.tokenizers import load_tokenizer

ROOT = pathlib.Path(__file__).parents[2]
TOOL = str(ROOT / "tools" / "tokenize_text.py")
ENV = os.environ | {"PYTHONPATH": str(ROOT)}


def command(source, out, **changes):
  options = {"tokenizer": "bytes", "context_length": 32, "held_out": 0.2, "part_tokens": 500} | changes
  flat = [str(x) for name, value in options.items() for x in ("--" + name, value)]
  return [sys.executable, TOOL, "--source", str(source), "--out", str(out), *flat]


def run(*args, preexec_fn=None, **changes):
  return subprocess.run(
    command(*args, **changes),
    check=False,
    env=ENV,
    capture_output=True,
    text=True,
    timeout=60,
    preexec_fn=preexec_fn,
  )


def contents(folder):
  return {p.name: p.read_bytes() for p in pathlib.Path(folder).iterdir()}


def same(a, b):
  for x, y in ((a.train, b.train), (a.held_out, b.held_out)):
    assert x.tokens.dtype == y.tokens.dtype
    np.testing.assert_array_equal(x.tokens, y.tokens)
    np.testing.assert_array_equal(x.lengths, y.lengths)
  assert a.summary == b.summary


@pytest.mark.parametrize("layout", ["packed", "document"])
@pytest.mark.parametrize("tokenizer_name", ["bytes", "bpe"])
def test_equals_build(corpus, bpe_path, tmp_path, layout, tokenizer_name):
  spec = "bytes" if tokenizer_name == "bytes" else bpe_path
  done = run(corpus, tmp_path / "out", layout=layout, tokenizer=spec)
  assert done.returncode == 0, done.stderr
  assert "unigram_bits_per_byte" in done.stdout
  tokenizer = load_tokenizer(spec)
  for changes in ({}, {"max_tokens": 777}):
    config = DataConfig(source=corpus, context_length=32, held_out=0.2, layout=layout, **changes)
    folder = DataConfig(source=str(tmp_path / "out"), context_length=32, held_out=0.2, layout=layout, **changes)
    same(build(folder, tokenizer), build(config, tokenizer))


def test_a_folder_of_windows_knows_what_is_lost_and_left_out(corpus, tmp_path):
  from tokenizers import Tokenizer, models, pre_tokenizers

  backend = Tokenizer(models.WordLevel({"Text": 0, "word0": 1, "</s>": 2, "?": 3}, "?"))
  backend.pre_tokenizer = pre_tokenizers.Whitespace()
  backend.add_special_tokens(["</s>"])
  backend.save(str(tmp_path / "t.json"))
  source = tmp_path / "source"
  shutil.copytree(corpus, source)
  (source / "notes.md").write_text("x")
  whole, out = tmp_path / "whole", tmp_path / "out"
  done = run(source, whole, tokenizer=tmp_path / "t.json")
  assert done.returncode == 0 and "left_out: files of a kind that is not read: 1 (notes.md)" in done.stdout
  assert "of the text's bytes are lost in tokens: t.json drops or replaces" in done.stderr
  tokenizer = load_tokenizer(str(tmp_path / "t.json"))
  changes = {"context_length": 32, "held_out": 0.2, "max_tokens": 500}
  same(
    build(DataConfig(source=str(whole), **changes), tokenizer),
    build(DataConfig(source=str(source), **changes), tokenizer),
  )
  # the counts, and the digest of all tokens, survive an interruption

  def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, 4000))

  assert run(source, out, tokenizer=tmp_path / "t.json", part_tokens=100, preexec_fn=small_files).returncode == 2
  assert run(source, out, tokenizer=tmp_path / "t.json").returncode == 0
  assert contents(out) == contents(whole)


# Stands in for a slow disk, so that the kill falls between two saved states.
SLOW = """
import os, runpy, sys, time
fsync = os.fsync
def slow(fd):
  time.sleep(0.01)
  fsync(fd)
os.fsync = slow
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_killed_and_run_again(corpus, tmp_path):
  whole, out = tmp_path / "whole", tmp_path / "out"
  assert run(corpus, whole).returncode == 0
  seen = []
  for _ in range(2):
    slow = [sys.executable, "-c", SLOW, *command(corpus, out)[1:]]
    process = subprocess.Popen(slow, env=ENV, stderr=subprocess.DEVNULL)
    size = 0
    start = (out / "train.tokens").stat().st_size if seen else 0
    while process.poll() is None and size <= start + 2000:
      time.sleep(0.002)
      size = (out / "train.tokens").stat().st_size if (out / "train.tokens").exists() else 0
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (out / MANIFEST).exists() and not (out / "windows.json").exists()
    seen.append(size)
    # what a kill in the middle of a write leaves behind
    with open(out / "train.tokens", "ab") as f:
      f.write(b"half a part")
    with pytest.raises(ConfigError, match="unfinished.*again"):
      build(DataConfig(source=str(out)), load_tokenizer("bytes"))
  assert seen[1] > seen[0]
  done = run(corpus, out)
  assert done.returncode == 0 and "going on after" in done.stderr, done.stderr
  assert contents(out) == contents(whole)
  assert sorted(contents(out)) == [
    "held_out.lengths",
    "held_out.tokens",
    "train.lengths",
    "train.tokens",
    "windows.json",
  ]
  again = run(corpus, out)
  assert again.returncode == 0 and "complete" in again.stderr and contents(out) == contents(whole)


def flip(path):
  data = path.read_bytes()
  path.write_bytes(data[:100] + bytes([data[100] ^ 1]) + data[101:])


def cut(path):
  path.write_bytes(path.read_bytes()[:100])


@pytest.mark.parametrize("damage, why", [(flip, "its content has changed"), (cut, "expected [0-9]+ bytes, found 100")])
@pytest.mark.parametrize("finished", [False, True])
def test_what_is_damaged_is_not_said_to_be_finished(corpus, tmp_path, damage, why, finished):
  whole, out = tmp_path / "whole", tmp_path / "out"
  assert run(corpus, whole).returncode == 0
  if finished:
    assert run(corpus, out).returncode == 0
  else:
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
    assert run(corpus, out, preexec_fn=limit).returncode
  damage(out / "train.tokens")
  done = run(corpus, out)
  assert done.returncode and "Traceback" not in done.stderr
  assert re.search(f"train.tokens is not as it was written \\({why}\\); delete {out}, or", done.stderr), done.stderr
  shutil.rmtree(out)
  assert run(corpus, out).returncode == 0 and contents(out) == contents(whole)


def test_full_disk(corpus, tmp_path):
  whole, out = tmp_path / "whole", tmp_path / "out"
  assert run(corpus, whole).returncode == 0

  def small_files():
    resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

  done = run(corpus, out, preexec_fn=small_files)
  assert done.returncode == 2 and "no space left" in done.stderr and "run the same command again" in done.stderr
  assert "Traceback" not in done.stderr
  kept = int(done.stderr.split("the first ")[1].split(" documents")[0])
  done = run(corpus, out)
  assert done.returncode == 0 and f"going on after {kept} documents" in done.stderr and kept > 0
  assert contents(out) == contents(whole)


def test_other_arguments_are_refused(corpus, tmp_path, capsys):
  sys.path.insert(0, str(ROOT / "tools"))
  try:
    import tokenize_text
  finally:
    sys.path.pop(0)

  def main(**changes):
    return cli.door(tokenize_text.main, command(corpus, tmp_path / "out", **changes)[2:])

  assert main() == 0
  before = contents(tmp_path / "out")
  for name, value in {"context_length": 16, "layout": "document", "held_out": 0.3, "max_documents": 50}.items():
    assert main(**{name: value}) == 2
    error = capsys.readouterr().err
    assert name in error and str(value) in error and "another folder" in error
  assert contents(tmp_path / "out") == before


def test_empty_split_is_explained(corpus, tmp_path):
  done = run(corpus, tmp_path / "out", held_out=1e-6)
  assert done.returncode == 2 and "config.data.held_out" in done.stderr and "Traceback" not in done.stderr


def test_folder_made_with_other_settings(corpus, bpe_path, tmp_path):
  out = tmp_path / "out"
  assert run(corpus, out).returncode == 0
  good = {"source": str(out), "context_length": 32, "held_out": 0.2}
  tokenizer = load_tokenizer("bytes")
  for changes, words in {
    ("context_length", 64): ["config.data.context_length", "32", "64"],
    ("layout", "document"): ["config.data.layout", "'packed'", "'document'"],
    ("held_out", 0.5): ["config.data.held_out", "0.2", "0.5"],
    ("max_documents", 9): ["config.data.max_documents", "9"],
  }.items():
    with pytest.raises(ConfigError) as e:
      build(DataConfig(**good | dict([changes])), tokenizer)
    for word in words:
      assert word in str(e.value)
  with pytest.raises(ConfigError, match="config.data.tokenizer.*made with bytes.*found tokenizer.json"):
    build(DataConfig(**good), load_tokenizer(bpe_path))
  wrong = good | {"context_length": 64, "layout": "document", "held_out": 0.5}
  with pytest.raises(ConfigError) as e:  # all at once, with what mends them all
    build(DataConfig(**wrong), load_tokenizer(bpe_path))
  mended = str(e.value).partition("--set ")[2].partition(",")[0].split()
  assert mended == ["data.tokenizer=bytes", "data.context_length=32", "data.layout=packed", "data.held_out=0.2"]
  config = set_keys(resolve({"data": wrong}), mended)
  assert len(build(config.data, load_tokenizer(config.data.tokenizer)).train)
  with open(out / "train.tokens", "ab") as f:
    f.truncate(100)
  with pytest.raises(ConfigError, match=f"train.tokens: expected .* found 100; .* delete {out} and make it again"):
    build(DataConfig(**good), tokenizer)


def test_a_bad_file_is_mended_and_the_job_goes_on(tmp_path):
  """Also after documents were finished; a change of what is finished is refused."""
  source, out = tmp_path / "c", tmp_path / "out"
  source.mkdir()
  for i in range(40):
    (source / f"{i:02}.txt").write_text(f"document {i} says little " * 9, encoding="utf-8")
  (source / "39.txt").write_bytes(b"caf\xe9")
  job = command(source, out, part_tokens=500)
  program = textwrap.dedent("""
    import sys
    from ebt_jax import cli
    from ebt_jax.data import text
    text._BATCH = 1000
    sys.path.insert(0, "tools")
    import tokenize_text
    sys.exit(cli.door(tokenize_text.main, sys.argv[1:]))
  """)
  start = [sys.executable, "-c", program, *job[2:]]
  first = subprocess.run(start, cwd=ROOT, env=ENV, capture_output=True, text=True)
  assert first.returncode == 2 and "39.txt: not UTF-8" in first.stderr
  (source / "39.txt").write_text("café " * 9, encoding="utf-8")
  content = (source / "02.txt").read_text(encoding="utf-8")
  (source / "02.txt").write_text(content.replace("little", "nothing"), encoding="utf-8")
  changed = subprocess.run(start, cwd=ROOT, env=ENV, capture_output=True, text=True)
  assert changed.returncode == 2 and "documents of the source are not those that" in changed.stderr
  (source / "02.txt").write_text(content, encoding="utf-8")
  second = subprocess.run(start, cwd=ROOT, env=ENV, capture_output=True, text=True)
  assert second.returncode == 0 and "going on after" in second.stderr, second.stderr
  assert run(source, tmp_path / "whole").returncode == 0
  for name in ("train.tokens", "held_out.tokens", "train.lengths"):
    assert (out / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
  (source / "39.txt").write_text("longer than before " * 9, encoding="utf-8")
  again = run(source, out)
  assert again.returncode == 2 and "the source has changed since; delete the folder" in again.stderr
