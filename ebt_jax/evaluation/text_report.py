"""Generated text for people: a continuation drawn with the energy of each token, and as JSON.

Shown and written text is the decoding of prompt and continuation as a whole: tokenizers decode the first token of a
text otherwise than the same token inside, and several tokens may share one character.
"""

import pathlib
from typing import Any

import numpy as np

from ebt_jax import files, terminal
from ebt_jax.config import Config
from ebt_jax.data.tokenizers import StreamDecoder, Tokenizer, split_text
from ebt_jax.data.windows import Windows
from ebt_jax.evaluation.asked import Asked, read_prompts
from ebt_jax.runs import Run
from ebt_jax.tasks import decoding
from ebt_jax.tasks.base import Data, Params, Task
from ebt_jax.use.generate import Generator, Written
from ebt_jax.use.sampling import Sampling

_BARS = {"blocks": "▁▂▃▄▅▆▇█", "digits": "12345678"}  # digits for terminals without blocks
WIDTH = 100  # most columns of a line
REPEATED, LOOP = 4, 12  # a circle is so many repetitions, of so many tokens together


def write_sample(task: Task, params: Params, data: Data, folder: pathlib.Path) -> str:
  """Continues the start of a held-out text; saves every token's energy in `sample.json`; returns it drawn."""
  s, tokenizer = task.config.sample, task.problem.tokenizer
  if not s.tokens:
    return ""
  held_out: Windows = data.held_out["held_out"].windows
  length = min(s.prompt_tokens, int(held_out.lengths[0]), task.config.data.context_length - 1)
  if held_out.counted is not None:  # the whole prompt of an answer
    length = int(np.argmax(held_out.valid(slice(1))[0])) + 1
  prompt = np.asarray(held_out.tokens[0][:length]).tolist()
  writer = decoding.writer(task)
  generate = Generator.of(task, params)
  (written,) = generate([prompt], s.tokens, Sampling(s.temperature))
  files.write_json(folder / "sample.json", as_json(written, tokenizer))
  return draw(written, tokenizer, writer.quantity, terminal.columns(WIDTH), terminal.encoding())


def read(asked: Asked, config: Config) -> list[str]:
  """The prompts."""
  return read_prompts(asked.prompts, asked.prompts_file)


def answer(run: Run, prompts: list[str], asked: Asked) -> list[dict[str, Any]]:
  """Continues prompts and prints them; one prompt is streamed to the terminal."""
  writer, tokenizer = decoding.writer(run.task), run.task.problem.tokenizer
  generator = Generator.of(run.task, run.params)
  run = run._replace(params=None)  # the generator has its own
  ids = [tokenizer.encode(p).tolist() for p in prompts]
  decoder = StreamDecoder(tokenizer)
  encoding = terminal.encoding()
  unread = list(ids[0])  # the prompt is decoded with its continuation, before the first token

  def stream(row, token, energy):
    text = "".join(map(decoder.push, [*unread, token]))
    unread.clear()
    print(terminal.visible(text, encoding), end="", flush=True)

  written = generator(ids, asked.max_tokens, asked.sampling, asked.seed, stream if len(ids) == 1 else None)
  if len(ids) == 1:
    print(terminal.visible(decoder.flush(), encoding), end="\n\n")
  for w in written:
    print(draw(w, tokenizer, writer.quantity, terminal.columns(WIDTH), encoding), end="\n\n")
  return [as_json(w, tokenizer) for w in written]


def example(task: Task) -> str:
  """A prompt that suits the data: the embedded text is of addresses, others are unknown."""
  prompt = "The people of" if task.config.data.source == "embedded" else "The"
  return f'--prompt="{prompt}" --max_tokens=200'


def trace(task: Task, params: Params) -> None:
  """Traces what `write_sample` would compute."""
  decoding.trace(task, params)


def as_json(written: Written, tokenizer: Tokenizer) -> dict[str, Any]:
  """Text, and of each token what it adds to the text, its energy and the thinking steps it took."""
  prompt, texts = split_text(tokenizer, written.prompt, written.tokens)
  return {
    "prompt": prompt,
    "text": "".join(texts),
    "window_full": written.window_full,
    "tokens": [
      {"id": t, "text": text, "energy": e, "steps": n}
      for t, text, e, n in zip(written.tokens, texts, written.energies, written.steps)
    ],
  }


def draw(
  written: Written, tokenizer: Tokenizer, quantity: str = "energy", width: int = WIDTH, encoding: str = "utf-8"
) -> str:
  """Prompt and continuation, with a bar for each token's energy under its characters.

  Tokens that share a character have one bar, of their mean energy. Text that a terminal may show from right to left has
  a line for each token instead.

  Args:
    width: most columns of a line.
    encoding: of the terminal; what it lacks is escaped, as are control characters.
  """
  prompt, texts = split_text(tokenizer, written.prompt, written.tokens)
  try:
    bars = _BARS["blocks"]
    bars.encode(encoding)
  except UnicodeEncodeError:
    bars = _BARS["digits"]
  finite = [e for e in written.energies if np.isfinite(e)]  # a thought that diverged ends its row
  low, high = min(finite, default=0.0), max(finite, default=1.0)
  scale = (len(bars) - 1) / max(high - low, 1e-12)
  spans, since = [], []  # of text that is there, with its bar
  for text, energy in zip(texts, written.energies):
    since.append(energy)
    if text:
      mean = float(np.mean(since))
      spans.append((text, bars[round((mean - low) * scale)] if np.isfinite(mean) else "?", mean))
      since = []
  lines = [f"prompt: {terminal.visible(repr(prompt), encoding)}"]
  lines.append(f"continuation, {quantity} of each token from {bars[0]} {low:.3f} to {bars[-1]} {high:.3f}:")
  if any(terminal.right_to_left(text) for text, _, _ in spans):
    lines += [f"  {bar} {energy:>8.3f}  {terminal.visible(repr(text), encoding)}" for text, bar, energy in spans]
  else:
    lines += _under_each_other([(text, bar) for text, bar, _ in spans], width - 2, encoding)
  if note := degenerate(written.tokens, texts, encoding):
    lines.append(note)
  if written.window_full:
    at = ", ".join(map(str, written.window_full))
    lines.append(f"the window was full after {at} tokens; from there on the model saw its last half and what followed")
  return "\n".join(lines)


def degenerate(tokens: list[int], texts: list[str], encoding: str = "utf-8") -> str:
  """A note on a continuation that says nothing, or goes round in a circle at its end; empty where it does not."""
  if not "".join(texts).strip():
    return "the continuation is empty"
  for period in range(1, len(tokens) // REPEATED + 1):
    count = 1
    while tokens[-(count + 1) * period : len(tokens) - count * period] == tokens[-period:]:
      count += 1
    if count >= REPEATED and count * period >= LOOP:
      circle = terminal.visible(repr("".join(texts[-period:])), encoding)
      return f"the continuation ends in {count} times {circle}; a higher --temperature or another --seed may avoid it"
  return ""


def _under_each_other(spans: list[tuple[str, str]], width: int, encoding: str) -> list[str]:
  """Lines of text of at most `width` columns, each with a line of bars under it, as wide as the text."""
  lines, shown, bars, used = [], "", "", 0
  newline = "⏎" if terminal.visible("⏎", encoding) == "⏎" else "\\n"
  for text, bar in spans:
    for c in text:
      cell = newline if c == "\n" else terminal.visible(c, encoding, keep="")
      columns = terminal.width(cell)
      if used and used + columns > width:
        lines, shown, bars, used = [*lines, "  " + shown, "  " + bars], "", "", 0
      shown, bars, used = shown + cell, bars + bar * columns, used + columns
  return [*lines, "  " + shown, "  " + bars] if shown else lines
