"""The contract between what is learnt and everything above it: the loop, the evaluator, run folders and studies.

A `Problem` says what is known, what is asked and how wrong an answer is; it is the same for every model that answers.
A `Task` is a way to answer problems: `EBTTask` descends an energy, `DirectTask` predicts in one pass or in several.
Every number that is reported is a `Mean`, so that nobody above needs to know what it counts.

Shapes: b rows of a batch; *p the shape of the errors, one for each thing that is asked, b first (text: `[b, s]`);
*e the shape of the energies, the first axes of *p (text: `[b, s]`; one energy for a whole image: `[b]`); t steps.
"""

import pathlib
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray, Shaped
import numpy as np

from ebt_jax import streams
from ebt_jax.config import Config, ConfigError, DataConfig
from ebt_jax.data import find

Batch = dict[str, Any]  # every leaf [b, ...]; `weights` is 0 for rows that only fill up a batch
Params = dict[str, Any]  # {"model": ...}, and {"thinking": {"step_size", "noise"}} where a task thinks


class Mean(NamedTuple):
  """A weighted mean, kept as two sums that add up over microbatches, batches and processes."""

  total: Float[Array, "*s"]
  weight: Float[Array, ""]

  def value(self) -> Float[Array, "*s"]:
    """The mean; 0 where nothing was counted."""
    return self.total / jnp.where(self.weight == 0, 1, self.weight)

  @classmethod
  def of(cls, values: Float[Array, "*s"], weights: Float[Array, "*s"]) -> "Mean":
    """The mean of values, each with its weight."""
    return cls(jnp.sum(values * weights), jnp.sum(weights))


class Output(NamedTuple):
  """What a training loss says beside its value."""

  metrics: dict[str, Mean]  # logged as train/NAME; `final_loss`: the loss of the last answer
  finished: Any = ()  # rows for the replay buffer, as `Thinks.replay_row` describes them


class Scores(NamedTuple):
  """What is known of each answer: of the candidate that is kept, where there are several."""

  error: Float[Array, " t *p"]  # after each step
  energy: Float[Array, " t *e"] | None = None  # before each step; None where nothing has an energy
  final_energy: Float[Array, "*e"] | None = None  # after the last step
  steps: Int[Array, "*e"] | None = None  # thinking steps used
  measures: dict[str, Array] = {}  # of `Problem.measures`, each [t, ...]


class Flops(NamedTuple):
  """Matrix-product FLOPs, a multiplication and an addition counted as two."""

  row: dict[str, int]  # of training on one row: `total`, its parts, and `recomputation`, which is not in the total
  prediction: dict[str, int]  # of one answer after training: `total` and its parts
  least: float | None = (
    None  # training FLOPs an item that the method cannot do without, in units of N, weights in blocks
  )
  paper: float | None = None  # training FLOPs an item as the paper counts them, in units of N


@runtime_checkable
class Examples(Protocol):
  """A split of a data set with random access; numpy."""

  def __len__(self) -> int: ...

  def rows(self, index: Int[np.ndarray, " b"]) -> dict[str, np.ndarray]:
    """The rows of these numbers, each leaf `[b, ...]`."""
    ...


class Data(NamedTuple):
  """All that training and evaluation read."""

  train: Examples
  held_out: dict[str, Examples]  # by name; the first is the one that `eval/loss` is of
  summary: dict[str, Any] = {}  # goes into `final_result.json`
  lines: list[str] = []  # printed at the start
  baseline: str = ""  # printed beside the results: what a model must beat
  fingerprint: dict[str, Any] = {}  # JSON that differs where the data differ; a run goes on with equal ones alone


class Kept(NamedTuple):
  """What the folder of a run remembers of the problem that it was trained on."""

  folder: pathlib.Path
  config: Config  # as it was trained
  places: tuple[pathlib.Path, ...] = ()  # where relative paths of the config were meant: the likeliest folder first
  files: dict[str, str] = {}  # of `Problem.files`: name -> SHA-256 in hex
  fingerprint: dict[str, Any] = {}  # `Data.fingerprint`


def data_as_meant(config: Config, kept: Kept | None) -> DataConfig:
  """`config.data` with the paths of sources as the run meant them, wherever it is used from."""
  return find.as_meant(config.data, kept.config.data, kept.places) if kept else config.data


@runtime_checkable
class Problem(Protocol):
  """What is known, what is asked, how wrong an answer is, and which numbers people read.

  Subclass it: what has a body here is a default. Answers x are what `EBTTask`'s space or `DirectTask`'s model gives.
  """

  item: str = "item"  # what a weight counts: "token", "image", "cell"
  headline: str = "loss"  # the number that console lines and studies show, a key of `numbers` or "loss"
  unit: str = ""  # of the loss, such as "nats/token"

  def data(self) -> Data:
    """Reads the data. Raises ConfigError where they are missing or do not fit."""
    ...

  def spec(self) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of one row, without reading data where that is possible."""
    rows = self.data().train.rows(np.arange(1))
    return {name: jax.ShapeDtypeStruct(a.shape[1:], a.dtype) for name, a in rows.items()}

  def corrupt(self, batch: Batch, key: Array) -> Batch:
    """The batch with what is drawn anew each time that a row is seen, such as the noise on a picture.

    `key` is one key, or an array of keys `[b]`, one for each row. A batch that has it already stays as it is.
    """
    return batch

  def inputs(self, batch: Batch) -> Any:
    """What is known: what `encode` or `predict` is given."""
    return batch["inputs"]

  def target(self, batch: Batch) -> Shaped[Array, "b ..."]:
    """The right answer."""
    return batch["target"]

  def weights(self, batch: Batch) -> Float[Array, "*p"]:
    """How much each error counts; 0 for what is not asked."""
    return batch["weights"]

  def start(self, space: Any, key: PRNGKeyArray, batch: Batch) -> Any:
    """The first candidate: noise of `space.start(key, shape)`, or something that is known.

    `key` may be an array of keys, one for each row, or `[n, b]` for n candidates `[n, b, ...]`.
    """
    ...

  def error(self, x: Any, target: Any) -> Float[Array, "*p"]:
    """How wrong an answer is; differentiable in x."""
    ...

  def wrong(self, key: PRNGKeyArray, batch: Batch, x: Any) -> Shaped[Array, "b ..."]:
    """A wrong answer, like `target`: what `thinking.contrast` gives a higher energy.

    x are the model's own answers, the best wrong ones that there are where they are wrong.
    """
    raise ConfigError("config.thinking.contrast: this task makes no wrong answers to contrast with; set it to 0")

  def measures(self, x: Any, batch: Batch) -> dict[str, Float[Array, "..."]]:
    """Further measures of an answer, such as accuracy; each has the first axes of *p. Reported as means."""
    return {}

  def counts(self, batch: Batch) -> dict[str, Mean]:
    """Further means of a batch that do not depend on answers and that `numbers` needs, such as bytes a token."""
    return {}

  def numbers(self, means: dict[str, float]) -> dict[str, float]:
    """What people read, from the values of `loss`, `measures` and `counts`. The measures themselves by default."""
    return {name: value for name, value in means.items() if name != "loss"}

  def files(self) -> dict[str, bytes]:
    """Files beside the parameters that a run needs and keeps in its folder: name -> content. None by default."""
    return {}

  def examples_of(self, source: str) -> Examples:
    """All of another source, to evaluate on."""
    raise ConfigError(f"--source: {source}: this task reads no other data than its own")


@runtime_checkable
class Task(Protocol):
  """A way to answer a problem. `params` is a pytree of nested dicts; every function is pure."""

  config: Config  # with everything filled in that the data decide
  problem: Problem
  eval_steps: int  # answers that `evaluate` scores

  def init(self, key: PRNGKeyArray) -> Params: ...

  def loss(self, params: Params, batch: Batch, key: PRNGKeyArray) -> tuple[Mean, Output]:
    """The loss that training lowers, differentiable in `params`."""
    ...

  def evaluate(self, params: Params, batch: Batch, keys: Array) -> dict[str, Mean]:
    """Means over a batch; `keys` `[b]`, one for each row.

    `loss` `[t]` after each step, the problem's counts and measures (`[t]`); where there are energies
    `energy` `[t + 1]`, before each step and at the end, and `steps` used.
    """
    ...

  def scores(self, params: Params, batch: Batch, keys: Array) -> Scores:
    """The same for each answer alone: what studies read."""
    ...

  def flops(self) -> Flops: ...

  def tables(self) -> tuple[str, ...]:
    """Names below `params["model"]` that are look-up tables and not blocks: the paper's N leaves them out."""
    ...

  def notes(self) -> list[str]:
    """What a user should know at the start, such as large arrays that an option needs whole."""
    ...


@runtime_checkable
class Thinks(Protocol):
  """What a task that thinks has beside."""

  def diagnose(self, params: Params, batch: Batch, key: PRNGKeyArray) -> dict[str, Float[Array, ""]]:
    """How thinking goes on these rows: see `thinking.diagnose`."""
    ...

  def replay_row(self) -> dict[str, jax.ShapeDtypeStruct]:
    """What the replay buffer holds of one row: the leaves of a batch, and `start`, its finished candidate."""
    ...


@runtime_checkable
class Writes(Protocol):
  """Generation of sequences, one item at a time, from a cache."""

  quantity: str  # what `Proposal.energy` is: "energy" | "entropy"
  row_axis: int  # of every array in a `Decoding`

  def prepare(self, params: Params) -> Params:
    """The parameters as the functions below take them."""
    ...

  def prefill(
    self, params: Params, tokens: Shaped[Array, "b s ..."], lengths: Int[Array, " b"], capacity: int
  ) -> "Decoding":
    """Encodes the first `lengths` tokens (of video: frames) of each row into a cache with room for `capacity`."""
    ...

  def propose(self, params: Params, state: "Decoding", keys: Array) -> "Proposal":
    """What comes next; `keys` `[b]`, one for each row."""
    ...

  def explain(self, params: Params, state: "Decoding", keys: Array, top: int) -> tuple["Proposal", "Thought"]:
    """`propose`, and how that was found."""
    ...

  def append(self, params: Params, state: "Decoding", tokens: Shaped[Array, "b ..."]) -> "Decoding":
    """Adds one token to each row."""
    ...


class Decoding(NamedTuple):
  """Where generation stands: the cache, and the next logits (of video: the next frame) where they are known already."""

  context: Any
  logits: Float[Array, "b ..."] | None = None


class Proposal(NamedTuple):
  """What comes next in each row: logits or a frame, the energy of the finished thought, the thinking steps it took."""

  logits: Float[Array, "b ..."]
  energy: Float[Array, " b"]
  steps: Int[Array, " b"]


class Thought(NamedTuple):
  """How the answer at each place `*b` was found, with k of the likeliest tokens; direct models have one step."""

  tokens: Int[Array, "*b t k"]  # the likeliest of the kept candidate after each step, the first first
  p: Float[Array, "*b t k"]  # their probabilities
  kept: Int[Array, "*b"]  # the candidate of n that is kept
  energies: Float[Array, "*b t+1 n"] | None = None  # of candidates, before each step and at the end
  alone: Float[Array, "*b k"] | None = None  # energies of the likeliest tokens at the end, each as the whole answer


def corrupted(problem: Problem, batch: Batch, key: Array) -> Batch:
  """`problem.corrupt` with keys that serve nothing else: what every task does first with a batch."""
  return problem.corrupt(batch, streams.fold(key, streams.CORRUPT))


def one_row(problem: Problem) -> Batch:
  """Shapes of a batch of one row, with what `corrupt` adds."""
  batch = {name: jax.ShapeDtypeStruct((1, *a.shape), a.dtype) for name, a in problem.spec().items()}
  return jax.eval_shape(lambda batch: problem.corrupt(batch, jax.random.key(0)), batch)


def first_axes(weights: Float[Array, "*p"], ndim: int) -> Float[Array, "..."]:
  """Weights `[*p]` for something with only the first `ndim` axes: a row counts where any part of it does.

  Parts of a row may count differently, and the row as a whole counts once: the largest of its weights.
  """
  return jnp.max(weights, axis=tuple(range(ndim, weights.ndim))) if weights.ndim > ndim else weights
