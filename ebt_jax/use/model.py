"""What all trained models in Python share: the run behind them, and other settings of inference for a call."""

from collections.abc import Callable, Mapping
import dataclasses
from typing import Any

from ebt_jax.config import Config
from ebt_jax.runs import Run
from ebt_jax.tasks.base import Task


class Model:
  """A trained run; made by `ebt_jax.load`.

  Its methods take `steps`, `candidates` and `until` (a candidate is finished when its energy changes by less), where
  they are to differ from the run's.

  Attributes:
    config: of the run, with the settings that were asked for.
    step: of the checkpoint.
  """

  def __init__(self, run: Run):
    self._run, self._made = run, {}
    self.config: Config = run.config
    self.step: int = run.step

  def _with(self, make: Callable[..., Any], more: Mapping[str, Any] = {}, **thinking: Any) -> Any:
    """What `make` gives for the task with these settings of thinking, and `more`; made once."""
    key = (make.__name__, *sorted(more.items()), *sorted(thinking.items()))
    if key not in self._made:
      self._made[key] = make(self._task(**thinking), **more)
    return self._made[key]

  def _task(self, steps: int = 0, candidates: int = 0, until: float | None = None) -> Task:
    """The task with other settings of inference."""
    how = {"steps": steps, "candidates": candidates, "tolerance": until}
    changed = {name: value for name, value in how.items() if value not in (0, None)}
    config = dataclasses.replace(self.config, eval=dataclasses.replace(self.config.eval, **changed))
    config.check()
    return dataclasses.replace(self._run.task, config=config) if changed else self._run.task
