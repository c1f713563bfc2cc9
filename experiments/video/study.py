"""EBT on films beside Transformer++ and trivial answers, its energy as uncertainty (paper Fig. 11), and two futures.

  python -m experiments.video.study --workdir=runs/video [--sets=shapes,futures,clips] [--windows=256]

Losses are smooth L1 of features, means over held-out frames after the first `SKIPPED` of a window: extrapolation needs
two frames, and a speed can be seen in two. Differences are between runs of the same seed.
"""

import pathlib
import sys
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

from ebt_jax import cli, streams
from ebt_jax.config import ConfigError, near
from ebt_jax.data import shapes
from ebt_jax.tasks.base import Thinks
from experiments.thinking import common
from experiments.thinking.verifier import auroc
from experiments.video.train import SETS

SKIPPED = 2  # first predictions of each window that are left out
LABELS = {
  "copy": "copy of the last frame",
  "linear": "linear extrapolation",
  "mean": "mean of the two futures",
  "transformer": "Transformer++",
  "rnn": "RG-LRU",
  "ebt": "EBT",
  "ebt_explore": "EBT, best of 4 starts in training",
  "residual": "EBT, residual",
}
STARTS = 16  # candidates of each fork
SIGNALS = {"energy": "truth", "error": "loss"}  # of `thought`: the energy of the frame that comes, the error


class Found(NamedTuple):
  """Of each prediction that counts, flat; energies None where there are none."""

  loss: np.ndarray
  copy: np.ndarray
  linear: np.ndarray
  thought: np.ndarray | None  # energy of the finished candidate
  truth: np.ndarray | None  # energy of the frame that comes


def measure(model: common.Model, windows: int) -> Found:
  """Losses and energies on held-out windows."""
  problem, step = model.problem, common.program(thought, model.config)
  examples = common.held_out(model)
  key = streams.key_for(0, streams.EVALUATE)
  parts = []
  for numbers, batch in common.batches(examples, min(windows, len(examples))):
    keep = batch["weights"] > 0
    keep[:, :SKIPPED] = False
    found = jax.device_get(step(model.params, batch, streams.each(key, numbers)))
    target = problem.target(batch)
    found["copy"] = problem.error(problem.copied(batch), target)
    found["linear"] = problem.error(problem.extrapolated(batch), target)
    parts.append({name: np.asarray(a)[keep] for name, a in found.items()})
  whole = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]}
  return Found(**{name: whole.get(name) for name in Found._fields})


def thought(task: Any, params: Any, batch: Any, keys: Any) -> dict[str, jax.Array]:
  """Of each prediction `[b, s]`: its loss, and where there are energies its own and that of the frame that comes."""
  target = task.problem.target(batch)
  if not isinstance(task, Thinks):
    return {"loss": task.scores(params, batch, keys).error[-1]}
  context = task.context(params, batch)
  found = task.think(params, context, *task.starts(params, context, keys, batch))
  loss = task.problem.error(found.best(found.candidates), target)
  return {"loss": loss, "thought": found.best(found.final), "truth": task.energy_of(params, context, target)}


def surprise(model: common.Model, windows: int) -> dict[str, float]:
  """AUROC with which a signal tells a cut, and an empty frame, from what follows in truth.

  A cut shows another held-out film from the middle of a window on, an empty frame is one grey. Signals: the energy of
  the frame that comes, and the error of what was predicted.
  """
  step, examples = common.program(thought, model.config), common.held_out(model)
  key, middle = streams.key_for(0, streams.EVALUATE), model.config.data.context_length // 2
  encoder = model.problem.encoder
  grey = encoder.encode(np.full((1, *encoder.shape), 128, np.uint8))[0]
  parts = []
  for numbers, batch in common.batches(examples, min(windows, len(examples))):
    real = batch["weights"][:, middle] > 0
    parts.append((numbers[real], batch["frames"][real], batch["weights"][real]))
  numbers, frames, weights = (np.concatenate(part) for part in zip(*parts))
  other = np.roll(frames, max(1, len(frames) // 2), 0)  # far apart, since neighbours may be of one film
  kinds = {"usual": frames, "cut": np.concatenate([frames[:, : middle + 1], other[:, middle + 1 :]], 1)}
  kinds["empty"] = frames.copy()
  kinds["empty"][:, middle + 1] = grey
  keys = streams.each(key, numbers)
  whole = {}
  for kind, changed in kinds.items():
    seen = step(model.params, {"frames": changed, "weights": weights}, keys)
    whole |= {f"{signal} {kind}": np.asarray(seen[name])[:, middle] for signal, name in SIGNALS.items() if name in seen}
  out = {}
  for signal in SIGNALS:
    if f"{signal} usual" in whole:
      for kind in ("cut", "empty"):
        both = np.concatenate([whole[f"{signal} usual"], whole[f"{signal} {kind}"]])
        wrong = np.arange(len(both)) >= len(whole[f"{signal} usual"])
        out[f"auroc {signal} {kind}"] = auroc(both, wrong)
  return out


def fork(model: common.Model, count: int) -> dict[str, float]:
  """At the frame where a disc of `futures` turns: losses to the truth and to the nearer future, and what energies say.

  `picks`: share of candidates that end nearer to one of the two futures than to their mean. `both`: share of forks
  where some of `STARTS` candidates end nearest to either. `below`: share of forks where both futures have less energy
  than their mean.
  """
  task, problem, c = model.task(), model.problem, model.config
  length, size, frames = c.data.context_length, c.video.size, c.video.clip_frames
  held_out = [s for s in problem.split.held_out if s.id.startswith("futures:")]
  rows = []
  for shot in held_out:
    at = shapes.turn(int(shot.id.split(":")[1]), frames, size)
    if 3 <= at < min(frames, length):
      rows.append((problem.encoder.encode(shot.frames), problem.encoder.encode(shot.frames[:, ::-1]), at))
  if not rows:
    raise ConfigError(f"{model.run.folder}: no held-out film of `futures` turns within {length} frames")
  rows = rows[:count]
  at = jnp.asarray([r[2] for r in rows])
  batch = {
    "frames": jnp.asarray(np.stack([r[0][: length + 1] for r in rows])),
    "weights": jnp.ones((len(rows), length)),
  }
  other = jnp.asarray(np.stack([r[1][: length + 1] for r in rows]))[:, 1:]
  truth = problem.target(batch)
  mean = (truth + other) / 2
  keys = streams.each(streams.key_for(0, streams.EVALUATE), jnp.arange(len(rows)))

  def pick(a):  # [b, s, ...] -> [b, ...]
    return np.asarray(jnp.take_along_axis(a, (at - 1).reshape(-1, *[1] * (a.ndim - 1)), 1)[:, 0])

  def loss(a, b):
    return pick(problem.error(a, b))

  out = {"mean truth": loss(mean, truth).mean(), "mean nearer": np.minimum(loss(mean, truth), loss(mean, other)).mean()}
  out |= {"copy truth": loss(problem.copied(batch), truth).mean()}
  if isinstance(task, Thinks):
    several = model.task(candidates=STARTS)
    found = jax.jit(lambda p: several.verified(p, batch, keys, lambda x: x))(model.params)
    answers = [found.candidates[i] for i in range(STARTS)]
    kept = found.best(found.candidates)

    @jax.jit
    def energies(params):
      context = task.context(params, batch)
      return [task.energy_of(params, context, x) for x in (truth, other, mean)]

    of_truth, of_other, of_mean = map(pick, energies(model.params))
    out["below"] = np.mean(np.maximum(of_truth, of_other) < of_mean)
    out["energy gap"] = np.mean(of_mean - (of_truth + of_other) / 2)
  else:
    kept = task.model.predict(model.params["model"], problem.inputs(batch))
    answers = [kept]
  near = np.array([[loss(x, truth), loss(x, other), loss(x, mean)] for x in answers])  # [n, 3, forks]
  nearest = near.argmin(1)
  out["picks"] = np.mean(nearest < 2)
  out["both"] = np.mean((nearest == 0).any(0) & (nearest == 1).any(0))
  out["truth"], out["nearer"] = loss(kept, truth).mean(), np.minimum(loss(kept, truth), loss(kept, other)).mean()
  out["one truth"], out["one nearer"] = near[0, 0].mean(), near[0, :2].min(0).mean()
  return {name: float(value) for name, value in out.items()}


def trained(workdir: pathlib.Path, among: str) -> dict[str, dict[int, common.Model]]:
  """Series -> seed -> run."""
  out: dict[str, dict[int, common.Model]] = {}
  for folder in common.find(workdir, "", among, "video"):
    series, _, seed = folder.name.partition(",seed=")
    out.setdefault(series, {})[int(seed)] = common.open_model(folder)
  return out


def table_of(among: str, losses: dict[str, dict[int, float]]) -> list[str]:
  """Losses, and the differences to those that an answer should beat, paired by seed."""
  against = [name for name in ("copy", "linear", "transformer") if name in losses]
  lines = [f"{among}: smooth L1 of held-out frames, and less that of", f"{'':36}{'loss':>18}" + "".join(
    f"{LABELS[a]:>26}" for a in against)]  # fmt: skip
  for name, by_seed in losses.items():
    row = f"{LABELS.get(name, name):36}{common.over_seeds(list(by_seed.values())):>18}"
    for a in against:
      shared = sorted(set(by_seed) & set(losses[a]))
      text = "" if a == name else common.over_seeds([by_seed[s] - losses[a][s] for s in shared])
      row += f"{text:>26}"
    lines.append(row)
  return lines


def of_set(args: Any, among: str) -> tuple[dict[str, Any], list[str]]:
  """Results and tables of a set."""
  models = trained(args.workdir, among)
  losses: dict[str, dict[int, float]] = {"copy": {}, "linear": {}}
  signals: dict[str, dict[str, list[float]]] = {}
  for series, by_seed in models.items():
    for seed, model in by_seed.items():
      found = measure(model, args.windows)
      losses.setdefault(series, {})[seed] = float(found.loss.mean())
      losses["copy"][seed], losses["linear"][seed] = float(found.copy.mean()), float(found.linear.mean())
      of_seed = surprise(model, args.windows)
      if found.thought is not None:
        of_seed["spearman of energy and error"] = float(stats.spearmanr(found.thought, found.loss)[0])
        of_seed["spearman of the truth's energy and error"] = float(stats.spearmanr(found.truth, found.loss)[0])
      for name, value in of_seed.items():
        signals.setdefault(series, {}).setdefault(name, []).append(value)
  lines = table_of(among, losses)
  lines += ["", f"{among}: the energy as a sign of errors, cuts and empty frames"]
  for series, values in signals.items():
    lines += [f"  {LABELS.get(series, series):34}{n:44}{common.over_seeds(v, '.3f')}" for n, v in values.items()]
  result: dict[str, Any] = {"losses": losses, "signals": signals}
  if among == "futures":
    forks = {s: [fork(m, args.windows) for m in by_seed.values()] for s, by_seed in models.items()}
    lines += ["", "futures: at the frame where the disc turns"]
    for series, found in forks.items():
      lines += [f"  {LABELS.get(series, series):34}{n:14}{common.over_seeds([f[n] for f in found], '.4f')}"
                for n in found[0]]  # fmt: skip
    result["forks"] = forks
  return result, lines


def main() -> None:
  args = common.arguments(__doc__, "study", "video", sets=",".join(SETS))
  chosen = args.sets.split(",")
  for among in chosen:
    if among not in SETS:
      raise ConfigError(f"--sets: no set {among!r}; {near(among, SETS)}")
  results, lines = {}, []
  for among in chosen:
    results[among], found = of_set(args, among)
    lines += [*found, ""]
  fig, axes = common.figure(2.6 * len(chosen) + 1, 2.8, ncols=len(chosen), squeeze=False)
  for axis, among in zip(axes[0], chosen):
    losses = results[among]["losses"]
    for i, (name, by_seed) in enumerate(losses.items()):
      axis.scatter([i] * len(by_seed), list(by_seed.values()), s=14)
    axis.set_xticks(range(len(losses)), [LABELS.get(n, n) for n in losses], rotation=40, ha="right", fontsize=7)
    axis.set(title=among, ylabel="smooth L1", ylim=(0, None))
  common.write_study(args, {"sets": results}, "\n".join(lines), fig)


if __name__ == "__main__":
  sys.exit(cli.door(main))
