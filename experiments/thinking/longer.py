"""Thinking longer (paper Fig. 6a): held-out loss over passes, for System 1, System 2 and Transformer++.

  python -m experiments.thinking.longer --workdir=runs/thinking

A thinking step of EBT is a forward and a backward pass of the candidates. Transformer++ cannot think longer, but with k
passes it can average the predictions of k models; here these are the seeds.
"""

import sys

import numpy as np

from ebt_jax import cli
from experiments.thinking import common

TOLERANCES = (0.001, 0.003, 0.01, 0.03, 0.1)


def curves(folders, steps: int, windows: int, **inference) -> np.ndarray:
  """The headline number `[seeds, steps]`."""
  found = []
  for folder in folders:
    model = common.open_model(folder)
    scores = common.scores(model, common.held_out(model), windows, steps=steps, **inference)
    found.append(common.headline(model, scores))
  return np.array(found)


def stopping(folders, budget: int, windows: int) -> dict[float, list]:
  """Tolerance -> for each seed (mean steps used, relative increase of the loss over that of the whole budget)."""
  out: dict[float, list] = {}
  for folder in folders:
    model = common.open_model(folder)
    data = common.held_out(model)
    whole = common.scores(model, data, windows, steps=budget)["loss"][-1].mean()
    for tolerance in TOLERANCES:
      found = common.scores(model, data, windows, steps=budget, tolerance=tolerance)
      out.setdefault(tolerance, []).append((float(found["steps"].mean()), float(found["loss"][-1].mean() / whole - 1)))
  return out


def ensembles(folders, windows: int) -> np.ndarray:
  """The headline number of the average of the first k models, `[k]`."""
  models = [common.open_model(f) for f in folders]
  found = [common.scores(m, common.held_out(m), windows) for m in models]
  p = np.exp(-np.stack([f["loss"][0] for f in found]))
  averages = np.cumsum(p, 0) / np.arange(1, len(p) + 1)[:, None]
  return common.headline(models[0], {**found[0], "loss": -np.log(averages)})


def main():
  args = common.arguments(__doc__, "longer", kind="s1,s2", steps=16, first=3, last=10)
  fig, axes = common.figure(4.8, 3.4)
  result, rows = {"steps": args.steps, "windows": args.windows}, []
  kinds = args.kind.split(",")
  for kind in kinds:
    folders = common.of_kind(args.workdir, kind)
    found = curves(folders, args.steps, args.windows)
    model = common.open_model(folders[0])
    shown = sorted({1, 2, 3, 4, 6, 10, args.steps} & set(range(1, args.steps + 1)))
    trained, name, number = model.config.thinking.steps, common.headline_name(model), model.problem.headline
    gain = found[:, args.first - 1] - found[:, args.last - 1]  # between steps of the same seed
    result[kind] = {number: found.tolist(), "gain": common.mean_interval(gain), "trained_steps": trained}
    rows.append(f"{common.KINDS[kind].label}, trained with {trained} steps at most, {len(folders)} seeds:")
    rows += [f"  {k:>3} steps  {common.over_seeds(found[:, k - 1])} {name}" for k in shown]
    rows.append(f"  {args.first} -> {args.last} steps lowers it by {common.over_seeds(gain, '.5f')}")
    passes, mean = np.arange(1, args.steps + 1), found.mean(0)
    half = [common.mean_interval(v)[1] for v in found.T]
    axes.plot(passes, mean, "o-", ms=3, color=common.KINDS[kind].color, label=common.KINDS[kind].label)
    axes.fill_between(passes, mean - half, mean + half, color=common.KINDS[kind].color, alpha=0.15, lw=0)
  thinker = kinds[-1]
  stops = stopping(common.of_kind(args.workdir, thinker), args.last, args.windows)
  result["stopping"] = stops
  rows.append(f"{common.KINDS[thinker].label}, at most {args.last} steps, stopping where the energy has settled:")
  for tolerance, found in stops.items():
    used, worse = (common.mean_interval(v) for v in zip(*found))
    rows.append(f"  {tolerance:<6} {common.plus_minus(used, '.2f')} steps, loss {worse[0]:+.3%} ± {worse[1]:.3%}")
  folders = common.of_kind(args.workdir, "transformer")
  alone, together = curves(folders, 1, args.windows)[:, 0], ensembles(folders, args.windows)
  result["transformer"] = {number: alone.tolist(), "ensembles": together.tolist()}
  rows.append(f"Transformer++, one pass: {common.over_seeds(alone)} {name}")
  rows += [f"Transformer++, average of {k} models ({k} passes): {v:.4f} {name}" for k, v in enumerate(together, 1)]
  color = common.KINDS["transformer"].color
  axes.axhline(alone.mean(), color=color, ls="--", lw=1, label="Transformer++, one pass")
  axes.plot(
    np.arange(1, len(together) + 1), together, "s", ms=4, color=color, label="Transformer++, average of k models"
  )
  best = min(together.min(), *(min(result[k][number][0]) for k in kinds))
  axes.set(xlabel="passes for each prediction", ylabel=f"held-out {name}", ylim=(best - 0.05, best + 0.6))
  axes.legend(frameon=False, fontsize=8)
  common.write_study(args, result, "\n".join(rows), fig)


if __name__ == "__main__":
  sys.exit(cli.door(main))
