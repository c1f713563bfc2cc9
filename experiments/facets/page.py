"""Writes the page of the study of facets: one HTML file that needs no other, from `study.json`; prints its table.

python -m experiments.facets.page DIR
"""

import html
import sys
from typing import Any

import numpy as np

from ebt_jax import cli, files
from experiments.facets.study import BASELINES, FACETS, PROPOSERS, modality
from experiments.runner import page as pages
from experiments.thinking import common

LABELS = {
  "rnn": ("RNN (RG-LRU)", "#b5651d"),
  "transformer": ("Transformer++", "#444444"),
  "ebt": ("EBT, the paper's System 2", "#1b6ca8"),
  "residual": ("residual EBT", "#2a9d5c"),
  "image_flow": ("pictures: flow matching", "#d1495b"),
  "image_ebt": ("pictures: EBT, the paper's", "#5aa9dd"),
  "image_residual": ("pictures: residual EBT", "#8fd0a9"),
}
HEAD = (
  "model",
  "passes of one prediction",
  "loss for each doubling of the passes, %",
  "loss from trained to most passes, %",
  "number of a prediction",
  "AUROC of errors",
  "truth preferred to wrong answers of others",
  "trained beyond prediction",
  "training FLOPs",
)
OF_COLUMN = ("", *["compute"] * 3, *["uncertainty"] * 2, "verification", *["cost"] * 2)  # the facet of a column


def said(values: list[float], form: str) -> str:
  """Mean and interval over seeds, or the one value of one seed; a dash where there is none."""
  values = [v for v in values if v is not None]
  if len(values) > 1:
    mean, half = common.mean_interval(values)
    return f"{mean:{form}} ± {half:{form.removeprefix('+')}}"
  return f"{values[0]:{form}}" if values else "-"


def of(study: dict[str, Any], name: str, facet: str) -> list[dict[str, Any]]:
  """The rows of a model, one for each seed."""
  return [row for row in study["rows"] if row["model"] == name and row["facet"] == facet]


def names_of(study: dict[str, Any]) -> list[str]:
  return list(dict.fromkeys(row["model"] for row in study["rows"]))


def cells(study: dict[str, Any], name: str) -> list[str]:
  """The line of a model in the table."""
  compute, told, verified, cost = (of(study, name, facet) for facet in FACETS)
  passes = compute[0]["passes"]
  base = {row["seed"]: row["flops"] for row in of(study, BASELINES[modality(name)], "cost")}
  against = [f"{LABELS[p][0].removeprefix('pictures: ')} {said([r[p] for r in verified], '.3f')}"
             for p in PROPOSERS[modality(name)]]  # fmt: skip
  flops = [row["flops"] / base[row["seed"]] for row in cost]
  return [
    LABELS[name][0],
    "1" if len(passes) == 1 else f"1 to {passes[-1]}, and any other",
    said([row.get("slope") for row in compute], "+.2f"),
    said([row.get("beyond") for row in compute], "+.2f"),
    told[0]["number"] or "none",
    said([row["auroc"] for row in told], ".3f"),
    "; ".join(against),
    ", ".join(cost[0]["beyond_prediction"]) or "no",
    f"{np.mean(flops):.2f} x",
  ]


def command(study: dict[str, Any], name: str, facet: str) -> str:
  """What prints the numbers of a cell."""
  s = study["settings"]
  flags = " ".join(f"--{flag}={value}" for flag, value in {**s, "models": name, "facets": facet}.items())
  return f"python -m experiments.facets.study {flags}"


def figure(study: dict[str, Any]) -> str:
  """Loss against passes, and both other facets of every model, as SVG."""
  fig, (left, right) = common.figure(9.5, 3.6, nrows=1, ncols=2, width_ratios=(3, 2))
  for i, name in enumerate(names_of(study)):
    label, color = LABELS[name]
    rows = of(study, name, "compute")
    relative = 100 * np.mean([np.array(r["loss"]) / r["loss"][0] - 1 for r in rows], 0)
    left.plot(rows[0]["passes"], relative, "o-", ms=3, color=color, label=label)
    told = [r["auroc"] for r in of(study, name, "uncertainty") if r["auroc"] is not None]
    shares = [[r[p] for p in PROPOSERS[modality(name)]] for r in of(study, name, "verification")]
    judged = [np.mean(pair) for pair in shares if None not in pair]
    right.plot(told, [i - 0.12] * len(told), "o", ms=4, color=color)
    right.plot(judged, [i + 0.12] * len(judged), "D", ms=4, mfc="none", color=color)
  left.axhline(0, color="k", lw=0.6)
  left.set(xscale="log", xlabel="passes of one prediction", ylabel="loss, % over that of one pass")
  left.set_xticks(rows[0]["passes"] if len(rows[0]["passes"]) > 1 else [1], labels=None)
  left.minorticks_off()
  left.legend(fontsize=7, frameon=False)
  right.axvline(0.5, color="k", lw=0.6)
  right.set(yticks=range(len(names_of(study))), yticklabels=[LABELS[n][0] for n in names_of(study)])
  right.set(xlabel="filled: AUROC of errors; open: truth preferred (0.5 is chance)")
  right.invert_yaxis()
  return pages.svg(fig, "Loss against passes, and both other facets of every model")


def table(study: dict[str, Any]) -> str:
  """Every cell shows its command when pointed at."""
  rows = []
  for name in names_of(study):
    found = [html.escape(LABELS[name][0])]
    for facet, cell in list(zip(OF_COLUMN, cells(study, name)))[1:]:
      found.append(f'<span title="{html.escape(command(study, name, facet))}">{html.escape(cell)}</span>')
    rows.append(found)
  return pages.table([html.escape(h) for h in HEAD], rows)


def text(study: dict[str, Any]) -> str:
  """The table as Markdown, for a README."""
  lines = [HEAD, ["---"] * len(HEAD), *(cells(study, name) for name in names_of(study))]
  return "\n".join(f"| {' | '.join(line)} |" for line in lines)


NOTES = (
  "Passes: a thinking step of EBT (an energy and its gradient, about three forward passes) or a pass of a denoiser. "
  "The slope is of ln loss over log2 passes, 1 to 16; below zero, more passes help. A model with one pass has none.",
  "AUROC: how often a wrong prediction has the higher number of a wrong and a right one. Text: wrong is a likeliest "
  "token that is not the next one. Pictures: wrong is an error above the median of all. For RNN and Transformer++ the "
  "number is the entropy of their distribution over tokens: it exists since the answers are tokens. With continuous "
  "answers, as the denoiser's, there is none.",
  "Truth preferred: of the right answer and a wrong one of another model with the next seed. An EBT prefers the lower "
  "energy, of one-hot tokens in text; RNN and Transformer++ the likelier token; the denoiser, which scores nothing, "
  "the picture nearest its own answer. In text, wrong proposals are tokens that another took for the likeliest.",
  "Trained beyond prediction: terms of the training loss that are no errors of predictions. FLOPs: of training on one "
  "item, over those of Transformer++ or of flow matching.",
)


def page(study: dict[str, Any]) -> str:
  """The whole page."""
  seeds = len({row["seed"] for row in study["rows"]})
  spread = "± is half a 95% interval over seeds" if seeds > 1 else "one seed is a hint, no claim"
  about = f"{seeds} seed(s), {study['settings']['windows']} held-out texts and pictures; {spread}. "
  about += f"Every model was trained for {', '.join(sorted({str(n) for n in study['trained'].values()}))} steps."
  parts = ["<h1>Four facets, measured</h1>", f"<p>{html.escape(about)}</p>", table(study)]
  parts += [f"<figure>{figure(study)}</figure>", *(f'<p class="note">{html.escape(note)}</p>' for note in NOTES)]
  parts.append("<p>A cell's command is shown when it is pointed at; these print a column:</p><ul>")
  parts += [f"<li>{f}: <code>{html.escape(command(study, ','.join(names_of(study)), f))}</code></li>" for f in FACETS]
  return pages.document("Four facets, measured", [*parts, "</ul>"])


def main(argv: list[str]) -> None:
  parser = cli.Parser(prog="experiments.facets.page", description=__doc__.split("\n")[0])
  parser.add_argument("folder", type=cli.path, metavar="DIR", help="of experiments.facets.study")
  args = parser.parse_args(argv)
  study = files.read_json(args.folder / "study.json", "a study of facets", "run experiments.facets.study")
  files.replace_text(args.folder / "report.html", page(study))
  print(text(study))
  print(f"\nwritten to {args.folder / 'report.html'}")


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
