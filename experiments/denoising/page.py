"""Writes the page of a denoising study: one HTML file that needs no other, from `study.json` and the panels.

python -m experiments.denoising.page DIR
"""

import base64
import html
import pathlib
import sys
from typing import Any

from ebt_jax import cli, files
from experiments.runner import page as pages
from experiments.thinking import common

LABELS = {
  "ebt": "EBT, 2 steps",
  "ebt_1_step": "EBT, 1 step",
  "residual": "EBT, residual",
  "dit": "DiT",
  "dit_flops": "DiT, FLOPs of training of EBT",
  "dit_authors": "DiT, the authors' levels",
  "flow": "flow matching",
}
EBTS = ("ebt", "ebt_1_step", "residual")
MEASURES = {"psnr": "PSNR, dB", "ssim": "SSIM", "mse": "squared error, 0 to 255"}
COLORS = dict(zip(LABELS, ("#1b6ca8", "#5aa9dd", "#2a9d5c", "#444444", "#8a6d3b", "#999999", "#d1495b")))


def label_of(series: str) -> str:
  """As people read it; a series of the user's own is its own label."""
  return LABELS.get(series, series)


def over_seeds(rows: list[dict[str, Any]], measure: str) -> str:
  """Mean and interval, or the one value of one seed."""
  values = [row[measure] for row in rows]
  form = ".2f" if measure != "ssim" else ".3f"
  return common.over_seeds(values, form) if len(values) > 1 else f"{values[0]:{form}}"


def plain(rows: list[dict[str, Any]], series: str, level: float) -> dict[int, list[dict[str, Any]]]:
  """Passes -> rows, of one candidate."""
  out: dict[int, list] = {}
  for row in rows:
    if row["series"] == series and row["level"] == level and row.get("candidates", 1) == 1:
      out.setdefault(row["passes"], []).append(row)
  return dict(sorted(out.items()))


def figure(study: dict[str, Any], level: float) -> str:
  """PSNR against passes, as SVG."""
  fig, axes = common.figure(6, 3.4)
  for series in study["trained"]:
    found = plain(study["rows"], series, level)
    mean = [sum(r["psnr"] for r in rows) / len(rows) for rows in found.values()]
    axes.plot(list(found), mean, "o-", ms=3, color=COLORS.get(series), label=label_of(series))
  for row in study["trivial"]:
    if row["level"] == level:
      axes.axhline(row["psnr"], ls=":", lw=1, color="#888888")
      axes.annotate(row["answer"], (1, row["psnr"]), fontsize=7, color="#666666")
  axes.set(xscale="log", xlabel="passes", ylabel="PSNR, dB")
  axes.legend(fontsize=7, frameon=False)
  return pages.svg(fig, f"PSNR against passes at noise level {level:g}")


def table(head: list[str], lines: list[list[str]]) -> str:
  """A table of plain texts."""
  return pages.table(head, [[html.escape(cell) for cell in line] for line in lines])


def of_level(study: dict[str, Any], level: float) -> list[list[str]]:
  """The table of a level: trivial answers, then every model after some numbers of passes."""
  lines = [
    [row["answer"], "0", *(over_seeds([row], m) for m in MEASURES)] for row in study["trivial"] if row["level"] == level
  ]
  for series in study["trained"]:
    for passes, rows in plain(study["rows"], series, level).items():
      if passes in (1, 2, 3, 4, 8, 10, 16, 50, 100, 200, 300):
        lines.append([label_of(series), str(passes), *(over_seeds(rows, m) for m in MEASURES)])
  return lines


def best_of(study: dict[str, Any], level: float) -> list[list[str]]:
  """The best of N candidates by energy."""
  lines = []
  for series in study["trained"]:
    found: dict[int, list] = {}
    for row in study["rows"]:
      if row["series"] == series and row["level"] == level and row.get("candidates", 0) > 1:
        found.setdefault(row["candidates"], []).append(row)
    for n, rows in sorted(found.items()):
      lines.append([label_of(series), f"{rows[0]['passes']} x {n}", *(over_seeds(rows, m) for m in MEASURES)])
  return lines


def differences(study: dict[str, Any], level: float) -> list[list[str]]:
  """PSNR of each EBT less each rival, paired by seed: after as many passes, and after those that are best for each."""
  lines = []
  for series in [s for s in study["trained"] if s in EBTS]:
    ours = plain(study["rows"], series, level)
    for rival in [s for s in study["trained"] if s not in EBTS]:
      theirs = plain(study["rows"], rival, level)
      for passes in (1, 2, 10):
        if passes in ours and passes in theirs:
          lines.append([label_of(series), label_of(rival), str(passes), less(ours[passes], theirs[passes])])
      a, b = (max(found, key=lambda n: sum(r["psnr"] for r in found[n]) / len(found[n])) for found in (ours, theirs))
      lines.append([label_of(series), label_of(rival), f"{a} and {b}, each its best", less(ours[a], theirs[b])])
  return lines


def less(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> str:
  """Mean and interval of the differences in PSNR, of the seeds that both have."""
  of_seed = {row["seed"]: row["psnr"] for row in theirs}
  return over_seeds([{"psnr": row["psnr"] - of_seed[row["seed"]]} for row in ours if row["seed"] in of_seed], "psnr")


def page(folder: pathlib.Path) -> str:
  """The page of a study's folder."""
  study = files.read_json(folder / "study.json", "a denoising study", "run experiments.denoising.study")
  seeds = len({row["seed"] for row in study["rows"]})
  levels, settings = study["settings"]["levels"], study["settings"]
  about = (
    f"{settings['pictures']} held-out pictures, the same noise for all models; {seeds} seed(s)"
    + ("; ± is half a 95% interval over seeds." if seeds > 1 else ": a hint, no claim.")
    + " A pass of EBT is a thinking step (an energy and its gradient), one of the others is a forward pass."
  )
  parts = [f"<p>{html.escape(about)}</p>"]
  trained = [
    [label_of(s), f"{t['steps']} x {t['batch']}", f"{t['levels']:g}", f"{t['flops_per_picture'] / 1e6:.0f}"]
    for s, t in study["trained"].items()
  ]
  parts.append(table(["model", "pictures trained on", "highest noise level trained on", "MFLOPs a picture"], trained))
  for level in levels:
    where = "the level that EBT is trained at" if level == levels[0] else "EBT has never seen this level"
    parts.append(f"<h2>Noise level {level:g}: {where}</h2><figure>{figure(study, level)}</figure>")
    parts.append(table(["answer", "passes", *MEASURES.values()], of_level(study, level)))
    if lines := differences(study, level):
      parts.append("<p>EBT less a rival, paired by seed:</p>")
      parts.append(table(["EBT", "less", "passes", "PSNR, dB"], lines))
    if lines := best_of(study, level):
      parts.append("<p>The best of N candidates by energy:</p>")
      parts.append(table(["model", "passes", *MEASURES.values()], lines))
    picture = base64.b64encode((folder / f"panel_{level:g}.png").read_bytes()).decode()
    parts.append(f'<figure><img style="max-width:100%" alt="panel" src="data:image/png;base64,{picture}">')
    parts.append(
      "<figcaption>`left` is 4 times the difference to the clean picture; grey is none.</figcaption></figure>"
    )
  title = "Denoising: passes and quality"
  return pages.document(title, [f"<h1>{title}</h1>", *parts])


def main(argv: list[str]) -> None:
  parser = cli.Parser(prog="experiments.denoising.page", description=__doc__.split("\n")[0])
  parser.add_argument("folder", type=cli.path, metavar="DIR", help="of experiments.denoising.study")
  args = parser.parse_args(argv)
  files.replace_text(args.folder / "report.html", page(args.folder))
  print(f"written to {args.folder / 'report.html'}")


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
