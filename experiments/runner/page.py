"""Pages of studies: the frame of `ebt_jax.page`, and figures in it."""

import html
import io
import re

from ebt_jax.page import STYLE, document, table

__all__ = ["STYLE", "document", "svg", "table"]


def svg(figure, title: str) -> str:
  """A figure of matplotlib as the text of an element; equal figures give equal text where `svg.hashsalt` is set."""
  out = io.StringIO()
  figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
  names = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
  title = html.escape(title).replace("\\", r"\\")
  head = rf'<svg {names} viewBox="\1" role="img"><title>{title}</title>'  # no width and height: the page sets the size
  text = re.sub(r'<svg [^>]*viewBox="([^"]+)"[^>]*>', head, out.getvalue(), count=1)
  return text[text.index("<svg") :]
