"""Weights by the authors' names become a run that evaluates."""

import json

import numpy as np
import pytest

from ebt_jax import runs
from ebt_jax.config import ConfigError
from tests.helpers import run, write_corpus
from tools import import_authors

WIDTH, LAYERS, VOCAB = 16, 2, 257
OPTIONS = {"multiheaded_attention_heads": 2, "context_length": 16, "ebt_type": "default"}


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


def test_their_weights_become_a_run(tmp_path):
  arrays = theirs()
  np.savez(tmp_path / "theirs.npz", **arrays)
  (tmp_path / "options.json").write_text(json.dumps(OPTIONS))
  corpus, out = write_corpus(tmp_path), tmp_path / "run"
  flags = [f"--weights={tmp_path}/theirs.npz", f"--options={tmp_path}/options.json", f"--out={out}"]
  import_authors.main([*flags, "--set", f"data.source={corpus}", "data.held_out=0.1"])
  opened = runs.open_run(out)
  assert (opened.step, opened.config.model.kind, opened.config.data.context_length) == (0, "transformer", 16)
  model = opened.params["model"]
  np.testing.assert_array_equal(model["output"]["kernel"], arrays["output.weight"].T)
  np.testing.assert_array_equal(
    model["layers"]["attention"]["v"]["kernel"][1], arrays["transformer.layers.1.attention.wv.weight"].T
  )
  done = run([f"--workdir={out}", "--mode=eval"])
  assert done.code == 0 and "checkpoint 0, held_out" in done.out, done.err
  with pytest.raises(ConfigError, match="holds a run already"):
    import_authors.main(flags)
  with pytest.raises(ConfigError, match="--options: 'multiheaded_attention_heads' is missing"):
    import_authors.main([flags[0], f"--out={tmp_path}/other"])


def test_their_video_weights_become_a_run_on_given_features(tmp_path):
  arrays = {n: a for n, a in theirs().items() if n != "embeddings.weight"}
  arrays["output.weight"] = arrays["output.weight"][:WIDTH]
  arrays |= {f"encoder_{n}_projection.weight": np.ones(s, np.float32) for n, s in
             (("down", (WIDTH, 40)), ("up", (40, WIDTH)))}  # fmt: skip
  arrays["encoder_down_projection.bias"], arrays["encoder_up_projection.bias"] = np.zeros(WIDTH), np.zeros(40)
  arrays["image_encoder.conv.weight"] = np.zeros(3)
  np.savez(tmp_path / "theirs.npz", **arrays)
  (tmp_path / "options.json").write_text(json.dumps(OPTIONS))
  import_authors.main(
    [f"--weights={tmp_path}/theirs.npz", f"--options={tmp_path}/options.json", f"--out={tmp_path}/run"]
  )
  opened = runs.open_run(tmp_path / "run")
  assert (opened.config.task, opened.config.video.frame_shape) == ("video", (40,))
  assert opened.params["model"]["frame_out"]["kernel"].shape == (WIDTH, 40)
