"""Collects the runs of a study into `points.jsonl`: one row for each evaluation of each finished run.

  python -m experiments.scaling.points DIR

| fields of a row | from |
|---|---|
| `run, series, level, seed` | `study.json` |
| `step, end` (whether it is the run's last step) | `metrics.jsonl` |
| `items, flops` (of training, up to this step) | `progress/*` in `metrics.jsonl` |
| `loss` and all other numbers of the evaluation, by their names | `eval/*` in `metrics.jsonl` |
| `flops_paper, device_seconds` (of training, up to this step) | `final_result.json`, spread evenly over the steps |
| `kind, params, params_non_embedding, item, unit, headline, devices, device, git` | `final_result.json` |
| `batch_items, warmup_items` (items of a batch, of the warm-up) | `final_result.json`, `config.json` |
| `layers, width, thinking_steps, learning_rate` | `config.json` |
"""

import json
import math
import pathlib
import sys
from typing import Any

from ebt_jax import cli, files, metrics
from ebt_jax import config as config_lib
from ebt_jax.config import ConfigError
from ebt_jax.errors import UserError
from ebt_jax.owner import Owner

FILE, STUDY = "points.jsonl", "study.json"
_RESULT = (
  *("kind", "params", "params_non_embedding", "steps", "item", "items", "flops_paper"),
  *("devices", "device", "train_seconds", "headline", "git"),
)
_RUN, _AXIS = ("series", "config", "overrides", "level", "seed"), ("name", "title", "x", "y", "curve", "runs")
_POINT = ("run", "series", "level", "seed", "step", "end", "items", "loss")


def of_run(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Points of one run, in the order of its steps; none where it has not finished.

  Device seconds are those of training steps alone (without start-up, compilation and evaluation), summed over devices.

  Raises:
    UserError: `final_result.json` or `metrics.jsonl` are damaged or lack a key.
  """
  path = folder / "final_result.json"
  if not path.exists():
    return []
  config = config_lib.load(folder / "config.json")
  fix = "put it back from a copy, or delete it and run the sweep again, which ends this run"
  result, lines = files.read_json(path, "a final result", fix), metrics.read_rows(folder / metrics.FILE)
  _need(result, _RESULT, path)
  batch = result["items"] / result["steps"]
  fixed = {
    **{key: result[key] for key in ("kind", "params", "params_non_embedding", "item", "headline")},
    "unit": result.get("unit", ""),
    "layers": config.model.layers,
    "width": config.model.width,
    "batch_items": batch,
    "warmup_items": config.train.warmup * batch,
    "thinking_steps": config.thinking.steps if result["kind"] == "ebt" else 0,
    "learning_rate": config.train.learning_rate,
    **{key: result[key] for key in ("devices", "device", "git")},
  }
  found: dict[int, dict[str, float]] = {}  # several rows of a step are one point
  for row in lines:
    found.setdefault(int(row["step"]), {}).update(row)
  out = []
  for step in sorted(found):
    numbers = {k.removeprefix("eval/"): v for k, v in found[step].items() if k.startswith("eval/") and math.isfinite(v)}
    if "loss" not in numbers:  # no evaluation, or one that failed
      continue
    _need(found[step], ("progress/items", "progress/flops"), f"{folder / metrics.FILE}, step {step}")
    done = step / result["steps"]
    out.append(
      {
        **numbers,
        **fixed,
        "step": step,
        "end": step == result["steps"],
        "items": int(found[step]["progress/items"]),
        "flops": found[step]["progress/flops"],
        "flops_paper": result["flops_paper"] and result["flops_paper"] * done,
        "device_seconds": result["train_seconds"] * result["devices"] * done,
      }
    )
  return out


def _need(found: Any, keys: tuple[str, ...], where: Any) -> None:
  missing = keys if not isinstance(found, dict) else [key for key in keys if key not in found]
  if missing:
    raise ConfigError(
      f"{where}: no key {', '.join(missing)}; another version of ebt_jax has written it: "
      "use that version, or run the study again in a new folder"
    )


def read_study(folder: pathlib.Path) -> dict[str, Any]:
  """The `study.json` that run.py wrote. Raises ConfigError where it is missing, broken or of another version."""
  path = folder / STUDY
  try:
    fix = "expected the --workdir of experiments.scaling.run; if it is damaged, put it back from a copy, or delete it"
    study = files.read_json(path, "a study", f"{fix} and run the sweep again")
  except UserError as e:
    raise ConfigError(str(e)) from e
  _need(study, ("study", "about", "series", "axes", "runs"), path)
  for name, run in dict(study["runs"]).items():
    _need(run, _RUN, f"{path}, run {name}")
  for i, axis in enumerate(study["axes"]):
    _need(axis, _AXIS, f"{path}, axis {i + 1}")
  return study


def archived(folder: pathlib.Path) -> dict[str, list[dict[str, Any]]]:
  """Run -> its points, of the finished runs in `points.jsonl` whose folder is not here (any more)."""
  rows: dict[str, list[dict[str, Any]]] = {}
  if (folder / FILE).exists():
    for row in read(folder):
      rows.setdefault(row["run"], []).append(row)
  return {name: of for name, of in rows.items() if of[-1]["end"] and not (folder / "runs" / name).exists()}


def collect(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Writes and returns the points of all finished runs, in the study's order."""
  rows, before = [], archived(folder)
  for name, run in read_study(folder)["runs"].items():
    labels = {"run": name, "series": run["series"], "level": run["level"], "seed": run["seed"]}
    new = [{**row, **labels} for row in of_run(folder / "runs" / name)]
    rows += new or before.pop(name, [])
  rows += [row for of in before.values() for row in of]  # of series that joined an earlier command
  files.replace_text(folder / FILE, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))
  return rows


def read(folder: pathlib.Path) -> list[dict[str, Any]]:
  """Rows of `points.jsonl`. Raises ConfigError where it is missing, broken or of another version."""
  path = folder / FILE
  try:
    rows = [files.parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
  except (OSError, ValueError) as e:
    raise ConfigError(
      f"{path}: cannot be read ({e}); delete it, then make it with `python -m experiments.scaling.points {folder}`"
    ) from e
  for i, row in enumerate(rows):
    _need(row, _POINT, f"{path}, line {i + 1}")
  return rows


def main(argv: list[str]) -> None:
  parser = cli.Parser(prog="experiments.scaling.points", description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=cli.path, metavar="DIR", help="--workdir of experiments.scaling.run")
  folder = parser.parse_args(argv).folder
  read_study(folder)  # makes no folder where there is no study
  with Owner(folder, "DIR"):
    print(f"{len(collect(folder))} points in {folder / FILE}")


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
