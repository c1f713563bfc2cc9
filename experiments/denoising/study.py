"""Denoising by thinking and by diffusion (paper Table 4, Fig. 12): quality against the number of passes.

  python -m experiments.denoising.study --workdir=runs/denoising --sets=models,equal_flops \
      --out=experiments/denoising/results/laptop
  python -m experiments.denoising.page experiments/denoising/results/laptop

A pass of EBT is a thinking step, the energy and its gradient; one of DiT and flow is a forward pass. All models answer
the same held-out pictures with the same noise: at the level that EBT was trained at, and at others that it never saw.
"""

from collections.abc import Callable
import pathlib
import re
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import cli, diffusion, files, record, runs, streams
from ebt_jax.config import ConfigError
from ebt_jax.data import images
from ebt_jax.evaluation import image_report
from ebt_jax.owner import Owner
from ebt_jax.tasks.base import Examples, Task, Thinks, corrupted
from ebt_jax.use.image import denoise
from experiments.thinking import common

THINKING = 16  # steps of EBT, most
PASSES = {"dit": (1, 2, 5, 10, 20, 100), "flow": (1, 2, 5, 10, 20, 50)}
AGAIN = 3  # applications of a DiT with its most passes, as the authors count 100, 200 and 300
CANDIDATES = (2, 4, 8)  # the best of the first so many by energy; all are thought about once
MEASURES = ("psnr", "ssim", "mse")


class Model(NamedTuple):
  """A trained run, the series that it is of and its seed."""

  series: str
  seed: int
  run: runs.Run

  def program(self, function: Callable, **inference) -> Callable:
    """`common.program` of this run's config."""
    return common.program(function, self.run.config, **inference)


def find(workdir: pathlib.Path, among: str = "models") -> list[Model]:
  """The finished runs of a set, by the names that `train` gives them."""
  found = []
  for result in sorted((workdir / among / "runs").glob("*/final_result.json")):
    name = re.fullmatch(r"(\w+),seed=(\d+)", result.parent.name)
    if name:
      found.append(Model(name[1], int(name[2]), runs.open_run(result.parent)))
  if not found:
    raise ConfigError(
      f"--workdir: {workdir}/{among}/runs holds no finished run MODEL,seed=N; train first: "
      f"python -m experiments.denoising.train --set={among} --workdir={workdir}"
    )
  return found


def once(folder: pathlib.Path, about: str, model: Model, measure: Callable[[Model], Any]) -> Any:
  """`measure(model)`, as JSON, or what an earlier call has left in `folder`: a study that was stopped goes on.

  Args:
    about: what the result depends on beside the run and the step that it has been trained to.
  """
  path = folder / f"{model.series},seed={model.seed},step={model.run.step},{about}.json"
  if not path.exists():
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_json(path, {"found": measure(model)})
  return files.read_json(path, "what was measured of a run", "delete it")["found"]


def at_level(model: Model, level: float) -> Examples:
  """The run's held-out pictures with noise of a level."""
  examples = next(iter(record.data_of(model.run.task, model.run.folder).held_out.values()))
  return images.AtLevel(examples, level)


def means(program: Callable, params: Any, examples: Examples, count: int, rows: int = 32) -> dict[str, np.ndarray]:
  """Means over pictures of what `program(params, batch, keys)` says of each, arrays `[..., b]`."""
  key = streams.key_for(0, streams.EVALUATE)
  sums, seen = {}, 0.0
  for at, batch in common.batches(examples, min(count, len(examples)), rows):
    weights = batch["weights"]
    seen += weights.sum()
    for name, value in jax.device_get(program(params, batch, streams.each(key, at))).items():
      sums[name] = sums.get(name, 0) + np.sum(np.asarray(value, np.float64) * weights, -1)
  return {name: total / seen for name, total in sums.items()}


def measured(task: Task, params: Any, batch: Any, keys: Any) -> dict[str, jax.Array]:
  """Measures after each step, `[t, b]`, and where there are energies those before each step and at the end."""
  found = task.scores(params, batch, keys)
  out = {name: found.measures[name] for name in MEASURES}
  if found.energy is not None:
    out |= {"energy": found.energy, "final_energy": found.final_energy}
  return out


def best_of(task: Any, params: Any, batch: Any, keys: Any) -> dict[str, jax.Array]:
  """Measures `[numbers, b]` of the answer of least energy among the first candidates, for each of `CANDIDATES`."""
  batch = corrupted(task.problem, batch, keys)
  found = task.verified(params, batch, keys)

  def of_first(n):
    return task.problem.measures(found._replace(kept=jnp.argmin(found.final[:n], 0)).best(found.candidates), batch)

  return jax.tree.map(lambda *a: jnp.stack(a), *map(of_first, CANDIDATES))


def applied(task: Any, params: Any, batch: Any, keys: Any) -> dict[str, jax.Array]:
  """Measures `[AGAIN, b]` of a denoiser whose answer is taken for a noised picture again, as the authors do."""
  batch = corrupted(task.problem, batch, keys)
  x, t = task.problem.inputs(batch), task.problem.step(batch)

  def network(x, time):
    return task.model.predict(params["model"], (x, time))

  found = []
  for i in range(AGAIN):
    x, _ = diffusion.denoise(task.process, network, x, t, task.passes, streams.fold(keys, i), lambda x: ())
    found.append(task.problem.measures(x, batch))
  return jax.tree.map(lambda *a: jnp.stack(a), *found)


def trivial(task: Task, params: Any, batch: Any, keys: Any) -> dict[str, jax.Array]:
  """Measures of the noised picture, and of the same divided by its share of the picture."""
  batch = corrupted(task.problem, batch, keys)
  answers = {"input": batch["noised"], "rescaled": task.problem.rescaled(batch)}
  return {f"{n} {m}": v for n, x in answers.items() for m, v in task.problem.measures(x, batch).items()}


def non_local_means(model: Model, examples: Examples, count: int) -> dict[str, float] | None:
  """A classical denoiser that is told how strong the noise is; None where scikit-image is not installed."""
  try:
    from skimage.restoration import denoise_nl_means
  except ImportError:
    return None
  problem = model.run.task.problem
  count = min(count, len(examples))
  numbers, rows = next(common.batches(examples, count, rows=count))  # the pictures and the noise of `means`
  keys = streams.each(streams.key_for(0, streams.EVALUATE), numbers)
  batch = corrupted(problem, jax.tree.map(jnp.asarray, rows), keys)
  signal, scale = problem.schedule.scales(batch["step"], batch["noised"])
  sigmas = np.asarray(scale / signal).ravel() / 2  # of values from 0 to 1
  rescaled = np.asarray(problem.rescaled(batch)) / 2 + 0.5
  answers = np.stack([
    denoise_nl_means(x, patch_size=5, patch_distance=6, h=0.8 * s, sigma=s, fast_mode=True, channel_axis=-1)
    for x, s in zip(rescaled, sigmas)
  ])  # fmt: skip
  found = problem.measures(jnp.asarray(answers * 2 - 1, jnp.float32), batch)
  return {name: float(np.mean(found[name])) for name in MEASURES}


def rows_of(model: Model, level: float, count: int) -> list[dict[str, Any]]:
  """One row for each number of passes: measures and, of EBT, energies."""
  examples, params, out = at_level(model, level), model.run.params, []

  def add(passes, found, i=None, **more):
    values = {n: float(v if i is None else v[i]) for n, v in found.items() if n in MEASURES}
    out.append({"series": model.series, "seed": model.seed, "level": level, "passes": passes, **values, **more})

  if isinstance(model.run.task, Thinks):
    found = means(model.program(measured, steps=THINKING), params, examples, count)
    energies = [*found["energy"], found["final_energy"]]
    for i in range(THINKING):
      add(i + 1, found, i, energy=float(energies[i + 1]), candidates=1)
    steps = model.run.config.thinking.steps
    found = means(model.program(best_of, steps=steps, candidates=CANDIDATES[-1]), params, examples, count)
    for i, n in enumerate(CANDIDATES):
      add(steps, found, i, candidates=n)
    return out
  kind = model.run.config.model.kind
  *fewer, most = PASSES[kind]
  for passes in fewer if kind == "dit" else PASSES[kind]:
    found = means(model.program(measured, steps=passes), params, examples, count)
    add(passes, found, -1)
  if kind == "dit":
    found = means(model.program(applied, steps=most), params, examples, count)
    for i in range(AGAIN):
      add((i + 1) * most, found, i)
  return out


def panel(models: list[Model], level: float, count: int = 6) -> bytes:
  """A PNG: clean, noised, steps of each EBT, the best of the others, and what is left of the noise."""
  columns: dict[str, np.ndarray] = {}
  for model in models:
    thinks = isinstance(model.run.task, Thinks)
    answer = model.program(denoise, steps=4 if thinks else PASSES[model.run.config.model.kind][3])
    examples = at_level(model, level)
    batch = examples.rows(np.linspace(0, len(examples) - 1, count).astype(int))
    keys = streams.each(streams.key_for(0, streams.GENERATE), np.arange(count))
    found = jax.device_get(answer(model.run.params, batch, keys))
    if not columns:
      columns = {"clean": found.batch["clean"], "noised": found.batch["noised"]}
    for i in range(len(found.steps)) if thinks else [len(found.steps) - 1]:
      columns[f"{model.series} {i + 1}"] = found.steps[i]
    columns[f"left {model.series}"] = 4 * (found.steps[-1] - found.batch["clean"])
  return image_report.sheet(columns)


def main(argv: list[str]) -> None:
  parser = cli.Parser(prog="experiments.denoising.study", description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", type=cli.path, default=pathlib.Path("runs/denoising"))
  parser.add_argument("--sets", default="models", help="of train.py")
  parser.add_argument("--levels", default="0.1,0.2,0.3", help="noise levels; the first is that of training")
  parser.add_argument("--pictures", type=cli.at_least(1), default=64, help="held-out pictures, spread over all")
  parser.add_argument("--out", type=cli.path, required=True, help="folder of the results")
  args = parser.parse_args(argv)
  levels = [float(level) for level in args.levels.split(",")]
  common.share_programs(args.workdir)
  with Owner(args.out, "--out"):
    models = [model for name in args.sets.split(",") for model in find(args.workdir, name)]
    rows, trivials = [], []
    for level in levels:
      first = models[0]
      found = means(first.program(trivial), first.run.params, at_level(first, level), args.pictures)
      for name in ("input", "rescaled"):
        trivials.append({"answer": name, "level": level, **{m: float(found[f"{name} {m}"]) for m in MEASURES}})
      if classical := non_local_means(first, at_level(first, level), args.pictures):
        trivials.append({"answer": "non-local means", "level": level, **classical})
      for model in models:
        about = f"{level:g},{args.pictures}"
        rows += once(args.workdir / "study", about, model, lambda m: rows_of(m, level, args.pictures))
        print(f"level {level}: {model.series}, seed {model.seed}", flush=True)
      shown = [next(m for m in models if m.series == s) for s in dict.fromkeys(m.series for m in models)]
      files.replace_bytes(args.out / f"panel_{level:g}.png", panel(shown, level))
    settings = {"levels": levels, "pictures": args.pictures, "workdir": str(args.workdir)}
    trained = {m.series: {"steps": m.run.step, "batch": m.run.config.train.batch_size,
                          "levels": m.run.config.image.noise_level if m.run.config.model.kind == "ebt"
                          else m.run.task.problem.steps_asked / m.run.config.image.diffusion_steps,
                          "flops_per_picture": m.run.task.flops().row["total"]} for m in models}  # fmt: skip
    files.write_json(
      args.out / "study.json", {"settings": settings, "trained": trained, "rows": rows, "trivial": trivials}
    )
  print(f"written to {args.out}")


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
