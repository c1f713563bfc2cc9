"""Thinking longer on Sudoku: boards solved over steps and candidates, what energy knows, and rivals at equal cost.

  python -m experiments.reasoning.study --workdir=runs/reasoning --among=4x4
  python -m experiments.reasoning.page experiments/reasoning/results/4x4.json     # the page of its results

All puzzles have one solution, so that the rules themselves say which boards are right. `in` are held-out puzzles with
as many givens as those of training, `out` have fewer.
"""

import functools
import sys

import numpy as np

from ebt_jax import cli, files, record, runs
from ebt_jax.config import ConfigError
from ebt_jax.tasks.base import Thinks
from ebt_jax.tasks.sudoku import HARDER
from experiments.reasoning import boards
from experiments.thinking import common

COLORS = {
  **{"ebt": "#1b6ca8", "judge": "#2a9d5c", "pair": "#e9a23b"},
  **{"feedforward": "#444444", "looped": "#d1495b", "recursive": "#7b5ea7"},
}
LABELS = {
  "ebt": "EBT",
  "judge": "EBT that judges boards",
  "pair": "EBT with a contrast of pairs",
  "feedforward": "one pass, equal steps",
  "feedforward_flops": "one pass, equal FLOPs",
  "looped": "looped, equal steps",
  "looped_flops": "looped, equal FLOPs",
  "recursive": "recursive, equal steps",
  "recursive_flops": "recursive, equal FLOPs",
}
THINKERS = ("ebt", "judge")
SETS = {"in": "held_out", "out": HARDER}
DOUBLINGS = (1, 2, 4, 8, 16, 32, 64)  # thinking steps or passes
LAST = 16  # steps of what is compared; candidates think for as many
CANDIDATES = DOUBLINGS[:6]
CHOICES = ("energy", "entropy")  # what candidates are chosen by
TOLERANCE = 0.01


def evaluate(folder, args) -> dict:
  """All numbers of one run."""
  model = common.open_model(folder)
  held_out = record.data_of(model.run.task, model.run.folder).held_out
  loops = isinstance(model.run.task, Thinks) or model.run.task.model.loops
  result = files.read_json(folder / runs.RESULT, "a final result", "train this run again")
  out = {"trained_steps": model.config.thinking.steps if loops else 1}
  out |= {name: result[name] for name in ("flops", "params_non_embedding", "steps", "train_seconds")}
  steps = DOUBLINGS if loops else (1,)
  out["answer_flops"] = {k: model.task(steps=k).flops().prediction["total"] for k in steps}
  for short, name in SETS.items():
    found = boards.after(model, held_out[name], args.windows, steps)
    at = {k: i for i, k in enumerate(steps)}
    mine = out[short] = {
      "boards": {k: float(found.solved[i].mean()) for k, i in at.items()},
      "cells": {k: float(found.cells[i].mean()) for k, i in at.items()},
      "wrong": {k: int((~found.solved[i]).sum()) for k, i in at.items()},
    }
    mine["givens"] = {k: boards.by_givens(found.solved[at[k], 0], found.givens) for k in (1, LAST) if k in at}
    mine["auroc"] = {
      k: {name: boards.auroc(found.solved[i, 0], a[i, 0]) for name, a in found.judges.items()} for k, i in at.items()
    }
    if found.energy is None:
      continue
    if model.config.thinking.contrast and model.config.thinking.contrast_of == "each":
      mine["called"] = {k: float(((found.energy[i] < 0) == found.solved[i]).mean()) for k, i in at.items()}
    stopped = boards.answer(model, held_out[name], args.windows, steps=steps[-1], tolerance=TOLERANCE)
    mine["used"] = boards.by_givens(stopped.used[0], stopped.givens)
    mine["stopped"] = [float(stopped.used.mean()), float(stopped.solved[-1].mean())]
    if short == "out":
      some = {k: i for k, i in at.items() if k <= LAST}
      several = boards.after(model, held_out[name], args.few, tuple(some), candidates=CANDIDATES[-1])
      mine["candidates"] = {
        k: {by: {n: float(several.best_of(n, i, by)[0].mean()) for n in CANDIDATES} for by in CHOICES}
        for k, i in some.items()
      }  # fmt: skip
      mine["within"] = {k: boards.ordered(several, i) for k, i in some.items()}
  return out


def said(values, form: str) -> str:
  """Mean over seeds and interval, without the interval for one seed; `-` where nothing is known."""
  known = [v for v in values if np.isfinite(v)]
  if len(known) < 2:
    return f"{known[0]:{form}}" if known else "-"
  mean, half = common.mean_interval(known)
  return f"{mean:{form}} ± {half:{form.lstrip('+')}}"


def over(found: list[dict], *path, scale: float = 100.0, form: str = ".1f") -> str:
  """`said` of one number of each seed, in percent."""
  return said([scale * functools.reduce(lambda tree, key: tree[key], path, one) for one in found], form)


def table(results: dict[str, list[dict]]) -> list[str]:
  rows = []
  for kind, found in results.items():
    one = found[0]
    rows.append(
      f"{LABELS[kind]}: {len(found)} seeds, {one['params_non_embedding']:,} parameters in blocks, {one['steps']} steps "
      f"of training with {one['trained_steps']} thinking steps or passes, {one['flops']:.2e} FLOPs"
    )
    for short in SETS:
      here = found[0][short]
      for k in here["boards"]:
        right = [over(found, short, name, k) for name in ("boards", "cells")]
        judges = ", ".join(f"{j} {over(found, short, 'auroc', k, j, scale=1, form='.3f')}" for j in here["auroc"][k])
        rows.append(f"  {short:<3} after {k:>2}: boards {right[0]} %, cells {right[1]} %; AUROC of {judges}")
      for k, by_judge in here.get("candidates", {}).items():
        for judge, by_count in by_judge.items():
          best = ", ".join(f"{n}: {over(found, short, 'candidates', k, judge, n)}" for n in by_count)
          rows.append(f"  {short:<3} after {k:>2}, least {judge} of n candidates, boards %: {best}")
      if "called" in here:
        called = ", ".join(f"{k}: {over(found, short, 'called', k)}" for k in here["called"])
        rows.append(f"  {short:<3} boards with an energy below 0 just where they are solved, %, by steps: {called}")
      if "within" in here:
        pairs = ", ".join(f"{k}: {over(found, short, 'within', k, scale=1, form='.3f')}" for k in here["within"])
        rows.append(
          f"  {short:<3} right and wrong candidates of one puzzle in the right order of energy, by steps: {pairs}"
        )
      if "stopped" in here:
        used, right = (said([f[short]["stopped"][i] for f in found], form) for i, form in ((0, ".2f"), (1, ".3f")))
        givens = ", ".join(f"{k}: {over(found, short, 'used', k, scale=1, form='.2f')}" for k in here["used"])
        rows.append(
          f"  {short:<3} stopping where the energy changes by less than {TOLERANCE}: {used} steps, {right} solved"
        )
        rows.append(f"  {short:<3} steps used, by givens: {givens}")
  return rows


def trained(found: dict) -> int:
  """The first number of steps or passes that was looked at and is no less than in training."""
  return next(k for k in found["out"]["boards"] if k >= found["trained_steps"])


def gains(results) -> list[str]:
  """What is claimed, paired by seed: later steps, and EBT against each rival at its best number of passes."""
  rows = []
  for thinker in THINKERS:
    if thinker not in results:
      continue
    mine, first = [f["out"]["boards"] for f in results[thinker]], trained(results[thinker][0])
    more = said([100 * (b[4 * first] - b[first]) for b in mine], "+.1f")
    rows.append(f"{LABELS[thinker]}, out: {first} -> {4 * first} steps {more} points")
    for kind, found in results.items():
      if kind != thinker:
        most = [max(f["out"]["boards"].values()) for f in found]  # at the number of passes that is best for the rival
        ahead = said([100 * (b[LAST] - m) for b, m in zip(mine, most)], "+.1f")
        rows.append(f"{LABELS[thinker]} after {LAST} steps against {LABELS[kind]} at its best, out: {ahead} points")
  return rows


def curve(axes, x, values, **style):
  """Mean over seeds, and its interval as a band."""
  stats = [common.mean_interval(v) for v in values]
  mean, half = np.array([m for m, _ in stats]), np.array([h for _, h in stats])
  axes.plot(x, mean, marker="o", ms=3, **style)
  axes.fill_between(x, mean - half, mean + half, color=style["color"], alpha=0.15, lw=0)


def draw(results):
  fig, ((left, middle), (right, below)) = common.figure(8.4, 6.2, nrows=2, ncols=2)
  for kind, found in results.items():
    color, dashed = COLORS[kind.split("_")[0]], "--" if kind.endswith("_flops") else "-"
    by_step = {k: [100 * f["out"]["boards"][k] for f in found] for k in found[0]["out"]["boards"]}
    if len(by_step) == 1:
      left.axhline(np.mean(by_step[1]), color=color, ls=dashed, lw=1, label=LABELS[kind])
    else:
      curve(left, list(by_step), list(by_step.values()), color=color, ls=dashed, label=LABELS[kind])
  thinker = "judge" if "judge" in results else "ebt"
  for i, (k, counts) in enumerate(results[thinker][0]["out"]["candidates"].items()):
    for by, dash in zip(CHOICES, ("-", ":")):
      by_count = [[100 * f["out"]["candidates"][k][by][n] for f in results[thinker]] for n in counts["energy"]]
      label = f"{k} step{'s' if k > 1 else ''}" if by == "energy" else None
      curve(middle, list(counts["energy"]), by_count, color=f"C{i}", ls=dash, label=label)
  for kind, found in results.items():
    last = max(found[0]["out"]["givens"])
    by_givens = {
      g: [100 * f[s]["givens"][last][g] for f in found] for s in ("out", "in") for g in found[0][s]["givens"][last]
    }
    style = {"color": COLORS[kind.split("_")[0]], "ls": "--" if kind.endswith("_flops") else "-"}
    curve(right, list(by_givens), list(by_givens.values()), label=LABELS[kind], **style)
  for kind, found in results.items():
    auroc = {k: of for k, of in found[0]["out"]["auroc"].items() if k <= LAST}
    for judge in CHOICES:
      if len(auroc) > 1 and judge in auroc[1] and not kind.endswith("_flops"):
        values = [[f["out"]["auroc"][k][judge] for f in found] for k in auroc]
        style = {"color": COLORS[kind], "ls": "-" if judge == "energy" else ":"}
        curve(below, list(auroc), values, label=f"{judge}, {LABELS[kind]}", **style)
  left.set(xlabel="thinking steps or passes", ylabel="boards solved, out of distribution, %", xscale="log")
  middle.set(xlabel="candidates, least energy kept; dotted: least entropy", xscale="log")
  right.set(xlabel="givens", ylabel="boards solved, %")
  right.locator_params(axis="x", integer=True)
  middle.set_title(LABELS[thinker], fontsize=8)
  below.set(xlabel="thinking steps or passes", ylabel="AUROC, solved against unsolved", xscale="log")
  for axes, top in ((left, 100), (middle, 100), (right, 100), (below, 1)):  # shares: what is beyond is no share
    axes.set_ylim(bottom=max(0, axes.get_ylim()[0]), top=1.02 * top)
  below.set_ylim(bottom=max(0, below.get_ylim()[0] - 0.15))  # room for the legend
  for axes, ticks in ((left, DOUBLINGS), (middle, CANDIDATES), (below, DOUBLINGS[:5])):
    axes.set_xticks(ticks, ticks)
    axes.minorticks_off()
  for axes, place in ((left, "best"), (middle, "lower right"), (below, "lower right")):
    axes.legend(frameon=False, fontsize=7, loc=place)
  return fig


def main():
  args = common.arguments(__doc__, "reasoning", "reasoning", among="4x4", few=128)  # few: for many candidates
  args.study = args.among
  results = {}
  for kind in LABELS:
    if folders := sorted(p.parent for p in (args.workdir / args.among / "runs").glob(f"{kind},*/final_result.json")):
      results[kind] = [evaluate(folder, args) for folder in folders]
      print(f"{LABELS[kind]}: {len(folders)} runs", flush=True)
  if not any(kind in results for kind in THINKERS):
    raise ConfigError(
      f"--workdir: {args.workdir / args.among} holds no finished run of EBT; train first: "
      f"python -m experiments.reasoning.train --set={args.among} --workdir={args.workdir}"
    )
  rows = [*table(results), *gains(results)]
  common.write_study(args, results, "\n".join(rows), draw(results))


if __name__ == "__main__":
  sys.exit(cli.door(main))
