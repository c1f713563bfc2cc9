"""Pages of studies: one HTML file that needs no other."""

from collections.abc import Iterable, Sequence
import html
import io
import pathlib
import re

STYLE = pathlib.Path(__file__).parents[1] / "scaling" / "report.css"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
  """A table. Cells are HTML; columns in which every cell is empty are left out."""
  rows = list(rows)
  shown = [i for i in range(len(head)) if not rows or any(r[i] for r in rows)]
  head, rows = [head[i] for i in shown], [[r[i] for i in shown] for r in rows]

  def line(tag, cells):
    return "<tr>" + "".join(f"<{tag}>{c}</{tag}>" for c in cells) + "</tr>"

  return f'<div class="table"><table>{line("th", head)}{"".join(line("td", r) for r in rows)}</table></div>'


def svg(figure, title: str) -> str:
  """A figure of matplotlib as the text of an element; equal figures give equal text where `svg.hashsalt` is set."""
  out = io.StringIO()
  figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
  names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
  title = html.escape(title).replace("\\", r"\\")
  head = rf'<svg {names} viewBox="\1" role="img"><title>{title}</title>'  # no width and height: the page sets the size
  text = re.sub(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', head, out.getvalue(), count=1)
  return text[text.index("<svg") :]


def document(title: str, sections: Iterable[str]) -> str:
  """A whole page of sections, which are HTML."""
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{html.escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}</style></head><body>\n"
    + "\n".join(sections)
    + "\n</body></html>\n"
  )
