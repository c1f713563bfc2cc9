"""What README.md tells a newcomer to type: the commands of *Start* and *Use*, in order, and the examples in Python."""

import os
import pathlib
import re
import shlex
import subprocess

from tests.helpers import REPOSITORY, run

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
MODEL = ("model.layers=1", "model.heads=2", "model.width=16", "data.context_length=32")
TRAIN = ("train.steps=4", "train.batch_size=4", "train.warmup=1", "data.max_documents=20", "data.held_out=0.3")
SAMPLE = ("eval.max_windows=8", "sample.tokens=4", "sample.prompt_tokens=4")
# the same commands on a tiny model: settings that are appended to the commands of each mode
SMALLER = {
  "train": (*MODEL, *TRAIN, *SAMPLE),
  "eval": ("eval.max_windows=8",),
  "generate": (),
  "export": (),
  "shapes": MODEL,
  "compile": (*MODEL, "model.vocab_size=300"),
}


def blocks(heading: str, language: str) -> list[str]:
  """The code blocks of a section."""
  section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
  return re.findall(rf"```{language}\n(.*?)```", section, re.DOTALL)


def block(heading: str, language: str) -> str:
  """The first code block of a section."""
  return blocks(heading, language)[0]


def commands() -> list[str]:
  """Lines of *Start* (without the installation) and of *Use*, with `$run` replaced by its value."""
  lines = [part.strip().rpartition(" && ")[2] for part in blocks("Start", "bash")]
  for line in block("Use", "bash").splitlines():
    if line.startswith("run="):
      value = shlex.split(line.removeprefix("run="))[0]
    else:
      lines.append(line.replace("$run", value))
  return lines


def run_line(line: str, folder: pathlib.Path) -> None:
  if "ebt_jax.main" not in line:
    subprocess.run(["bash", "-c", line], cwd=folder, check=True)
    return
  words = shlex.split(line, comments=True)
  at = words.index("python")
  assert words[at : at + 3] == ["python", "-m", "ebt_jax.main"]
  arguments, environment = words[at + 3 :], dict(w.split("=") for w in words[:at])
  mode = next((a.removeprefix("--mode=") for a in arguments if a.startswith("--mode=")), "train")
  arguments += [f"--set={setting}" for setting in SMALLER[mode]]
  if mode == "generate":
    arguments.append("--max_tokens=4")
  devices = environment.pop("JAX_NUM_CPU_DEVICES", "1")
  assert not environment
  done = run(arguments, f"import jax; jax.config.update('jax_num_cpu_devices', {devices})", cwd=folder)
  assert done.code == 0, f"{line}\n{done.err[-2000:]}"


def test_the_commands_run_in_order(tmp_path, monkeypatch, capsys):
  for name in ("configs", "experiments"):
    os.symlink(REPOSITORY / name, tmp_path / name)
  lines = commands()
  assert len(lines) > 8 and {"eval", "generate", "shapes", "compile"} <= set(re.findall(r"--mode=(\w+)", str(lines)))
  for line in lines:
    run_line(line, tmp_path)
  for page in ("thoughts.html", "held_out.html"):
    assert "data-thought" in (tmp_path / page).read_text(encoding="utf-8")
  assert (tmp_path / "generated.json").exists() and (tmp_path / "shared/quickstart/README.md").exists()
  monkeypatch.chdir(tmp_path)
  names = {}
  exec(block("From Python", "python"), names)
  assert names["token"].text in capsys.readouterr().out and names["found"].energies.shape[1] == len(
    "My fellow citizens"
  )


def test_the_library_example_runs():
  names = {}
  example = block("As a library", "python")
  exec(example, names)
  assert len(list(filter(None, example.splitlines()))) <= 15
  thoughts, target = names["thoughts"], names["context"]
  assert abs(thoughts.candidate - target).max() < 1e-3
  assert (thoughts.energies[1:] <= thoughts.energies[:-1]).all()
  assert names["found"].kept.shape == (1,)
