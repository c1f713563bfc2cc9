"""What does E_theta of a residual EBT add: beyond its context's own answer, and beyond the compute that it costs?

  python -m experiments.thinking.train --set=models,residual,controls --workdir=runs/thinking
  python -m experiments.thinking.controls --workdir=runs/thinking

Of a trained EBT: the answer where thinking starts (`start`), with E_theta switched off (`gain 0`), with a step size of
0 (its answer is the probabilities of the start), and with E_theta given the context of another row (`shuffled`).
Beside it, of the same data: Transformer++ whose blocks are used twice (the passes of a thinking step) and three
times (its FLOPs), with three times as many blocks (its FLOPs, weights not tied), and a residual EBT whose E_theta was 0
all along. Differences are paired by seed.
"""

import dataclasses
import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import cli, record, streams
from ebt_jax.tasks import registry
from ebt_jax.tasks.ebt import EBTTask
from ebt_jax.thinking.think import PerLandscape
from experiments.thinking import common

BASELINE = "transformer"
KINDS = (
  *(BASELINE, "passes_2", "passes_3", "layers_6", "energy_gain_0"),
  *("residual_context", "residual_noise", "residual_s2", "s1", "s2"),
)
CHANGED = ("start", "gain 0", "step size 0", "shuffled")


def of_another_row(context):
  """The context with the keys and values of the next row; the answer of a residual energy stays its own."""

  def roll(a):
    return jnp.roll(a, 1, axis=-4)  # [..., b, h, t, k]

  if isinstance(context, PerLandscape):
    return PerLandscape(of_another_row(context.contexts))
  return context._replace(keys=roll(context.keys), values=roll(context.values))


def error_sums(task, params, batch, keys, shuffled: bool = False):
  """Weighted sums of the errors of the start and of the answer, and of the weights."""
  target, weights = task.problem.target(batch), task.problem.weights(batch)
  if isinstance(task, EBTTask):
    context = task.context(params, batch)
    start, keys = task.starts(params, context, keys, batch)
    found = task.think(params, of_another_row(context) if shuffled else context, start, keys)
    answers = jax.tree.map(lambda a: a[0], start), found.best(found.candidates)
  else:
    answers = 2 * (task.model.predict(params["model"], task.problem.inputs(batch)),)
  return [jnp.sum(weights * task.problem.error(x, target)) for x in answers] + [jnp.sum(weights)]


def losses(task, params, examples, count: int, shuffled: bool = False) -> np.ndarray:
  """Held-out loss of the start and of the answer."""
  key = streams.key_for(0, streams.EVALUATE)
  run = jax.jit(functools.partial(error_sums, task, shuffled=shuffled))
  sums = np.zeros(3)
  for numbers, batch in common.batches(examples, count):
    sums += np.array(jax.device_get(run(params, jax.tree.map(jnp.asarray, batch), streams.each(key, numbers))), float)
  return sums[:2] / sums[2]


def changed_losses(model: common.Model, examples, count: int) -> dict[str, float]:
  """The loss as trained, and after each change that makes sense for this model."""
  task, params = model.task(), model.params
  start, answer = losses(task, params, examples, count)
  out = {"loss": answer}
  if not isinstance(task, EBTTask):
    return out
  still = {**params, "thinking": {**params["thinking"], "step_size": jnp.float32(0)}}
  if model.config.model.energy_gain:
    out |= {"step size 0": losses(task, still, examples, count)[1]}
    out |= {"shuffled": losses(task, params, examples, count, shuffled=True)[1]}
  if model.config.model.residual:
    out["start"] = start
    of_model = dataclasses.replace(model.config.model, energy_gain=0.0)
    off = registry.make(dataclasses.replace(model.config, model=of_model), kept=record.kept(model.run.folder))
    out["gain 0"] = losses(off, params, examples, count)[1]
  return {name: float(value) for name, value in out.items()}


def main():
  args = common.arguments(__doc__, "controls")
  found: dict[str, list[dict[str, float]]] = {}
  flops: dict[str, float] = {}
  common.of_kind(args.workdir, BASELINE)  # raises where there is nothing to compare with
  for name, folders in common.trained_kinds(args.workdir, KINDS).items():
    for folder in folders:
      model = common.open_model(folder)
      examples = common.held_out(model)
      found.setdefault(name, []).append(changed_losses(model, examples, args.windows))
      flops[name] = model.task().flops().row["total"]
  baseline = np.array([s["loss"] for s in found[BASELINE]])
  head = f"{'':<44}{'FLOPs':>6}{'nats/token':>20}{'less Transformer++':>21}"
  lines = [head + "".join(f"{name:>13}" for name in CHANGED)]
  for name, seeds in found.items():
    loss = np.array([s["loss"] for s in seeds])
    shared = min(len(loss), len(baseline))
    difference = common.over_seeds(loss[:shared] - baseline[:shared]) if name != BASELINE else ""
    line = f"{common.KINDS[name].label:<44}{flops[name] / flops[BASELINE]:>6.2f}"
    line += f"{common.over_seeds(loss):>20}{difference:>21}"
    changes = [f"{np.mean([s[c] for s in seeds]):>13.4f}" if c in seeds[0] else f"{'':>13}" for c in CHANGED]
    lines.append((line + "".join(changes)).rstrip())
  fig, axes = common.figure(6.0, 3.4)
  names = [n for n in found if n != BASELINE]
  paired = [common.mean_interval([s["loss"] - b for s, b in zip(found[n], baseline)]) for n in names]
  axes.errorbar([m for m, _ in paired], range(len(names)), xerr=[h for _, h in paired], fmt="o", ms=4, capsize=2)
  axes.axvline(0, color="#444444", lw=1)
  axes.set_yticks(range(len(names)), [common.KINDS[n].label for n in names], fontsize=7)
  axes.invert_yaxis()
  axes.set(xlabel="held-out nats less those of Transformer++ (mean and 95% interval)")
  common.write_study(args, {"numbers": found, "flops": flops, "windows": args.windows}, "\n".join(lines), fig)


if __name__ == "__main__":
  sys.exit(cli.door(main))
