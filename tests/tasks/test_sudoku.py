"""Sudoku as a task: what is read, wrong answers, from training to a user's puzzle on the command line, thinking."""

import dataclasses
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import parallel, runs, sweep, thinking
from ebt_jax.config import ConfigError, MeshConfig, resolve, set_keys
from ebt_jax.data import sudoku, sudoku_rules
from ebt_jax.evaluation import puzzles
from ebt_jax.evaluation.evaluator import Evaluator
from ebt_jax.models import traced
from ebt_jax.tasks import registry
from ebt_jax.use.sudoku import Solved
from tests.helpers import REPOSITORY, run

CONFIG = f"{REPOSITORY}/configs/sudoku.py"
TINY = ["model.layers=1", "model.heads=1", "model.width=8", "train.batch_size=4", "train.warmup=0", "sudoku.boards=20",
        "sudoku.held_out=8", "eval.steps=3"]  # fmt: skip
PUZZLE = "0010400003001030"  # has one solution


def task_of(arg="4x4", *keys):
  return registry.make(set_keys(resolve(sweep.read_config(f"{CONFIG}:{arg}")), [*TINY, *keys]))


def batch_of(count=6):
  made = sudoku.make(4, count, 0, lambda grid: True)
  return jax.tree.map(jnp.asarray, sudoku.batch_of(made))


def test_digits_of_blanks_are_not_among_the_inputs():
  problem, batch = task_of().problem, batch_of()
  before = problem.inputs(batch)
  moved = {**batch, "target": jnp.where(batch["asked"] > 0, (batch["target"] + 1) % 4, batch["target"])}
  np.testing.assert_array_equal(before.tokens, problem.inputs(moved).tokens)
  np.testing.assert_array_equal(before.asked, batch["asked"])


def test_a_board_counts_where_all_its_blanks_are_right():
  problem, batch = task_of().problem, batch_of(3)
  x = jax.nn.one_hot(batch["target"], 4)
  blank = int(jnp.argmax(batch["asked"][1]))
  given = int(jnp.argmin(batch["asked"][2]))
  x = x.at[1, blank].set(jnp.roll(x[1, blank], 1)).at[2, given].set(jnp.roll(x[2, given], 1))
  found = problem.measures(x, batch)
  assert found["boards"].tolist() == [1, 0, 1] and int((found["cells"] == 0).sum()) == 1


def test_wrong_answers_differ_at_blanks_and_nowhere_else():
  problem, batch = task_of().problem, batch_of(40)
  right = jax.nn.one_hot(batch["target"], 4)
  wrong = problem.wrong(jax.random.key(0), batch, right)
  changed = np.asarray(wrong != batch["target"])
  assert (changed.sum(1) >= 1).all() and not changed[np.asarray(batch["asked"]) == 0].any()
  assert 1 < changed.sum(1).mean() < 2 and set(np.unique(wrong)) == {0, 1, 2, 3}
  own = jnp.where(jnp.arange(40)[:, None, None] % 2, jnp.roll(right, 1, -1), right)  # every other board all wrong
  found = problem.wrong(jax.random.key(0), batch, own)
  np.testing.assert_array_equal(found[::2], wrong[::2])
  np.testing.assert_array_equal(found[1::2], ((batch["target"] + batch["asked"].astype(int)) % 4)[1::2])


@pytest.mark.parametrize("kind", ["ebt", "looped"])
def test_cells_of_one_unit_start_alike(kind):
  place_SxD = [
    task_of(f"4x4,{kind}", f"sudoku.units={units}", "model.width=1024").init(jax.random.key(0))["model"]["place"][
      "embedding"
    ]
    for units in (True, False)
  ]
  alike, alone = (np.corrcoef(a) for a in place_SxD)
  for cell, places in enumerate(sudoku_rules.places(4)):
    shared = [sum(a == b for a, b in zip(places, others)) / 3 for others in sudoku_rules.places(4)]
    np.testing.assert_allclose(alike[cell], shared, atol=0.15)
  np.testing.assert_allclose(alone, np.eye(16), atol=0.15)
  np.testing.assert_allclose([a.std() for a in place_SxD], 1, atol=0.05)


@pytest.mark.parametrize("of", ["pair", "each"])
def test_the_contrast_adds_the_softplus_of_energies(of):
  batch, key = batch_of(), jax.random.key(3)
  plain, with_contrast = task_of(), task_of("4x4", "thinking.contrast=2", f"thinking.contrast_of={of}")
  params = plain.init(jax.random.key(0))
  (without, _), (found, _) = (jax.jit(task.loss)(params, batch, key) for task in (plain, with_contrast))
  context = plain.context(params, batch)
  start = plain.problem.start(plain.space, jax.random.split(key)[0], batch)
  thoughts = thinking.think(plain.model.energy, plain.space, params, context, start, key, plain.config.thinking)
  wrong = plain.problem.wrong(jax.random.fold_in(key, 2), batch, thoughts.candidate)
  right, false = (
    plain.model.energy(params["model"], context, jax.nn.one_hot(a, 4) @ plain.model.table(params["model"]))
    for a in (batch["target"], wrong)
  )
  contrast = right - false if of == "pair" else jnp.stack([right, -false])
  expected = without.total + 2 * jnp.sum(jax.nn.softplus(contrast))
  assert float(found.total) == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
  "arg, keys",
  [
    ("4x4", []),
    ("4x4", ["thinking.contrast=1", "thinking.gradient=last"]),
    ("4x4", ["thinking.contrast=1", "model.remat=True"]),
    ("6x6,ired", ["thinking.noise=0"]),
    ("6x6,feedforward", []),
    ("4x4,looped", []),
    ("4x4,recursive", []),
  ],
)
def test_flops_are_those_of_the_traced_gradient(arg, keys):
  """To 0.5%: what is as narrow as one energy is not counted to the last product."""
  task = task_of(arg, "model.layers=2", "model.width=64", *keys)
  params, rows = jax.eval_shape(task.init, jax.random.key(0)), 4
  batch = {name: jax.ShapeDtypeStruct((rows, *a.shape), a.dtype) for name, a in task.problem.spec().items()}
  gradient = jax.grad(lambda p, b: task.loss(p, b, jax.random.key(0))[0].total)
  t = task.config.thinking
  found = traced.flops(jax.jit(gradient), params, batch, trips=t.steps - (t.gradient == "last"))
  row = task.flops().row
  assert rows * (row["total"] + row["recomputation"]) == pytest.approx(found, rel=0.005)


@pytest.mark.parametrize(
  "keys, words",
  [
    (["model.vocab_size=5"], "sudoku.size=4 has 4 digits"),
    (["model.residual=True"], "config.model.residual: Sudoku has no residual energy"),
    (
      ["model.passes=2", "model.kind=transformer"],
      "2, but task 'sudoku' loops by model.kind=looped",
    ),
    (["sudoku.size=5"], "config.sudoku.size: expected 4, 6 or 9, found 5"),
    (["sudoku.givens_max=16"], "less than the 16 cells"),
    (["model.kind=mlp"], "config.model.kind: no choice 'mlp'"),
    (["model.kind=looped", "eval.candidates=2"], "need energies to choose by"),
    (["model.latent_updates=2"], "config.model.latent_updates: is for model.kind=looped, found kind=ebt"),
  ],
)
def test_options_that_do_not_fit(keys, words):
  with pytest.raises(ConfigError) as e:
    task_of("4x4", *keys)
  assert words in str(e.value)


def test_from_training_to_a_users_puzzle(tmp_path):
  cache = f"import os; os.environ['XDG_CACHE_HOME'] = {str(tmp_path)!r}"
  flags = [f"--config={CONFIG}:4x4", *(f"--config.{k}" for k in TINY), "--config.train.schedule=constant"]
  whole = run([*flags, f"--workdir={tmp_path}/whole", "--config.train.steps=6"], cache)
  assert whole.code == 0, whole.err
  assert "out_of_distribution" in whole.out and "givens" in whole.out and "step 2" in whole.out
  for steps in (3, 6):  # a run that goes on is the same run
    part = run([*flags, f"--workdir={tmp_path}/parts", f"--config.train.steps={steps}"], cache)
    assert part.code == 0, part.err
  a, b = (json.loads((tmp_path / n / "final_result.json").read_text()) for n in ("whole", "parts"))
  assert a["eval"] == b["eval"] and a["evals"] == b["evals"]
  assert len(a["evals"]["out_of_distribution"]["boards_by_step"]) == 3 and a["headline"] == "boards"
  generate = [f"--workdir={tmp_path}/whole", "--mode=generate"]
  out = tmp_path / "solved.json"
  done = run([*generate, f"--prompt={PUZZLE}", f"--out={out}"], cache)
  assert done.code == 0, done.err
  assert "5 givens" in done.out and "E " in done.out
  (found,) = json.loads(out.read_text())
  assert found["puzzle"] == PUZZLE and found["solution"] == "3214412323411432" and len(found["steps"]) == 3
  assert found["solved"] == (found["steps"][-1]["board"] == found["solution"])
  prompts = tmp_path / "prompts.txt"
  prompts.write_text(f"{PUZZLE}\n11{PUZZLE[2:]}\n")
  refused = run([*generate, f"--prompts_file={prompts}"], cache)
  assert refused.code == 2 and "puzzle 2: row 1 holds 1 twice" in refused.err and refused.err.count("\n") <= 1
  mine = tmp_path / "mine.txt"
  mine.write_text(f"{PUZZLE}\n")
  done = run([f"--workdir={tmp_path}/whole", "--mode=eval", f"--source={mine}"], cache)
  assert done.code == 0 and "11 cells in 1 examples" in done.out, done.err


def test_a_puzzle_is_drawn_with_its_wrong_digits_marked():
  grid = np.array([int(c) for c in "3214412323411432"])
  given = np.array([c != "0" for c in PUZZLE])
  wrong = grid.copy()
  wrong[0] = 2
  one = Solved(grid, given, np.stack([wrong, grid, grid]), np.array([1.0, 0.5, 0.25]))
  drawn = puzzles.draw(one, 4, width=60)
  first, *_ = drawn.splitlines()
  assert first.split() == ["puzzle", "step", "1", "step", "2"] and drawn.count("*") == 1
  assert "2*2  1 4" in drawn and "E 1.000 1 wrong" in drawn and "E 0.250 solved" in drawn
  assert puzzles.draw(one, 4, color=True).count("\x1b[31m2*") == 1
  assert puzzles.as_json(one)["steps"][0]["wrong"] == 1


@pytest.mark.slow
def test_more_steps_and_more_candidates_solve_more_boards(tmp_path):
  """A model of a minute or two: thinking and verification both pay."""
  done = run([f"--config={CONFIG}:4x4", f"--workdir={tmp_path}/run", "--config.train.steps=500"])
  assert done.code == 0, done.err
  trained = runs.open_run(pathlib.Path(tmp_path) / "run")
  held_out = trained.task.problem.data().held_out["out_of_distribution"]
  mesh = parallel.make_mesh(MeshConfig(data=1), jax.devices()[:1])

  def boards(candidates):
    config = dataclasses.replace(trained.config.eval, steps=4, candidates=candidates)
    task = registry.make(dataclasses.replace(trained.config, eval=config))
    return Evaluator(task, mesh)(trained.params, held_out)["boards_by_step"]

  one, eight = boards(1), boards(8)
  assert one[3] > one[0] + 0.1 and eight[3] > one[3]
