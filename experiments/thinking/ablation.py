"""Ablation (paper Table 2): what thinking longer and self-verification gain without one regulariser of System 2.

  python -m experiments.thinking.ablation --workdir=runs/thinking

A gain is the fall of exp(loss), in percent of that of one candidate after `--first` steps. The paper does not say of
what its percentages are.
"""

import sys

import numpy as np

from ebt_jax import cli
from experiments.thinking import common, train


def main():
  args = common.arguments(__doc__, "ablation", kind="s2", first=3, last=10, candidates=5)
  among, result = args.kind.replace("s2", "ablation"), {}
  for name in train.LEFT_OUT:
    bits, longer, verified = [], [], []
    for folder in common.find(args.workdir, name, among):
      model = common.open_model(folder)
      windows = common.held_out(model)
      one = common.scores(model, windows, args.windows, steps=args.last)
      best = common.scores(model, windows, args.windows, steps=args.last, candidates=args.candidates)
      loss = one["loss"].mean(-1)
      bits.append(common.headline(model, one)[args.first - 1])
      longer.append(common.gain(loss[args.first - 1], loss[args.last - 1]))
      verified.append(common.gain(loss[args.first - 1], best["loss"][-1].mean()))
    result[name.replace("_", " ")] = {"headline": bits, "longer": longer, "verified": verified}
  show(args, common.headline_name(model), result)


def show(args, number: str, result) -> None:
  """Writes the gains of every variant; differences from the full variant are between runs of the same seed."""
  columns = (f"{number}, {args.first} steps", "thinking longer, %", "less all of them, %", "+ self-verification, %")
  rows = ["".join([f"{'':<28}", *(f"{c:>24}" for c in columns)])]
  fig, axes = common.figure(6.4, 3.2)
  for i, (label, of) in enumerate(result.items()):
    less = np.subtract(of["longer"], result["full"]["longer"])
    cells = [common.over_seeds(v, f) for v, f in ((of["headline"], ".4f"), (of["longer"], ".3f"),
                                                              (less, ".3f"), (of["verified"], ".3f"))]  # fmt: skip
    rows.append("".join([f"{label:<28}", *(f"{c:>24}" for c in cells)]))
    for what, name, offset, color in (
      ("longer", f"{args.first} to {args.last} steps", -0.18, "#1b6ca8"),
      ("verified", f"and the best of {args.candidates}", 0.18, "#edae49"),
    ):
      mean, half = common.mean_interval(of[what])
      axes.barh(
        i + offset, mean, 0.34, xerr=half, color=color, capsize=2, label=None if i else name, error_kw={"lw": 1}
      )
  axes.set(yticks=range(len(result)), yticklabels=list(result), xlabel=common.GAIN)
  axes.invert_yaxis()
  axes.axvline(0, color="k", lw=0.6)
  axes.legend(frameon=False, fontsize=8)
  common.write_study(args, result, "\n".join(rows), fig)


if __name__ == "__main__":
  sys.exit(cli.door(main))
