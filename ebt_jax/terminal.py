"""Text on terminals: of any encoding and width, and whatever the text holds."""

import contextlib
import shutil
import sys
import unicodedata

# they reorder the characters after them, beyond the end of the text
_REORDER = {chr(c) for c in (*range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def accept_any_text() -> None:
  """Standard output and error write what their encoding lacks as an escape, such as `\\u2581`, and never fail."""
  for stream in (sys.stdout, sys.stderr):
    if hasattr(stream, "reconfigure"):
      with contextlib.suppress(OSError):  # it flushes, which fails for a file on a full disk: that one stays as it is
        stream.reconfigure(errors="backslashreplace")


def encoding() -> str:
  """The encoding of standard output."""
  return getattr(sys.stdout, "encoding", None) or "utf-8"


def columns(most: int) -> int:
  """The width of the terminal, at most `most`; `most` where there is no terminal."""
  return max(1, min(most, shutil.get_terminal_size((most, 24)).columns))


def cut(text: str) -> str:
  """The beginning of `text` that fits into one line of the terminal, so that it can be drawn again in its place."""
  used, room, shown = 0, columns(10_000) - 1, visible(text, keep="")
  for i, c in enumerate(shown):
    used += _width(c)
    if used > room:
      return shown[:i]
  return shown


def visible(text: str, encoding: str = "utf-8", keep: str = "\n\t") -> str:
  """`text` for a terminal: what would command it, or what it cannot write, becomes an escape such as `\\x1b`.

  These are control characters but for those in `keep`, line separators, what reorders text, and what `encoding` lacks.
  """
  return (
    "".join(c if c in keep or not _commands(c) else _escape(c) for c in text)
    .encode(encoding, "backslashreplace")
    .decode(encoding)
  )


def width(text: str) -> int:
  """Columns of `text` in a terminal: none for combining marks, two for wide characters such as Chinese ones."""
  return sum(map(_width, text))


def right_to_left(text: str) -> bool:
  """Whether a terminal may show parts of `text` from right to left."""
  return any(unicodedata.bidirectional(c) in ("R", "AL") for c in text)


def _commands(c: str) -> bool:
  return unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp") or c in _REORDER


def _escape(c: str) -> str:
  return c.encode("unicode_escape").decode("ascii")


def _width(c: str) -> int:
  if unicodedata.category(c) in ("Mn", "Me", "Cf"):
    return 0
  return 2 if unicodedata.east_asian_width(c) in ("W", "F") else 1
