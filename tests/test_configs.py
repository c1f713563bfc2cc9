"""Every file in `configs/`, with every argument: it traces, counts its parameters, and says what the paper says."""

import importlib
import json
import pathlib
import re

import jax
import pytest

from ebt_jax import runs
from ebt_jax.config import SIZES, resolve
from ebt_jax.tasks import registry
from ebt_jax.training import inspect

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
ARGUMENTS = {"infill": ["", "ebt", "transformer", "diffusion"],
             "quickstart": ["", "ebt", "paper", "transformer"], "bundled": ["", "ebt", "transformer"],
             "text_transformer": ["", *SIZES],
             "text_rnn": ["", "xxs,lstm", *SIZES],
             "text_ebt_s1": ["", *SIZES], "text_ebt_s2": ["", "laptop", *SIZES],
             "text_ebt_residual": ["", "laptop", *SIZES],
             "video_ebt": ["", "shapes", "residual", "futures", "paper"],
             "video_transformer": ["", "shapes", "rnn", "paper"],
             "image_ebt": ["", "laptop", "residual", "cifar", "paper"],
             "image_dit": ["", "laptop", "flow", "authors", "cifar", "paper"],
             "sudoku": ["", *(f"{size}{kind}" for size in ("4x4", "6x6", "9x9") for kind in
                              ("", ",ebt", ",judge", ",feedforward", ",looped", ",recursive", ",ired"))]}  # fmt: skip
LEARNING_RATES = {"xxs": 1.2e-3, "xs": 9e-4, "small": 6e-4, "medium": 3e-4, "large": 2.5e-4, "xl": 2e-4}
TRACED = [
  ("quickstart", "ebt"),
  ("quickstart", "transformer"),
  ("text_ebt_s2", "laptop"),
  ("text_ebt_s2", "xxs"),
  ("text_ebt_residual", "laptop"),
  ("text_ebt_residual", "xxs"),
]  # fmt: skip
TRACED += [(name, "xxs") for name in ("text_ebt_s1", "text_transformer", "text_rnn")] + [("text_transformer", "xl")]
LARGE = [("text_ebt_s1", "small"), ("text_ebt_s1", "xl")]


def config_of(name: str, argument: str):
  return resolve(importlib.import_module(f"configs.{name}").get_config(argument))


def test_every_file_and_argument_is_a_config():
  assert {p.stem for p in CONFIGS.glob("*.py")} == {*ARGUMENTS, "finetune"}
  for name, arguments in ARGUMENTS.items():
    configs = {argument: config_of(name, argument) for argument in arguments}
    assert configs[""] in [configs[a] for a in arguments[1:]]  # the default is one of those with a name
  with pytest.raises(ValueError, match="no recipe for size 'big'; known: 4xs, 3xs, xxs"):
    config_of("text_ebt_s1", "big")
  with pytest.raises(ValueError, match="no cell 'gru'; known: lstm"):
    config_of("text_rnn", "xxs,gru")
  with pytest.raises(ValueError, match="no Sudoku '4x4,mlp'; known: 4x4, 6x6, 9x9"):
    config_of("sudoku", "4x4,mlp")


def test_fine_tuning_goes_on_with_a_run(tmp_path):
  with pytest.raises(ValueError, match="name the run to start from"):
    config_of("finetune", "")
  before = config_of("quickstart", "ebt")
  (tmp_path / "config.json").write_text(json.dumps(before.to_dict()))
  (tmp_path / "tokenizer.json").write_text("{}")
  found = config_of("finetune", str(tmp_path))
  assert (found.init_from, found.model, found.thinking) == (str(tmp_path), before.model, before.thinking)
  assert found.data.tokenizer == str(tmp_path / "tokenizer.json") and found.data.layout == "document"
  assert found.train.learning_rate == pytest.approx(before.train.learning_rate / 10)


def parameters(c) -> tuple[int, int]:
  """All, and those in no vocabulary table; from the architecture's description alone."""
  vocab, width, layers = c.model.vocab_size or 257, c.model.width, c.model.layers
  inner = layers * (7 * width**2 + 2 * width) + width  # attention 4, gated FFN 3, two norms; the last norm
  if c.model.kind == "rnn":  # in place of attention: three projections, two gates of two blocks; and vectors
    inner += 8 * layers * width  # convolution 4, its bias, those of the gates, decay
  if c.model.kind == "ebt":
    inner += width + 2  # energy head; step size and noise
    inner += c.thinking.landscapes * width * (c.model.variant == "time_embed")
    inner += width * c.model.residual  # the norm of the context's state
  return inner + 2 * vocab * width, inner


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ["text_ebt_s1", "text_transformer", "text_rnn"])
def test_parameters(name, size):
  task = registry.make(config_of(name, size))
  found = jax.eval_shape(task.init, jax.random.key(0))
  assert runs.count_parameters(task, found) == parameters(task.config)


@pytest.mark.parametrize("name, argument", [*TRACED, *(pytest.param(*c, marks=pytest.mark.slow) for c in LARGE)])
def test_shapes(name, argument):
  config = config_of(name, argument)
  total, inner = parameters(config)
  table = inspect.shapes(config)
  assert f"\n{total:,} parameters, {inner:,} of them in blocks" in table
  assert sum(int(n.replace(",", "")) for n in re.findall(r"float32 +([\d,]+)$", table, re.M)) == total


@pytest.mark.parametrize("size", LEARNING_RATES)
def test_hyper_parameters_of_the_paper(size):
  ebt, transformer = config_of("text_ebt_s1", size), config_of("text_transformer", size)
  for c in (ebt, transformer):
    t = c.train
    assert (t.learning_rate, t.warmup, t.schedule_steps) == (LEARNING_RATES[size], 10_000, 1_000_000)
    assert (t.schedule, t.final_ratio, t.beta1, t.beta2, t.weight_decay, t.clip) == ("cosine", 0.1, 0.9, 0.999, 0.01, 1)
    assert (c.model.layers, c.model.heads, c.model.width) == SIZES[size] and c.model.ffn_multiplier == 1
    assert (c.data.context_length, c.data.layout, c.model.vocab_size) == (256, "document", 50277)
  assert ebt.train == transformer.train and ebt.data == transformer.data  # only model and thinking differ
  t = ebt.thinking
  assert (t.steps, t.landscapes, t.step_size, t.step_size_lr_multiplier) == (2, 2, 500, 1500)
  assert t.learn_step_size and t.gradient == "each" and t.random_steps_min == 0 and t.random_step_size == 1
  assert (ebt.model.kind, ebt.model.variant, transformer.model.kind) == ("ebt", "time_embed", "transformer")


def test_system_2_of_the_paper():
  c = config_of("text_ebt_s2", "xxs")
  t = c.thinking
  assert (t.landscapes, t.steps, t.random_steps_min, t.random_step_size, t.step_size) == (1, 3, 2, 2, 5)
  assert (t.noise, t.replay_rows, t.replay_fraction, t.gradient, t.learn_step_size) == (3, 192, 0.5, "last", False)
  assert (c.train.batch_size, c.train.steps, c.train.learning_rate) == (128, 1_000_000, 1.2e-3)
  assert (c.model.variant, c.data.context_length, c.model.vocab_size, c.data.layout) == (
    "time_embed",
    256,
    50277,
    "document",
  )
  row_gb = 4 * (256 * 50277 + 257 + 256) / 1e9
  assert t.replay_gb > t.replay_rows * row_gb  # none is left out


def test_hyper_parameters_of_the_papers_video():
  ebt, transformer = config_of("video_ebt", "paper"), config_of("video_transformer", "paper")
  assert ebt.data == transformer.data and ebt.video == transformer.video
  assert (ebt.video.width, ebt.video.features, ebt.data.context_length) == (3136, "given", 15)
  t = ebt.thinking
  assert (t.steps, t.landscapes, t.step_size, t.step_size_lr_multiplier, t.start) == (2, 2, 30_000, 90_000, "noise")
  assert t.authors.noise_embedding and ebt.model.variant == "time_embed" and ebt.model.layers == SIZES["xxs"][0]
  assert (ebt.train.batch_size, ebt.train.learning_rate, transformer.train.learning_rate) == (256, 4e-4, 1.2e-3)
  laptops = [config_of("video_ebt", arg) for arg in ("", "residual")] + [config_of("video_transformer", "rnn")]
  assert len({(c.train.steps, c.train.batch_size, c.video, c.data) for c in laptops}) == 1


def test_sizes_of_the_paper():
  assert SIZES["xxs"] == (6, 6, 384) and SIZES["small"] == (12, 12, 768) and SIZES["xl"] == (24, 32, 2048)


def test_pictures_of_the_paper():
  ebt, dit = config_of("image_ebt", "paper"), config_of("image_dit", "paper")
  assert ebt.data == dit.data and ebt.image == dit.image
  assert (ebt.image.size, ebt.image.patch, ebt.image.noise_level, ebt.image.diffusion_steps) == (128, 16, 0.1, 1000)
  assert (ebt.image.train_levels, ebt.image.more_levels, ebt.model.width) == ("authors", [0.2], SIZES["large"][2])
  t = ebt.thinking
  assert (t.steps, t.step_size, t.step_size_lr_multiplier, t.learn_step_size, t.start) == (1, 3000, 9000, True, "input")
  for c, decay in ((ebt, 0.01), (dit, 0.0)):
    assert (c.train.learning_rate, c.train.batch_size, c.train.steps) == (1e-4, 128, 100_000)
    assert (c.train.weight_decay, c.train.warmup, c.train.schedule_steps) == (decay, 10_000, 1_000_000)
  laptops = [
    config_of(name, arg) for name, arg in (("image_ebt", ""), ("image_ebt", "residual"), ("image_dit", "flow"))
  ]
  assert all(c.train == config_of("image_dit", "").train and c.image == laptops[0].image for c in laptops)
