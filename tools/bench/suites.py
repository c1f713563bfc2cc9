"""The suites of the benchmark: what is measured, at which shapes. tools/README.md describes them.

A suite takes the flags of `tools.bench`, prints its table, and returns what goes into `SUITE.json`.
"""

import json
import pathlib
import subprocess
import sys

import jax
import numpy as np

from ebt_jax.config import SIZES
from ebt_jax.tasks import decoding, registry
from ebt_jax.thinking import descent
from ebt_jax.use.generate import Generator
from ebt_jax.use.sampling import Sampling
from tools.bench import authors, timing
from tools.bench.pictures import image
from tools.bench.recurrent import recurrent
from tools.bench.rivals import (
  BASE,
  COST,
  SHAPE,
  STEP,
  Steps,
  chosen,
  configured,
  described,
  ebt,
  rival_ebt,
  shaped,
  transformer,
)

RESIDUAL = {"residual": True}
REPEATS = 5  # calls in one timing, where a single call is too short to time
ROOT = pathlib.Path(__file__).resolve().parents[2]


def train(args):
  """Training steps of every gradient mode, and of Transformer++."""
  shape = shaped(args, layers=4, heads=4, width=256, context=256, batch=8, vocab=257)
  rivals = [transformer(shape)]
  rivals += [rival_ebt(shape, n) for n in (2, 8)] + [rival_ebt(shape, 3, "last")]
  rivals += [ebt(shape, n) for n in (2, 4, 8, 16)]
  rivals += [ebt(shape, n, "last") for n in (2, 3, 16)]
  rules = {", double reverse": descent.double_reverse, ", reverse over forward": descent.reverse_over_forward}
  other = {note: rule for note, rule in rules.items() if rule is not descent.second_order()}
  rivals += [ebt(shape, n, rule=rule, note=note) for note, rule in other.items() for n in (2, 8)]
  rivals.append(ebt(shape, 2, model={"variant": "time_embed"}, note=", time_embed", landscapes=2))
  rivals += [ebt(shape, n, model=RESIDUAL, note=", residual") for n in (1, 2)]
  steps = Steps(chosen(args, rivals), args.max_gb)
  steps.run(args.rounds)
  steps.compare()
  found = {"shape": shape, "rows": steps.rows}
  print(timing.table(steps.rows, STEP + COST, described(shape)))
  if args.torch:
    found["torch"] = torch(args, shape, steps.rows)
  return found


def sizes(args):
  """The ratio to Transformer++ against size."""
  rows = []
  for size in args.sizes.split(","):
    layers, heads, width = SIZES[size]
    shape = shaped(args, context=256, batch=8, vocab=257) | {"layers": layers, "heads": heads, "width": width}
    rivals = [transformer(shape), rival_ebt(shape, 2), ebt(shape, 2), ebt(shape, 3, "last")]
    steps = Steps(rivals, args.max_gb)
    steps.run(args.rounds)
    steps.compare()
    of_layers = rivals[0].task.model.flops(shape["context"])["trunk"]
    rows += [{**r, "name": f"{size}: {r['name']}", "size": size, "trunk_flops": of_layers} for r in steps.rows]
    shape_text = described({**shape, "layers": "*", "width": "*"})
  print(timing.table(rows, STEP + COST, shape_text))
  return {"shape": shape, "rows": rows}


def vocab(args):
  """A large vocabulary: whole arrays, and chunks of positions."""
  shape = shaped(args, layers=6, heads=6, width=384, context=256, batch=8, vocab=50277)
  ways = (("whole", {"vocab_chunk": shape["context"]}), ("chunked", {}), ("chunked, remat", {"remat": True}))
  lean = descent.second_order(True)  # one rule for all: an untrained model magnifies rounding
  pairs = []
  for make in (
    lambda how, model: transformer(shape, f"{BASE}, {how}", **model),
    lambda how, model: ebt(shape, 2, model=model, rule=lean, note=f", {how}"),
    lambda how, model: ebt(shape, 3, "last", model=model, rule=lean, note=f", {how}"),
  ):
    pairs.append(chosen(args, [make(how, model) for how, model in ways]))
  default = {"model": ways[0][1], "note": ", whole, as by default"}
  fast = [ebt(shape, 2, **default), ebt(shape, 3, "last", **default)]
  rivals = chosen(args, [rival_ebt(shape, 2), *fast]) + [r for pair in pairs for r in pair]
  steps = Steps(rivals, args.max_gb)
  for pair in pairs:
    run = [r.name for r in pair if r.name in steps.programs]
    for name in run[1:]:
      row = next(r for r in steps.rows if r["name"] == name)
      row.update(difference(steps.programs[run[0]](), steps.programs[name]()))
  steps.run(args.rounds)
  steps.compare(f"{BASE}, chunked")
  errors = (("loss differs", "loss_error", ".1e"), ("gradient differs", "gradient_error", ".1e"))
  print(timing.table(steps.rows, STEP + COST + errors, described(shape)))
  return {"shape": shape, "rows": steps.rows}


def difference(whole, chunked):
  """Largest relative differences of losses and gradients; of a gradient, over its leaf's largest entry."""

  def relative(a, b):
    a, b = np.asarray(a), np.asarray(b)
    return float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-30))

  (loss, _), gradient = whole
  (other_loss, _), other = chunked
  worst = max(map(relative, jax.tree.leaves(gradient), jax.tree.leaves(other)))
  return {"loss_error": relative(loss, other_loss), "gradient_error": worst}


def attention(args):
  """Long contexts: whole attention scores, and blocks of query positions."""
  shape = shaped(args, layers=4, heads=4, width=256, context=2048, batch=1, vocab=257)
  whole = shape["context"]
  blocks = [("whole", whole), ("chosen", 0), *((f"blocks of {n}", n) for n in (128, 256, 512) if n < whole)]
  rivals = [rival_ebt(shape, 2)]
  for how, block in blocks:
    rivals.append(transformer(shape, f"{BASE}, {how}", attention_block=block))
    rivals.append(ebt(shape, 2, model={"attention_block": block}, note=f", {how}"))
  steps = Steps(chosen(args, rivals), args.max_gb)
  steps.run(args.rounds)
  steps.compare(f"{BASE}, whole")
  print(timing.table(steps.rows, STEP + COST, described(shape)))
  return {"shape": shape, "rows": steps.rows}


def text_generator(task, params):
  """Of text that never ends by itself."""
  return Generator(decoding.writer(task), params, end_of_text=-1, capacity=task.config.data.context_length)


def decode(args):
  """Decoding: tokens per second, the time of one token after prefixes of several lengths, with 1 and 8 candidates."""
  shape = shaped(args, layers=4, heads=4, width=256, context=256, batch=1, vocab=257)
  prompt = 3 * shape["context"] // 4
  tokens = shape["context"] - prompt
  how = Sampling()
  thinking = {"steps": 2}
  ours = registry.make(configured(shape, thinking=thinking))
  params = ours.init(jax.random.key(0))
  base = registry.make(configured(shape, "transformer"))
  texts = np.random.default_rng(0).integers(0, 256, (shape["batch"], shape["context"]))
  write = {
    "EBT": text_generator(ours, params),
    "authors'": authors.Generator(authors.AuthorsText.of(ours.config), params),
    BASE: text_generator(base, base.init(jax.random.key(0))),
  }
  # the authors' formulation is measured without padding of its prefix, which favours it
  exact = authors.Generator(authors.AuthorsText.of(ours.config), params, multiple=1)
  many = registry.make(configured(shape, thinking=thinking, evaluation={"candidates": 8}))
  write["EBT, 8 candidates"] = text_generator(many, params)
  residual = registry.make(configured(shape, model=RESIDUAL, thinking=thinking))
  write["EBT, residual"] = text_generator(residual, residual.init(jax.random.key(0)))

  def call(generator, length, count, times=1):
    prompts = texts[:, :length].tolist()
    return lambda: [generator(prompts, count, how) for _ in range(times)]

  calls = {(name, "whole"): call(write[name], prompt, tokens) for name in ("EBT", "EBT, residual", "authors'", BASE)}
  most = shape["context"] // 16  # tokens whose times give the time of one; the last prefix leaves room for half of them
  prefixes = [round(shape["context"] * n / 256) for n in (20, 64, 128, 200)] + [shape["context"] - 1 - most // 2]
  several = {n: min(most, shape["context"] - 1 - n) for n in prefixes}
  for n in prefixes:
    calls["authors'", n] = call(exact, n, 1)
    for name, generator in write.items():
      if name not in ("authors'", BASE) or (name == BASE and n == prefixes[-1]):
        calls[name, n, "one"] = call(generator, n, 1, REPEATS)
        calls[name, n, "several"] = call(generator, n, 1 + several[n], REPEATS)
  times = timing.interleaved(calls, args.rounds)

  rows = []
  for name in ("authors'", "EBT", "EBT, residual", BASE):
    row = {"name": f"{name}: {tokens} tokens after {prompt}", **timing.summary(times[name, "whole"])}
    rows.append({**row, "family": name, "tokens_per_second": shape["batch"] * tokens / row["seconds"]})
  for name in write:
    for n in prefixes:
      if (name, n) in times:
        each = times[name, n]
      elif (name, n, "one") in times:
        pairs = zip(times[name, n, "one"], times[name, n, "several"])
        each = [(more - one) / several[n] / REPEATS for one, more in pairs]
      else:
        continue
      rows.append({"name": f"{name}: a token after {n}", "family": name, "prefix": n, **timing.summary(each)})
    if (name, prefixes[-1], "one") in times:  # the cost of the best of N including the encoding of the prefix
      row = {"name": f"{name}: {prefixes[-1]} encoded and a token", "family": name, "encoded": prefixes[-1]}
      rows.append({**row, **timing.summary([t / REPEATS for t in times[name, prefixes[-1], "one"]])})

  def what(row):
    return (row.get("prefix"), row.get("encoded"))

  seconds = {what(row): row["seconds"] for row in rows if row["family"] == "EBT"}
  for row in rows:
    row["ratio"] = row["seconds"] / seconds[what(row)]
  columns = (("s", "seconds", ".4f"), ("min..max", ("low", "high"), ".4f"), ("tokens/s", "tokens_per_second", ".1f"))
  print(timing.table(rows, (*columns, ("over EBT", "ratio", ".2f")), described(shape) + ", 2 steps"))
  found = {"shape": shape, "rows": rows}
  if args.torch:
    found["torch"] = torch(args, shape, rows, decode=True)
  return found


def mesh(args):
  """Paper configs, compiled for many devices and not run; each in its own process."""
  rows = []
  for devices in map(int, args.devices.split(",")):
    for size in args.mesh_sizes.split(","):
      for kind in ("transformer", "authors", "ebt"):
        flags = [f"--devices={devices}", f"--size={size}", f"--kind={kind}"]
        command = [sys.executable, "-m", "tools.bench.mesh", *flags]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
          why = (done.stderr.strip() or "killed").splitlines()[-1]
          rows.append({"name": f"{size}, {devices} devices, {kind}", "note": why})
        else:
          rows.append(json.loads(done.stdout.splitlines()[-1]))
        print(f"  compiled: {rows[-1]['name']}", file=sys.stderr, flush=True)
  columns = (
      ("arguments GB", "arguments_gb", ".2f"), ("temporary GB", "temporary_gb", ".2f"),
      ("collectives", "collectives", ""), ("once GB", "once_gb", ".2f"), ("a step GB", "step_gb", ".2f"),
      ("compile s", "compile_s", ".0f"),
  )  # fmt: skip
  print(timing.table(rows, columns, "each device's"))
  return {"rows": rows}


def torch(args, shape, rows, decode=False):
  """The same in PyTorch (tools/bench/pytorch.py), in its own process with the same number of threads."""
  out = pathlib.Path(args.out) / f"torch_{'decode' if decode else 'train'}.json"
  flags = [f"--{k}={shape[k]}" for k in SHAPE] + [f"--rounds={args.rounds}", f"--out={out}"]
  flags += [f"--suite={'decode' if decode else 'train'}", f"--threads={timing.machine()['cores']}"]
  done = subprocess.run([args.torch, str(ROOT / "tools/bench/pytorch.py"), *flags], check=False)
  if done.returncode:
    print("PyTorch was not measured")
    return None
  found = json.loads(out.read_text(encoding="utf-8"))
  pairs = {"EBT, each 2": "each 2", "EBT, each 8": "each 8", "EBT, last 3": "last 3", BASE: BASE}
  pairs |= {row["name"]: row["name"].replace("EBT:", "EBT, authors':") for row in rows if "tokens_per_second" in row}
  theirs = {r["name"]: r for r in found["rows"]}
  for row in rows:
    other = theirs.get(pairs.get(row["name"], ""))
    if other and "seconds" in row:
      print(f"PyTorch, {other['name']}: {other['seconds'] / row['seconds']:.2f} times the seconds of {row['name']}")
  return found


SUITES = {
  "train": train,
  "sizes": sizes,
  "vocab": vocab,
  "attention": attention,
  "decode": decode,
  "recurrent": recurrent,
  "image": image,
  "mesh": mesh,
}
