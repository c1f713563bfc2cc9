"""What the studies of thinking share: opening runs, scores of every token, intervals over seeds, results on disk."""

import argparse
from collections.abc import Iterator
import dataclasses
import math
import pathlib
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

from ebt_jax import config as config_lib
from ebt_jax import metrics, parallel, streams
from ebt_jax.config import Config, ConfigError
from ebt_jax.data.loader import eval_batches
from ebt_jax.tasks import text
from ebt_jax.training import offline

RESULTS = pathlib.Path(__file__).parent / "results"
COLORS = {"s2": "#1b6ca8", "s1": "#d1495b", "transformer": "#444444"}
LABELS = {"s2": "EBT, System 2", "s1": "EBT, System 1", "transformer": "Transformer++"}


class Model(NamedTuple):
  config: Config
  params: Any
  tokenizer: Any
  step: int

  def task(self, **how):
    """The task that thinks as `how` (keys of `config.eval`) says."""
    return text.make_task(dataclasses.replace(self.config, eval=dataclasses.replace(self.config.eval, **how)))


def arguments(about: str, **defaults) -> argparse.Namespace:
  """--workdir, --windows, --out and what else a study wants. Compiled programs are kept: seeds share them."""
  parser = argparse.ArgumentParser(description=about.split("\n")[0])
  parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/thinking"), help="of train.py")
  parser.add_argument("--windows", type=int, default=256, help="held-out windows to evaluate on")
  parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
  for name, default in defaults.items():
    parser.add_argument(f"--{name}", type=type(default), default=default)
  args = parser.parse_args()
  jax.config.update("jax_compilation_cache_dir", str((args.workdir / "programs").absolute()))
  return args


def find(workdir: pathlib.Path, kind: str, among: str = "models") -> list[pathlib.Path]:
  """Finished runs of a set whose names start with `kind`, one for each seed."""
  found = sorted(p.parent for p in (workdir / among / "runs").glob(f"{kind}*/final_result.json"))
  if not found:
    raise ConfigError(
      f"--workdir: {workdir / among} holds no finished run {kind}*; train first: "
      f"python -m experiments.thinking.train --set={among} --workdir={workdir}"
    )
  return found


def load(folder: pathlib.Path, step: int | None = None) -> Model:
  """A run's parameters at a checkpoint, the newest by default, on one device."""
  config, tokenizer = text.with_tokenizer(config_lib.load(folder / "config.json"))
  config = dataclasses.replace(config, mesh=config_lib.MeshConfig(data=1))
  mesh = parallel.make_mesh(config.mesh, jax.devices()[:1])
  step, params = offline.load_parameters(config, str(folder), step, mesh)
  return Model(config, params, tokenizer, step)


def held_out(model: Model) -> Any:
  return text.load_data(model.config, model.tokenizer).held_out


def batches(windows: Any, count: int, rows: int = 32) -> Iterator[dict[str, np.ndarray]]:
  """At most `count` windows, spread evenly over all of them."""
  every = max(1, len(windows) // count)
  picked = dataclasses.replace(
    windows, tokens=windows.tokens[::every][:count], lengths=windows.lengths[::every][:count]
  )
  return eval_batches(picked, min(rows, count))


def scores(model: Model, windows: Any, count: int, **how) -> dict[str, np.ndarray]:
  """`task.scores` of every token that counts, flat: `loss` and `energy` `[t, tokens]`, the others `[tokens]`; and
  `target`, `bytes`."""
  task = model.task(**how)
  score, found = jax.jit(task.scores), {}
  key = streams.key_for(how.get("seed", 0), streams.EVALUATE)
  for i, batch in enumerate(batches(windows, count)):
    counts = batch["weights"] > 0
    rows = len(batch["tokens"])
    seen = jax.device_get(score(model.params, batch, streams.each(key, np.arange(i * rows, (i + 1) * rows))))
    seen["target"] = batch["tokens"][:, 1:]
    for name, value in seen.items():
      found.setdefault(name, []).append(value[..., counts])
  found = {name: np.concatenate(parts, axis=-1) for name, parts in found.items()}
  return {**found, "bytes": model.tokenizer.token_bytes[found["target"]]}


def bits_per_byte(found: dict[str, np.ndarray]) -> np.ndarray:
  """After each step, `[t]`."""
  return found["loss"].sum(-1) / found["bytes"].sum() / math.log(2)


def interval(values, level: float = 0.95) -> tuple[float, float]:
  """Mean and half width of its t interval; not a number for one value."""
  values = np.asarray(values, float)
  if len(values) < 2:
    return float(values.mean()), float("nan")
  half = stats.t.ppf(0.5 + level / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
  return float(values.mean()), float(half)


def show(value: tuple[float, float], form: str = ".4f") -> str:
  return f"{value[0]:{form}} ± {value[1]:{form}}"


def figure(width: float, height: float, **grid):
  import matplotlib

  matplotlib.use("Agg")
  from matplotlib import pyplot as plt

  plt.rcParams.update({"font.size": 9, "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
                       "grid.alpha": 0.25, "savefig.dpi": 160})  # fmt: skip
  return plt.subplots(**grid, figsize=(width, height), layout="constrained")


def write(out: pathlib.Path, name: str, result: dict[str, Any], table: str, fig) -> None:
  """`NAME.json`, `NAME.txt` and `NAME.png`; prints the table."""
  out.mkdir(parents=True, exist_ok=True)
  metrics.write_json(out / f"{name}.json", result)
  (out / f"{name}.txt").write_text(table + "\n", encoding="utf-8")
  fig.savefig(out / f"{name}.png")
  print(table)
  print(f"\nwritten to {out / name}.json, .txt and .png")
