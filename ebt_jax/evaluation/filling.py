"""Blanks of a text filled by a trained run, step by step: for people, and as JSON."""

import html
import pathlib
from typing import Any

import jax
import numpy as np

from ebt_jax import files, page, streams, terminal
from ebt_jax.config import Config
from ebt_jax.data.windows import Windows
from ebt_jax.evaluation import thoughts
from ebt_jax.evaluation.asked import Asked, read_prompts
from ebt_jax.runs import Run
from ebt_jax.tasks.base import Batch, Data, Params, Task
from ebt_jax.use import infill
from ebt_jax.use.infill import Filled, Filler, InfillModel


def as_json(found: Filled) -> dict[str, Any]:
  """The text at the end, and after each step."""
  steps = [{"text": s.text, s.quantity: s.score} for s in found.steps]
  return {"prompt": found.prompt, "text": found.text, "steps": steps}


def draw(found: Filled, encoding: str = "utf-8") -> str:
  """The prompt, and under it the text after each step with its score."""
  shown = [("", found.steps[0].quantity, found.prompt)]
  shown += [(i, f"{s.score:.4f}", s.text) for i, s in enumerate(found.steps, 1)]
  return "\n".join(f"{i:>4} {score:>10}  {terminal.visible(text, encoding, keep='')}" for i, score, text in shown)


def read(asked: Asked, config: Config) -> list[str]:
  """The prompts; they are parsed with the run's tokenizer."""
  return read_prompts(asked.prompts, asked.prompts_file)


def answer(run: Run, prompts: list[str], asked: Asked) -> list[Filled]:
  """Fills the blanks of prompts, and prints each of them after every step."""
  for i, prompt in enumerate(prompts, 1):
    infill.parse(prompt, run.task, f"--prompt: prompt {i}")  # refused by the name of its flag
  found = InfillModel(run).fill(prompts, seed=asked.seed)
  for one in found:
    print(draw(one, terminal.encoding()), end="\n\n", flush=True)
  return found


def results(run: Run, found: list[Filled]) -> list[dict[str, Any]]:
  """The answers as JSON."""
  return [as_json(one) for one in found]


def held_out(run: Run, sets: dict[str, Any]) -> list[Filled]:
  """Blanks of the start of a held-out text, filled."""
  return [_sample(run.task, run.params, next(iter(sets.values())))[0]]


def sections(run: Run, found: list[Filled]) -> list[str]:
  """The text after each step, with what was filled in marked, and the energies."""
  out = []
  for number, one in enumerate(found, 1):
    quantity = one.steps[0].quantity
    rows = [["0", "", html.escape(one.prompt)]]
    rows += [[str(i), f"{s.score:.4f}", _marked(s)] for i, s in enumerate(one.steps, 1)]
    rows = [[i, score, f'<div class="row">{text}</div>'] for i, score, text in rows]
    said = f"{quantity} after each step"
    chart = page.curves(np.array([[s.score] for s in one.steps]), 0, said, first=1)
    figure = f"<figure>{chart}<figcaption>{said}</figcaption></figure>"
    title = f"Text {number}"
    out.append(thoughts.section(title, page.table(["step", quantity, "text"], rows, title), figure))
  return out


def _marked(step: infill.Step) -> str:
  return "".join(
    f"<mark>{html.escape(piece.text)}</mark>" if piece.kind == "filled" else html.escape(piece.text)
    for piece in step.pieces
  )


def example(task: Task) -> str:
  """A prompt with blanks."""
  return '--prompt="The ____ of the ______ States"'


def write_sample(task: Task, params: Params, data: Data, folder: pathlib.Path) -> str:
  """Fills blanks of the start of a held-out text, as the task draws them; saves `sample.json`; returns it drawn."""
  if not task.config.sample.tokens:
    return ""
  found, truth = _sample(task, params, data.held_out["held_out"])
  files.write_json(folder / "sample.json", {**as_json(found), "truth": truth})
  return f"{draw(found, terminal.encoding())}\n{'truth':>15}  {terminal.visible(truth, keep='')}"


def _sample(task: Task, params: Params, examples: Any) -> tuple[Filled, str]:
  """Blanks of the start of a held-out text, filled, and what stood there."""
  windows: Windows = examples.windows
  row = _sample_row(task, windows.tokens[0][1:], int(windows.lengths[0]))
  truth = task.problem.tokenizer.decode(np.asarray(row["tokens"])[0, 1:].tolist())
  return Filled(infill.prompt_of(row, task), Filler(task, params)(row)), truth


def _sample_row(task: Task, tokens: np.ndarray, length: int) -> Batch:
  count = min(task.config.sample.prompt_tokens, length, task.config.data.context_length)
  row = infill.row_of(tokens[:count].tolist(), [0.0] * count)
  fresh = {name: a for name, a in row.items() if name not in ("asked", "seed")}
  return task.problem.corrupt(fresh, streams.key_for(0, streams.GENERATE)[None])


def trace(task: Task, params: Params) -> None:
  """Traces what `write_sample` computes."""
  count = task.config.sample.prompt_tokens
  row = infill.row_of([0] * count, [1.0] * count)
  jax.eval_shape(Filler(task, params).filled, params, row, streams.key_for(0, streams.GENERATE))
