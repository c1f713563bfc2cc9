"""Text on terminals."""

import errno
import io
import sys

from ebt_jax import terminal


def test_an_output_that_cannot_be_flushed_stays_as_it_is(monkeypatch):
  class Full(io.StringIO):
    def reconfigure(self, errors):
      raise OSError(errno.ESPIPE, "Illegal seek")

  monkeypatch.setattr(sys, "stdout", Full())
  terminal.accept_any_text()
  print("written all the same")
  assert sys.stdout.getvalue() == "written all the same\n"


def test_what_commands_a_terminal_becomes_visible():
  assert terminal.visible("a\tb\nc") == "a\tb\nc"
  assert terminal.visible("\x1b]0;x\x07\x9b1m\x7f\r") == r"\x1b]0;x\x07\x9b1m\x7f\r"
  assert terminal.visible("a\u202eb\u2066\u2028\u2029") == r"a\u202eb\u2066\u2028\u2029"
  assert terminal.visible("👩‍👧 क्‍ष é日\u200f") == "👩‍👧 क्‍ष é日\u200f"  # joiners are part of the text
  assert terminal.visible("é日", "ascii") == r"\xe9\u65e5" and terminal.visible("é日", "latin-1") == r"é\u65e5"


def test_columns(monkeypatch):
  assert [terminal.width(t) for t in ("ab", "日本", "e\u0301", "🙂", "\u200d", "")] == [2, 4, 1, 2, 0, 0]
  monkeypatch.setenv("COLUMNS", "40")
  assert terminal.columns(100) == 40 and terminal.columns(30) == 30
  monkeypatch.setenv("COLUMNS", "5")
  assert [terminal.cut(t) for t in ("abcd", "abcde", "日本語", "a\x1bb")] == ["abcd", "abcd", "日本", r"a\x1"]
  assert terminal.right_to_left("a ש") and terminal.right_to_left("ب") and not terminal.right_to_left("日é 1")


def test_output_never_fails(monkeypatch):
  out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
  monkeypatch.setattr(sys, "stdout", out)
  terminal.accept_any_text()
  print("é ▁ 🙂", flush=True)
  assert out.buffer.getvalue() == b"\\xe9 \\u2581 \\U0001f642\n" and terminal.encoding() == "ascii"
