"""Pages for people: one HTML file that needs no other."""

from collections.abc import Iterable, Sequence
import html
import pathlib

import numpy as np

STYLE = pathlib.Path(__file__).with_name("page.css")


def table(head: Sequence[str], rows: Iterable[Sequence[str]], name: str = "") -> str:
  """A table. Cells are HTML; columns in which every cell is empty are left out.

  Args:
    name: what a screen reader calls the table, which keys can scroll then.
  """
  rows = list(rows)
  shown = [i for i in range(len(head)) if not rows or any(r[i] for r in rows)]
  head, rows = [head[i] for i in shown], [[r[i] for i in shown] for r in rows]

  def line(tag, cells):
    return "<tr>" + "".join(f"<{tag}>{c}</{tag}>" for c in cells) + "</tr>"

  named = f' role="region" tabindex="0" aria-label="{html.escape(name)}"' if name else ""
  return f'<div class="table"{named}><table>{line("th", head)}{"".join(line("td", r) for r in rows)}</table></div>'


def curves(values: np.ndarray, kept: int, name: str, first: int = 0) -> str:
  """A small chart of `values` `[t, n]` over steps from `first` on, in the ink of the page; line `kept` is drawn strong.

  Its text, for those who do not see it, has the numbers of that line.
  """
  wide, high, left, below = 240, 96, 54, 18
  finite = values[np.isfinite(values)]
  low, top = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
  count = len(values)

  def at(i, value):
    x = left + (wide - left - 8) * i / max(count - 1, 1)
    y = 8 + (high - below - 14) * (0.5 if top == low else (top - value) / (top - low))
    return f"{x:.1f},{y:.1f}"

  def line(n, more):
    points = " ".join(at(i, v) for i, v in enumerate(values[:, n]) if np.isfinite(v))
    return f'<polyline fill="none" stroke="currentColor" points="{points}"{more}/>'

  others = "".join(line(n, ' stroke-dasharray="2 3"') for n in range(values.shape[1]) if n != kept)
  strong = line(kept, ' stroke-width="2"')
  dots = "".join(
    '<circle r="2.5" fill="currentColor" cx="{}" cy="{}"/>'.format(*at(i, v).split(","))
    for i, v in enumerate(values[:, kept])
    if np.isfinite(v)
  )
  labels = [(left - 6, 12, "end", f"{top:.3f}"), (left - 6, high - below, "end", f"{low:.3f}")] * (top > low)
  labels += [(left, high - 3, "middle", str(first)), (wide - 8, high - 3, "middle", str(first + count - 1))]
  texts = "".join(f'<text x="{x}" y="{y}" text-anchor="{anchor}">{text}</text>' for x, y, anchor, text in labels)
  said = html.escape(f"{name}: " + ", ".join(f"{v:.4f}" for v in values[:, kept]))
  return (
    f'<svg viewBox="0 0 {wide} {high}" width="{wide}" height="{high}" role="img" aria-label="{said}" '
    f'font-size="10" fill="currentColor">{others}{strong}{dots}{texts}</svg>'
  )


def document(title: str, sections: Iterable[str], style: str = "", script: str = "") -> str:
  """A whole page of sections, which are HTML; `style` and `script` are of this page alone."""
  return (
    '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f"<title>{html.escape(title)}</title><style>{STYLE.read_text(encoding='utf-8')}{style}</style></head><body>\n"
    + "\n".join(sections)
    + (f"\n<script>{script}</script>" if script else "")
    + "\n</body></html>\n"
  )
