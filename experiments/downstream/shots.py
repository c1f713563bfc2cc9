"""Solved questions before each: what they do to the right answer, where they fit into the window of a model.

  python -m experiments.downstream.shots --workdir=runs/thinking --data=data/downstream --shots=0,1,2,3,5

All numbers of a set are on the same questions: those that fit whole with the most solved ones. Sets of which fewer
than 20 do are named and left out. Beside the kinds of models in `--workdir` the two of the package are asked.
"""

from collections.abc import Iterator, Sequence
import math
import pathlib
import sys
from typing import NamedTuple

import numpy as np

import ebt_jax
from ebt_jax import cli
from ebt_jax.config import ConfigError
from ebt_jax.use.text import TextModel
from experiments.downstream import study
from experiments.thinking import common

FEWEST = 20
BUNDLED = {"bundled": "bundled EBT", "bundled/transformer": "bundled Transformer++"}


class Answers(NamedTuple):
  """Of one model on one set."""

  bits_per_byte: float
  written: float  # share of answers of which every token is the likeliest, so that a greedy model writes them


def fitting(model: TextModel, by_shots: dict[int, list[study.Question]]) -> list[int]:
  """Numbers of the questions that fit into the window with the most solved ones before them."""
  most, window = by_shots[max(by_shots)], model.config.data.context_length
  return [i for i, q in enumerate(most) if len(model.tokenizer.encode(q.context + q.answer)) <= window]


def answered(model: TextModel, questions: Sequence[study.Question]) -> Answers:
  found = model.likelihood([(q.context, q.answer) for q in questions])
  size = sum(len(q.answer.encode()) for q in questions)
  bits = -sum(f.total for f in found) / math.log(2) / size
  return Answers(bits, float(np.mean([f.likeliest.all() for f in found])))


def models(workdir: pathlib.Path, kinds: Sequence[str]) -> Iterator[tuple[str, list[TextModel]]]:
  """Label and models, one for each seed."""
  for kind, folders in common.trained_kinds(workdir, kinds).items():
    yield common.KINDS[kind].label, [ebt_jax.load(folder) for folder in folders]
  for name, label in BUNDLED.items():
    yield label, [ebt_jax.load(name)]


def row(label: str, by_shots: dict[int, list[Answers]]) -> str:
  """Means over seeds with 95% intervals; in brackets the paired difference to the fewest solved questions."""
  line, base = f"  {label:<40}", by_shots[min(by_shots)]
  for shots, found in by_shots.items():
    line += f"  {shots}: {_mean([a.bits_per_byte for a in found], '.2f')}"
    if found is not base:
      line += f" [{_mean([a.bits_per_byte - b.bits_per_byte for a, b in zip(found, base)], '+.2f')}]"
    line += f", written {100 * np.mean([a.written for a in found]):.1f}%"
  return line


def _mean(values: list[float], form: str) -> str:
  """With an interval where there are several."""
  mean, half = common.mean_interval(values)
  return f"{mean:{form}} ± {half:.2f}" if len(values) > 1 else f"{mean:{form}}"


def main():
  args = common.arguments(
    __doc__, "shots", "downstream", windows=200, data=pathlib.Path("data/downstream"), shots="0,1,2,3,5",
    kinds=",".join(study.KINDS),
  )  # fmt: skip
  if not all(text.isdecimal() for text in args.shots.split(",")):
    raise ConfigError(f"--shots: expected numbers with commas between them, found {args.shots!r}")
  counts, paths = sorted({*map(int, args.shots.split(","))}), sorted(args.data.glob("*.jsonl.xz"))
  if not paths:
    raise ConfigError(f"--data: no set (*.jsonl.xz) in {args.data}; run tools/fetch_data.py --out=... downstream")
  sets = {p.name.removesuffix(".jsonl.xz"): {n: study.read(p, args.windows, n) for n in counts} for p in paths}
  sets = {name: {n: q[: len(found[max(counts)])] for n, q in found.items()} for name, found in sets.items()}
  lines, result = {name: [] for name in sets}, {"sets": {name: {} for name in sets}}
  for label, seeds in models(args.workdir, args.kinds.split(",")):
    for name, by_shots in sets.items():
      kept, asked = fitting(seeds[0], by_shots), len(by_shots[max(counts)])
      fit = f"{100 * len(kept) / asked:.0f}% of {asked} fit {seeds[0].config.data.context_length} bytes"
      result["sets"][name][label] = {"fit": len(kept), "asked": asked}
      if len(kept) < FEWEST:
        lines[name].append(f"  {label:<40} {fit} with {max(counts)} solved: left out")
        continue
      found = {n: [answered(model, [q[i] for i in kept]) for model in seeds] for n, q in by_shots.items()}
      result["sets"][name][label]["shots"] = {str(n): [a._asdict() for a in several] for n, several in found.items()}
      lines[name].append(f"{row(label, found)}; {fit}")
      print(name, lines[name][-1], flush=True)
  table = "\n".join(f"\n{name}: bits per byte of the right answer\n" + "\n".join(rows) for name, rows in lines.items())
  common.write_study(args, result, table.strip("\n"), drawn(result))


def drawn(result):
  """Bits per byte over solved questions, of the sets that fit."""
  shown = {name: found for name, found in result["sets"].items() if any("shots" in one for one in found.values())}
  fig, axes = common.figure(4.0 * max(1, len(shown)), 2.6, ncols=max(1, len(shown)), squeeze=False)
  for ax, (name, found) in zip(axes[0], shown.items()):
    for label, one in found.items():
      if "shots" in one:
        bits = [np.mean([a["bits_per_byte"] for a in seeds]) for seeds in one["shots"].values()]
        ax.plot([int(n) for n in one["shots"]], bits, "o-", ms=3, label=label)
    ax.set(title=name, xlabel="solved questions before each", ylabel="bits per byte")
    ax.legend(frameon=False, fontsize=6)
  return fig


if __name__ == "__main__":
  sys.exit(cli.door(main))
