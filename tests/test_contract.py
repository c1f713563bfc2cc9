"""Every task of the configs keeps the contract of `tasks.base`, and nothing above `tasks/` knows what is learnt."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import parallel, streams, sweep
from ebt_jax.config import ConfigError, MeshConfig, resolve, set_keys
from ebt_jax.data.loader import Loader, in_order
from ebt_jax.evaluation.evaluator import Evaluator
from ebt_jax.tasks import registry
from ebt_jax.tasks.base import Data, Mean, Task, Thinks, corrupted, first_axes
from ebt_jax.training import inspect
from ebt_jax.training import state as state_lib
from ebt_jax.training.step import make_train_step

REPOSITORY = pathlib.Path(__file__).parent.parent
SMALL = ["model.layers=1", "model.heads=1", "model.width=8", "data.context_length=8", "train.batch_size=4",
         "train.warmup=0", "eval.max_windows=6", "data.max_documents=40", "data.held_out=0.1"]  # fmt: skip
IMAGE = ["image.size=8", "image.patch=4", "image.passes=2", "data.held_out=0.2"]
SYSTEM_2 = ["thinking.steps=3", "thinking.random_steps_min=2", "thinking.random_step_size=2", "thinking.gradient=last",
            "thinking.noise=0.1", "thinking.replay_rows=4", "thinking.learn_step_size=False"]  # fmt: skip
VIDEO = ["video.size=8", "video.rank=6", "video.clips=60", "video.clip_frames=12", "data.held_out=0.2",
         "data.max_documents=60"]  # fmt: skip
PATCHES = [*VIDEO, "video.patch=4"]
FEW = ["sudoku.boards=20", "sudoku.held_out=8", "eval.steps=2"]
# (task, kind): a config file, and what more is set
TASKS = {
  ("text", "ebt"): ("configs/quickstart.py:paper", []),
  ("text", "ebt residual"): ("configs/quickstart.py", []),
  ("text", "ebt replay"): ("configs/text_ebt_s2.py:laptop", ["thinking.replay_rows=4", "thinking.steps=3"]),
  ("text", "transformer"): ("configs/quickstart.py:transformer", []),
  ("text", "rnn"): ("configs/quickstart.py:transformer", ["model.kind=rnn"]),
  ("infill", "ebt"): ("configs/infill.py:ebt", ["thinking.replay_rows=4", "thinking.steps=2"]),
  ("infill", "transformer"): ("configs/infill.py:transformer", ["eval.steps=2", "mask.layout=word"]),
  ("infill", "diffusion"): ("configs/infill.py:diffusion", ["eval.steps=2"]),
  ("image", "ebt"): ("configs/image_ebt.py", IMAGE),
  ("image", "ebt residual"): ("configs/image_ebt.py:residual", IMAGE),
  ("image", "ebt system 2"): ("configs/image_ebt.py", [*IMAGE, *SYSTEM_2]),
  ("image", "dit"): ("configs/image_dit.py", IMAGE),
  ("image", "flow"): ("configs/image_dit.py:flow", IMAGE),
  ("video", "ebt"): ("configs/video_ebt.py:futures", VIDEO),
  ("video", "ebt residual"): ("configs/video_ebt.py:residual", PATCHES),
  ("video", "ebt system 2"): ("configs/video_ebt.py", [*PATCHES, *SYSTEM_2]),
  ("video", "transformer"): ("configs/video_transformer.py", PATCHES),
  ("video", "rnn"): ("configs/video_transformer.py:rnn", VIDEO),
  ("sudoku", "ebt"): ("configs/sudoku.py:4x4", FEW),
  ("sudoku", "ebt ired"): ("configs/sudoku.py:4x4,ired", [*FEW, "eval.steps=4"]),
  ("sudoku", "transformer"): ("configs/sudoku.py:6x6,feedforward", FEW),
  ("sudoku", "looped"): ("configs/sudoku.py:4x4,looped", FEW),
  ("own", "ebt"): ("experiments/own_task/sudoku.py", []),
  ("own", "direct"): ("experiments/own_task/sudoku.py:direct", []),
}
# variants of what others show
SLOW = {
  ("infill", "diffusion"),
  ("image", "ebt residual"),
  ("image", "ebt system 2"),
  ("image", "flow"),
  ("video", "ebt system 2"),
  ("video", "rnn"),
  ("sudoku", "ebt ired"),
  ("sudoku", "transformer"),
}


@pytest.fixture(autouse=True, scope="module")
def own_cache(tmp_path_factory):
  """What tasks make for themselves is not left in the user's folders."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    yield


def task_of(name) -> Task:
  file, more = TASKS[name]
  return registry.make(set_keys(resolve(sweep.read_config(str(REPOSITORY / file))), [*SMALL, *more]))


CASES = [pytest.param(name, id=" ".join(name), marks=[pytest.mark.slow] if name in SLOW else []) for name in TASKS]


@pytest.mark.parametrize("name", CASES)
def test_one_step_one_evaluation_and_an_inspection_of_every_task(name):
  task = task_of(name)
  assert isinstance(task, Task) and isinstance(task, Thinks) == name[1].startswith("ebt")
  data, problem = task.problem.data(), task.problem
  assert isinstance(data, Data) and all(len(examples) for examples in (data.train, *data.held_out.values()))
  batch = jax.tree.map(jnp.asarray, Loader(data.train, 4, 0).batch(0))
  spec = problem.spec()
  assert {k: (v.shape[1:], v.dtype) for k, v in batch.items()} == {k: (v.shape, v.dtype) for k, v in spec.items()}

  state = state_lib.fresh(task)
  step = jax.jit(make_train_step(task))
  losses = []
  for _ in range(3):
    state, metrics = step(state, batch)
    losses.append(float(metrics["final_loss"]))
  assert np.isfinite(losses).all() and metrics["items"] == problem.weights(batch).sum() and metrics["skipped"] == 0
  examples = data.held_out["held_out"]
  result = Evaluator(task, parallel.make_mesh(MeshConfig(), jax.devices()[:1]))(state.params, examples)
  assert len(result["loss_by_step"]) == task.eval_steps and problem.headline in result
  assert result["examples"] == min(6, len(examples)) and result["items"] > 0
  assert ("energy_by_step" in result) == isinstance(task, Thinks)
  key = streams.key_for(task.config.eval.seed, streams.EVALUATE)

  @jax.jit
  def last(params, rows, numbers):
    keys = streams.each(key, numbers)
    rows = corrupted(problem, rows, keys)
    return Mean.of(task.scores(params, rows, keys).error[-1], problem.weights(rows))

  parts = [last(state.params, rows, numbers) for numbers, rows in in_order(examples, 4, 6)]
  by_hand = jax.tree.map(lambda *a: sum(a), *parts)
  assert result["items"] == by_hand.weight and result["loss"] == pytest.approx(float(by_hand.value()), rel=1e-5)
  cost = task.flops()
  assert cost.row["total"] > 0 and cost.prediction["total"] > 0
  if isinstance(task, Thinks):
    found = jax.jit(task.diagnose)(state.params, batch, jax.random.key(0))
    assert np.isfinite(found["growth"]) and f"energy_{task.config.thinking.steps + 1}" in found
  if name[0] != "text":  # every config of which is inspected in test_configs.py
    assert "parameters" in inspect.shapes(task.config)


FORBIDDEN = re.compile(r"token|\bnats\b|vocab|\bprompt|tasks.text|\"text\"|image|pixel|video|perplexity", re.IGNORECASE)
TASK_FREE_STUDIES = ("common", "longer", "ablation", "recipes", "verification")
WITHOUT = [
  *(REPOSITORY / "ebt_jax/training").glob("*.py"),
  *(REPOSITORY / "ebt_jax" / f"{name}.py" for name in ("evaluation/evaluator", "runs", "record", "flops")),
  *(REPOSITORY / "experiments/scaling" / f"{name}.py" for name in ("run", "points", "figures")),
  *(REPOSITORY / "experiments/runner").glob("*.py"),
  *(REPOSITORY / "experiments/thinking" / f"{name}.py" for name in TASK_FREE_STUDIES),
]  # fmt: skip


@pytest.mark.parametrize("path", WITHOUT, ids=lambda p: str(p.relative_to(REPOSITORY)))
def test_nothing_above_tasks_names_a_modality(path):
  """Two places may: the registry, and `evaluation/samples.py`."""
  lines = enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
  found = [f"{i}: {line.strip()}" for i, line in lines if FORBIDDEN.search(line)]
  assert not found, "\n".join(found)


def test_means_add_up_over_microbatches_and_rows_of_different_weight():
  values, weights = jnp.arange(6.0).reshape(3, 2), jnp.array([[1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
  whole = Mean.of(values, weights)
  parts = [Mean.of(values[i], weights[i]) for i in range(3)]
  added = jax.tree.map(lambda *a: sum(a), *parts)
  assert float(whole.value()) == float(added.value()) == pytest.approx((0 + 2 + 3) / 3)
  assert float(Mean.of(values, 0 * weights).value()) == 0
  assert first_axes(weights, 1).tolist() == [1, 1, 0]  # a row counts where any part of it does
  assert first_axes(weights, 2) is weights


@pytest.mark.parametrize(
  "task, words",
  [
    ("nowhere.at_all:make", "config.task: no module 'nowhere'"),
    ("experiments.own_task.sudoku:solve", "has no function 'solve'"),
    ("builtins:repr", "returned str, which lacks config, problem"),
    ("txet", "config.task: no choice 'txet'; did you mean text"),
  ],
)
def test_a_task_that_is_none(task, words):
  with pytest.raises(ConfigError) as e:
    registry.make(resolve({"task": task}))
  assert words in str(e.value)
