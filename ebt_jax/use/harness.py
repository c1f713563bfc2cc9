"""Models of text as EleutherAI's evaluation harness asks them; see `lm_eval` for its command line. Needs `lm-eval`."""

from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from ebt_jax.config import ConfigError
from ebt_jax.use.load import load
from ebt_jax.use.text import TextModel

NAME = "ebt_jax"
MAX_TOKENS = 256  # of a continuation, where a task does not say


@register_model(NAME)
class HarnessModel(LM):
  """Likelihoods and continuations by `TextModel`.

  Args:
    run: folder of a run, or one that was exported.
    model: a `TextModel` in place of a folder.
    steps, candidates, until: how it thinks, where this differs from the run's.
    **ignored: what the harness gives to every model, such as a device and a batch size.
  """

  def __init__(
    self,
    run: str = "",
    model: TextModel | None = None,
    steps: int = 0,
    candidates: int = 0,
    until: float | None = None,
    **ignored: Any,
  ):
    super().__init__()
    if not run and model is None:
      raise ConfigError("--model_args: expected run=FOLDER, the folder of a trained run or an exported one")
    self.model = model or load(run)
    if not isinstance(self.model, TextModel):
      raise ConfigError(f"--model_args: run={run} is of task {self.model.config.task!r}; the harness asks about text")
    how = {"steps": steps, "candidates": candidates, "until": until}
    self._thinking = {name: value for name, value in how.items() if value}

  def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
    found = self._likelihoods([request.args for request in requests])
    for request, one in zip(requests, found):
      self.cache_hook.add_partial("loglikelihood", request.args, one)
    return found

  def _likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, bool]]:
    """An empty continuation is certain."""
    asked = [pair for pair in pairs if pair[1]]
    found = iter(self.model.likelihood(asked, **self._thinking) if asked else ())
    return [_pair(next(found)) if text else (0.0, True) for _, text in pairs]

  def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
    return [total for total, _ in self._likelihoods([("", request.args[0]) for request in requests])]

  def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
    return [self._continued(*request.args) for request in requests]

  def _continued(self, context: str, how: dict[str, Any]) -> str:
    stops, sampled = how.get("until") or [], how.get("do_sample", False)
    stops = [stops] if isinstance(stops, str) else list(stops)
    drawn = (
      {name: how[name] for name in ("temperature", "top_k", "top_p") if how.get(name)} if sampled else {"top_k": 1}
    )
    text = ""
    for token in self.model.stream(context, int(how.get("max_gen_toks", MAX_TOKENS)), **drawn, **self._thinking):
      text += token.text
      if (end := _first(text, stops)) >= 0:
        return text[:end]
    return text


def _pair(found) -> tuple[float, bool]:
  return found.total, bool(found.likeliest.all())


def _first(text: str, stops: Iterable[str]) -> int:
  """Where the first of these texts begins; -1: nowhere."""
  return min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=-1)
