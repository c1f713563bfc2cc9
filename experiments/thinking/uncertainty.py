"""Uncertainty (paper Figs. 8 and 11): does the energy tell how hard a token is?

  python -m experiments.thinking.uncertainty --workdir=runs/thinking --text="The quick brown fox."

It shows a heat map of energies over tokens and steps for a given text, the correlation of the final energy with the
model's own loss, the tokens of lowest and highest energy, real text and random strings, and the loss at each energy.
"""

import dataclasses
import sys

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from ebt_jax import cli, terminal
from ebt_jax.config import ConfigError
from ebt_jax.data.tokenizers import split_text, token_name
from experiments.thinking import common

TEXT = "The quick brown fox jumps over the lazy dog. Research is hard."


def on_text(model, words: str, steps: int) -> tuple[list[str], np.ndarray]:
  """Tokens of a text from the second on, and their energies before each step and at the end, `[steps + 1, tokens]`."""
  ids = model.problem.tokenizer.encode(words)[: model.config.data.context_length + 1]
  if len(ids) < 2:
    raise ConfigError(f"--text: expected two tokens or more, found {words!r}")
  batch = {"tokens": jnp.asarray(ids)[None], "weights": jnp.ones((1, len(ids) - 1))}
  found = jax.device_get(
    jax.jit(model.task(steps=steps).scores)(
      model.params, batch, jax.random.split(jax.random.key(0), len(batch["tokens"]))
    )
  )
  _, names = split_text(model.problem.tokenizer, ids[:1].tolist(), ids[1:].tolist())
  return names, np.concatenate([found.energy[:, 0], found.final_energy])


def random_text(examples):
  """The same number of windows, of tokens drawn evenly from those that occur."""
  windows = examples.windows
  seen = np.unique(windows.tokens)
  drawn = np.random.default_rng(0).choice(seen, windows.tokens.shape).astype(windows.tokens.dtype)
  return dataclasses.replace(examples, windows=dataclasses.replace(windows, tokens=drawn))


def main():
  args = common.arguments(__doc__, "uncertainty", kind="s2", text=TEXT, steps=11, bins=10)
  folders = common.of_kind(args.workdir, args.kind)
  pearson, spearman, contrast, calibration = [], [], [], []
  for folder in folders:
    model = common.open_model(folder)
    windows = common.held_out(model)
    found = common.scores(model, windows, args.windows, steps=args.steps)
    energy, loss = found["final_energy"], found["loss"][-1]
    pearson.append(np.corrcoef(energy, loss)[0, 1])
    spearman.append(stats.spearmanr(energy, loss)[0])
    noise = common.scores(model, random_text(windows), max(1, args.windows // 4), steps=args.steps)
    contrast.append([energy.mean(), noise["final_energy"].mean(), loss.mean(), noise["loss"][-1].mean()])
    order = np.argsort(energy)
    calibration.append([(energy[part].mean(), loss[part].mean()) for part in np.array_split(order, args.bins)])
  model = common.open_model(folders[0])
  found = common.scores(model, common.held_out(model), args.windows, steps=args.steps)
  tokens, counts = np.unique(found["target"], return_counts=True)
  mean = {int(t): found["final_energy"][found["target"] == t].mean() for t, n in zip(tokens, counts) if n >= 50}

  def name(t):
    return token_name(model.problem.tokenizer, t)

  ordered = sorted(mean, key=mean.get)
  contrast, calibration = np.array(contrast), np.array(calibration)

  def shown(values):
    return common.over_seeds(values, ".3f")

  rows = [
    f"energy after {args.steps} steps against the model's own loss, {len(found['target'])} held-out tokens, "
    f"{len(folders)} seeds:",
    f"  Pearson {shown(pearson)}, Spearman {shown(spearman)}",
    f"  easiest tokens (least energy): {' '.join(map(name, ordered[:12]))}",
    f"  hardest tokens: {' '.join(map(name, ordered[::-1][:12]))}",
    f"  mean energy of real text {shown(contrast[:, 0])}, of random strings {shown(contrast[:, 1])}; "
    f"difference {shown(contrast[:, 1] - contrast[:, 0])}",
    f"  loss in {model.problem.unit} of each 1/{args.bins} of the tokens, from least to most energy:",
    "    " + " ".join(f"{v:.2f}" for v in calibration[:, :, 1].mean(0)),
  ]
  names, heat = on_text(model, args.text, args.steps)
  fig, (top, left) = common.figure(9.0, 5.4, nrows=2, ncols=1, height_ratios=[3, 2])
  image = top.imshow(heat, aspect="auto", cmap="magma", vmin=np.percentile(heat[1:], 1), vmax=np.percentile(heat, 97))
  labels = [terminal.visible(n, keep="").replace(" ", "␣") for n in names]
  top.set(ylabel="thinking steps made", xticks=range(len(names)), xticklabels=labels)
  top.tick_params(axis="x", labelsize=6.5, length=0)
  top.grid(False)
  fig.colorbar(image, ax=top, label="energy", pad=0.01)
  for seed in calibration:
    left.plot(seed[:, 0], seed[:, 1], "o-", ms=3, color=common.KINDS[args.kind].color, alpha=0.6)
  left.set(xlabel=f"energy at the end (mean of 1/{args.bins} of the tokens)", ylabel=f"loss, {model.problem.unit}")
  result = {
    "pearson": pearson,
    "spearman": spearman,
    "real_and_random": contrast.tolist(),
    "calibration": calibration.tolist(),
    "energy_by_token": {name(t): float(v) for t, v in mean.items()},
    "text": args.text,
    "heat": heat.tolist(),
  }
  common.write_study(args, result, "\n".join(rows), fig)


if __name__ == "__main__":
  sys.exit(cli.door(main))
