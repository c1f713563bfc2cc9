"""What a person reads at the end of training: a sample with its energies, the loss by thinking step, what to do next."""

import pathlib
from typing import Any

import numpy as np

from ebt_jax import metrics
from ebt_jax.config import Config
from ebt_jax.evaluation import evaluator
from ebt_jax.evaluation.generate import Generator, Written
from ebt_jax.evaluation.sampling import Sampling

_BARS = "▁▂▃▄▅▆▇█"


def write_sample(task: Any, params: Any, held_out: Any, tokenizer: Any, folder: pathlib.Path) -> str:
  """Continues the start of a held-out text; saves every token's energy in `sample.json`; returns it drawn."""
  s = task.config.sample
  if not s.tokens:
    return ""
  length = min(s.prompt_tokens, int(held_out.lengths[0]), task.config.data.context_length - 1)
  prompt = np.asarray(held_out.tokens[0][:length]).tolist()
  (written,) = Generator(task, params, tokenizer.end_of_text)([prompt], s.tokens, Sampling(s.temperature))
  metrics.write_json(folder / "sample.json", as_json(written, tokenizer))
  return draw(written, tokenizer, "energy" if task.config.model.kind == "ebt" else "entropy")


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


def ending(config: Config, workdir: str, result: dict, data: dict, sample: str) -> str:
  """The last words of a training run."""
  run = f"python -m ebt_jax.main --workdir={workdir}"
  think = f"\n  {run} --mode=eval --thinking_steps={2 * config.thinking.steps}   # think longer"
  return f"""
held-out text, {result["tokens"]} tokens, after each {"thinking step" if config.model.kind == "ebt" else "pass"}:
{evaluator.table(result)}
unigram entropy of the same text: {data["unigram_nats_per_token"]:.4f} nats/token, {data["unigram_bits_per_byte"]:.4f} bits/byte

{sample}

next:
  {run} --mode=generate --prompt="The people of" --max_tokens=200{think if config.model.kind == "ebt" else ""}
  tensorboard --logdir={workdir}/tensorboard
"""
