"""Generated text for people: a continuation drawn with the energy of each token, and as JSON."""

import pathlib
from typing import Any

import numpy as np

from ebt_jax import files
from ebt_jax.data.windows import Windows
from ebt_jax.evaluation.generate import Generator, Written
from ebt_jax.evaluation.sampling import Sampling
from ebt_jax.tasks import decoding
from ebt_jax.tasks.base import Task

_BARS = "▁▂▃▄▅▆▇█"


def write_sample(task: Task, params: Any, held_out: Windows, folder: pathlib.Path) -> str:
  """Continues the start of a held-out text; saves every token's energy in `sample.json`; returns it drawn."""
  s, tokenizer = task.config.sample, task.problem.tokenizer
  if not s.tokens:
    return ""
  length = min(s.prompt_tokens, int(held_out.lengths[0]), task.config.data.context_length - 1)
  prompt = np.asarray(held_out.tokens[0][:length]).tolist()
  writer = decoding.writer(task)
  generate = Generator(writer, params, tokenizer.end_of_text, task.config.data.context_length)
  (written,) = generate([prompt], s.tokens, Sampling(s.temperature))
  files.write_json(folder / "sample.json", as_json(written, tokenizer))
  return draw(written, tokenizer, writer.quantity)


def example_prompt(task: Task) -> str:
  """A prompt that suits the data: the embedded text is of addresses, others are unknown."""
  return "The people of" if task.config.data.source == "embedded" else "The"


def as_json(written: Written, tokenizer: Any) -> dict[str, Any]:
  return {
    "prompt": tokenizer.decode(written.prompt),
    "text": tokenizer.decode(written.tokens),
    "tokens": [
      {"id": t, "text": tokenizer.decode([t]), "energy": e, "steps": n}
      for t, e, n in zip(written.tokens, written.energies, written.steps)
    ],
  }


def draw(written: Written, tokenizer: Any, quantity: str = "energy", width: int = 100) -> str:
  """Prompt and continuation, with a bar for each token's energy under its characters."""
  low, high = min(written.energies, default=0.0), max(written.energies, default=1.0)
  scale = (len(_BARS) - 1) / max(high - low, 1e-12)
  shown, bars = "", ""
  for token, energy in zip(written.tokens, written.energies):
    piece = "".join(c if c.isprintable() else "⏎" if c == "\n" else "·" for c in tokenizer.decode([token]))
    shown += piece
    bars += _BARS[round((energy - low) * scale)] * len(piece)
  lines = [f"prompt: {tokenizer.decode(written.prompt)!r}"]
  lines.append(f"continuation, {quantity} of each token from {_BARS[0]} {low:.3f} to {_BARS[-1]} {high:.3f}:")
  for i in range(0, len(shown), width):
    lines += ["  " + shown[i : i + width], "  " + bars[i : i + width]]
  return "\n".join(lines)
