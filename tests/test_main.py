"""The command line: every mode on a tiny run; bad input is one message with key and fix, and nothing is lost."""

import json
import math
import os

import pytest
import tokenizers

from ebt_jax import metrics, terminal
from tests.helpers import quickstart, run, write_corpus

EIGHT = "import jax; jax.config.update('jax_num_cpu_devices', 8)"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
  return write_corpus(tmp_path_factory.mktemp("text"))


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
  """Flags and folder of a finished EBT run, and what it printed."""
  folder = tmp_path_factory.mktemp("trained") / "run"
  flags = quickstart(f"--config.data.source={corpus}", f"--workdir={folder}", "--config.train.steps=4",
                     "--config.train.learning_rate=0.001", "--config.thinking.steps=3")  # fmt: skip
  done = run(flags)
  assert done.code == 0, done.err
  return flags, folder, done


def files(folder):
  """Every file with its content."""
  return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def refused(flags, *words, hook=""):
  """The run ends with code 2 and one message, no traceback, that holds these words."""
  done = run(flags, hook)
  assert done.code == 2 and not done.out, done
  assert done.err.startswith("error: ") and done.err.count("error") == 1 and "Traceback" not in done.err, done.err
  for word in words:
    assert word in done.err
  return done.err


def test_training_leaves_what_it_says(trained):
  _, folder, done = trained
  names = {p.name for p in folder.iterdir()}
  assert names >= {"config.json", "metrics.jsonl", "final_result.json", "sample.json", "checkpoints", "tensorboard"}
  result = json.loads((folder / "final_result.json").read_text(encoding="utf-8"))
  assert result["steps"] == 4 and len(result["eval"]["loss_by_step"]) == 3 and result["skipped_steps"] == 0
  assert f"{result['eval']['loss']:.4f}" in done.out and "held out, " in done.out and "energy gap" in done.out
  assert f"--workdir={folder} --mode=eval --set eval.steps=6" in done.out
  assert f"--workdir={folder} --mode=generate" in done.out and not done.err  # what to do next


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
  """A tokenizer whose tokens are of several bytes."""
  backend = tokenizers.Tokenizer(tokenizers.models.BPE())
  backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
  backend.decoder = tokenizers.decoders.ByteLevel()
  alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
  trainer = tokenizers.trainers.BpeTrainer(
    vocab_size=280, initial_alphabet=alphabet, special_tokens=["<|endoftext|>"], show_progress=False
  )
  backend.train_from_iterator(["the state of our union people energy model thinks about every next word"] * 9, trainer)
  path = tmp_path_factory.mktemp("pairs") / "tokenizer.json"
  backend.save(str(path))
  return path


def test_the_numbers_of_training_are_those_after_the_last_thinking_step(corpus, pairs, tmp_path):
  """Bits per byte: nats per token over ln 2, over the bytes of a token; the same in the file and on the screen."""
  often = ["--config.train.steps=5", "--config.train.log_every=3"]
  flags = [f"--config.data.source={corpus}", f"--config.data.tokenizer={pairs}", *often]
  each = [f"--config.thinking.{key}" for key in ("gradient=each", "steps=2", "random_steps_min=0", "replay_rows=0")]
  small = ["--config.eval.max_windows=4", "--config.sample.tokens=0", f"--workdir={tmp_path}/run"]
  done = run(quickstart(*flags, *each, *small))
  assert done.code == 0, done.err
  rows = [r for r in metrics.read_rows(tmp_path / "run/metrics.jsonl") if "train/loss" in r]
  printed = [line.split("  ") for line in done.out.splitlines() if "energy gap" in line]
  assert [r["step"] for r in rows] == [1, 3, 5] and len(printed) == 3
  for row, (step, loss, bits, gap, *_) in zip(rows, printed):
    assert row["train/bytes_per_token"] > 1.2 and row["train/skipped"] == 0
    wanted = row["train/final_loss"] / math.log(2) / row["train/bytes_per_token"]
    assert row["train/bits_per_byte"] == pytest.approx(wanted, rel=1e-6)
    mean = (row["train/first_loss"] + row["train/final_loss"]) / 2  # over the two steps of thinking
    assert row["train/loss"] == pytest.approx(mean, rel=1e-5) and mean != row["train/final_loss"]
    assert (step, loss) == (f"step {row['step']}/5", f"loss {row['train/loss']:.4f}")
    assert (bits, gap) == (f"bits/byte {wanted:.4f}", f"energy gap {row['train/energy_gap']:+.4f}")


def test_a_finished_run_says_so(trained):
  flags, folder, _ = trained
  before = files(folder)
  done = run(flags)
  assert (done.code, done.err) == (0, "") and "this run is finished (4 steps); give another --workdir" in done.out
  assert files(folder) == before


MISTAKES = {
    "mistyped": (["--config.thinking.step_sise=5"], ["step_sise=5: no such key; did you mean", "thinking.step_size"]),
    "ill-typed": (["--config.train.steps=many"], ["--config.train.steps: expected int, found 'many'"]),
    "impossible": (["--config.thinking.random_steps_min=9"], ["thinking.random_steps_min: 9", "raise thinking.steps"]),
    "tokenizer": (["--config.model.vocab_size=100"], ["model.vocab_size: 100 is less than the 257 tokens", "to 0"]),
    "context": (["--config.data.context_length=900", "--config.data.layout=document"],
                ["config.data.context_length: 900 is more than the longest document", "or less, or give more text"]),
    "held_out": (["--config.data.max_documents=11", "--config.data.held_out=1e-9"],
                 ["config.data.held_out", "of 11 documents leaves 11 for training and 0 for evaluation"]),
    "mesh": (["--config.mesh.data=3"], ["config.mesh", "needs 3 devices, found 8; set replica=1, data=8, model=1"]),
    "batch": (["--config.train.batch_size=6"], ["config.train.batch_size: 6 rows", "the nearest batch_size is 8"]),
    "no workdir": (["--workdir="], ["--workdir: mode train needs the folder of a run"]),
    "argument": (["shapes"], ["shapes: not a flag; flags look like --name=value"]),
    "mode": (["--mode=tarin"], ["--mode: no mode 'tarin'", "train|eval|generate|export|import|shapes|compile"]),
    "no value": (["--config.train.steps"], ["--config.train.steps: expected one argument"]),
    "no number": (["--mode=generate", "--max_tokens=few"], ["--max_tokens: invalid int value: 'few'"]),
    "unknown flag": (["--promt=a"], ["--promt: no such flag; did you mean --prompt"]),
    "unknown set": (["--set", "eval.stesp=6"], ["--set eval.stesp=6: no such key; did you mean eval.steps"]),
    "ill-typed set": (["--set", "train.steps=5", "model.remat=no"], ["--set model.remat: expected bool, found 'no'"]),
    "impossible set": (["--set=thinking.steps=1", "--set=thinking.landscapes=2"], ["need at least as many steps"]),
    "set without a value": (["--set", "eval.steps", "6"], ["--set eval.steps: expected KEY=VALUE"]),
    "no run": (["--mode=eval", "--config.mesh.model=2"], ["checkpoints: no checkpoint; train first"]),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_message_and_holds_no_folder(corpus, tmp_path, name):
  flags, words = MISTAKES[name]
  base = quickstart(f"--config.data.source={corpus}", f"--workdir={tmp_path}/run", "--config.train.batch_size=8")
  refused([*base, *flags], *words, hook=EIGHT)
  assert not files(tmp_path)  # the corrected command may use the folder


def test_another_config_in_the_folder_of_a_run(trained):
  flags, folder, _ = trained
  before = files(folder)
  error = refused([*flags, "--config.seed=3", "--config.train.learning_rate=0.5", "--config.train.log_every=7"])
  assert f"{folder} holds a run of another config; give another folder" in error
  assert "\n  seed: 0 -> 3\n  train.learning_rate: 0.001 -> 0.5\n" in error and "log_every" not in error
  refused([*flags, "--mode=eval", "--config.model.width=32"], "another model", "[257, 16], expected", "config.json")
  assert files(folder) == before


def test_config_file(tmp_path):
  refused(["--config=configs/quikstart.py"], "no file 'configs/quikstart.py'", "did you mean configs/quickstart.py")
  refused(["--config=nowhere/a.py"], "no file 'nowhere/a.py'", "there is no folder 'nowhere' here")
  refused([f"--workdir={tmp_path}"], "--config: give a config file", "workdir")
  for text, words in {
    "x = 1\ndef get_config(:\n": ["bad.py, line 2: ", "invalid syntax"],
    "import ebt_jax.config\n\ndef get_config():\n  return nothing\n": ["bad.py, line 4: NameError", "nothing"],
    "from ebt_jax.config import defaults\ndef get_config():\n  c = defaults()\n  c.train.stesp = 3\n  return c\n": [
      "config.train.stesp: no such key; did you mean steps"
    ],
    "def get_config():\n  pass\n": ["bad.py: get_config() gave None, expected a ConfigDict"],
    "x = 1\n": ["bad.py", "get_config"],
  }.items():
    (tmp_path / "bad.py").write_text(text, encoding="utf-8")
    refused([f"--config={tmp_path}/bad.py", f"--workdir={tmp_path}/run"], *words)


def test_config_file_imports_its_neighbour_from_anywhere(tmp_path):
  folder, elsewhere = tmp_path / "mine", tmp_path / "elsewhere"
  folder.mkdir(), elsewhere.mkdir()
  (folder / "base.py").write_text("from ebt_jax.config import defaults\n", encoding="utf-8")
  text = "from mine import base\ndef get_config():\n  return base.defaults()\n"
  (folder / "run.py").write_text(text, encoding="utf-8")
  done = run([f"--config={folder}/run.py", "--mode=shapes", "--config.model.kind=transformer"], cwd=elsewhere)
  assert done.code == 0 and "parameters" in done.out, done.err


def test_config_file_in_a_package_of_the_current_folder(tmp_path):
  """As `experiments/own_task`: the file and what its strings name are found from where main is started."""
  own = tmp_path / "studies" / "own"
  own.mkdir(parents=True)
  (own / "sizes.py").write_text("width = 32\n", encoding="utf-8")
  text = """import importlib
from ebt_jax.config import defaults
def get_config():
  config = defaults()
  config.model.width = importlib.import_module("studies.own.sizes").width
  return config
"""
  (own / "config.py").write_text(text, encoding="utf-8")
  done = run(["--config=studies/own/config.py", "--mode=shapes"], cwd=tmp_path)
  assert done.code == 0 and "(257, 32)" in done.out, done


def test_no_device(tmp_path):
  """What JAX says of a missing accelerator is one line."""
  hook = "import jax; jax.config.update('jax_platforms', 'nowhere')"
  refused(quickstart(f"--workdir={tmp_path}/run"), "JAX cannot start: ", "'nowhere'", hook=hook)
  assert not files(tmp_path)


def test_data_files(tmp_path):
  flags = quickstart(f"--workdir={tmp_path}/run")
  for name, content, word in (
    ("empty.txt", b"", "is empty"),
    ("binary.txt", b"ab\0c", "binary content"),
    ("latin.txt", b"caf\xe9", "not UTF-8 at byte 3"),
    ("missing.txt", None, "no file"),
  ):
    if content is not None:
      (tmp_path / name).write_bytes(content)
    refused([*flags, f"--config.data.source={tmp_path}/{name}"], "config.data.source", f"{tmp_path}/{name}", word)
  refused([*flags, "--config.data.tokenizer=gpt.json"], "config.data.tokenizer: no file 'gpt.json'")
  assert not (tmp_path / "run" / "config.json").exists()


def test_workdir_that_is_a_file(corpus):
  before = corpus.read_bytes()
  flags = quickstart(f"--config.data.source={corpus}", f"--workdir={corpus}")
  refused(flags, f"--workdir: {corpus} is not a folder; choose another name")
  assert corpus.read_bytes() == before


def test_generate_one_prompt(trained, tmp_path):
  _, folder, _ = trained
  flags = [f"--workdir={folder}", "--mode=generate", "--prompt=the state", "--max_tokens=20"]
  flags += [f"--out={tmp_path}/o.json"]
  done = run(flags)
  (written,) = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
  assert (done.code, done.err, written["prompt"]) == (0, "", "the state")
  assert 0 < len(written["tokens"]) <= 20 and all(isinstance(t["energy"], float) for t in written["tokens"])
  assert (
    done.out.startswith("the state" + terminal.visible(written["text"]) + "\n\n") and "energy of each token" in done.out
  )
  assert run(flags).out == done.out  # the same seed, the same text
  longer = run([*flags, "--set", "eval.steps=5", "--seed=1"])
  assert longer.code == 0 and longer.out != done.out
  best = run([*flags, "--set", "eval.candidates=4"])
  assert best.code == 0 and best.out != done.out


def test_generate_many_prompts(trained, tmp_path):
  _, folder, _ = trained
  (tmp_path / "prompts").write_text("our union\n\nthé\n", encoding="utf-8")
  done = run([f"--workdir={folder}", "--mode=generate", "--prompt=a", f"--prompts_file={tmp_path}/prompts", "--top_k=1",
              "--max_tokens=3", f"--out={tmp_path}/o.json"])  # fmt: skip
  written = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
  assert done.code == 0 and [w["prompt"] for w in written] == ["a", "our union", "thé"]
  assert done.out.count("prompt: ") == 3


def test_generate_on_any_terminal_says_what_was_cut(trained, tmp_path):
  """A prompt of 20 tokens in a window of 16, on a terminal of ASCII in a file of Windows."""
  _, folder, _ = trained
  (tmp_path / "prompts").write_bytes(b"\xef\xbb\xbf" + ("é" * 10).encode() + b"\r\n\r\n")
  flags = [f"--workdir={folder}", "--mode=generate", f"--prompts_file={tmp_path}/prompts", "--max_tokens=9"]
  done = run([*flags, f"--out={tmp_path}/o.json"], hook="import sys; sys.stdout.reconfigure(encoding='ascii')")
  assert (done.code, done.err) == (0, "") and done.out.startswith(r"\xe9" * 10) and done.out.isascii()
  assert "\nprompt: '" + r"\xe9" * 10 + "'\n" in done.out and "from 1 " in done.out
  assert "the window was full after 0, 8 tokens" in done.out  # of the prompt 8 tokens were read, and 8 more fit
  (written,) = json.loads((tmp_path / "o.json").read_text(encoding="utf-8"))
  assert written["prompt"] == "é" * 10 and written["window_full"] == [0, 8]


def test_generate_mistakes(trained, tmp_path):
  _, folder, _ = trained
  flags = [f"--workdir={folder}", "--mode=generate", "--prompt=the"]
  before = files(folder)
  (tmp_path / "binary").write_bytes(b"\xff\xfe\n")
  for more, words in (
    (["--temperature=0"], ["--temperature: expected more than 0, found 0.0; for greedy text use --top_k=1"]),
    (["--prompt="], ["--prompt: expected some text, found an empty prompt"]),
    (["--set", "eval.candidates=-1"], ["config.eval.candidates: expected more than 0, found -1"]),
    (["--set", "model.size=small"], ["--set model.size=small: this model has its size", "model.layers"]),
    (["--config.eval.steps=5"], ["--config.eval.steps=5: needs --config=FILE", "use --set eval.steps=5"]),
    (["--max_tokens=0"], ["--max_tokens: expected 1 or more, found 0"]),
    ([f"--prompts_file={tmp_path}/none"], ["--prompts_file", f"{tmp_path}/none"]),
    ([f"--prompts_file={tmp_path}/binary"], ["--prompts_file", f"{tmp_path}/binary", "UTF-8"]),
    ([f"--out={tmp_path}/none/o.json"], ["--out", f"no folder {tmp_path}/none"]),
    (["--checkpoint_step=3"], ["no checkpoint of step 3; found steps [2, 4]"]),
  ):
    refused([*flags, *more], *words)
  refused(flags[:2], "--prompt: give at least one")
  assert files(folder) == before


def test_eval(trained, tmp_path, corpus):
  """The held-out split gives what training printed; another text gives its own file."""
  _, folder, _ = trained
  final = json.loads((folder / "final_result.json").read_text(encoding="utf-8"))["eval"]
  done = run([f"--workdir={folder}", "--mode=eval"])
  assert (done.code, done.err) == (0, "")
  found = json.loads((folder / "eval_held_out_step4_think3.json").read_text(encoding="utf-8"))
  assert {k: found[k] for k in final} == final and (found["step"], found["thinking_steps"]) == (4, 3)
  (tmp_path / "new.txt").write_text("the people of our union\n" * 9, encoding="utf-8")
  more = [f"--source={tmp_path}/new.txt", "--set=eval.steps=5", "--checkpoint_step=2"]
  done = run([f"--workdir={folder}", "--mode=eval", *more])
  assert done.code == 0, done.err
  (path,) = (p for p in folder.glob("eval_*") if "new_txt" in p.name)
  found = json.loads(path.read_text(encoding="utf-8"))
  assert path.name.endswith("_step2_think5.json") and str(path) in done.out
  assert len(found["loss_by_step"]) == len(found["energy_by_step"]) - 1 == 5
  size = os.path.getsize(tmp_path / "new.txt")
  assert found["items"] == size + 1 and found["bytes_per_token"] * found["items"] == pytest.approx(size, rel=1e-6)
  refused([f"--workdir={folder}", "--mode=eval", f"--source={tmp_path}/none.txt"], "none.txt", "no file")
  refused([f"--workdir={folder}", "--mode=eval", "--set=eval.steps=-1"], "config.eval.steps: expected at least 0")


def test_shapes_and_compile_need_no_folder_and_no_text(tmp_path):
  flags = quickstart(
    "--config.mesh.data=4", "--config.mesh.model=2", f"--config.data.source={tmp_path}/not_there", kind="transformer"
  )
  shapes = run([*flags, "--mode=shapes"])
  assert shapes.code == 0 and f"{7 * 16**2 + 3 * 16 + 2 * 257 * 16:,} parameters" in shapes.out
  report = run([*flags, "--mode=compile", "--config.train.batch_size=8"], EIGHT)
  assert report.code == 0, report.err
  for words in ("{'replica': 1, 'data': 4, 'model': 2}, 8 devices", "all-reduce", "FLOPs of a training step"):
    assert words in report.out
  refused([*flags, "--mode=compile"], "config.mesh", "found 1")
