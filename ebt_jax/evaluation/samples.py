"""What is shown of a trained model, by task. Beside the registry, the only place that knows what is learnt.

The report of a task is a module of

  write_sample(task, params, data, folder) -> str   saves a sample in the folder of a run, and returns it as text
  trace(task, params)                               traces what `write_sample` would compute
  example(task) -> str                              flags of a question that a newcomer may ask
  read(asked, config) -> questions                  what the flags of mode `generate` ask, or ConfigError
  answer(run, questions, asked) -> found            answers, and prints the answers
  results(run, found) -> list of dicts              the answers as JSON
  held_out(run, sets) -> found                      answers of some rows of held-out sets, by name
  sections(run, found) -> list of HTML              the answers on a page; see `thoughts`
"""

import pathlib
from typing import Any

from ebt_jax.config import ConfigError
from ebt_jax.evaluation import filling, image_report, puzzles, text_report, video_report
from ebt_jax.tasks.base import Data, Task

REPORTS = {"text": text_report, "infill": filling, "sudoku": puzzles, "image": image_report, "video": video_report}


def report(task: str) -> Any:
  """The report of a task. Raises ConfigError for a task of the user's own."""
  if task not in REPORTS:
    raise ConfigError(f"--mode=generate: task {task!r} answers no prompts; those that do: {', '.join(REPORTS)}")
  return REPORTS[task]


def show(task: Task, params: Any, data: Data, folder: pathlib.Path) -> str:
  """Saves a sample in the folder of a run and returns it as text; nothing for tasks that have none."""
  name = task.config.task
  return REPORTS[name].write_sample(task, params, data, folder) if name in REPORTS else ""


def next_commands(task: Task, workdir: str) -> list[str]:
  """Commands to go on with after training."""
  run, name = f"python -m ebt_jax.main --workdir={workdir}", task.config.task
  out = [f"{run} --mode=generate {REPORTS[name].example(task)}"] if name in REPORTS else []
  if task.eval_steps > 1:
    out.append(f"{run} --mode=eval --set eval.steps={2 * task.eval_steps}   # think longer")
  return [*out, f"tensorboard --logdir={workdir}/tensorboard"]


def trace(task: Task, params: Any) -> None:
  """Traces what `show` would compute."""
  if task.config.task in REPORTS:
    REPORTS[task.config.task].trace(task, params)
