"""The modes that use a trained run: evaluation on held-out or other data, and generation of text and of its blanks."""

import pathlib
import sys
from typing import Any

import jax

from ebt_jax import files, parallel, record, runs, terminal
from ebt_jax.config import Config, ConfigError, MeshConfig
from ebt_jax.data.tokenizers import StreamDecoder
from ebt_jax.evaluation import evaluator, filling, text_report
from ebt_jax.evaluation.evaluator import Evaluator
from ebt_jax.evaluation.generate import Generator
from ebt_jax.evaluation.sampling import Sampling
from ebt_jax.tasks import decoding


def evaluate(workdir: str, config: Config, step: int | None = None, source: str = "") -> dict[str, dict[str, Any]]:
  """Every held-out set of a run, or with `source` all of another one. Writes `eval_*.json`; returns results by name."""
  mesh = parallel.make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    run = runs.open_run(workdir, step, config, mesh)
    problem = run.task.problem
    sets = {source: problem.examples_of(source)} if source else record.data_of(run.task, run.folder).held_out
    score = Evaluator(run.task, mesh)
    results = {name: score(run.params, examples, _progress) for name, examples in sets.items()}
  for name, result in results.items():
    found = {"step": run.step, "source": name, "thinking_steps": run.task.eval_steps, **result}
    if jax.process_index() == 0:
      _report(run, found)
  return results


def _report(run: runs.Run, result: dict[str, Any]) -> None:
  """Prints a result and writes it into the run's folder. One file has the results of one set of settings."""
  problem = run.task.problem
  count = f"{result['items']} {problem.item}s in {result['examples']} examples"
  print(f"checkpoint {run.step}, {result['source']}: {count}")
  print(evaluator.results_table(result, problem.headline, problem.unit))
  numbers = {k: v for k, v in result.items() if isinstance(v, float) and k not in ("loss", "steps_used")}
  print(", ".join(f"{evaluator.pretty(name)} {value:.4f}" for name, value in numbers.items()))
  name = "".join(c if c.isalnum() else "_" for c in result["source"]).strip("_")[-60:]
  path = run.folder / f"eval_{name}_step{run.step}_think{run.task.eval_steps}.json"
  config = run.config.to_dict()
  settings = {"source": result["source"], **{group: config[group] for group in ("seed", "eval", "data", "mask")}}
  if kept := files.keep_others(path, settings):
    print(f"a result of other settings that was there is kept as {kept}")
  files.write_json(path, {**result, "settings": settings})
  print(f"written to {path}")


def read_prompts(prompts: list[str], file: str) -> list[str]:
  """Prompts given one by one, and one a line in a file; blank lines are left out."""
  if file:
    try:
      lines = pathlib.Path(file).read_text(encoding="utf-8-sig").split("\n")  # a line of Windows ends in "\n" too
    except (OSError, UnicodeDecodeError) as e:
      raise ConfigError(f"--prompts_file: {file} cannot be read as UTF-8 text: {e}") from e
    found = [line for line in lines if line.strip()]
    if not found:
      raise ConfigError(f"--prompts_file: {file} holds no prompt; write one a line")
    prompts = prompts + found
  if not prompts:
    raise ConfigError('--prompt: give at least one, e.g. --prompt="The people of", or --prompts_file')
  if not all(prompts):
    raise ConfigError("--prompt: expected some text, found an empty prompt")
  return prompts


def generate(
  workdir: str,
  config: Config,
  step: int | None,
  prompts: list[str],
  max_tokens: int,
  sampling: Sampling,
  seed: int = 0,
  out: str = "",
) -> list[dict[str, Any]]:
  """Continues prompts, or fills their blanks, on one device."""
  if config.task not in ("text", "infill"):
    raise ConfigError(f"--mode=generate: task {config.task!r} generates no text; only 'text' and 'infill' do")
  if max_tokens < 1:
    raise ConfigError(f"--max_tokens: expected 1 or more, found {max_tokens}")
  if out and not pathlib.Path(out).absolute().parent.is_dir():
    raise ConfigError(f"--out: there is no folder {pathlib.Path(out).parent}; make it, or choose another file")
  if jax.process_count() > 1:
    raise ConfigError("--mode=generate: runs on one process; start it without --distributed")
  mesh = parallel.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    run = runs.open_run(workdir, step, config, mesh)
    if config.task == "infill":
      results = _fill(run, prompts, seed)
    else:
      results = _continue(run, prompts, max_tokens, sampling, seed)
  if out:
    files.write_json(out, results)
  return results


def _continue(run: runs.Run, prompts: list[str], max_tokens: int, sampling: Sampling, seed: int):
  """Continues prompts; one prompt is streamed to the terminal."""
  writer, tokenizer = decoding.writer(run.task), run.task.problem.tokenizer
  generator = Generator(writer, run.params, tokenizer.end_of_text, run.config.data.context_length)
  run = run._replace(params=None)  # the generator has its own
  ids = [tokenizer.encode(p).tolist() for p in prompts]
  decoder = StreamDecoder(tokenizer)
  encoding = terminal.encoding()
  unread = list(ids[0])  # the prompt is decoded with its continuation, before the first token

  def stream(row, token, energy):
    text = "".join(map(decoder.push, [*unread, token]))
    unread.clear()
    print(terminal.visible(text, encoding), end="", flush=True)

  written = generator(ids, max_tokens, sampling, seed, stream if len(ids) == 1 else None)
  if len(ids) == 1:
    print(terminal.visible(decoder.flush(), encoding), end="\n\n")
  for w in written:
    drawn = text_report.draw(w, tokenizer, writer.quantity, terminal.columns(text_report.WIDTH), encoding)
    print(drawn, end="\n\n")
  return [text_report.as_json(w, tokenizer) for w in written]


def _fill(run: runs.Run, prompts: list[str], seed: int):
  """Fills the blanks of prompts, and prints each of them after every step."""
  task, out = run.task, []
  rows = [filling.parse(prompt, i, task) for i, prompt in enumerate(prompts, 1)]
  fill = filling.Filler(task, run.params)
  for prompt, row in zip(prompts, rows):
    steps = fill(row, seed)
    print(filling.draw(prompt, steps, terminal.encoding()), end="\n\n", flush=True)
    out.append(filling.as_json(prompt, steps))
  return out


def _progress(done: int, total: int) -> None:
  if sys.stderr.isatty() and jax.process_index() == 0:
    print(f"\revaluated {done}/{total} examples", end="\n" if done == total else "", file=sys.stderr, flush=True)
