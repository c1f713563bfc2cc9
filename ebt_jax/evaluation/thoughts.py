"""A page that shows a trained model think: one HTML file, on which every energy is a number and a colour.

Of texts every token has its energy, and what the model held likely after each step; of blanks, puzzles and pictures
the page shows the answer after each step. The reports of the tasks make the sections (`samples`).
"""

import base64
from collections.abc import Sequence
import html
import pathlib

import numpy as np

from ebt_jax import page
from ebt_jax.runs import Run
from ebt_jax.use.text import TokenThought

LEVELS = 6  # colours of energies
_HERE = pathlib.Path(__file__).parent


def whole(run: Run, title: str, sections: Sequence[str]) -> str:
  """The page: which model it was, how it thought, and the sections."""
  m, e = run.config.model, run.config.eval
  how = [f"<code>{html.escape(run.folder.name)}</code>, task {run.config.task}, model <code>{m.kind}</code>"]
  how += [f"{_count(m.layers, 'layer')} of width {m.width}, checkpoint of step {run.step}"]
  how += [_count(run.task.eval_steps, "step")] + ([_count(e.candidates, "candidate")] if e.candidates > 1 else [])
  head = f"<header><h1>{html.escape(title)}</h1><p>{', '.join(how)}. A lower energy fits better.</p></header>"
  style, script = ((_HERE / f"thoughts.{kind}").read_text(encoding="utf-8") for kind in ("css", "js"))
  body = [head, "<main>", *sections, "</main>"]
  return page.document(title, body, style, script if any("data-thought" in s for s in sections) else "")


def section(title: str, *content: str) -> str:
  """A section of the page; the title is plain text."""
  return f"<section><h2>{html.escape(title)}</h2>{''.join(content)}</section>"


def steps_of(figures: Sequence[tuple[str, str]]) -> str:
  """Figures beside each other: (content as HTML, caption as plain text)."""
  shown = (f"<figure>{content}<figcaption>{html.escape(text)}</figcaption></figure>" for content, text in figures)
  return f'<div class="steps">{"".join(shown)}</div>'


def picture(content: bytes, said: str, width: int) -> str:
  """A PNG inside the page; `said` describes it."""
  data = base64.b64encode(content).decode("ascii")
  return f'<img src="data:image/png;base64,{data}" width="{width}" alt="{html.escape(said)}">'


def texts(found: Sequence[tuple[str, list[TokenThought]]], quantity: str) -> list[str]:
  """Sections of prompts with the tokens that follow.

  Args:
    quantity: what `TokenThought.energy` is, "energy" or "entropy".
  """
  out, templates, rows = [], [], []
  for number, (prompt, thoughts) in enumerate(found, 1):
    edges = _edges([t.energy for t in thoughts])
    buttons = []
    for i, thought in enumerate(thoughts):
      name = f"t{number}-{i}"
      buttons.append(_button(thought, name, _level(thought.energy, edges)))
      templates.append(f'<template id="{name}">{_panel(thought, i, quantity)}</template>')
      rows.append(_row(number, i, thought))
    legend = "".join(
      f'<li class="e{i}">{edges[i]:.2f} to {edges[i + 1]:.2f}</li>' for i in range(LEVELS) if edges[i + 1] > edges[i]
    )
    given = f'<p class="prompt">After: {html.escape(prompt)}</p>' if prompt else ""
    said = f"Tokens of text {number}, {quantity} under each"
    group = f'<div class="tokens" role="group" aria-label="{said}">{"".join(buttons)}</div>'
    out.append(section(f"Text {number}", given, f'<ul class="legend" aria-label="{quantity}">{legend}</ul>', group))
  hint = "Point at a token, tap it, or go through them with the arrow keys: here is how the model found it."
  out.append(
    f'<section class="panel" id="panel" role="region" aria-label="How the token was found" aria-live="polite" '
    f'tabindex="0"><p>{hint}</p><noscript><p>This needs scripts; the table below has all tokens.</p></noscript>'
    "</section>"
  )
  head = ["token", quantity, "probability", "steps", "likeliest", "runner-up"]
  head = ["text" if len(found) > 1 else "", "place", *head]
  name = "All tokens"
  shown = [[row[0] if len(found) > 1 else "", *row[1:]] for row in rows]
  return [*out, section(name, page.table(head, shown, name)), *templates]


def _count(n: int, of: str) -> str:
  return f"{n} {of}{'s' * (n != 1)}"


def _edges(energies: list[float]) -> list[float]:
  """Of the colours; equal parts from the least to the largest."""
  finite = [e for e in energies if np.isfinite(e)] or [0.0]
  return np.linspace(min(finite), max(finite), LEVELS + 1).tolist()


def _level(energy: float, edges: list[float]) -> int:
  return int(np.clip(np.searchsorted(edges, energy, "right") - 1, 0, LEVELS - 1)) if np.isfinite(energy) else LEVELS - 1


def _button(thought: TokenThought, name: str, level: int) -> str:
  text = thought.text.replace("\n", "⏎")
  if not text or not text.isprintable():
    text = thought.name
  said = "" if text.strip() else f'<span class="unseen">{html.escape(thought.name)}</span>'  # a space, for listeners
  shown = f"<b>{html.escape(text)}</b>{said} <i>{thought.energy:.2f}</i>"
  button = f'<button type="button" class="e{level}" aria-pressed="false" data-thought="{name}">'
  return f"{button}{shown}</button>" + "<br>" * thought.text.count("\n")


def _panel(thought: TokenThought, place: int, quantity: str) -> str:
  """What is shown of a token that is chosen."""
  last, many = thought.likeliest[-1], thought.energies is not None and thought.energies.shape[1] > 1
  ranks = [i for i, likely in enumerate(last, 1) if likely.text == thought.name]
  stands = f"number {ranks[0]} of the likeliest" if ranks else f"not among the {len(last)} likeliest"
  facts = [
    f"{quantity} {thought.energy:.4f}, probability {thought.p:.4f}, {stands}; {_count(thought.steps, 'step')} used"
  ]
  if len(last) > 1:
    facts.append(f"runner-up {_named(last[1])}: {last[0].p - last[1].p:.4f} behind the likeliest")
  if many:
    finals = thought.energies[-1]
    order = np.argsort(finals)
    facts.append(
      f"candidate {thought.kept + 1} of {len(finals)} was kept, energy {finals[thought.kept]:.4f}; candidates by "
      "energy: " + ", ".join(f"{n + 1} ({finals[n]:.4f})" for n in order)
    )
  head = ["step", "energy" if thought.energies is not None else "", *(f"{_ordinal(i)}" for i in range(len(last)))]
  rows = []
  for i, row in enumerate(thought.likeliest):
    energy = "" if thought.energies is None else f"{thought.energies[i + 1, thought.kept]:.4f}"
    rows.append([str(i + 1), energy, *(html.escape(_named(likely)) for likely in row)])
  if last[0].energy is not None:
    rows.append(["alone", "", *(f"energy {likely.energy:.4f}" for likely in last)])
  parts = [page.table(head, rows)]
  if thought.energies is not None:
    said = "Energy before the first step and after each"
    parts.append(f"<figure>{page.curves(thought.energies, thought.kept, said)}<figcaption>{said}</figcaption></figure>")
  shown = "".join(f"<p>{html.escape(fact)}</p>" for fact in facts)
  return f'<h3>Token {place + 1}: {html.escape(thought.name)}</h3>{shown}<div class="two">{"".join(parts)}</div>'


def _named(likely) -> str:
  return f"{likely.text} {likely.p:.4f}"


def _ordinal(i: int) -> str:
  return ["likeliest", "2nd", "3rd"][i] if i < 3 else f"{i + 1}th"


def _row(text: int, place: int, thought: TokenThought) -> list[str]:
  last = thought.likeliest[-1]
  numbers = [f"{thought.energy:.4f}", f"{thought.p:.4f}", str(thought.steps)]
  best = [html.escape(_named(likely)) for likely in last[:2]] + [""] * (2 - len(last))
  return [str(text), str(place + 1), html.escape(thought.name), *numbers, *best]
