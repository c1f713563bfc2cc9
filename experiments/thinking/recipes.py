"""Which training makes thinking longer gain most: held-out loss over thinking steps for each run of set `recipes`.

  python -m experiments.thinking.recipes --workdir=runs/thinking

One seed: good enough to choose a config, not to draw conclusions. Names say what differs from the first row.
"""

import sys

from ebt_jax import cli
from ebt_jax import config as config_lib
from experiments.thinking import common, train


def label(config: config_lib.ThinkingConfig) -> str:
  steps = f"{config.random_steps_min} to {config.steps} steps" if config.random_steps_min else f"{config.steps} steps"
  return f"{steps}, step size {config.step_size:g}, noise {config.noise:g}"


def main():
  args = common.arguments(__doc__, "recipes", steps=16, first=3, last=10)
  shown = sorted({1, 2, args.first, 6, args.last, args.steps} & set(range(1, args.steps + 1)))
  rows, result, number = [], {}, ""
  fig, axes = common.figure(5.6, 3.6)
  for i, run in enumerate(train.recipes()):
    folder = args.workdir / "recipes" / "runs" / run.name
    if not (folder / "final_result.json").exists():
      rows.append(f"{run.name}: not trained")
      continue
    model = common.open_model(folder)
    found = common.scores(model, common.held_out(model), args.windows, steps=args.steps)
    bits = common.headline(model, found)
    name, number = label(model.config.thinking), common.headline_name(model)
    gain = bits[args.first - 1] - bits[args.last - 1]
    result[name] = {"headline": bits.tolist(), "gain": float(gain), "train_steps": model.step}
    rows.append(f"{name:<46}" + "".join(f"{bits[k - 1]:>9.4f}" for k in shown) + f"{gain:>+12.4f}")
    axes.plot(range(1, args.steps + 1), bits, "o-", ms=2.5, lw=1, label=name, color=f"C{i}")
  if not result:
    common.find(args.workdir, "", "recipes")  # raises: there is no run at all
  head = f"{f'{number} after so many thinking steps':<46}" + "".join(f"{k:>9}" for k in shown)
  rows.insert(0, head + f"{f'{args.first} -> {args.last}':>12}")
  best = min(min(r["headline"]) for r in result.values())
  axes.set(xlabel="thinking steps", ylabel=f"held-out {number}", ylim=(best - 0.03, best + 0.4))
  axes.legend(frameon=False, fontsize=6.5)
  common.write_study(args, {"runs": result, "windows": args.windows}, "\n".join(rows), fig)


if __name__ == "__main__":
  sys.exit(cli.door(main))
