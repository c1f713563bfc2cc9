"""The config: every mistake names its key and the fix; what is written can be read again."""

import dataclasses
import json

import pytest

from ebt_jax import config as config_lib
from ebt_jax.config import Config, ConfigError, resolve


def nested(changes: dict) -> dict:
  """{"model.width": 32} as {"model": {"width": 32}}."""
  out = {}
  for key, value in changes.items():
    *groups, name = key.split(".")
    at = out
    for group in groups:
      at = at.setdefault(group, {})
    at[name] = value
  return out


BAD = [
  ({"thinking.step_sise": 5.0}, "config.thinking.step_sise: no such key; did you mean step_size"),
  ({"thinkin.steps": 2}, "config.thinkin: no such key; did you mean thinking"),
  ({"model": 3}, "config.model: expected a group of keys, found 3"),
  ({"train.steps": "10"}, "config.train.steps: expected int, found '10' (str)"),
  ({"train.steps": 10.0}, "config.train.steps: expected int, found 10.0 (float)"),
  ({"train.steps": True}, "config.train.steps: expected int, found True (bool)"),
  ({"thinking.step_size": True}, "config.thinking.step_size: expected float, found True (bool)"),
  ({"thinking.learn_step_size": 1}, "config.thinking.learn_step_size: expected bool, found 1 (int)"),
  ({"thinking.step_size": float("nan")}, "config.thinking.step_size: expected a finite number, found nan"),
  ({"thinking.step_size": 0.0}, "config.thinking.step_size: expected more than 0, found 0.0"),
  ({"thinking.steps": 0}, "config.thinking.steps: expected more than 0, found 0"),
  ({"thinking.random_step_size": 0.5}, "random_step_size: expected at least 1.0 (1 is off), found 0.5"),
  ({"thinking.random_steps_min": 3}, "allow (2); raise thinking.steps"),
  ({"thinking.random_steps_min": 2, "thinking.landscapes": 2}, "allow (1); raise thinking.steps"),
  ({"thinking.landscapes": 3}, "config.thinking.landscapes: 3 landscapes need at least as many steps, found steps=2"),
  ({"thinking.gradient": "lsat"}, "config.thinking.gradient: no choice 'lsat'; did you mean last?"),
  ({"thinking.authors.contrastive": 1.0, "thinking.authors.normalize": "never"}, "set thinking.authors.normalize"),
  ({"model.embedder": "tied", "thinking.authors.normalize": "never"}, "set thinking.authors.normalize"),
  ({"model.size": "smal"}, "config.model.size: no size 'smal'; did you mean small"),
  ({"model.size": ""}, "or set layers, heads and width"),
  ({"model.width": 30, "model.heads": 4}, "config.model.width: 30 must divide by heads (4) into an even head width"),
  ({"model.width": 12, "model.heads": 4}, "the nearest width is 16"),  # head width 3: rotary pairs do not fit
  ({"model.ffn_multiplier": 0.001}, "config.model.ffn_multiplier: 0.001 leaves no hidden unit"),
  ({"train.microbatches": 3}, "config.train.microbatches: batch_size 32 does not divide into 3 equal parts"),
  ({"train.warmup": 1000}, "config.train.warmup: 1000 steps leave nothing of the schedule's 1000; lower it"),
  ({"train.beta2": 1.0}, "config.train.beta2: expected 0 <= x < 1, found 1.0"),
  ({"data.held_out": 0.0}, "config.data.held_out: expected a fraction between 0 and 1, found 0.0"),
  ({"mesh.replica": -1}, "config.mesh: only one axis may be -1"),
  ({"mesh.model": 0}, "config.mesh.model: expected a number of devices or -1"),
  ({"eval.choose": "lowest"}, "config.eval.choose: no choice 'lowest'"),
  ({"thinking.replay_rows": 4}, "config.thinking.replay_rows: 4 kept, and 16 drawn for each batch"),
  ({"thinking.explore": 2, "thinking.start": "zeros"}, "config.thinking.explore: 2 starts have to differ"),
  ({"thinking.explore": 2, "thinking.start_scale": 0.0}, "set thinking.start=noise and start_scale above 0"),
  (
    {"thinking.explore": 2, "thinking.replay_rows": 16},
    "replayed thoughts have one; set thinking.replay_rows to 0",
  ),
  ({"thinking.explore": 2, "model.kind": "transformer"}, "model.kind=transformer has none; set it to 1"),
  ({"thinking.contrast_of": "two"}, "config.thinking.contrast_of: no choice 'two'; known: each, pair"),
  ({"eval.candidates": 0}, "config.eval.candidates: expected more than 0, found 0"),
  ({"eval.candidates": 2, "model.kind": "transformer"}, "which model.kind=transformer has not; set it to 1"),
  ({"eval.candidates": 2, "thinking.start": "zeros"}, "start alike end alike; set thinking.start='noise'"),
  ({"model.attention": "flash"}, "config.model.attention: no choice 'flash'; known: fused, plain"),
  ({"checkpoint.keep": 0}, "config.checkpoint.keep: expected more than 0, found 0"),
]


@pytest.mark.parametrize("changes, words", BAD, ids=[",".join(f"{k}={v}" for k, v in c.items()) for c, _ in BAD])
def test_a_mistake_names_its_key_and_the_fix(changes, words):
  with pytest.raises(ConfigError) as e:
    resolve(nested(changes))
  assert words in str(e.value)


def test_the_most_that_is_possible_is_allowed():
  """Each value is the last one before an error of `BAD`."""
  c = resolve(nested({"thinking.random_steps_min": 2, "thinking.steps": 3, "thinking.landscapes": 2,
                      "train.steps": 1, "train.warmup": 0, "train.microbatches": 32}))  # fmt: skip
  assert (c.thinking.random_steps_min, c.train.microbatches) == (2, 32)


def test_integers_stand_for_floats_and_sizes_for_shapes():
  c = resolve(nested({"thinking.step_size": 5, "model.size": "small", "model.layers": 3}))
  assert type(c.thinking.step_size) is float
  assert (c.model.layers, c.model.heads, c.model.width, c.model.head_dim) == (3, 12, 768, 64)


def test_round_trip(tmp_path):
  config = resolve(nested({"model.size": "xxs", "thinking.step_size": 0.1, "mesh.data": 4, "seed": 7}))
  assert resolve(config.to_dict()) == resolve(config) == config
  path = tmp_path / "config.json"
  path.write_text(json.dumps(config.to_dict()), encoding="utf-8")
  assert config_lib.load(path) == config
  path.write_text(json.dumps(config.to_dict()), encoding="utf-8-sig")  # as an editor on Windows saves it
  assert config_lib.load(path) == config
  path.write_text("{", encoding="utf-8")
  for bad in (path, tmp_path / "none.json"):
    with pytest.raises(ConfigError, match=f"{bad.name}: cannot be read as a config"):
      config_lib.load(bad)


def test_a_config_file_starts_from_the_defaults():
  defaults = config_lib.defaults()
  assert resolve(defaults) == resolve({})
  defaults.thinking.update(step_sise=3.0)  # ml_collections lets a file do that
  with pytest.raises(ConfigError, match="did you mean step_size"):
    resolve(defaults)


def other(value):
  """Another value of the same type, not always a valid one."""
  return not value if isinstance(value, bool) else value + "x" if isinstance(value, str) else value + 1


def test_a_resumed_run_may_change_what_does_not_change_training_and_nothing_else():
  base, free = Config(), set()
  for key in config_lib.keys():
    *groups, name = key.split(".")[1:]
    parts = [base]
    for group in groups:
      parts.append(getattr(parts[-1], group))
    changed = dataclasses.replace(parts[-1], **{name: other(getattr(parts[-1], name))})
    for group, part in zip(reversed(groups), reversed(parts[:-1])):
      changed = dataclasses.replace(part, **{group: changed})
    key = key.removeprefix("config.")
    found = config_lib.differences(base, changed)
    if found:
      assert len(found) == 1 and found[0].startswith(f"{key}: ") and " -> " in found[0]
    else:
      free.add(key)
  assert free == {
      "mesh.replica", "mesh.data", "mesh.model",
      "checkpoint.every", "checkpoint.minutes", "checkpoint.keep", "checkpoint.keep_every",
      "eval.every", "eval.batch_size", "eval.max_windows", "eval.steps", "eval.candidates",
      "eval.seed", "eval.steps_of", "eval.tolerance", "eval.choose", "eval.accept", "eval.step_size_factor",
      "eval.noise", "eval.adjust",
      "sample.tokens", "sample.pictures", "sample.noised", "sample.prompt_tokens", "sample.temperature",
      "sample.given_frames", "sample.frames",
      "train.log_every", "train.health_every", "train.max_bad_steps", "model.remat", "model.vocab_chunk",
      "model.attention", "model.attention_block",
  }  # fmt: skip


def test_a_finished_schedule_may_be_given_more_steps():
  """Where the learning rate does not depend on how many there are."""

  def more(**train):
    base = resolve({"train": {"steps": 300, **train}})
    return config_lib.differences(base, resolve({"train": {"steps": 400, **train}}))

  assert more() == ["train.steps: 300 -> 400"] and not more(schedule="constant") and not more(schedule_steps=500)


def test_runs_with_options_that_were_taken_out_load_where_these_were_off(tmp_path):
  path, values = tmp_path / "config.json", Config().to_dict()
  values["model"] |= {"answer_layers": 0, "residual_drop": 0.0}
  path.write_text(json.dumps(values))
  assert config_lib.load(path) == resolve(Config().to_dict())
  values["model"]["residual_drop"] = 0.5
  path.write_text(json.dumps(values))
  with pytest.raises(ConfigError, match="config.model.residual_drop is 0.5, which this version no longer has"):
    config_lib.load(path)


def test_moved_keys_say_where_they_are_and_old_runs_load(tmp_path):
  with pytest.raises(ConfigError, match="config.thinking.normalize: is now config.thinking.authors.normalize"):
    resolve({"thinking": {"normalize": "first"}})
  path = tmp_path / "config.json"
  path.write_text(json.dumps({"thinking": {"clip_gradient": 0.5, "steps": 3}}), encoding="utf-8")
  loaded = config_lib.load(path).thinking
  assert (loaded.authors.clip_gradient, loaded.steps) == (0.5, 3)


def test_keys_are_set_by_strings_of_their_own_type():
  set_keys = config_lib.set_keys
  c = set_keys(resolve({}), ["eval.steps=6", "thinking.learn_step_size=false", "config.eval.tolerance=1", "task=a.b:c"])
  assert (c.eval.steps, c.thinking.learn_step_size, c.eval.tolerance, c.task) == (6, False, 1.0, "a.b:c")
  for text, words in {
    "eval.stesp=6": "no such key; did you mean eval.steps",
    "eval.steps": "expected KEY=VALUE",
    "eval.steps=many": "--set eval.steps: expected int, found 'many' (str)",
    "eval.steps=-1": "config.eval.steps: expected at least 0, found -1",
    "thinking.sharpen=2": "thinking.sharpen is now thinking.authors.sharpen",
  }.items():
    with pytest.raises(ConfigError) as e:
      set_keys(resolve({}), [text])
    assert words in str(e.value)
