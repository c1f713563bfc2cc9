"""Questions that no model was trained on: likelihood of the right answer, and choices by likelihood and by energy.

  python tools/fetch_data.py --out=data gsm8k squad bigbench-dyck bigbench-math lambada
  python -m experiments.thinking.train --set=models,residual --workdir=runs/thinking
  python -m experiments.downstream.study --workdir=runs/thinking --data=data/downstream

A row of a set has a `context`, the `continuation` that is right, and perhaps `choices`. All nats are of the
continuation alone. Energies are those of the choice's tokens as candidates, not of the model's own thought.
Differences to Transformer++ are paired by seed.
"""

from collections.abc import Sequence
import json
import lzma
import math
import pathlib
import sys
from typing import Any, NamedTuple

import numpy as np

import ebt_jax
from ebt_jax import cli
from ebt_jax.config import ConfigError
from ebt_jax.use.likelihood import Likelihood
from ebt_jax.use.text import TextModel
from experiments.thinking import common

BASELINE = "transformer"
KINDS = (BASELINE, "s1", "residual_context")
COMPARED = ("bits_per_byte", "accuracy_total")  # measures that every model has
GROUP = 64  # rows that are scored together


class Question(NamedTuple):
  """A context, what follows it, and what else may be chosen; `right` is the number of the right choice."""

  context: str
  answer: str
  choices: list[str]
  right: int


def read(path: pathlib.Path, count: int, shots: int) -> list[Question]:
  """The first questions of a file, each after `shots` solved ones: the shortest of those that are not asked.

  Args:
    path: `.jsonl`, or `.jsonl.xz`.

  Raises:
    ConfigError: a row lacks its context or continuation, or there are too few rows.
  """
  with (lzma.open if path.suffix == ".xz" else open)(path, "rt", encoding="utf-8") as f:
    rows = [json.loads(line) for line in f]
  for n, row in enumerate(rows, 1):
    if not (isinstance(row.get("context"), str) and row.get("continuation")):
      raise ConfigError(f"--data: {path}:{n}: expected a context and a continuation, found {', '.join(row)}")
    if row.get("choices") and row["continuation"] not in row["choices"]:
      raise ConfigError(f"--data: {path}:{n}: the continuation {row['continuation']!r} is none of the choices")
  if len(rows) <= shots:
    raise ConfigError(f"--shots: {shots} solved questions before each, and {path} has {len(rows)}; give fewer")
  asked = min(count, len(rows) - shots)
  solved = sorted((f"{row['context']}{row['continuation']}\n\n" for row in rows[asked:]), key=len)[:shots]
  before, out = "".join(solved), []
  for row in rows[:asked]:
    choices = row.get("choices") or [row["continuation"]]
    out.append(Question(before + row["context"], row["continuation"], choices, choices.index(row["continuation"])))
  return out


def judged(found: Sequence[Likelihood], question: Question) -> dict[str, bool]:
  """Whether each rule picks the right choice."""
  sizes = [len(choice.encode()) for choice in question.choices]
  values = {"total": [f.total for f in found], "per_byte": [f.total / max(1, n) for f, n in zip(found, sizes)]}
  if found[0].energies is not None:
    values["energy"] = [-f.energy for f in found]
    values["energy_per_token"] = [-f.energy / len(f.tokens) for f in found]
  return {rule: int(np.argmax(v)) == question.right for rule, v in values.items()}


def measure(model: TextModel, questions: Sequence[Question], **thinking: Any) -> dict[str, float]:
  """Bits per byte and perplexity of the right answers; accuracy of each rule where there are choices."""
  nats = tokens = size = 0.0
  hits: dict[str, list[bool]] = {}
  for i in range(0, len(questions), GROUP):
    group = questions[i : i + GROUP]
    found = iter(model.likelihood([(q.context, choice) for q in group for choice in q.choices], **thinking))
    for q in group:
      of_choices = [next(found) for _ in q.choices]
      nats -= of_choices[q.right].total
      tokens += len(of_choices[q.right].tokens)
      size += len(q.answer.encode())
      if len(q.choices) > 1:
        for rule, hit in judged(of_choices, q).items():
          hits.setdefault(rule, []).append(hit)
  out = {"bits_per_byte": nats / math.log(2) / size, "perplexity": math.exp(nats / tokens)}
  return out | {f"accuracy_{rule}": float(np.mean(v)) for rule, v in hits.items()}


def chance(questions: Sequence[Question]) -> float | None:
  """Share of right choices of a blind guess."""
  with_choices = [1 / len(q.choices) for q in questions if len(q.choices) > 1]
  return float(np.mean(with_choices)) if with_choices else None


def main():
  args = common.arguments(
    __doc__, "downstream", "downstream", windows=200, data=pathlib.Path("data/downstream"), longer=8, shots=0,
    kinds=",".join(KINDS),
  )  # fmt: skip
  paths = sorted(args.data.glob("*.jsonl.xz"))
  if not paths:
    raise ConfigError(f"--data: no set (*.jsonl.xz) in {args.data}; run tools/fetch_data.py --out=... downstream")
  sets = {path.name.removesuffix(".jsonl.xz"): read(path, args.windows, args.shots) for path in paths}
  result: dict[str, Any] = {"chance": {name: chance(questions) for name, questions in sets.items()}, "kinds": {}}
  for kind, folders in common.trained_kinds(args.workdir, args.kinds.split(",")).items():
    for folder in folders:
      model = ebt_jax.load(folder)
      ways = {kind: {}}
      if kind != BASELINE:
        ways[f"{kind}, {args.longer} steps"] = {"steps": args.longer}
      for name, thinking in ways.items():
        found = {s: measure(model, questions, **thinking) for s, questions in sets.items()}
        result["kinds"].setdefault(name, {})[str(model.config.seed)] = found
        print(f"{folder.name}{name.removeprefix(kind)}: " + ", ".join(
          f"{s} {f['bits_per_byte']:.3f}" for s, f in found.items()), flush=True)  # fmt: skip
  common.write_study(args, result, table(result, sets), drawn(result, sets))


def label(name: str) -> str:
  kind, _, rest = name.partition(",")
  return common.KINDS[kind].label + ("," + rest if rest else "")


def differences(result, name: str, measure_name: str, of_set: str) -> list[float]:
  """Less Transformer++ of the same seed."""
  base, mine = result["kinds"].get(BASELINE, {}), result["kinds"][name]
  return [mine[s][of_set][measure_name] - base[s][of_set][measure_name] for s in mine if s in base]


def table(result: dict[str, Any], sets: dict[str, list[Question]]) -> str:
  """Means over seeds with 95% intervals; in brackets the paired difference to Transformer++."""
  rows = []
  for of_set, questions in sets.items():
    odds = result["chance"][of_set]
    rows.append(f"\n{of_set}: {len(questions)} questions" + (f", chance {100 * odds:.1f}%" if odds else ""))
    for name, seeds in result["kinds"].items():
      line = f"  {label(name):<52}"
      for measure_name in next(iter(seeds.values()))[of_set]:
        values = [found[of_set][measure_name] for found in seeds.values()]
        percent = 100 if measure_name.startswith("accuracy") else 1
        line += f" {measure_name.removeprefix('accuracy_')} {common.over_seeds([percent * v for v in values], '.2f')}"
        if name != BASELINE and measure_name in COMPARED:
          less = differences(result, name, measure_name, of_set)
          mean, half = common.mean_interval([percent * v for v in less])
          line += f" [{mean:+.2f} ± {half:.2f}]" if less else ""
      rows.append(line)
  return "\n".join(rows).strip("\n")


def drawn(result: dict[str, Any], sets: dict[str, list[Question]]):
  """Bits per byte of each set, a mark for each seed."""
  fig, axes = common.figure(6.4, 0.8 + 0.5 * len(sets))
  names = list(result["kinds"])
  for k, name in enumerate(names):
    for n, of_set in enumerate(sets):
      values = [found[of_set]["bits_per_byte"] for found in result["kinds"][name].values()]
      color = common.KINDS[name.partition(",")[0]].color
      at = np.full(len(values), n + 0.12 * (k - len(names) / 2))
      axes.plot(values, at, "o" if "," not in name else "x", color=color, ms=4, label=label(name) if not n else None)
  axes.set_yticks(range(len(sets)), list(sets))
  axes.invert_yaxis()
  axes.set(xlabel="bits per byte of the right answer")
  axes.legend(frameon=False, fontsize=6)
  return fig


if __name__ == "__main__":
  sys.exit(cli.door(main))
