"""Ablation (paper Table 2): each regulariser of System 2 left out; what thinking longer and self-verification then gain.

  python -m experiments.thinking.ablation --workdir=runs/thinking

Gains are the fall of perplexity in percent of that after `--first` steps of one candidate; the paper does not say what
its percentages are of.
"""

import numpy as np

from experiments.thinking import common, train


def main():
  args = common.arguments(__doc__, first=3, last=10, candidates=5)
  labels = [name.replace("_", " ") for name in train.LEFT_OUT]
  result, rows = {}, [f"{'':<28}{'bits/byte':>18}{'thinking longer, %':>24}{'+ self-verification, %':>26}"]
  fig, axes = common.figure(6.4, 3.2)
  for i, label in enumerate(labels):
    bits, longer, verified = [], [], []
    for folder in common.find(args.workdir, label.replace(" ", "_"), "ablation"):
      model = common.load(folder)
      windows = common.held_out(model)
      one = common.scores(model, windows, args.windows, steps=args.last)
      best = common.scores(model, windows, args.windows, steps=args.last, candidates=args.candidates)
      loss = one["loss"].mean(-1)
      bits.append(common.bits_per_byte(one)[args.first - 1])
      longer.append(100 * (1 - np.exp(loss[args.last - 1] - loss[args.first - 1])))
      verified.append(100 * (1 - np.exp(best["loss"][-1].mean() - loss[args.first - 1])))
    cells = [common.show(common.interval(v), f) for v, f in ((bits, ".4f"), (longer, ".3f"), (verified, ".3f"))]
    rows.append(f"{label:<28}{cells[0]:>18}{cells[1]:>24}{cells[2]:>26}")
    result[label] = {"bits_per_byte": bits, "longer": longer, "verified": verified}
    for values, offset, color in ((longer, -0.18, "#1b6ca8"), (verified, 0.18, "#edae49")):
      mean, half = common.interval(values)
      axes.barh(i + offset, mean, 0.34, xerr=half, color=color, capsize=2)
  axes.set(yticks=range(len(labels)), yticklabels=labels, xlabel="fall of perplexity, %")
  axes.invert_yaxis()
  axes.axvline(0, color="k", lw=0.6)
  axes.legend([f"{args.first} to {args.last} steps", f"and the best of {args.candidates}"], frameon=False, fontsize=8)
  common.write(args.out, "ablation", result, "\n".join(rows), fig)


if __name__ == "__main__":
  main()
