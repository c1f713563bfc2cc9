"""The modes that use a trained run: evaluation on held-out or other data, and answers to prompts."""

import pathlib
import sys
from typing import Any

import jax

from ebt_jax import files, parallel, record, runs
from ebt_jax.config import GROUPS, Config, ConfigError, MeshConfig
from ebt_jax.evaluation import evaluator, samples, thoughts
from ebt_jax.evaluation.asked import Asked, is_page
from ebt_jax.evaluation.evaluator import Evaluator
from ebt_jax.use import authors
from ebt_jax.use import export as export_lib


def evaluate(
  workdir: str, config: Config, step: int | None = None, source: str = "", out: str = "", keep: bool = True
) -> dict[str, dict[str, Any]]:
  """Every held-out set of a run, or with `source` all of another one. Returns results by name.

  Args:
    keep: results are written into the run's folder, `eval_*.json`.
    out: a page to write, which shows how some rows are answered.
  """
  if out:
    _check_page(config, out)
  mesh = parallel.make_mesh(config.mesh)
  with jax.set_mesh(mesh):
    run = runs.open_run(workdir, step, config, mesh)
    problem = run.task.problem
    sets = {source: problem.examples_of(source)} if source else record.data_of(run.task, run.folder).held_out
    score = Evaluator(run.task, mesh)
    results = {name: score(run.params, examples, _progress) for name, examples in sets.items()}
    if out:
      report = samples.report(config.task)
      _write_page(out, run, f"How {run.folder.name} thinks", report.sections(run, report.held_out(run, sets)))
  for name, result in results.items():
    found = {"step": run.step, "source": name, "thinking_steps": run.task.eval_steps, **result}
    if jax.process_index() == 0:
      _report(run, found, keep)
  return results


def _report(run: runs.Run, result: dict[str, Any], keep: bool) -> None:
  """Prints a result, and keeps it in the run's folder if asked. One file has the results of one set of settings."""
  problem = run.task.problem
  count = f"{result['items']} {problem.item}s in {result['examples']} examples"
  print(f"checkpoint {run.step}, {result['source']}: {count}")
  print(evaluator.results_table(result, problem.headline, problem.unit))
  numbers = {k: v for k, v in result.items() if isinstance(v, float) and k not in ("loss", "steps_used")}
  print(", ".join(f"{evaluator.pretty(name)} {value:.4f}" for name, value in numbers.items()))
  if not keep:
    return
  name = "".join(c if c.isalnum() else "_" for c in result["source"]).strip("_")[-60:]
  path = run.folder / f"eval_{name}_step{run.step}_think{run.task.eval_steps}.json"
  config = run.config.to_dict()
  groups = ["seed", "eval", "data", *filter(None, [GROUPS.get(run.config.task)])]
  settings = {"source": result["source"], **{group: config[group] for group in groups}}
  if kept := files.keep_others(path, settings):
    print(f"a result of other settings that was there is kept as {kept}")
  files.write_json(path, {**result, "settings": settings})
  print(f"written to {path}")


def generate(workdir: str, config: Config, step: int | None, asked: Asked) -> list[dict[str, Any]]:
  """Answers prompts on one device: continues texts, solves puzzles, denoises pictures."""
  report = samples.report(config.task)
  questions = report.read(asked, config)
  if asked.max_tokens < 1:
    raise ConfigError(f"--max_tokens: expected 1 or more, found {asked.max_tokens}")
  _check_folder(asked.out)
  if jax.process_count() > 1:
    raise ConfigError("--mode=generate: runs on one process; start it without --distributed")
  mesh = parallel.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  with jax.set_mesh(mesh):
    run = runs.open_run(workdir, step, config, mesh)
    found = report.answer(run, questions, asked)
  results = report.results(run, found)
  if asked.page:
    _write_page(asked.out, run, f"How {run.folder.name} answers", report.sections(run, found))
  elif asked.out:
    files.write_json(asked.out, results)
  return results


def _write_page(out: str, run: runs.Run, title: str, sections: list[str]) -> None:
  files.replace_text(out, thoughts.whole(run, title, sections))
  print(f"written to {out}")


def _check_page(config: Config, out: str) -> None:
  samples.report(config.task)
  if not is_page(out):
    raise ConfigError(f"--out: mode eval writes a page, so expected FILE.html, found {out!r}")
  if jax.process_count() > 1:
    raise ConfigError("--out: a page is written by one process; start it without --distributed")
  _check_folder(out)


def _check_folder(out: str) -> None:
  if out and not pathlib.Path(out).absolute().parent.is_dir():
    raise ConfigError(f"--out: there is no folder {pathlib.Path(out).parent}; make it, or choose another file")


def export(workdir: str, step: int | None, out: str, half: bool) -> None:
  """Writes a finished run as a folder to share."""
  if not out:
    raise ConfigError("--out: mode export needs the folder to make")
  if jax.process_index() == 0:
    folder = export_lib.export(workdir, out, step, half)
    print(f"written to {folder}: " + ", ".join(sorted(p.name for p in folder.iterdir())))


def import_model(path: str, out: str, options: str, keys: list[str]) -> None:
  """Writes a model of the authors' PyTorch code as a folder that every mode reads."""
  for flag, value in (("--from", path), ("--out", out)):
    if not value:
      raise ConfigError(f"{flag}: mode import needs their file as --from, and the folder to make as --out")
  config = authors.import_model(path, out, options, keys)
  m = config.model
  print(f"written to {out}: task {config.task}, {m.kind} {m.variant}, {m.layers} layers of width {m.width}")


def _progress(done: int, total: int) -> None:
  if sys.stderr.isatty() and jax.process_index() == 0:
    print(f"\revaluated {done}/{total} examples", end="\n" if done == total else "", file=sys.stderr, flush=True)
