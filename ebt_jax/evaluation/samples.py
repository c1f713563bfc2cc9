"""What is shown of a trained model, by task. Beside the registry, the only place that knows what is learnt."""

import pathlib
from typing import Any

from ebt_jax.evaluation import filling, text_report
from ebt_jax.tasks import decoding
from ebt_jax.tasks.base import Data, Task


def show(task: Task, params: Any, data: Data, folder: pathlib.Path) -> str:
  """Saves a sample in the folder of a run and returns it as text; nothing for tasks that have none."""
  if task.config.task == "text":
    return text_report.write_sample(task, params, data.held_out["held_out"].windows, folder)
  if task.config.task == "infill":
    return filling.write_sample(task, params, data.held_out["held_out"].windows, folder)
  return ""


def next_commands(task: Task, workdir: str) -> list[str]:
  """Commands to go on with after training."""
  run = f"python -m ebt_jax.main --workdir={workdir}"
  out = []
  if task.config.task == "text":
    out.append(f'{run} --mode=generate --prompt="{text_report.example_prompt(task)}" --max_tokens=200')
  if task.config.task == "infill":
    out.append(f'{run} --mode=generate --prompt="The ____ of the ______ States"')
  if task.eval_steps > 1:
    out.append(f"{run} --mode=eval --set eval.steps={2 * task.eval_steps}   # think longer")
  return [*out, f"tensorboard --logdir={workdir}/tensorboard"]


def trace(task: Task, params: Any) -> None:
  """Traces what `show` would compute."""
  if task.config.task == "text":
    decoding.trace(task, params)
  if task.config.task == "infill":
    filling.trace(task, params)
