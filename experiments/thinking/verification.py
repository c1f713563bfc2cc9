"""Self-verification (paper Fig. 6b): the gain of the best of N candidates, over N and over training.

  python -m experiments.thinking.verification --workdir=runs/thinking

The gain is the fall of exp(loss), in percent of that of one candidate with the same number of steps.
"""

import sys

from ebt_jax import cli
from experiments.thinking import common


def losses(model, windows, args, candidates: int, choose: str) -> float:
  found = common.scores(model, windows, args.windows, candidates=candidates, choose=choose, steps=args.steps)
  return float(found["loss"][-1].mean())


def main():
  args = common.arguments(__doc__, "verification", kind="s2", most=8, steps=3)
  counts = [n for n in (1, 2, 4, 8, 16, 32) if n < args.most] + [args.most]
  gains: dict[str, dict[int, list]] = {"energy": {}, "fall": {}}
  way: dict[float, list] = {}
  for folder in common.of_kind(args.workdir, args.kind):
    newest = common.open_model(folder)
    windows, config = common.held_out(newest), newest.config
    for choose, found in gains.items():
      by_count = {n: losses(newest, windows, args, n, choose) for n in counts}
      for n in counts:
        found.setdefault(n, []).append(common.gain(by_count[1], by_count[n]))
    every = config.checkpoint.keep_every
    for step in range(every, config.train.steps + 1, every):
      model = common.open_model(folder, step)
      one, best = (losses(model, windows, args, n, "energy") for n in (1, counts[-1]))
      way.setdefault(step * common.items_per_step(model), []).append(common.gain(one, best))
  item = newest.problem.item
  rows = [f"gain of the best of N over one candidate, {args.steps} steps, in % of exp(loss):"]
  for choose, found in gains.items():
    rows.append(f"  chosen by {'least energy' if choose == 'energy' else 'largest fall of energy'}:")
    rows += [f"    N = {n:<3} {common.over_seeds(v, '.3f')}" for n, v in found.items()]
  rows.append(f"  N = {counts[-1]} by least energy, against {item}s of training:")
  rows += [f"    {seen / 1e6:.2f} M  {common.over_seeds(v, '.3f')}" for seen, v in way.items()]
  fig, (left, right) = common.figure(7.2, 3.0, nrows=1, ncols=2)
  for axes, found in ((left, gains["energy"]), (right, {t / 1e6: v for t, v in way.items()})):
    x, stats = list(found), [common.mean_interval(v) for v in found.values()]
    color = common.KINDS[args.kind].color
    axes.errorbar(x, [m for m, _ in stats], [h for _, h in stats], fmt="o-", ms=4, capsize=3, color=color)
    axes.axhline(0, color="k", lw=0.6)
  left.set(xlabel="candidates", ylabel=common.GAIN, xscale="log", xticks=counts, xticklabels=counts)
  left.minorticks_off()
  right.set(xlabel=f"{item}s of training, millions", ylabel=f"{common.GAIN}, N = {counts[-1]}")
  result = {"by_count": gains, "by_items": way, "steps": args.steps, "windows": args.windows}
  common.write_study(args, result, "\n".join(rows), fig)


if __name__ == "__main__":
  sys.exit(cli.door(main))
