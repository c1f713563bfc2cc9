"""The adapter for EleutherAI's evaluation harness. Its own command line is tried where the package is installed."""

import dataclasses
import importlib
import importlib.util
import json
import os
import subprocess
import sys
import types

import pytest

from ebt_jax.config import ConfigError
from tests.use.test_text_model import CONFIG, model_of


class Base:
  """What the adapter uses of the harness's base class."""

  def __init__(self):
    self.cache_hook = types.SimpleNamespace(add_partial=self.keep)
    self.kept = {}

  def keep(self, attr, args, result):
    self.kept[attr, args] = result


@pytest.fixture
def harness(monkeypatch):
  """The adapter's module on the harness, or on as much of it as it uses."""
  names = ("lm_eval", "lm_eval.api", "lm_eval.api.instance", "lm_eval.api.model", "lm_eval.api.registry")
  modules = {name: types.ModuleType(name) for name in names}
  modules["lm_eval.api.instance"].Instance = types.SimpleNamespace
  modules["lm_eval.api.model"].LM = Base
  modules["lm_eval.api.registry"].register_model = lambda name: lambda cls: cls
  for name, module in modules.items():
    monkeypatch.setitem(sys.modules, name, module)
  monkeypatch.delitem(sys.modules, "ebt_jax.use.harness", raising=False)
  yield importlib.import_module("ebt_jax.use.harness")
  sys.modules.pop("ebt_jax.use.harness", None)


def asked(*several):
  return [types.SimpleNamespace(args=args) for args in several]


def test_the_harness_gets_what_the_model_says(harness):
  model = model_of(dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, kind="transformer")))
  lm = harness.HarnessModel(model=model, device="cpu", batch_size=1)
  pairs = [("Plain by", "tes"), ("", "Plain"), ("of", "")]
  found = lm.loglikelihood(asked(*pairs))
  for pair, (total, greedy) in zip(pairs[:2], found):
    (one,) = model.likelihood([pair])
    assert total == pytest.approx(one.total, rel=1e-5) and greedy == one.likeliest.all()
  assert found[2] == (0.0, True) and len(lm.kept) == 3
  (rolled,) = lm.loglikelihood_rolling(asked(("Plain",)))
  assert rolled == pytest.approx(model.score("Plain").log_likelihood.sum(), abs=1e-5)
  thinker = model_of(CONFIG)
  (rolled,) = harness.HarnessModel(model=thinker, steps=3).loglikelihood_rolling(asked(("Plain",)))
  assert rolled == pytest.approx(thinker.score("Plain", steps=3).log_likelihood.sum(), abs=1e-5)
  text = "Plain bytes and more of them"
  assert lm.loglikelihood_rolling(asked((text,))) == [pytest.approx(model.likelihood([("", text)])[0].total, rel=1e-5)]
  whole = model.generate("Plain", 12, top_k=1).text
  assert lm.generate_until(asked(("Plain", {"max_gen_toks": 12}))) == [whole]
  cut = lm.generate_until(asked(("Plain", {"max_gen_toks": 12, "until": [whole[3:5], whole[1:2], ""]})))
  assert cut == [whole[: min(whole.find(whole[3:5]), whole.find(whole[1:2]))]]
  with pytest.raises(ConfigError, match="expected run=FOLDER"):
    harness.HarnessModel()


@pytest.mark.skipif(not importlib.util.find_spec("lm_eval"), reason="needs the package lm-eval")
def test_the_harness_runs_a_task_of_its_own(tmp_path):
  """On the model that is named by EBT_TEST_RUN, or on one that is trained for some steps."""
  rows = [{"q": "The people of the United", "choices": [" States", " zebra"], "gold": 0}]
  (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
  (tmp_path / "t.yaml").write_text(
    f"task: own_choice\ndataset_path: json\ndataset_kwargs: {{data_files: {{test: {tmp_path}/t.jsonl}}}}\n"
    'output_type: multiple_choice\ntest_split: test\ndoc_to_text: "{{q}}"\ndoc_to_choice: "{{choices}}"\n'
    'doc_to_target: "{{gold}}"\nmetric_list: [{metric: acc}]\n'
  )
  run = [sys.executable, "-m", "ebt_jax.main", "--config=configs/quickstart.py", f"--workdir={tmp_path}/run"]
  short = [
    "--config.train.steps=2",
    "--config.train.warmup=1",
    "--config.eval.max_windows=8",
    "--config.sample.tokens=0",
  ]
  subprocess.run([*run, *short], check=True, capture_output=True)
  command = ["run", "--model", "ebt_jax", "--model_args", f"run={tmp_path}/run,steps=2", "--tasks", "own_choice"]
  done = subprocess.run(
    [sys.executable, "-m", "ebt_jax.use.lm_eval", *command, "--include_path", str(tmp_path)],
    capture_output=True, text=True, env={**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
  )  # fmt: skip
  assert done.returncode == 0 and "own_choice" in done.stdout, done.stderr[-2000:]
