"""Does an energy verify? The truth among all one-hot candidates, energies as likelihoods, and errors told by energy.

  python -m experiments.thinking.train --set=models,residual --workdir=runs/thinking
  python -m experiments.thinking.verifier --workdir=runs/thinking

An energy that verifies (paper section 2) is least at the truth. Then `softmax(-beta E)` over all one-hot candidates is
a likelihood, where beta is the step size or is fitted on the other half of the windows; and the energy of a finished
thought tells which predictions are wrong. The rival is the entropy of Transformer++.
"""

from collections.abc import Callable
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
from scipy import optimize, stats

from ebt_jax import cli, streams
from ebt_jax.tasks.ebt import EBTTask
from ebt_jax.thinking.think import at_landscape, step_size_of
from experiments.thinking import common

KINDS = ("s1", "s2", "residual_context", "residual_noise", "residual_s2", "transformer")
SIGNALS = {
  "energy": "final energy",
  "fall": "rise of energy",
  "free_energy": "free energy",
  "normalised": "normalised energy",
  "entropy": "entropy",
}
AT_ONCE = 16  # one-hot candidates of a position that are scored together
LEVELS = np.linspace(0.05, 1.0, 20)  # of coverage, in the figure


def one_hot_energies(task: EBTTask, params, context) -> jax.Array:
  """Energy of every one-hot candidate at the last landscape, `[v, b, s]`."""
  model, last = task.model.for_inference(), task.config.thinking.landscapes - 1
  here = at_landscape(context, last)
  table = task.space.embed_target(params["model"], jnp.arange(task.config.model.vocab_size))
  shape = here.positions.shape[-1:]
  rows = jax.tree.leaves(here)[0].shape[1]
  parts = jnp.pad(table, ((0, -len(table) % AT_ONCE), (0, 0))).reshape(-1, AT_ONCE, table.shape[1])

  def of_part(part):
    y = jnp.broadcast_to(part[:, None, None], (AT_ONCE, rows, *shape, part.shape[-1]))
    return model.energies(params["model"], here, y, last)

  found = jax.lax.map(of_part, parts)
  return found.reshape(-1, *found.shape[2:])[: len(table)]


def thought(task, params, batch, keys) -> dict[str, jax.Array]:
  """What is known of each prediction of a batch, each `[b, s]`; `one_hot` `[v, b, s]` where there are energies."""
  target = task.problem.target(batch)
  if isinstance(task, EBTTask):
    context = task.context(params, batch)
    found = task.think(params, context, *task.starts(params, context, keys, batch))
    x, final = found.best(found.candidates), found.best(found.final)
    size = step_size_of(params["thinking"], task.config.thinking)
    one_hot = one_hot_energies(task, params, context)
    out = {
      "energy": final,
      "fall": final - found.best(found.energies, 1)[0],
      "free_energy": size * final + task.space.potential(x),
      "normalised": size * jnp.min(one_hot, 0) + jax.nn.logsumexp(-size * one_hot, 0),  # -max log softmax(-a E)
      "one_hot": one_hot,
    }
  else:
    x, out = task.model.predict(params["model"], task.problem.inputs(batch)), {}
  log_p = jax.nn.log_softmax(x)
  entropy = -jnp.sum(jnp.exp(log_p) * log_p, -1)
  wrong = (jnp.argmax(x, -1) != target).astype(log_p.dtype)
  return {**out, "entropy": entropy, "loss": task.problem.error(x, target), "wrong": wrong, "target": target}


def collect(model: common.Model, examples, count: int, about: Callable = thought) -> dict[str, np.ndarray]:
  """`thought`, or what else `about` finds, of every prediction that counts, flat, in the order of the windows."""
  task, key = model.task(), streams.key_for(0, streams.EVALUATE)
  run = jax.jit(functools.partial(about, task))
  found: dict[str, list] = {}
  for numbers, batch in common.batches(examples, count, rows=8):
    batch = jax.tree.map(jnp.asarray, batch)
    counts = np.asarray(task.problem.weights(batch)) > 0
    for name, value in jax.device_get(run(model.params, batch, streams.each(key, numbers))).items():
      found.setdefault(name, []).append(value[..., counts])
  return {name: np.concatenate(parts, -1) for name, parts in found.items()}


def likelihood(energies: np.ndarray, target: np.ndarray, beta: float) -> float:
  """Nats of the targets under softmax(-beta E); `energies` `[v, n]`."""
  scaled = -beta * energies.astype(np.float64)
  scaled -= scaled.max(0)
  return float(np.mean(np.log(np.exp(scaled).sum(0)) - scaled[target, np.arange(len(target))]))


def best_beta(energies: np.ndarray, target: np.ndarray, near: float) -> float:
  """The beta of the highest likelihood, sought from a thousandth to a thousand times `near`."""

  def nats(log_beta):
    return likelihood(energies, target, float(np.exp(log_beta)))

  low, high = np.log(near) - 7, np.log(near) + 7
  grid = np.linspace(low, high, 29)  # the likelihood may have several valleys
  start = grid[int(np.argmin([nats(g) for g in grid]))]
  found = optimize.minimize_scalar(nats, bounds=(start - 0.5, start + 0.5), method="bounded")
  return float(np.exp(found.x))


def auroc(signal: np.ndarray, wrong: np.ndarray) -> float:
  """Probability that a wrong prediction has a larger signal than a right one; ties count half."""
  ranks, bad = stats.rankdata(signal), int(wrong.sum())
  good = len(wrong) - bad
  if not (bad and good):
    return float("nan")
  return float((ranks[wrong > 0].sum() - bad * (bad + 1) / 2) / (bad * good))


def risks(signal: np.ndarray, wrong: np.ndarray) -> np.ndarray:
  """Share of wrong predictions among those of least signal, at each of `LEVELS` of coverage."""
  ordered = wrong[np.argsort(signal, kind="stable")]
  running = np.cumsum(ordered) / np.arange(1, len(ordered) + 1)
  return running[np.maximum(1, np.round(LEVELS * len(ordered)).astype(int)) - 1]


def numbers_of(found: dict[str, np.ndarray], step_size: float) -> dict[str, float]:
  """What the table shows of one model."""
  wrong, loss = found["wrong"], found["loss"]
  out = {"loss": float(loss.mean()), "accuracy": float(1 - wrong.mean())}
  out |= {f"auroc_{name}": auroc(found[name], wrong) for name in SIGNALS if name in found}
  if "one_hot" in found:
    energies, target = found["one_hot"], found["target"]
    of_truth = energies[target, np.arange(len(target))]
    rank = (energies < of_truth).sum(0)
    half = len(target) // 2  # beta is fitted on the first half and reported on the second
    beta = best_beta(energies[:, :half], target[:half], step_size)
    out |= {
      "truth_is_least": float((rank == 0).mean()),
      "truth_in_5": float((rank < 5).mean()),
      "one_hot_nats": likelihood(energies, target, step_size),
      "best_beta_nats": likelihood(energies[:, half:], target[half:], beta),
      "beta": beta / step_size,
      "spearman": float(stats.spearmanr(found["energy"], loss)[0]),
    }
    out["one_hot_less_loss"] = out["one_hot_nats"] - out["loss"]
    out["entropy_less_energy"] = out["auroc_entropy"] - out["auroc_energy"]
    out["entropy_less_normalised"] = out["auroc_entropy"] - out["auroc_normalised"]
  return out


ROWS = (
  ("loss", "loss of the thought, nats", ".4f"),
  ("accuracy", "accuracy of the thought", ".4f"),
  ("truth_is_least", "truth has the least energy", ".4f"),
  ("truth_in_5", "truth among the 5 least", ".4f"),
  ("one_hot_nats", "softmax(-a E) one-hot, nats", ".4f"),
  ("one_hot_less_loss", "the same less loss of the thought", ".4f"),
  ("best_beta_nats", "one-hot, best beta (2nd half)", ".4f"),
  ("beta", "best beta / a", ".3f"),
  ("spearman", "Spearman, energy and loss", ".3f"),
  *((f"auroc_{name}", f"AUROC of errors, {label}", ".4f") for name, label in SIGNALS.items()),
  ("entropy_less_energy", "entropy's AUROC less final energy's", ".4f"),
  ("entropy_less_normalised", "entropy's AUROC less normalised energy's", ".4f"),
)


def table(result: dict[str, list[dict[str, float]]]) -> str:
  """A block of rows for each kind of model: mean and interval over seeds."""
  lines = []
  for kind, seeds in result.items():
    lines.append(f"{common.KINDS[kind].label}, {len(seeds)} seeds:")
    for key, label, form in ROWS:
      if key in seeds[0]:
        lines.append(f"  {label:<36}{common.over_seeds([s[key] for s in seeds], form)}")
  return "\n".join(lines)


def main():
  args = common.arguments(__doc__, "verifier")
  result: dict[str, list] = {}
  curves: dict[str, dict[str, list]] = {}
  for kind, folders in common.trained_kinds(args.workdir, KINDS).items():
    for folder in folders:
      model = common.open_model(folder)
      found = collect(model, common.held_out(model), args.windows)
      size = float(model.params["thinking"]["step_size"]) if "thinking" in model.params else 1.0
      result.setdefault(kind, []).append(numbers_of(found, size))
      for name in SIGNALS:
        if name in found:
          curves.setdefault(kind, {}).setdefault(name, []).append(risks(found[name], found["wrong"]))
  fig, every = common.figure(3.0 * len(curves), 3.0, nrows=1, ncols=len(curves), sharey=True, squeeze=False)
  for axes, (kind, of_kind) in zip(every[0], curves.items()):
    for i, (name, seeds) in enumerate(of_kind.items()):
      color = f"C{list(SIGNALS).index(name)}"
      axes.plot(100 * LEVELS, 100 * np.mean(seeds, 0), color=color, lw=1.4, label=SIGNALS[name])
    axes.set_title(common.KINDS[kind].label, fontsize=8)
    axes.set(xlabel="predictions kept, %")
    axes.legend(frameon=False, fontsize=7)
  every[0][0].set(ylabel="wrong among them, %")
  risk = {kind: {name: np.mean(v, 0).tolist() for name, v in of.items()} for kind, of in curves.items()}
  saved = {"numbers": result, "coverage": LEVELS.tolist(), "risk": risk, "windows": args.windows}
  common.write_study(args, saved, table(result), fig)


if __name__ == "__main__":
  sys.exit(cli.door(main))
