"""Every number that a study of thinking prints, from models of known losses, against values worked out by hand.

The fake problem shows twice the loss as its headline number, so that the two cannot be confused. Over two values, a
Student interval has a half width of 6.353102 times their distance (12.706205 / 2); over equal values it is 0.
"""

import json
import pathlib
import sys
from types import SimpleNamespace
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax.data.tokenizers import load_tokenizer
from ebt_jax.tasks import base
from ebt_jax.tasks.base import Mean, Scores
from experiments.thinking import (
  ablation,
  common,
  landscape,
  longer,
  recipes,
  shift,
  train,
  uncertainty,
  verification,
  verifier,
)


class Problem:
  item, unit, headline = "token", "nats/token", "bits_per_byte"
  tokenizer = load_tokenizer("bytes")
  data_config = SimpleNamespace(source="x", held_out=0.1)

  def numbers(self, means):
    return {"bits_per_byte": 2 * means["loss"]}

  def examples_of(self, path):
    return pathlib.Path(path).stem


def model_of(folder, step=None, task=None, **config):
  """An opened run; `kind`, `seed` and `step` are what the losses of a test depend on."""
  kind, _, seed = pathlib.Path(folder).name.partition("-")
  thinking = SimpleNamespace(steps=3, random_steps_min=2, step_size=5.0, noise=1.0)
  config = {"thinking": thinking, "data": SimpleNamespace(source="x", held_out=0.1, context_length=9), **config}
  found = SimpleNamespace(kind=kind, seed=int(seed or 0), step=step or 10, problem=Problem(), params={"model": {}})
  return SimpleNamespace(**vars(found), config=SimpleNamespace(**config), task=lambda **inference: task)


@pytest.fixture
def study(monkeypatch, tmp_path):
  """Runs a study with a function `(model, examples, inference) -> losses [steps] or scores`; returns table and JSON."""
  before = jax.config.jax_compilation_cache_dir

  def run(module, losses, *flags, **config):
    def scores(model, examples, count, **inference):
      found = losses(model, examples, inference)
      if isinstance(found, dict):
        return found
      return {"loss": np.array(found, float)[:, None], "weight": np.ones(1)}

    def find(workdir, kind, among="models"):
      return [pathlib.Path(f"{kind.removesuffix(',seed')}-{i}") for i in range(2)]

    monkeypatch.setattr(common, "scores", scores)
    monkeypatch.setattr(common, "find", find)
    monkeypatch.setattr(common, "open_model", lambda folder, step=None: model_of(folder, step, **config))
    monkeypatch.setattr(common, "held_out", lambda model: "held out")
    name = module.__name__.split(".")[-1]
    monkeypatch.setattr(sys, "argv", [name, f"--workdir={tmp_path}", f"--out={tmp_path}", *flags])
    module.main()
    table = (tmp_path / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return table, json.loads((tmp_path / f"{name}.json").read_text(encoding="utf-8"))

  yield run
  jax.config.update("jax_compilation_cache_dir", before)


def with_exp(*values):
  """Losses whose exponentials are these."""
  return np.log(values)


def test_gains_and_intervals():
  assert common.gain(np.log(4.0), np.log(3.0)) == pytest.approx(25)  # from 4 to 3
  mean, half = common.mean_interval([1.0, 2.0, 3.0])
  assert (mean, half) == (2.0, pytest.approx(4.302653 / 3**0.5, rel=1e-6))  # Student's t of 2 degrees
  assert common.over_seeds([1.0, 2.0, 3.0], ".2f") == "2.00 ± 2.48"
  assert common.over_seeds([1.0], ".1f") == "1.0 ± nan"


def test_headline_is_of_the_weighted_mean():
  """Means of 1 and 3 with weights of 3 and 1 are 1.5."""
  found = {"loss": np.array([[1.0, 3.0], [2.0, 4.0]]), "weight": np.array([3.0, 1.0])}
  assert common.headline(model_of("s2-0"), found).tolist() == [3.0, 5.0]


def test_items_per_step(tmp_path):
  (tmp_path / "final_result.json").write_text('{"items": 320, "steps": 10}')
  assert common.items_per_step(SimpleNamespace(run=SimpleNamespace(folder=tmp_path))) == 32


def test_scores_are_of_the_answers_that_count(monkeypatch):
  """Of 10 rows every third, in batches of 2: 0, 3 | 6 and padding. The second answer of a row does not count."""

  class Examples:
    def __len__(self):
      return 10

    def rows(self, index):
      return {"x": index.astype(np.float32)[:, None] + [0.0, 0.5], "w": np.tile([1.0, 0.0], (len(index), 1))}

  class Asked(base.Problem):
    def counts(self, batch):
      return {"bytes_per_token": Mean(3 * jnp.sum(batch["w"]), jnp.sum(batch["w"]))}

    def target(self, batch):
      return batch["x"].astype(int)

    def weights(self, batch):
      return batch["w"]

  class Task:
    problem = Asked()

    def scores(self, params, batch, keys):
      x = batch["x"]
      return Scores(jnp.stack([x + 10, x]), jnp.stack([-x, -x - 1]), -x - 2, jnp.full(x.shape, 2))

  model = SimpleNamespace(task=lambda **inference: Task(), params={})
  batches = common.batches
  monkeypatch.setattr(common, "batches", lambda examples, count: batches(examples, count, rows=2))
  found = common.scores(model, Examples(), 3, steps=2)
  assert found["loss"].tolist() == [[10, 13, 16], [0, 3, 6]]
  assert found["energy"].tolist() == [[0, -3, -6], [-1, -4, -7]] and found["final_energy"].tolist() == [-2, -5, -8]
  assert found["target"].tolist() == [0, 3, 6] and found["weight"].tolist() == [1, 1, 1]
  assert found["steps"].tolist() == [2, 2, 2] and found["bytes_per_token"] == 3


def test_longer(study):
  """Losses of seed 0 fall by 0.1 a step, those of seed 1 by 0.3; System 1 rises by 0.05."""

  def losses(model, examples, inference):
    if model.kind == "transformer":  # probabilities of the right token
      return [-np.log((0.5, 0.25)[model.seed])]
    slope = -0.05 if model.kind == "s1" else (0.1, 0.3)[model.seed]
    found = [5 - slope * k for k in range(1, inference["steps"] + 1)]
    if "tolerance" not in inference:
      return found
    worse = 1.01 if inference["tolerance"] < 0.05 else 1.1  # than the whole budget
    scored = {"loss": worse * np.array(found)[:, None], "steps": np.array([4 + 2 * model.seed])}
    return {**scored, "weight": np.ones(1)}

  table, result = study(longer, losses, "--steps=10")
  # bits are twice the loss: the gain from 3 to 10 steps is 2 x 7 x 0.1 and 2 x 7 x 0.3, so 2.8 ± 6.353102 x 2.8
  assert "  3 -> 10 steps lowers it by 2.80000 ± 17.78869" in table
  assert "  3 -> 10 steps lowers it by -0.70000 ± 0.00000" in table  # System 1 grows worse
  assert "    1 steps  9.6000 ± 2.5412 bits/byte" in table  # 9.8 and 9.4
  assert table.count("   10 steps  6.0000 ± 25.4124 bits/byte") == 1  # 8 and 4
  assert "  0.001  5.00 ± 12.71 steps, loss +1.000% ± 0.000%" in table  # 4 and 6 steps
  assert "  0.1    5.00 ± 12.71 steps, loss +10.000% ± 0.000%" in table
  assert "Transformer++, one pass: 2.0794 ± 8.8073 bits/byte" in table  # 2 ln 2 and 2 ln 4
  assert "Transformer++, average of 1 models (1 passes): 1.3863 bits/byte" in table  # 2 ln 2
  assert "Transformer++, average of 2 models (2 passes): 1.9617 bits/byte" in table  # -2 ln 0.375
  assert result["s2"]["gain"] == pytest.approx([2.8, 17.78869], rel=1e-5) and result["s2"]["trained_steps"] == 3


def test_verification(study, monkeypatch):
  """exp(loss) of 4 with one candidate; one less, or 0.4 less by the other choice, each time their number doubles."""
  monkeypatch.setattr(common, "items_per_step", lambda model: 1e6)

  def losses(model, examples, inference):
    doublings = np.log2(inference["candidates"])
    by = 1.0 if inference["choose"] == "energy" else 0.4
    by = by / 2 if model.step == 5 else by  # half as good at an earlier checkpoint
    return with_exp(9, 9, 4 - by * doublings)

  checkpoint, training = SimpleNamespace(keep_every=5), SimpleNamespace(steps=10)
  table, _ = study(verification, losses, "--most=8", checkpoint=checkpoint, train=training)
  assert table == [
    "gain of the best of N over one candidate, 3 steps, in % of exp(loss):",
    "  chosen by least energy:",
    *(f"    N = {n:<3} {gain}.000 ± 0.000" for n, gain in ((1, 0), (2, 25), (4, 50), (8, 75))),
    "  chosen by largest fall of energy:",
    *(f"    N = {n:<3} {gain}.000 ± 0.000" for n, gain in ((1, 0), (2, 10), (4, 20), (8, 30))),
    "  N = 8 by least energy, against tokens of training:",
    "    5.00 M  37.500 ± 0.000",
    "    10.00 M  75.000 ± 0.000",
  ]


def test_ablation(study):
  """exp(loss) after 1, 2, 3 and 4 steps: 9, 8, 4, and 3 of the full variant, 3.6 of the others; the best of 2 is 2."""

  def losses(model, examples, inference):
    last = 2 if inference.get("candidates") else 3 if model.kind == "full" else 3.6
    return with_exp(9, 8, 4, last)

  table, _ = study(ablation, losses, "--last=4", "--candidates=2")
  cells = {line[:28].strip(): line[28:].split("  ") for line in table}
  cells = {name: [c.strip() for c in line if c.strip()] for name, line in cells.items()}
  # bits are 2 ln 4; gains are from 4 to 3, 3.6 and 2, over one candidate after 3 steps
  assert cells["full"] == ["2.7726 ± 0.0000", "25.000 ± 0.000", "0.000 ± 0.000", "50.000 ± 0.000"]
  assert cells["no replay buffer"] == ["2.7726 ± 0.0000", "10.000 ± 0.000", "-15.000 ± 0.000", "50.000 ± 0.000"]
  assert list(cells)[1:] == [name.replace("_", " ") for name in train.LEFT_OUT]
  assert cells[""][0] == "bits/byte, 3 steps"


def test_recipes(study, tmp_path):
  """Losses of 4.5, 4.0, 3.5, 3.0: the gain from 2 to 4 steps is 2 x 1.0."""
  run = train.recipes()[0]
  (tmp_path / "recipes" / "runs" / run.name).mkdir(parents=True)
  (tmp_path / "recipes" / "runs" / run.name / "final_result.json").write_text("{}")
  table, result = study(recipes, lambda *_: [4.5, 4.0, 3.5, 3.0], "--steps=4", "--first=2", "--last=4")
  assert table[0].split() == [*"bits/byte after so many thinking steps".split(), "1", "2", "4", "2", "->", "4"]
  assert table[1].startswith("2 to 3 steps, step size 5, noise 1 ")
  assert table[1].split()[-4:] == ["9.0000", "8.0000", "6.0000", "+2.0000"]
  assert [line for line in table if "not trained" in line] == [f"{r.name}: not trained" for r in train.recipes()[1:]]
  assert list(result["runs"].values())[0]["gain"] == 2.0


def test_shift(study, monkeypatch):
  """exp(loss) after 2 and 3 steps: 4 to 3 on the first rung, 8 to 4 and 16 to 4 on the next; noise is a control.
  Transformer++ has 6."""
  exp = {"prose": (9, 4, 3), "legal": (9, 8, 4), "code": (9, 16, 4), "noise": (9, 400, 399)}
  rungs = [SimpleNamespace(name=n, why="", fetched=n != "code", documents=[1]) for n in exp]
  monkeypatch.setattr(shift.ladder, "rungs", lambda *a, **k: rungs)
  monkeypatch.setattr(shift.ladder, "write_texts", lambda *a: {name: f"{name}.jsonl" for name in exp})

  def losses(model, examples, inference):
    return with_exp(6) if model.kind == "transformer" else with_exp(*exp[examples])

  table, _ = study(shift, losses, "--first=2", "--last=3")
  rows = [line.split() for line in table]
  assert rows[2] == ["prose", "1.0986", "1.000", "25.00", "±", "0.00", "-0.6931", "±", "0.0000"]  # ln 3, ln 3 - ln 6
  assert rows[3] == ["legal", "1.3863", "2.000", "50.00", "±", "0.00", "-0.4055", "±", "0.0000"]
  assert rows[4] == ["code", "1.3863", "4.000", "75.00", "±", "0.00", "-0.4055", "±", "0.0000", "(stand-in)"]
  assert rows[5] == ["noise", "5.9890", "100.000", "0.25", "±", "0.00", "4.1972", "±", "0.0000"]
  # through (1, 25), (2, 50), (4, 75), without noise: 75 / (14 / 3), and 75 / sqrt(14 / 3 x 1250)
  assert rows[7][:4] == ["slope", "16.071", "±", "0.000"] and rows[8] == ["correlation", "0.982", "±", "0.000"]


def test_uncertainty(study, monkeypatch):
  """Energies 1, 2, 3, 4 of the letters a to d, with losses 1, 2, 3, 5; random strings have 3 more of each."""
  monkeypatch.setattr(uncertainty, "random_text", lambda examples: "random")
  monkeypatch.setattr(uncertainty, "on_text", lambda *_: (["$", "\n"], np.array([[1.0, 2.0], [0.5, 1.5]])))

  def losses(model, examples, inference):
    letters, more = np.tile(np.arange(4), 60), 3.0 * (examples == "random")
    loss = np.array([1.0, 2.0, 3.0, 5.0])[letters] + more
    scored = {"loss": np.stack([9 - loss, loss]), "final_energy": letters + 1.0 + more, "target": letters + 97}
    return {**scored, "weight": np.ones(240)}

  table, result = study(uncertainty, losses, "--bins=2")
  assert table[0] == "energy after 11 steps against the model's own loss, 240 held-out tokens, 2 seeds:"
  assert table[1] == "  Pearson 0.983 ± 0.000, Spearman 1.000 ± 0.000"  # 6.5 / sqrt(5 x 8.75)
  assert (
    table[2] == "  easiest tokens (least energy): 'a' 'b' 'c' 'd'" and table[3] == "  hardest tokens: 'd' 'c' 'b' 'a'"
  )
  real, random = "2.500 ± 0.000", "5.500 ± 0.000"
  assert table[4] == f"  mean energy of real text {real}, of random strings {random}; difference 3.000 ± 0.000"
  assert table[6].split() == ["1.50", "4.00"]  # of the half of least energy, and of the other
  assert result["energy_by_token"] == {"'a'": 1.0, "'b'": 2.0, "'c'": 3.0, "'d'": 4.0}
  assert result["real_and_random"][0] == [2.5, 5.5, 2.75, 5.75]


def test_energies_of_a_text_are_those_before_each_step_and_at_the_end():
  class Task:
    def scores(self, params, batch, keys):
      x = batch["tokens"][:, 1:].astype(float)
      return Scores(x[None], jnp.stack([x, x + 1]), x + 2)

  names, heat = uncertainty.on_text(model_of("s2-0", task=Task()), "aéc d and more", 2)
  names, heat = names[:4], heat[:, :4]
  assert names == ["", "é", "c", " "] and heat[0, 0] == "é".encode()[0]
  np.testing.assert_array_equal(heat - heat[0], [[0] * 4, [1] * 4, [2] * 4])


def test_verifier(study, monkeypatch):
  """Of two predictions the surer one is wrong with seed 0, and none with seed 1: risks of 1 and 0, then 1/2 and 0."""

  def collect(model, examples, count):
    wrong = np.array([1.0, 0.0]) * (model.seed == 0)
    return {"wrong": wrong, "loss": np.array([2.0, 1.0]), "entropy": np.array([0.1, 0.2])}

  monkeypatch.setattr(verifier, "collect", collect)
  table, result = study(verifier, lambda *_: None)
  assert result["coverage"][0] == 0.05 and result["coverage"][-1] == 1
  for of_kind in result["risk"].values():
    assert of_kind["entropy"] == [0.5] * 14 + [0.25] * 6  # from three quarters on both are kept
  assert table.count("  accuracy of the thought             0.7500 ± 3.1766") == len(result["risk"]) > 3  # 1/2 and 1


class Around(NamedTuple):
  """A context: as many entries as the landscape study cuts."""

  keys: jax.Array
  values: jax.Array
  positions: jax.Array
  state: None = None


def test_landscape(study, monkeypatch):
  """Of 3 tokens with energies 0, 1 and 2: an even start (1), a thought of 0.1, 0.2 and 0.7 (1.6), the truth (2)."""
  thought = jnp.log(jnp.array([0.1, 0.2, 0.7]))

  class Task:
    space = SimpleNamespace(embed=lambda params, points: points)
    model = SimpleNamespace(
      energies=lambda params, one, y, landscape: (y @ jnp.arange(3.0)) + one.keys[0, 0, 0, 0, 0] + one.positions[0]
    )

    def context(self, params, batch):
      zeros = jnp.zeros((1, 1, 1, 1, 1))
      return Around(zeros, zeros, jnp.arange(9) - 4)  # 0 in the middle of a text of 9 tokens

    def starts(self, params, context, keys, batch):
      return jnp.zeros((1, 1, 9, 3)), keys

    def verified(self, params, batch, keys, observe):
      seen = jnp.broadcast_to(thought, (2, 1, 1, 9, 3))
      return SimpleNamespace(observed=jnp.stack([0 * seen[0], seen[1]]))

  tokens = np.full((1, 10), 2, np.int32)
  monkeypatch.setattr(common, "batches", lambda examples, count, rows: iter([(np.arange(1), {"tokens": tokens})]))
  monkeypatch.setattr(landscape.thinking, "at_landscape", lambda contexts, i: contexts)
  monkeypatch.setattr(landscape.jax, "jit", lambda f: f)
  table, result = study(landscape, lambda *_: None, "--panels=1", "--grid=7", task=Task())
  known, target = r"'\x02\x02\x02\x02\x02'", r"'\x02'"  # the text up to its middle
  assert table == [
    f"{known} -> {target}: energy of the start 1.000, energy of the thought 1.600, energy of the truth 2.000"
  ]
  (panel,) = result["panels"]
  # lines go from -0.25 to 1.25, and the energy is linear here
  assert panel["t"] == pytest.approx([-0.25, 0, 0.25, 0.5, 0.75, 1, 1.25])
  assert panel["to_thought"] == pytest.approx([0.85, 1, 1.15, 1.3, 1.45, 1.6, 1.75], abs=1e-5)
  assert panel["to_truth"] == pytest.approx([1.5, 1.6, 1.7, 1.8, 1.9, 2, 2.1], abs=1e-5)
  assert landscape.spread(np.array([0.0, 1.0]), 3).tolist() == [-0.25, 0.5, 1.25]
  assert landscape.spread(np.array([0.5]), 3) == pytest.approx([0.275, 0.5, 0.725])
