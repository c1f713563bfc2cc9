"""Writes the page of a study of reasoning: one HTML file that needs no other, from the JSON of its results.

  python -m experiments.reasoning.page experiments/reasoning/results/4x4.json

The page is written beside the results.
"""

import html
import pathlib
import sys
from typing import Any

from ebt_jax import cli, files
from ebt_jax.config import ConfigError
from ebt_jax.metrics import si
from experiments.reasoning import study
from experiments.reasoning.study import CHOICES, LABELS, LAST, THINKERS, over, trained
from experiments.runner import page

JUDGES = {
  "energy": "energy",
  "decoded": "energy of the digits",
  "entropy": "entropy",
  "surprise": "-log p of the board",
  "weakest": "-log p of its weakest digit",
}
SETS = {"out": "fewer givens than in training", "in": "as many givens as in training"}
BAR = 0.95  # AUROC that an absolute judge needs


def read(path: pathlib.Path) -> tuple[dict[str, Any], dict[str, list[dict]]]:
  """Settings, and the results of each kind of model as the study had them: JSON has no numbers for keys, and no NaN."""
  found = files.read_json(path, "results of the study of reasoning", "run experiments.reasoning.study")

  def restored(tree):
    if isinstance(tree, dict):
      return {int(k) if k.isdecimal() else k: restored(v) for k, v in tree.items()}
    if isinstance(tree, list):
      return [restored(v) for v in tree]
    return float(tree) if tree in ("nan", "inf", "-inf") else tree

  if "answer_flops" not in next((found[kind] for kind in THINKERS if kind in found), [{}])[0]:
    raise ConfigError(f"{path}: no results of this program's study of reasoning; run experiments.reasoning.study again")
  return found["settings"], {kind: restored(found[kind]) for kind in LABELS if kind in found}


def costs(results: dict[str, list[dict]]) -> str:
  """Equal parameters, data and FLOPs: what each model has had, and what it solves with that."""
  head = ["model", "seeds", "parameters in blocks", "training steps", "training FLOPs",
          f"FLOPs of an answer after {LAST}", "boards as trained, %", f"after {LAST}, %", "at its best, %",
          "after"]  # fmt: skip
  rows = []
  for kind, found in results.items():
    one = found[0]
    most = max(one["out"]["boards"])
    first, last = trained(one), min(LAST, most)
    best = max(one["out"]["boards"], key=lambda k: sum(f["out"]["boards"][k] for f in found))
    boards = [over(found, "out", "boards", k) for k in (first, last, best)]
    rows.append(
      [html.escape(LABELS[kind]), str(len(found)), si(one["params_non_embedding"]), si(one["steps"]), si(one["flops"]),
       si(one["answer_flops"][last]), *boards, str(best)]
    )  # fmt: skip
  return page.table(head, rows)


def by_steps(results: dict[str, list[dict]], short: str) -> str:
  """Boards solved after each number of steps or passes."""
  steps = sorted({k for found in results.values() for k in found[0][short]["boards"]})
  rows = [
    [html.escape(LABELS[kind])]
    + [over(found, short, "boards", k) if k in found[0][short]["boards"] else "" for k in steps]
    for kind, found in results.items()
  ]
  return page.table(["steps or passes", *map(str, steps)], rows)


def by_candidates(found: list[dict]) -> str:
  """Boards solved when the best of n candidates is kept."""
  by_step = found[0]["out"]["candidates"]
  counts = list(next(iter(by_step.values()))["energy"])
  rows = [
    [f"{k}, by {judge}", *(over(found, "out", "candidates", k, judge, n) for n in counts)]
    for k in by_step
    for judge in CHOICES
  ]
  return page.table(["steps, chosen by least", *map(str, counts)], rows)


def judges(results: dict[str, list[dict]], short: str) -> str:
  """AUROC of everything that may tell a wrong board from a right one."""
  rows = []
  for kind, found in results.items():
    for k, of in found[0][short]["auroc"].items():
      if k <= LAST:
        wrong = sum(f[short]["wrong"][k] for f in found)
        auroc = [over(found, short, "auroc", k, j, scale=1, form=".3f") if j in of else "" for j in JUDGES]
        called = over(found, short, "called", k) if "called" in found[0][short] else ""
        rows.append([html.escape(LABELS[kind]), str(k), str(wrong), *auroc, called])
  head = ["model", "steps", "unsolved boards", *map(html.escape, JUDGES.values()), "told by E &lt; 0, %"]
  return page.table(head, rows)


def steps_used(results: dict[str, list[dict]]) -> str:
  """Of models that stop where their energy no longer changes."""
  rows = []
  for kind, found in results.items():
    for short, about in SETS.items():
      if "stopped" in found[0][short]:
        used, solved = ([f[short]["stopped"][i] for f in found] for i in (0, 1))
        by = ", ".join(f"{g}: {over(found, short, 'used', g, scale=1, form='.2f')}" for g in found[0][short]["used"])
        right = study.said([100 * v for v in solved], ".1f")
        rows.append([html.escape(LABELS[kind]), about, study.said(used, ".2f"), right, by])
  return page.table(["model", "puzzles", "steps used", "boards solved, %", "steps used, by givens"], rows)


def verdicts(results: dict[str, list[dict]]) -> list[str]:
  """What is and is not supported, a sentence each; differences are paired by seed."""
  lines = study.gains(results)
  for kind, found in results.items():
    if "energy" in (of := found[0]["out"]["auroc"].get(LAST, {})):
      values = [f["out"]["auroc"][LAST]["energy"] for f in found]
      word = "reaches" if all(v >= BAR for v in values) else "does not reach"  # not where all boards are solved
      rivals = ", ".join(
        f"{JUDGES[j]} {over(found, 'out', 'auroc', LAST, j, scale=1, form='.3f')}" for j in of if j != "energy"
      )
      lines.append(
        f"The energy of {LABELS[kind]} after {LAST} steps {word} the AUROC of {BAR} for solved against unsolved boards "
        f"of different puzzles: {study.said(values, '.3f')} ({rivals})"
      )
  return lines


def write(path: pathlib.Path) -> pathlib.Path:
  """Writes the page of results, and says where. Raises UserError where they are none of this study."""
  settings, results = read(path)
  claim = "± is half a 95% interval over seeds; a number without it is of one seed, so a hint and no claim"
  sections = [
    f"<h1>Thinking that pays: Sudoku {html.escape(settings['among'])}</h1>",
    f"<p>{settings['windows']} held-out puzzles with {html.escape(SETS['out'])}, and as many with as many givens; "
    f"{settings['few']} for more than one candidate; {claim}. All models have the same trunk and data.</p>",
    f'<h2>What is and is not supported</h2><div class="verdict"><ul>'
    f"{''.join(f'<li>{html.escape(line)}.</li>' for line in verdicts(results))}</ul></div>",
    "<h2>At equal parameters, data and FLOPs</h2>" + costs(results),
    f'<p class="note">Puzzles with {html.escape(SETS["out"])}. Equal steps are equal data; models of equal FLOPs train '
    "for more steps, until they have had as many FLOPs as EBT.</p>",
    f"<figure>{page.svg(study.draw(results), 'Boards solved over steps, over candidates and by givens')}</figure>",
  ]
  for short, about in SETS.items():
    sections.append(f"<h2>Boards solved, {about}, %</h2>" + by_steps(results, short))
  for kind, found in results.items():
    if "candidates" in found[0]["out"]:
      sections.append(f"<h2>Best of n candidates: {html.escape(LABELS[kind])}, %</h2>" + by_candidates(found))
  sections += [
    "<h2>What knows a wrong board</h2>",
    "<p>AUROC: the chance that a solved board is judged better than an unsolved one of another puzzle. Entropies and "
    "probabilities are of the distributions that a model ends with; models without an energy have them too. Where the "
    "zero of the energy is learnt, the last column says how many boards are called right or wrong as they are.</p>",
    judges(results, "out"),
  ]
  sections.append("<h2>Steps used until the energy rests</h2>" + steps_used(results))
  out = path.with_suffix(".html")
  files.replace_text(out, page.document(f"Sudoku {settings['among']}", sections))
  return out


def main(argv: list[str]) -> None:
  parser = cli.Parser(prog="experiments.reasoning.page", description=__doc__.split("\n")[0])
  parser.add_argument("results", type=cli.path, metavar="FILE.json", help="of experiments.reasoning.study")
  print(f"written to {write(parser.parse_args(argv).results)}")


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
