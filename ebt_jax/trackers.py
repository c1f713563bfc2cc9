"""Rows of `metrics.jsonl` for trackers of experiments: Weights & Biases, Trackio.

A run has one curve there, however often it is resumed: its id is kept in `tracker.json`, rows that a resumed run writes
once more are not sent again, and a tracker that is added to a run later gets all rows from the start.
"""

from collections.abc import Iterable
import contextlib
import logging
import math
import pathlib
import secrets
from typing import Any

from ebt_jax import files
from ebt_jax.errors import UserError

log = logging.getLogger(__name__)

TRACKERS = ("wandb", "trackio")
PROJECT = "ebt_jax"
FILE = "tracker.json"


class Tracker:
  """Sends rows to a tracker; a failure ends that with a warning, and never the run.

  Args:
    name: of `TRACKERS`.
    folder: of the run.
    config: of the run, as nested dicts; shown beside its curves.
    rows: that `metrics.jsonl` holds when the run goes on.

  Raises:
    UserError: the package of the tracker is not installed.
  """

  def __init__(self, name: str, folder: pathlib.Path, config: dict[str, Any], rows: Iterable[dict[str, Any]]):
    module, rows = _module(name), list(rows)
    self._path, self._name, self._run = folder / FILE, name, None
    self._known = {}
    if self._path.exists():
      self._known = files.read_json(self._path, "the ids of trackers", "delete it: a new curve begins")
    identity = self._known.get(name) or f"{folder.absolute().name}-{secrets.token_hex(4)}"
    lost = self._known.pop(f"{name} lacks rows from step", math.inf)
    self._sent = {_key(row) for row in rows if row["step"] < lost} if name in self._known else set()
    try:
      if name == "wandb":
        self._run = module.init(project=PROJECT, id=identity, resume="allow", name=identity, dir=folder, config=config)
        self._run.define_metric("*", step_metric="step")
      else:  # the name is the id
        self._run = module.init(project=PROJECT, name=identity, resume="allow", config=config, embed=False)
    except Exception as e:  # of a network, an account, a disk
      return self._give_up(e, min(lost, 1 + max((row["step"] for row in rows), default=-1)))
    self._known[name] = identity
    files.write_json(self._path, self._known)
    for row in rows:
      self.write(row)

  def write(self, row: dict[str, Any]) -> None:
    """Sends a row with its `step`, unless it was sent before."""
    if self._run is None or _key(row) in self._sent:
      return
    try:
      if self._name == "wandb":
        self._run.log(row)
      else:
        self._run.log({name: x for name, x in row.items() if name != "step"}, step=row["step"])
    except Exception as e:
      self._give_up(e, row["step"])

  def close(self) -> None:
    """Waits until the tracker has everything."""
    if self._run is None:
      return
    run, self._run = self._run, None
    try:
      run.finish()
    except Exception as e:
      self._give_up(e, 0)

  def _give_up(self, error: Exception, step: float) -> None:
    """Rows from `step` on are not there, and are sent when the run is started again."""
    text = (str(error).strip() or repr(error)).splitlines()[0]
    log.warning(
      "--tracker: %s gets no more rows (%s: %s); metrics.jsonl has all, and the next start of this run sends the rest",
      *(self._name, type(error).__name__, text[:200]),
    )
    self._run = None
    if self._name in self._known:
      with contextlib.suppress(OSError):
        files.write_json(self._path, {**self._known, f"{self._name} lacks rows from step": step})


def _key(row: dict[str, Any]) -> tuple:
  return row["step"], *sorted(row)


def _module(name: str) -> Any:
  try:
    if name == "wandb":
      import wandb as module
    else:
      import trackio as module
  except ImportError as e:
    raise UserError(f"--tracker: {name} is not installed; pip install 'ebt_jax[{name}]'") from e
  return module
