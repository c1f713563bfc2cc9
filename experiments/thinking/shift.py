"""Out of distribution (paper Fig. 7): the gain of thinking longer over the distance of a text from the training text.

  python tools/fetch_data.py --out=data ladder      # otherwise small stand-ins, without a download
  python -m experiments.thinking.shift --workdir=runs/thinking --data=data

The shift of a rung is its perplexity over that of the held-out text, both after `--first` steps. The gain is the fall
of perplexity from `--first` to `--last` steps, both with the best of `--candidates`. Where Transformer++ is trained,
its loss after one pass stands beside what thinking ends at, paired by seed.
"""

import pathlib
import sys

import numpy as np

from ebt_jax import cli
from experiments.thinking import common, ladder

CONTROLS = ("shuffled", "noise")  # not written by people: in the table, not in the slope


def main():
  args = common.arguments(__doc__, "shift", kind="s2", data=pathlib.Path("data"), first=2, last=10, candidates=1)
  folders = common.of_kind(args.workdir, args.kind)
  trained_on = common.open_model(folders[0]).problem.data_config  # found wherever the study is started
  rungs = ladder.rungs(str(args.data), trained_on.source, trained_on.held_out)
  paths = ladder.write_texts(rungs, str(args.workdir / "ladder"))
  loss = losses(folders, paths, args.windows, steps=args.last, candidates=args.candidates)
  rivals = common.trained_kinds(args.workdir, [args.kind, "transformer"]).get("transformer", [])[: len(folders)]
  show(args, rungs, loss, losses(rivals, paths, args.windows))


def losses(folders: list[pathlib.Path], paths: dict[str, str], count: int, **inference) -> dict[str, np.ndarray]:
  """`[seeds, steps]` of every text."""
  out: dict[str, list] = {}
  for folder in folders:
    model = common.open_model(folder)
    for name, path in paths.items():
      found = common.scores(model, model.problem.examples_of(path), count, **inference)
      out.setdefault(name, []).append(found["loss"].mean(-1))
  return {name: np.array(v) for name, v in out.items()}


def show(args, rungs, loss: dict[str, np.ndarray], rival: dict[str, np.ndarray]) -> None:
  """Writes shifts and gains from the losses `[seeds, steps]` of every rung, and of Transformer++ where it has any."""
  seeds = len(loss[rungs[0].name])
  base = loss[rungs[0].name][:, args.first - 1]
  shift = {name: np.exp(v[:, args.first - 1] - base) for name, v in loss.items()}
  gain = {name: 100 * (1 - np.exp(v[:, args.last - 1] - v[:, args.first - 1])) for name, v in loss.items()}
  written = [r for r in rungs if r.name not in CONTROLS]
  slopes, correlations = [], []
  for seed in range(seeds):
    x, y = (np.array([d[r.name][seed] for r in written]) for d in (shift, gain))
    slopes.append(np.polyfit(x, y, 1)[0])
    correlations.append(np.corrcoef(x, y)[0, 1])
  rows = [f"perplexity from {args.first} to {args.last} steps, best of {args.candidates}, {seeds} seeds:"]
  beside = "   less Transformer++, nats/token" if rival else ""
  rows.append(f"  {'text':<14}{'nats/token':>11}{'shift':>10}   {'gain, %':<16}{beside}")
  for r in rungs:
    mark = "" if r.fetched else "  (stand-in)"
    nats, gained = loss[r.name][:, args.last - 1].mean(), common.over_seeds(gain[r.name], ".2f")
    less = f"   {common.over_seeds(loss[r.name][:, args.last - 1] - rival[r.name][:, 0])}" if rival else ""
    rows.append(f"  {r.name:<14}{nats:>11.4f}{shift[r.name].mean():>10.3f}   {gained:<16}{less}{mark}")
  rows.append(f"without {' and '.join(CONTROLS)}:")
  rows.append(f"slope {common.over_seeds(slopes, '.3f')} percent for each unit of shift")
  rows.append(f"correlation {common.over_seeds(correlations, '.3f')}")
  fig, axes = common.figure(4.8, 3.4)
  for i, r in enumerate(sorted(written, key=lambda r: shift[r.name].mean())):  # names above and below in turn
    (mean, half), x = common.mean_interval(gain[r.name]), shift[r.name].mean()
    axes.errorbar(x, mean, half, fmt="o", ms=4, capsize=3, color=common.KINDS[args.kind].color)
    axes.annotate(r.name, (x, mean), xytext=(5, -9 if i % 2 else 4), textcoords="offset points", fontsize=7)
  axes.axhline(0, color="k", lw=0.6)
  axes.set(
    xlabel="distribution shift (perplexity over held-out perplexity)",
    ylabel="fall of perplexity by thinking, %",
    xscale="log",
  )
  axes.set_xticks([1, 2, 5, 10, 20], [1, 2, 5, 10, 20])
  axes.minorticks_off()
  axes.margins(x=0.15)
  result = {
      "rungs": [{"name": r.name, "why": r.why, "fetched": r.fetched, "documents": len(r.documents)} for r in rungs],
      "loss": {n: v.tolist() for n, v in loss.items()}, "shift": {n: v.tolist() for n, v in shift.items()},
      "gain": {n: v.tolist() for n, v in gain.items()}, "slope": slopes, "correlation": correlations,
      "transformer": {n: v[:, 0].tolist() for n, v in rival.items()},
  }  # fmt: skip
  common.write_study(args, result, "\n".join(rows), fig)


if __name__ == "__main__":
  sys.exit(cli.door(main))
