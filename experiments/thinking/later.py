"""Is a later step of a residual EBT worth anything: held-out loss after each step for each run of set `later`.

  python -m experiments.thinking.train --set=later --workdir=runs/thinking
  python -m experiments.thinking.later --workdir=runs/thinking

One seed: it shows where a gain may be, and proves none. The first row is one step from what the context predicts. A
row gains where its best step is better than its own first step; it is worth its FLOPs where it is better than the first
row.
"""

import sys

import numpy as np

from ebt_jax import cli
from experiments.thinking import common, train


def main():
  args = common.arguments(__doc__, "later", steps=16)
  shown = sorted({1, 2, 3, 4, 8, args.steps} & set(range(1, args.steps + 1)))
  rows, result = [], {}
  fig, axes = common.figure(6.4, 4.2)
  for run in train.later():
    folder = args.workdir / "later" / "runs" / run.name
    if not (folder / "final_result.json").exists():
      rows.append(f"{run.name}: not trained")
      continue
    model = common.open_model(folder)
    found = common.scores(model, common.held_out(model), args.windows, steps=args.steps)
    loss = np.average(found["loss"], axis=1, weights=found["weight"])
    best = int(np.argmin(loss))
    base = next(iter(result.values()))["loss"][0] if result else loss[0]
    result[run.name] = {"loss": loss.tolist(), "best_step": best + 1, "train_steps": model.step}
    rows.append(
      f"{run.name:<34}"
      + "".join(f"{loss[k - 1]:>9.4f}" for k in shown)
      + f"{best + 1:>6}{100 * (1 - loss[best] / loss[0]):>+9.2f}{100 * (1 - loss[best] / base):>+9.2f}"
    )
    axes.plot(range(1, args.steps + 1), loss, "o-", ms=2, lw=1, label=run.name)
  if not result:
    common.find(args.workdir, "", "later")  # raises: there is no run at all
  head = f"{'nats after so many thinking steps':<34}" + "".join(f"{k:>9}" for k in shown)
  rows.insert(0, f"{head}{'best':>6}{'% of own':>9}{'% of 1st':>9}")
  least = min(min(r["loss"]) for r in result.values())
  axes.set(xlabel="thinking steps", ylabel="held-out loss, nats", ylim=(least - 0.01, least + 0.2), xscale="log")
  axes.set_xticks(shown, [str(k) for k in shown])
  axes.minorticks_off()
  axes.legend(frameon=False, fontsize=5.5, ncols=2)
  common.write_study(args, {"runs": result, "windows": args.windows}, "\n".join(rows), fig)


if __name__ == "__main__":
  sys.exit(cli.door(main))
