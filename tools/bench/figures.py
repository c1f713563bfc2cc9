"""Draws the figures of results that `tools.bench` has written: `python -m tools.bench.figures FOLDER`."""

import pathlib
import sys

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot as plt

from ebt_jax import cli, files
from ebt_jax.errors import UserError


def draw(folder) -> list[str]:
  """Draws a figure for each suite whose JSON is in `folder`; returns the paths of the figures."""
  folder, drawn = pathlib.Path(folder), []
  for name, figure in (("train", _steps), ("decode", _decode), ("sizes", _sizes)):
    path = folder / f"{name}.json"
    if path.exists():
      found = files.read_json(path, "the result of a suite", "run tools.bench again")
      drawn.append(str(folder / f"{name}.png"))
      figure(found).savefig(drawn[-1], dpi=150)
      plt.close("all")
  return drawn


def _families(rows, x, y):
  """(family, its rows sorted by x), of the rows that have x and y."""
  families = {}
  for row in rows:
    if row.get(x) and row.get(y) is not None:
      families.setdefault(row["family"], []).append(row)
  return [(name, sorted(members, key=lambda r: r[x])) for name, members in families.items()]


def _lines(axes, rows, x, y, spread=False):
  for name, members in _families(rows, x, y):
    xs, ys = [r[x] for r in members], [r[y] for r in members]
    (line,) = axes.plot(xs, ys, "o-", label=name)
    if spread:
      low, high = ([r[k] for r in members] for k in ("low", "high"))
      axes.fill_between(xs, low, high, alpha=0.2, color=line.get_color())
  axes.grid(alpha=0.3)


def _steps(found):
  rows = found["rows"]
  figure, axes = plt.subplots(1, 3, figsize=(13, 4.2), layout="constrained")
  panels = (("seconds", "seconds of a step"), ("temp_mb", "temporary memory, MB"), ("compile_s", "seconds to compile"))
  for a, (key, title) in zip(axes, panels):
    _lines(a, rows, "steps", key, spread=key == "seconds")
    base = [r[key] for r in rows if r["family"] == "Transformer++" and key in r]
    if base:
      a.axhline(base[0], color="black", linestyle=":", label="Transformer++")
    a.set(xlabel="thinking steps", title=title, ylim=(0, None))
  handles, labels = axes[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
  return figure


def _decode(found):
  figure, axes = plt.subplots(figsize=(5.5, 4.2), layout="constrained")
  _lines(axes, found["rows"], "prefix", "seconds", spread=True)
  axes.set(xlabel="tokens before", ylabel="seconds of a token", title="decoding", yscale="log")
  axes.legend(frameon=False)
  return figure


def _sizes(found):
  figure, axes = plt.subplots(figsize=(5.5, 4.2), layout="constrained")
  _lines(axes, [r for r in found["rows"] if r["family"] != "Transformer++"], "trunk_flops", "ratio")
  axes.set(xlabel="size", ylabel="seconds of a step over Transformer++'s", ylim=(0, None), xscale="log")
  ticks = {r["trunk_flops"]: r["size"] for r in found["rows"]}
  axes.set_xticks(list(ticks), list(ticks.values()))
  axes.minorticks_off()
  axes.legend(frameon=False)
  return figure


def main(argv) -> None:
  parser = cli.Parser(prog="tools.bench.figures", description=__doc__.splitlines()[0])
  parser.add_argument("folder", type=cli.path, metavar="FOLDER", help="--out of tools.bench")
  folder = parser.parse_args(argv).folder
  drawn = draw(folder)
  if not drawn:
    raise UserError(f"{folder}: no train.json, decode.json or sizes.json; run `python -m tools.bench --out={folder}`")
  print(*drawn)


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
