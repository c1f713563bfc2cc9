"""Checkpoints by the authors' names become folders that every mode reads; pickles that call anything are refused."""

import argparse
import collections
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ebt_jax
from ebt_jax import runs, weights
from ebt_jax.config import ConfigError
from ebt_jax.interop import reference
from ebt_jax.tasks import registry
from ebt_jax.use import authors
from tests.helpers import run, write_corpus
from tests.test_torch_file import Runs, write_checkpoint

WIDTH, LAYERS, VOCAB = 16, 2, 257
OPTIONS = {"multiheaded_attention_heads": 2, "context_length": 16, "ebt_type": "default"}
GOLDEN = os.environ.get("EBT_GOLDEN_DIR", "")


def theirs():
  """A Transformer++ with random weights, by their names and in their layout, `[out, in]`."""
  rng = np.random.default_rng(0)

  def normal(*shape):
    return rng.normal(size=shape).astype(np.float32) * 0.1

  arrays = {"embeddings.weight": normal(VOCAB, WIDTH), "output.weight": normal(VOCAB, WIDTH)}
  arrays["transformer.norm.weight"] = 1 + normal(WIDTH)
  for i in range(LAYERS):
    at = f"transformer.layers.{i}."
    arrays |= {f"{at}attention.{n}.weight": normal(WIDTH, WIDTH) for n in ("wq", "wk", "wv", "wo")}
    arrays |= {f"{at}feed_forward.{n}.weight": normal(WIDTH, WIDTH) for n in ("w1", "w2", "w3")}
    arrays |= {f"{at}{n}_norm.weight": 1 + normal(WIDTH) for n in ("attention", "ffn")}
  return arrays


def checkpoint_of(arrays, options, path):
  """As their trainer saves it."""
  state = collections.OrderedDict((f"model.{name}", np.asarray(a, order="C")) for name, a in arrays.items())
  content = {"epoch": 1, "state_dict": state, "hyper_parameters": argparse.Namespace(**options)}
  write_checkpoint(path, {**content, "optimizer_states": [{"state": {0: {"exp_avg": np.ones(3, np.float32)}}}]})


def test_a_checkpoint_becomes_a_model(tmp_path):
  arrays, out = theirs(), tmp_path / "model"
  checkpoint_of(arrays, OPTIONS, tmp_path / "theirs.ckpt")
  corpus = write_corpus(tmp_path)
  flags = ["--mode=import", f"--from={tmp_path}/theirs.ckpt", f"--out={out}"]
  done = run([*flags, "--set", f"data.source={corpus}", "data.held_out=0.1"])
  assert done.code == 0 and "task text, transformer default, 2 layers of width 16" in done.out, done.err
  opened = runs.open_run(out)
  assert (opened.step, opened.config.model.kind, opened.config.data.context_length) == (0, "transformer", 16)
  model = opened.params["model"]
  np.testing.assert_array_equal(model["output"]["kernel"], arrays["output.weight"].T)
  np.testing.assert_array_equal(
    model["layers"]["attention"]["v"]["kernel"][1], arrays["transformer.layers.1.attention.wv.weight"].T
  )
  assert len(ebt_jax.load(out).generate("of", 4).tokens) == 4
  np.savez(tmp_path / "theirs.npz", **{f"param/{n}": a for n, a in arrays.items()})
  (tmp_path / "options.json").write_text(json.dumps(OPTIONS))
  authors.import_model(f"{tmp_path}/theirs.npz", f"{tmp_path}/again", f"{tmp_path}/options.json")
  same = runs.open_run(tmp_path / "again").params
  jax.tree.map(np.testing.assert_array_equal, opened.params, same)
  with pytest.raises(ConfigError, match="--out: .* exists already"):
    authors.import_model(f"{tmp_path}/theirs.ckpt", str(out))
  with pytest.raises(ConfigError, match="--options: 'multiheaded_attention_heads' is missing"):
    authors.import_model(f"{tmp_path}/theirs.npz", f"{tmp_path}/other")
  arrays.pop("transformer.norm.weight")
  np.savez(tmp_path / "less.npz", **arrays)
  with pytest.raises(ConfigError, match="--from: the parameters do not fit the model.*model/norm/scale"):
    authors.import_model(f"{tmp_path}/less.npz", f"{tmp_path}/other", f"{tmp_path}/options.json")
  assert not (tmp_path / "other").exists()


def test_their_video_weights_become_a_model_on_given_features(tmp_path):
  arrays = {n: a for n, a in theirs().items() if n != "embeddings.weight"}
  arrays["output.weight"] = arrays["output.weight"][:WIDTH]
  arrays |= {f"encoder_{n}_projection.weight": np.ones(s, np.float32) for n, s in
             (("down", (WIDTH, 40)), ("up", (40, WIDTH)))}  # fmt: skip
  arrays["encoder_down_projection.bias"], arrays["encoder_up_projection.bias"] = (
    np.zeros(n, np.float32) for n in (WIDTH, 40)
  )
  arrays["image_encoder.conv.weight"] = np.zeros(3, np.float32)
  checkpoint_of(arrays, OPTIONS, tmp_path / "theirs.ckpt")
  authors.import_model(f"{tmp_path}/theirs.ckpt", f"{tmp_path}/model")
  opened = runs.open_run(tmp_path / "model")
  assert (opened.config.task, opened.config.video.frame_shape) == ("video", (40,))
  assert opened.params["model"]["frame_out"]["kernel"].shape == (WIDTH, 40)


@pytest.mark.skipif(not GOLDEN, reason="EBT_GOLDEN_DIR names no folder")
@pytest.mark.parametrize("name", ["text_baseline", "text_time_embed_s2_det3", "img_ebt_s1_a5", "img_dit_n01"])
def test_models_of_theirs_are_those_that_agree_with_their_numbers(name, tmp_path):
  """The folder's answers equal those of the parameters that the golden tests compare."""
  with np.load(f"{GOLDEN}/{name}.npz") as z:
    arrays = {n.removeprefix("param/"): z[n] for n in z.files if n.startswith("param/")}
    options = json.loads(str(z["meta"]))["hparams"]
  arrays = {n: a.astype(np.float32) for n, a in arrays.items()}
  options.setdefault("context_length", 12)
  checkpoint_of(arrays, options, tmp_path / "theirs.ckpt")
  more = ["data.tokenizer=there/is/none.json"] if name.startswith("text") else []
  config = authors.import_model(f"{tmp_path}/theirs.ckpt", f"{tmp_path}/model", keys=more)
  wanted_config, params = reference.config_of(arrays, **options)
  assert (config.model, config.thinking) == (wanted_config.model, wanted_config.thinking)
  if more:  # a vocabulary of 61 has no tokenizer here: compare what is in the file
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(np.shape(a), np.float32, sharding=here), params)
    found = weights.read(tmp_path / "model", abstract)[1]
    jax.tree.map(np.testing.assert_array_equal, found, jax.tree.map(np.float32, params))
    return
  task, size = registry.make(config), config.image.size
  params = jax.tree.map(jnp.float32, params)
  pixels = np.random.default_rng(0).integers(0, 256, (2, size, size, config.image.channels), dtype=np.uint8)
  model = ebt_jax.load(tmp_path / "model")
  jax.tree.map(np.testing.assert_array_equal, model._run.params, params)
  found = model.denoise(pixels)
  assert np.isfinite(found.steps).all() and found.steps.shape[0] == task.eval_steps


def test_a_pickle_that_calls_something_is_refused(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  write_checkpoint(tmp_path / "bad.ckpt", {"state_dict": {"a": np.ones(2, np.float32)}, "more": Runs(os.system, "ls")})
  with pytest.raises(ConfigError, match=r"^--from: \S+bad.ckpt: names \w+\.system, .*--options"):
    authors.read_weights(tmp_path / "bad.ckpt")
