"""Do the blanks of a span agree? Share of spans that are right as a whole, over the length of the span.

  python -m experiments.infilling.spans --workdir=runs/infilling

One pass predicts every blank alone, so a span of several is right by luck. EBT descends one energy of all blanks;
a masked Transformer can settle some blanks in each pass, the surest first; masked diffusion samples them. Compared at
equal passes (a thinking step is one), and at equal FLOPs (a step is a forward and a backward pass).
"""

import dataclasses
import pathlib
import sys
from typing import NamedTuple

import jax
import numpy as np

from ebt_jax import cli, files, record, streams
from ebt_jax.tasks import registry
from experiments.thinking import common

LENGTHS = (1, 2, 4, 6, 8)
TOGETHER = (4, 6, 8)
GROUPS = {"2 places": (2,), "4 and more": TOGETHER}  # the mean over lengths
RATE = 0.2  # share of each row that is blank
PASSES = (1, 2, 4, 8, 16)


class Way(NamedTuple):
  """How a trained kind of model fills blanks, and how it is drawn."""

  kind: str
  label: str
  color: str
  unmasking: str = ""
  candidates: int = 1
  most: int = PASSES[-1]  # passes

  @property
  def passes(self) -> tuple[int, ...]:
    return tuple(k for k in PASSES if k <= self.most)


WAYS = {
  "ebt": Way("ebt", "EBT", "#1b6ca8"),
  "ebt_best": Way("ebt", "EBT, the least energy of 4", "#7fb2d9", candidates=4, most=4),
  "transformer": Way("transformer", "masked Transformer, surest first", "#444444", "confidence"),
  "diffusion": Way("diffusion", "masked diffusion, sampled", "#d1495b", "ancestral"),
  "diffusion_surest": Way("diffusion", "masked diffusion, surest first", "#e9a23b", "confidence"),
}


class Found(NamedTuple):
  """Spans that are right, `[passes]` for each length, and what there was to fill."""

  right: dict[int, np.ndarray]
  spans: dict[int, float]
  flops: list[float]  # of a row, for each number of passes

  def share(self, *lengths: int) -> np.ndarray:
    """The share of right spans, each length alike, `[passes]`."""
    return np.mean([self.right[n] / self.spans[n] for n in lengths], axis=0)


def fill(model: common.Model, way: Way, windows: int, steps: int) -> tuple[dict[str, np.ndarray], float]:
  """Sums of the measures after each of `steps` steps, and the FLOPs of a row. Blanks depend on the row alone."""
  c = model.config
  mask = dataclasses.replace(
    c.mask, layout="spans", rate_min=RATE, rate_max=RATE, span_min=1, span_max=max(LENGTHS), weighting="place",
    unmasking=way.unmasking or c.mask.unmasking,
  )  # fmt: skip
  thinking = dataclasses.replace(c.eval, steps=steps, candidates=way.candidates)
  task = registry.make(dataclasses.replace(c, mask=mask, eval=thinking), kept=record.kept(model.run.folder))
  key = streams.key_for(0, streams.EVALUATE)

  @jax.jit
  def score(params, batch, numbers):
    return {n: a.sum((1, 2)) for n, a in task.scores(params, batch, streams.each(key, numbers)).measures.items()}

  sums: dict[str, np.ndarray] = {}
  for numbers, batch in common.batches(common.held_out(model), windows):
    for name, value in jax.device_get(score(model.params, batch, numbers)).items():
      sums[name] = sums.get(name, 0.0) + value
  return sums, float(task.flops().prediction["total"])


def measured(folder: pathlib.Path, way: Way, windows: int) -> Found:
  """The answers of EBT after k steps are those of a budget of k, but for the candidate that is chosen at the end."""
  model = common.open_model(folder)
  if way.kind == "ebt" and way.candidates == 1:
    sums, _ = fill(model, way, windows, way.most)
    found = [{name: a[k - 1] for name, a in sums.items()} for k in way.passes]
    flops = [flops_of(model, way, k) for k in way.passes]
  else:
    filled = [fill(model, way, windows, k) for k in way.passes]
    found, flops = [{name: a[-1] for name, a in sums.items()} for sums, _ in filled], [f for _, f in filled]
  right = {n: np.array([float(sums[f"right_{n}"]) for sums in found]) for n in LENGTHS}
  return Found(right, {n: float(found[0][f"spans_{n}"]) for n in LENGTHS}, flops)


def flops_of(model: common.Model, way: Way, steps: int) -> float:
  """Of filling one row."""
  return float(model.task(steps=steps, candidates=way.candidates).flops().prediction["total"])


def measured_once(workdir: pathlib.Path, name: str, folder: pathlib.Path, windows: int) -> Found:
  """`measured`, or what an earlier call has left in `WORKDIR/spans`: a study that was stopped goes on."""
  path = workdir / "spans" / f"{name},{folder.name},{windows}.json"
  if not path.exists():
    found = measured(folder, WAYS[name], windows)
    path.parent.mkdir(exist_ok=True)
    files.write_json(path, {**found._asdict(), "right": {n: a.tolist() for n, a in found.right.items()}})
  kept = files.read_json(path, "measured spans", "delete it")
  right, spans = ({int(n): a for n, a in kept[key].items()} for key in ("right", "spans"))
  return Found({n: np.array(a) for n, a in right.items()}, spans, kept["flops"])


def affordable(found: Found, budget: float) -> int:
  """The index of the most passes that cost no more than `budget`; the fewest where none do."""
  within = [i for i, f in enumerate(found.flops) if f <= budget]
  return within[-1] if within else 0


def shown(values) -> str:
  """In percent, with an interval where there are several seeds."""
  values = 100 * np.asarray(values)
  return common.over_seeds(values, ".1f") if len(values) > 1 else f"{values[0]:.1f}"


def main():
  args = common.arguments(__doc__, "spans", room="infilling")
  found: dict[str, list[Found]] = {}
  for name, way in WAYS.items():
    for folder in common.find(args.workdir, f"{way.kind},seed", room="infilling"):
      found.setdefault(name, []).append(measured_once(args.workdir, name, folder, args.windows))
  spans = found["ebt"][0].spans
  rows = [f"spans that are right as a whole, %; {args.windows} windows, {RATE:.0%} blank:"]
  rows.append(f"  {'length':<34} " + " ".join(f"{n:>13}" for n in LENGTHS) + f" {'MFLOP a row':>13} {'seeds':>6}")
  rows.append(f"  {'spans':<34} " + " ".join(f"{int(spans[n]):>13}" for n in LENGTHS))
  for name, of_seeds in found.items():
    for i, k in enumerate(WAYS[name].passes):
      cells = [f"{shown([f.share(n)[i] for f in of_seeds]):>13}" for n in LENGTHS]
      label = f"{WAYS[name].label}, {k}"
      rows.append(f"  {label:<34} {' '.join(cells)} {of_seeds[0].flops[i] / 1e6:>13,.0f} {len(of_seeds):>6}")
  differences = compared(found)
  names = list(next(iter(differences.values())))
  rows.append("EBT less another, points, paired by seed; steps of EBT, passes of the other that its FLOPs buy:")
  rows.append(f"  {'':<76} " + " ".join(f"{name:>24}" for name in names))
  rows += [f"  {label:<76} " + " ".join(f"{shown(v):>24}" for v in of.values()) for label, of in differences.items()]
  fig, axes = common.figure(9.6, 3.2, nrows=1, ncols=3)
  draw(axes, found)
  result = {
    "seeds": {name: len(of_seeds) for name, of_seeds in found.items()},
    "rate": RATE,
    "passes": PASSES,
    "spans": spans,
    "right": {name: [{n: f.right[n].tolist() for n in LENGTHS} for f in fs] for name, fs in found.items()},
    "flops": {name: fs[0].flops for name, fs in found.items()},
    "differences": differences,
  }
  common.write_study(args, result, "\n".join(rows), fig)


def compared(found: dict[str, list[Found]]) -> dict[str, dict[str, list[float]]]:
  """Shares of EBT less those of others, one for each seed, at equal passes and at equal FLOPs, for each of `GROUPS`."""
  out = {}
  for mine in ("ebt", "ebt_best"):
    for other in ("transformer", "diffusion", "diffusion_surest"):
      for i, k in enumerate(WAYS[mine].passes):
        at = affordable(found[other][0], found[mine][0].flops[i])
        cells = out[f"{WAYS[mine].label} - {WAYS[other].label}: {k}, {PASSES[at]} passes"] = {}
        for name, group in GROUPS.items():
          for what, j in (("passes", i), ("FLOPs", at)):
            pairs = zip(found[mine], found[other])
            cells[f"{name}, equal {what}"] = [float(a.share(*group)[i] - b.share(*group)[j]) for a, b in pairs]
  return out


def draw(axes, found: dict[str, list[Found]]) -> None:
  """Exact match over the length at the most passes, and of each group of lengths over FLOPs."""
  left, *over_flops = axes
  for name, of_seeds in found.items():
    way, style = WAYS[name], {"color": WAYS[name].color, "marker": "o", "ms": 3}
    by_length = 100 * np.mean([[f.share(n)[-1] for n in LENGTHS] for f in of_seeds], 0)
    left.plot(LENGTHS, by_length, label=f"{way.label}, {way.most}", **style)
    for of_group, lengths in zip(over_flops, GROUPS.values()):
      flops = [f / 1e6 for f in of_seeds[0].flops]
      of_group.plot(flops, 100 * np.mean([f.share(*lengths) for f in of_seeds], 0), **style)
  one = 100 * np.mean([[f.share(n)[0] for n in LENGTHS] for f in found["transformer"]], 0)
  left.plot(LENGTHS, one, "k--", lw=1, label="masked Transformer, one pass")
  left.set(xlabel="length of the span", ylabel="spans right, %", xticks=LENGTHS)
  left.legend(frameon=False, fontsize=6)
  for of_group, name in zip(over_flops, GROUPS):
    ticks = (50, 200, 800)
    of_group.set(xlabel="MFLOP a row", title=name, xscale="log", xticks=ticks, xticklabels=ticks)
    of_group.minorticks_off()


if __name__ == "__main__":
  sys.exit(cli.door(main))
