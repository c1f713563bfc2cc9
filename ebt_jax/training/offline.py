"""Using a trained run: evaluation on any text, and generation."""

import dataclasses
import pathlib
import sys
from typing import Any

import jax

from ebt_jax import metrics, parallel
from ebt_jax.config import Config, ConfigError
from ebt_jax.data.tokenizers import StreamDecoder
from ebt_jax.evaluation import evaluator as evaluator_lib
from ebt_jax.evaluation import report
from ebt_jax.evaluation.generate import Generator
from ebt_jax.evaluation.sampling import Sampling
from ebt_jax.tasks import text
from ebt_jax.training import state as state_lib
from ebt_jax.training.checkpoint import CheckpointError, Checkpoints


def load_parameters(config: Config, workdir: str, step: int | None, mesh: jax.sharding.Mesh) -> tuple[int, Any]:
  """Step and parameters of the newest intact checkpoint of a run, or of the one named."""
  task = text.make_task(config)
  folder = pathlib.Path(workdir) / "checkpoints"
  with Checkpoints(folder, config.checkpoint) as checkpoints:
    found = checkpoints.restore(state_lib.abstract(task, config, mesh), step)
  if found is None:
    raise CheckpointError(f"{folder}: no checkpoint; train first, with the same --workdir")
  return found[0], found[1].params


def evaluate(config: Config, workdir: str, step: int | None = None, source: str = "") -> dict[str, Any]:
  """Held-out loss of a checkpoint; with `source`, the loss on all of another text. Writes `eval_*.json`."""
  config, tokenizer = text.with_tokenizer(config)
  mesh = parallel.make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    step, params = load_parameters(config, workdir, step, mesh)
    if source:
      config = dataclasses.replace(config, data=dataclasses.replace(config.data, source=source, max_documents=0))
      windows = text.whole_text(config, tokenizer)
    else:
      windows = text.load_data(config, tokenizer).held_out
    task = text.make_task(config)
    evaluator = evaluator_lib.Evaluator(task, config, mesh, windows, tokenizer.token_bytes)
    result = evaluator(params, _progress)
  result = {"step": step, "source": source or "held-out", "thinking_steps": task.eval_steps, **result}
  print(f"checkpoint {step}, {result['source']}: {result['tokens']} tokens in {result['windows']} windows")
  print(evaluator_lib.table(result))
  print(f"perplexity {result['perplexity']:.4f}, {result['bits_per_byte']:.4f} bits/byte")
  name = "".join(c if c.isalnum() else "_" for c in result["source"]).strip("_")[-60:]
  path = pathlib.Path(workdir) / f"eval_{name}_step{step}_think{task.eval_steps}.json"
  metrics.write_json(path, result)
  print(f"written to {path}")
  return result


def read_prompts(prompts: list[str], file: str) -> list[str]:
  """Prompts given one by one, or one a line in a file."""
  if file:
    try:
      prompts = prompts + [line for line in pathlib.Path(file).read_text(encoding="utf-8").splitlines() if line]
    except (OSError, UnicodeDecodeError) as e:
      raise ConfigError(f"--prompts_file: {file} cannot be read as UTF-8 text: {e}") from e
  if not prompts:
    raise ConfigError('--prompt: give at least one, e.g. --prompt="The people of", or --prompts_file')
  if not all(prompts):
    raise ConfigError("--prompt: expected some text, found an empty prompt")
  return prompts


def generate(
  config: Config,
  workdir: str,
  step: int | None,
  prompts: list[str],
  max_tokens: int,
  how: Sampling,
  seed: int = 0,
  out: str = "",
) -> list[dict[str, Any]]:
  """Continues prompts; one prompt is streamed to the terminal as it is written."""
  if max_tokens < 1:
    raise ConfigError(f"--max_tokens: expected 1 or more, found {max_tokens}")
  if out and not pathlib.Path(out).absolute().parent.is_dir():
    raise ConfigError(f"--out: there is no folder {pathlib.Path(out).parent}; make it, or choose another file")
  config, tokenizer = text.with_tokenizer(config)
  mesh = parallel.make_mesh(dataclasses.replace(config.mesh, replica=1, data=1, model=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    step, params = load_parameters(config, workdir, step, mesh)
    generator = Generator(text.make_task(config), params, tokenizer.end_of_text)
    del params  # the generator has its own
    ids = [tokenizer.encode(p).tolist() for p in prompts]
    decoder = StreamDecoder(tokenizer)

    unsaid = prompts[:1]  # until the first token: the prompt may not fit

    def stream(row, token, energy):
      print(*unsaid, decoder.push(token), sep="", end="", flush=True)
      unsaid.clear()

    written = generator(ids, max_tokens, how, seed, stream if len(ids) == 1 else None)
    if len(ids) == 1:
      print(decoder.flush(), end="\n\n")
  quantity = "energy" if config.model.kind == "ebt" else "entropy"
  for w in written:
    print(report.draw(w, tokenizer, quantity), end="\n\n")
  results = [report.as_json(w, tokenizer) for w in written]
  if out:
    metrics.write_json(out, results)
  return results


def _progress(done: int, total: int) -> None:
  if sys.stderr.isatty():
    print(f"\revaluated {done}/{total} windows", end="\n" if done == total else "", file=sys.stderr, flush=True)
