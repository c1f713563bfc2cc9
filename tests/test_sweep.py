"""The algebra of sweeps, the names of runs, and that a run's flags and its resolved config say the same."""

import pytest

from ebt_jax.config import ConfigError
from ebt_jax.sweep import Run, Variant, apply, chain, grid, named, product, read_config, runs, unique

QUICK = "configs/quickstart.py"
SEEDS = grid({"seed": [0, 1]})
WIDTHS = grid({"model.width": [64, 128]})


def values(sweep):
  return [dict(v.values) for v in sweep]


def test_algebra():
  assert values(grid({"a": [1, 2], "b": [3, 4]})) == [{"a": i, "b": j} for i in (1, 2) for j in (3, 4)]
  assert product(SEEDS, product(WIDTHS, grid({"c": [1]}))) == product(product(SEEDS, WIDTHS), grid({"c": [1]}))
  assert product() == [Variant({}, "")] and product(SEEDS, product()) == SEEDS and product(SEEDS, []) == []
  assert chain(SEEDS, SEEDS, WIDTHS) == SEEDS + WIDTHS  # each once
  assert product(chain(SEEDS, grid({"seed": [5]})), WIDTHS) == product(SEEDS, WIDTHS) + product(
    grid({"seed": [5]}), WIDTHS
  )
  with pytest.raises(ConfigError, match="two sweeps set seed"):
    product(SEEDS, WIDTHS, SEEDS)


def test_names_are_stable_and_safe():
  few = runs(QUICK, product(WIDTHS, SEEDS), series="ebt")
  assert few[1].name == "ebt,model.width=64,seed=1"
  more = runs(QUICK, product(grid({"model.width": [32, 64, 128]}), SEEDS), base={"train.steps": 9}, series="ebt")
  assert {r.name for r in few} < {r.name for r in more}  # neither other runs nor the base change a name
  assert runs(QUICK, grid({"a": [2], "b": [1e-3]}))[0].name == "a=2,b=0.001"
  assert runs(QUICK, [Variant({}, "")])[0].name == "run"
  odd = [r.name for r in runs(QUICK, grid({"data.source": ["x/*.txt", "x/?.txt", "y" * 200, "y" * 201]}))]
  assert len(set(odd)) == 4 and all(len(n) < 140 and not set(n) & set("/*? :") for n in odd)


def test_one_name_for_two_runs_is_an_error():
  small = named({"small": {"model.width": 64, "model.heads": 1}})
  (run,) = runs(QUICK, small, seeds=[0])
  assert run == Run("small,seed=0", QUICK, {"model.width": 64, "model.heads": 1, "seed": 0}, level="small")
  with pytest.raises(ConfigError, match="'small,seed=0' differ in model.heads, train.steps"):
    other = named({"small": {"model.width": 64, "model.heads": 2}})
    unique([*runs(QUICK, small, seeds=[0, 1]), *runs(QUICK, other, {"train.steps": 7}, seeds=[0, 1])])


def test_seeds_share_a_level_whatever_the_name():
  """Names may be cut and get a digest; series and level are fields."""
  wide = named({"w" * 200: {"model.width": 64}})
  found = [r for series in ("ebt", "my model") for r in runs(QUICK, wide, series=series, seeds=[0, 1])]
  assert {r.level for r in found} == {"w" * 200} and len({r.name for r in found}) == 4
  assert [(r.series, r.overrides["seed"]) for r in found] == [("ebt", 0), ("ebt", 1), ("my model", 0), ("my model", 1)]
  assert runs(QUICK, WIDTHS, seeds=[0, 1]) == [
    Run(r.name, QUICK, r.overrides, level=f"model.width={r.overrides['model.width']}")
    for r in runs(QUICK, product(WIDTHS, SEEDS))
  ]
  with pytest.raises(ConfigError, match="two sweeps set seed"):
    runs(QUICK, SEEDS, seeds=[0])
  with pytest.raises(ConfigError, match="'a,b,c' differ in level, series"):
    unique([*runs(QUICK, named({"b,c": {}}), series="a"), *runs(QUICK, named({"c": {}}), series="a,b")])


def test_a_run_resolves_to_what_its_flags_say():
  (run,) = runs(f"{QUICK}:transformer", grid({"model.width": [64], "train.learning_rate": [1e-3]}), {"train.steps": 90})
  config = run.resolve()
  m, t = config.model, config.train
  assert (m.kind, m.width, t.steps, t.learning_rate) == ("transformer", 64, 90, 1e-3)
  keys = ["--config.train.steps=90", "--config.model.width=64", "--config.train.learning_rate=0.001"]
  assert run.flags() == ["--config=configs/quickstart.py:transformer", *keys]


def test_a_config_file_from_anywhere(tmp_path):
  path = tmp_path / "mine.py"
  path.write_text(
    "from configs import quickstart\ndef get_config():\n  c = quickstart.get_config()\n  c.seed = 7\n  return c\n"
  )
  assert Run("r", str(path), {"train.steps": 90}).resolve().seed == 7


@pytest.mark.parametrize(
  "config, overrides, message",
  [
    (QUICK, {"model.widht": 64}, r"run r: config.model.widht: no such key; did you mean config.model.width"),
    (QUICK, {"seed.x": 1}, r"config.seed.x: no such key"),
    (QUICK, {"train.steps": "many"}, r"run r: config.train.steps: expected int, found 'many'"),
    ("nowhere.py:a", {}, r"no file 'nowhere.py' in .*; expected FILE.py or FILE.py:arg"),
    ("configs/text_transformer.py:big", {}, r"text_transformer.py:big: ValueError: no recipe for size 'big'"),
  ],
)
def test_mistakes_are_named(config, overrides, message):
  with pytest.raises(ConfigError, match=message):
    Run("r", config, overrides).resolve()


def test_apply_leaves_other_keys_alone():
  before, after = read_config(QUICK).to_dict(), apply(read_config(QUICK), {"thinking.steps": 5}).to_dict()
  assert after["thinking"].pop("steps") == 5 and before["thinking"].pop("steps") == 1 and before == after
