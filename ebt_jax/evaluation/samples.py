"""What is shown of a trained model, by task. Beside the registry, the only place that knows what is learnt."""

import pathlib
from typing import Any

from ebt_jax.config import ConfigError
from ebt_jax.evaluation import puzzles, text_report
from ebt_jax.evaluation.sampling import Sampling
from ebt_jax.runs import Run
from ebt_jax.tasks import decoding
from ebt_jax.tasks.base import Data, Task


def show(task: Task, params: Any, data: Data, folder: pathlib.Path) -> str:
  """Saves a sample in the folder of a run and returns it as text; nothing for tasks that have none."""
  if task.config.task == "text":
    return text_report.write_sample(task, params, data.held_out["held_out"].windows, folder)
  if task.config.task == "sudoku":
    return puzzles.write_sample(task, params, data, folder)
  return ""


def check_prompts(task: str) -> None:
  """Raises ConfigError for a task that answers no prompts."""
  if task not in ("text", "sudoku"):
    raise ConfigError(
      f"--mode=generate: task {task!r} generates no text and solves no puzzle; only tasks 'text' and 'sudoku' do"
    )


def answer(run: Run, prompts: list[str], max_tokens: int, sampling: Sampling, seed: int) -> list[dict[str, Any]]:
  """Answers prompts, prints the answers, and returns them as JSON."""
  if run.config.task == "sudoku":
    return puzzles.answer(run, prompts, seed)
  return text_report.answer(run, prompts, max_tokens, sampling, seed)


def next_commands(task: Task, workdir: str) -> list[str]:
  """Commands to go on with after training."""
  run = f"python -m ebt_jax.main --workdir={workdir}"
  out = []
  if task.config.task == "text":
    out.append(f'{run} --mode=generate --prompt="{text_report.example_prompt(task)}" --max_tokens=200')
  if task.config.task == "sudoku":
    out.append(f"{run} --mode=generate --prompt={puzzles.example(task.config.sudoku.size)}")
  if task.eval_steps > 1:
    out.append(f"{run} --mode=eval --set eval.steps={2 * task.eval_steps}   # think longer")
  return [*out, f"tensorboard --logdir={workdir}/tensorboard"]


def trace(task: Task, params: Any) -> None:
  """Traces what `show` would compute."""
  if task.config.task == "text":
    decoding.trace(task, params)
  elif task.config.task == "sudoku":
    puzzles.trace(task, params)
