"""Best of N by energy after fine-tuning: the right answer among others' answers, and the best of N that a model writes.

  python -m experiments.downstream.best_of --models=bundled,runs/gsm8k --questions=test.jsonl --answers=8

`--questions` is a .jsonl of `context` and `continuation`, whose last number is the answer. What is chosen among is,
first, the right answer and those of the next questions; then, answers that the model writes itself, token by token at
`--temperature`. Energies are of the tokens as candidates. Intervals are of shares of questions (Wilson, 95%).
"""

from collections.abc import Sequence
import pathlib
import re
import sys

import numpy as np
from scipy import stats

import ebt_jax
from ebt_jax import cli, files
from ebt_jax.config import ConfigError
from ebt_jax.use.text import TextModel
from experiments.downstream import study

ROWS = 32  # answers that are written at once


def among(questions: Sequence[study.Question], count: int) -> list[study.Question]:
  """Each with the right answer and those of the next questions to choose from; the right one stands anywhere."""
  out = []
  for i, q in enumerate(questions):
    others = [questions[(i + k) % len(questions)].answer for k in range(1, count)]
    right = i % count
    out.append(q._replace(choices=[*others[:right], q.answer, *others[right:]], right=right))
  return out


def number_in(text: str) -> str:
  """The last number of a text, without commas; empty where there is none."""
  found = re.findall(r"\d[\d,]*(?:\.\d+)?", text)
  return found[-1].replace(",", "") if found else ""


def picked(model: TextModel, q: study.Question, written: Sequence[str]) -> dict[str, bool]:
  """Whether the answer that each rule picks of those that were written has the right number."""
  right = [number_in(text) == number_in(q.answer) != "" for text in written]
  found = model.likelihood([(q.context, text) for text in written])
  values = {"first": [0.0] * len(found), "likelihood": [f.total / len(f.tokens) for f in found]}
  if found[0].energies is not None:
    values["energy"] = [-f.energy / len(f.tokens) for f in found]
  return {rule: right[int(np.argmax(v))] for rule, v in values.items()} | {"any": any(right)}


def write(model: TextModel, questions: Sequence[study.Question], count: int, tokens: int, temperature: float):
  """`count` answers of each question; one that is empty becomes a space."""
  prompts = [q.context for q in questions for _ in range(count)]
  texts: list[str] = []
  for i in range(0, len(prompts), ROWS):
    several = model.generate(prompts[i : i + ROWS], tokens, temperature=temperature, seed=i)
    texts += [one.text or " " for one in several]
  return [texts[i : i + count] for i in range(0, len(texts), count)]


def share(hits: Sequence[bool]) -> str:
  found = stats.binomtest(sum(hits), len(hits)).proportion_ci(method="wilson")
  return f"{100 * np.mean(hits):.1f}% [{100 * found.low:.1f}, {100 * found.high:.1f}]"


def rules(hits: Sequence[dict[str, bool]]) -> str:
  """The share of each rule."""
  return ", ".join(f"{rule} {share([one[rule] for one in hits])}" for rule in hits[0])


def main(argv: list[str]) -> None:
  parser = cli.Parser(description=__doc__.split("\n")[0])
  parser.add_argument("--models", default="bundled", help="names or folders, with commas between them")
  parser.add_argument("--questions", type=cli.path, default=pathlib.Path("test.jsonl"))
  parser.add_argument("--answers", type=cli.at_least(2), default=8, help="N")
  parser.add_argument("--tokens", type=cli.at_least(1), default=300, help="most of an answer that is written")
  parser.add_argument("--temperature", type=float, default=0.7)
  parser.add_argument("--out", type=cli.local, default="", help="a JSON to write")
  args = parser.parse_args(argv)
  if not args.questions.exists():
    raise ConfigError(f"--questions: no file {args.questions}; give a .jsonl of contexts and continuations")
  questions, n, result = study.read(args.questions, sys.maxsize, 0), args.answers, {}
  print(f"{len(questions)} questions, {n} answers each; chance {100 / n:.1f}%")
  for name in args.models.split(","):
    model = ebt_jax.load(name)
    found = model.likelihood([(q.context, c) for q in among(questions, n) for c in q.choices])
    chosen = [study.judged(found[n * i : n * i + n], q) for i, q in enumerate(among(questions, n))]
    print(f"{name}: the right one of {n} answers, chosen by {rules(chosen)}", flush=True)
    texts = write(model, questions, n, args.tokens, args.temperature)
    own = [picked(model, q, several) for q, several in zip(questions, texts)]
    print(f"{name}: the right number of {n} that it writes, chosen by {rules(own)}", flush=True)
    result[name] = {"among": chosen, "written": own, "example": texts[0]}
  if args.out:
    files.write_json(args.out, {"questions": str(args.questions), "answers": n, "models": result})


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
