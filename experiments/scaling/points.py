"""Collects the runs of a study into `points.jsonl`: one row for each evaluation of each finished run.

  python -m experiments.scaling.points DIR

A row: `run, series, kind, seed, step, end` (its run's last), the axes `tokens, params, params_non_embedding, layers,
width, batch_tokens, thinking_steps, learning_rate`, the costs `flops` (`ebt_jax/flops.py`), `flops_paper` and
`device_seconds`, and the results `loss` (nats a token), `perplexity`, `bits_per_byte`.
"""

import json
import math
import os
import pathlib
import sys
from typing import Any

from ebt_jax import config as config_lib
from ebt_jax import flops, metrics
from ebt_jax.config import Config, ConfigError

FILE, STUDY = "points.jsonl", "study.json"


def flops_paper(config: Config, params_non_embedding: int) -> float:
  """Training FLOPs a token as the paper counts them (its appendix D.5).

  Transformer++ 6N; EBT 20N for each thinking step (10N, twice for the doubled sequence), of which one that is not
  differentiated has the forward and backward pass alone, 12N. N are the parameters outside vocabulary tables.
  """
  if config.model.kind == "transformer":
    return 6.0 * params_non_embedding
  steps = flops.mean_steps(config)
  learnt = 1 if config.thinking.gradient == "last" else steps
  return (20.0 * learnt + 12.0 * (steps - learnt)) * params_non_embedding


def of_run(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Points of one run, in the order of its steps; none where it has not finished.

  Device seconds are those of training steps alone (start-up, compilation and evaluation left out), on every device,
  spread evenly over the steps of the run.
  """
  if not (folder / "final_result.json").exists():
    return []
  config = config_lib.load(folder / "config.json")
  result = json.loads((folder / "final_result.json").read_text(encoding="utf-8"))
  m, t = config.model, config.train
  fixed = {
    "kind": m.kind,
    "seed": config.seed,
    "params": result["params"],
    "params_non_embedding": result["params_non_embedding"],
    "layers": m.layers,
    "width": m.width,
    "batch_tokens": t.batch_size * config.data.context_length,
    "thinking_steps": config.thinking.steps if m.kind == "ebt" else 0,
    "learning_rate": t.learning_rate,
    "warmup_tokens": t.warmup * t.batch_size * config.data.context_length,
    "device": result["device"],
    "git": result["git"],
  }
  seconds = result["train_seconds"] * int(result["device"].split()[0]) / t.steps
  rows = {}
  for row in metrics.read_rows(folder / metrics.FILE):
    if "eval/loss" in row:
      step, loss = int(row["step"]), row["eval/loss"]
      tokens = step * fixed["batch_tokens"]
      rows[step] = {
        **fixed,
        "step": step,
        "end": step == t.steps,
        "tokens": tokens,
        "flops": float(step * flops.train_step(config)),
        "flops_paper": tokens * flops_paper(config, result["params_non_embedding"]),
        "device_seconds": step * seconds,
        "loss": loss,
        "perplexity": math.exp(min(loss, 700.0)),
        "bits_per_byte": row["eval/bits_per_byte"],
      }
  return [rows[step] for step in sorted(rows)]


def read_study(folder: pathlib.Path) -> dict[str, Any]:
  """What `run.py` has written about the study. Raises ConfigError where there is none."""
  try:
    return json.loads((folder / STUDY).read_text(encoding="utf-8"))
  except (OSError, json.JSONDecodeError) as e:
    raise ConfigError(
      f"{folder / STUDY}: cannot be read ({e}); expected the --workdir of experiments.scaling.run"
    ) from e


def kept(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
  """Points in `points.jsonl` of finished runs whose folder is gone, or lies on another machine, by run."""
  rows: dict[str, list[dict[str, Any]]] = {}
  if (folder / FILE).exists():
    for row in read(folder):
      rows.setdefault(row["run"], []).append(row)
  return {name: of for name, of in rows.items() if of[-1]["end"] and not (folder / "runs" / name).exists()}


def collect(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Writes and returns the points of all finished runs, in the study's order."""
  rows, before = [], kept(folder)
  for name, run in read_study(folder)["runs"].items():
    new = [{"run": name, "series": run["series"], **row} for row in of_run(folder / "runs" / name)]
    rows += new or before.pop(name, [])
  rows += [row for of in before.values() for row in of]  # of series that joined an earlier command
  part = folder / (FILE + ".part")
  part.write_text(
    "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows if math.isfinite(row["loss"])), "utf-8"
  )
  os.replace(part, folder / FILE)
  return rows


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Rows of `points.jsonl`. Raises ConfigError where it is missing or broken."""
  path = folder / FILE
  try:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
  except (OSError, json.JSONDecodeError) as e:
    raise ConfigError(
      f"{path}: cannot be read ({e}); delete it, then make it with `python -m experiments.scaling.points {folder}`"
    ) from e


if __name__ == "__main__":
  if len(sys.argv) != 2:
    sys.exit(__doc__)
  try:
    print(f"{len(collect(pathlib.Path(sys.argv[1])))} points in {sys.argv[1]}/{FILE}")
  except ConfigError as e:
    sys.exit(f"error: {e}")
