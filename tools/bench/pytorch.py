"""The measurements of `tools.bench` in plain PyTorch: Transformer++ and the authors' formulation of EBT.

  python tools/bench/pytorch.py --suite=train,decode [--threads=2] [--rounds=5] [--out=torch.json]

Parameters are nested dicts with this package's names and layouts (kernels `[in, out]`, layers stacked), so that both
can use the same ones. A step is the loss and the gradient of one batch, in float32, in eager mode.
"""

import argparse
import json
import os
import statistics
import sys
import time

try:
  import torch
  from torch.nn import functional as F
except ImportError as e:
  if __name__ != "__main__":
    raise
  sys.exit(f"error: this needs PyTorch ({e}); run `pip install torch`, or start it with the python that has it")


def init(shape, ebt: bool, seed: int = 0):
  """Random parameters, with the scales of the paper; no measurement depends on the scales."""
  generator = torch.Generator().manual_seed(seed)
  n, d, v = shape["layers"], shape["width"], shape["vocab"]

  def normal(*size, std=None):
    std = (2 / (size[-1] + size[-2])) ** 0.5 if std is None else std
    return torch.randn(size, generator=generator) * std

  def linear():
    return {"kernel": normal(n, d, d)}

  params = {
    "embed": {"embedding": normal(v, d, std=1.0)},
    "layers": {
      "attention_norm": {"scale": torch.ones(n, d)},
      "attention": {name: linear() for name in "qkvo"},
      "ffn_norm": {"scale": torch.ones(n, d)},
      "ffn": {name: linear() for name in ("gate", "up", "down")},
    },
    "norm": {"scale": torch.ones(d)},
  }
  if ebt:
    params |= {"to_embed": {"kernel": normal(v, d)}, "head": {"kernel": normal(d, 1)}}
  else:
    params["output"] = {"kernel": normal(d, v)}
  return params


def leaves(tree):
  return [leaf for v in tree.values() for leaf in leaves(v)] if isinstance(tree, dict) else [tree]


def norm(x, scale):
  return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-5) * scale


def rotary(positions, head_dim, dtype):
  """Cosines and sines `[s, k/2]` of angles to base 10000."""
  angle = positions[:, None].to(dtype) * 10000.0 ** (-torch.arange(0, head_dim, 2, dtype=dtype) / head_dim)
  return angle.cos(), angle.sin()


def rotate(x, table):
  """Rotates pairs (j, j + k/2)."""
  cos, sin = table
  a, b = x.chunk(2, dim=-1)
  return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def stack(params, x, heads, positions, attend):
  """All blocks; `attend(q, k, v)` is the attention between projections, on `[b, h, s, k]`."""
  b, s, d = x.shape
  table = rotary(positions, d // heads, x.dtype)

  def split(y):
    return y.view(b, s, heads, d // heads).transpose(1, 2)

  layers = params["layers"]
  for i in range(len(layers["attention_norm"]["scale"])):
    w = {name: layers["attention"][name]["kernel"][i] for name in "qkvo"}
    h = norm(x, layers["attention_norm"]["scale"][i])
    y = attend(rotate(split(h @ w["q"]), table), rotate(split(h @ w["k"]), table), split(h @ w["v"]))
    x = x + y.transpose(1, 2).reshape(b, s, d) @ w["o"]
    w = {name: layers["ffn"][name]["kernel"][i] for name in ("gate", "up", "down")}
    h = norm(x, layers["ffn_norm"]["scale"][i])
    x = x + (F.silu(h @ w["gate"]) * (h @ w["up"])) @ w["down"]
  return norm(x, params["norm"]["scale"])


def transformer(params, tokens, heads):
  """Logits `[b, s, v]` of Transformer++."""

  def attend(q, k, v):
    return F.scaled_dot_product_attention(q, k, v, is_causal=True)

  x = stack(params, params["embed"]["embedding"][tokens], heads, torch.arange(tokens.shape[1]), attend)
  return x @ params["output"]["kernel"]


def energies(params, tokens, p, heads):
  """Energies `[b, s]` of candidates p `[b, s, v]`: context and candidates in one sequence, dense n x (n + 1) scores."""
  n = tokens.shape[1]
  x = torch.cat([params["embed"]["embedding"][tokens], p @ params["to_embed"]["kernel"]], dim=1)
  seen = torch.ones(n, n + 1, dtype=torch.bool).tril(1)  # the candidate's own score is to the right of its context's
  own = torch.eye(n + 1, dtype=x.dtype)[1:]

  def attend(q, k, v):
    scale = q.shape[-1] ** -0.5
    (q, own_q), (k, own_k), (v, own_v) = (a.split(n, dim=2) for a in (q, k, v))
    scores = (q @ k.transpose(-1, -2) * scale).masked_fill(~seen[:, :n].tril(), -torch.inf)
    context = scores.softmax(-1) @ v
    scores = F.pad(own_q @ k.transpose(-1, -2) * scale, (0, 1))
    scores = scores * (1 - own) + own * (own_q * own_k * scale).sum(-1, keepdim=True)
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1)
    own_weight = (weights * own).sum(-1, keepdim=True)
    candidates = (weights * (1 - own))[..., :n] @ v + own_weight * own_v
    return torch.cat([context, candidates], dim=2)

  positions = torch.cat([torch.arange(n), torch.arange(n) + 1])
  return (stack(params, x, heads, positions, attend) @ params["head"]["kernel"])[:, n:, 0]


def think(params, tokens, x, step_size, heads, steps, gradient):
  """Candidates after each step; `gradient` is `each`, `last`, or `none` where nothing is trained."""
  found = []
  for i in range(steps):
    if gradient != "last":
      x = x.detach()
    p = x.softmax(-1)
    if not p.requires_grad:
      p.requires_grad_()
    learnt = gradient == "each" or (gradient == "last" and i == steps - 1)
    (slope,) = torch.autograd.grad(energies(params, tokens, p, heads).sum(), p, create_graph=learnt)
    x = p - step_size * slope
    found.append(x)
  return found


def cross_entropy(logits, targets):
  return F.cross_entropy(logits.flatten(0, 1), targets.flatten())


def loss(params, step_size, tokens, heads, steps, gradient, start=None):
  """Mean loss in nats; `steps` 0 is Transformer++."""
  inputs, targets = tokens[:, :-1], tokens[:, 1:]
  if not steps:
    return cross_entropy(transformer(params, inputs, heads), targets)
  vocabulary = params["embed"]["embedding"].shape[0]
  start = torch.randn(*inputs.shape, vocabulary) if start is None else start
  found = think(params, inputs, start, step_size, heads, steps, gradient)
  if gradient == "last":
    return cross_entropy(found[-1], targets)
  return sum(cross_entropy(x, targets) for x in found) / steps


def generate(params, prompts, count, heads, steps):
  """`count` tokens after each prompt; each token computes the whole prefix again. `steps` 0 is Transformer++."""
  tokens = prompts
  for _ in range(count):
    if steps:
      start = torch.randn(*tokens.shape, params["embed"]["embedding"].shape[0])
      logits = think(params, tokens, start, 5.0, heads, steps, "none")[-1].detach()
    else:
      with torch.no_grad():
        logits = transformer(params, tokens, heads)
    tokens = torch.cat([tokens, torch.multinomial(logits[:, -1].softmax(-1), 1)], dim=1)
  return tokens[:, prompts.shape[1] :]


def training_calls(shape):
  """Name -> a function that computes one training step."""
  tokens = torch.randint(0, min(shape["vocab"], 256), (shape["batch"], shape["context"] + 1))
  calls = {}
  for name, steps, gradient in (
      ("Transformer++", 0, ""), ("each 2", 2, "each"), ("each 8", 8, "each"), ("last 3", 3, "last"),
  ):  # fmt: skip
    params = init(shape, ebt=steps > 0)
    step_size = torch.tensor(5.0)
    learnt = leaves(params) + ([step_size] if gradient == "each" else [])
    for leaf in learnt:
      leaf.requires_grad_()

    def call(params=params, step_size=step_size, steps=steps, gradient=gradient, learnt=learnt):
      torch.autograd.grad(loss(params, step_size, tokens, shape["heads"], steps, gradient), learnt)

    calls[name] = call
  return calls


def decoding_calls(shape):
  prompt = 3 * shape["context"] // 4
  count = shape["context"] - prompt
  texts = torch.randint(0, min(shape["vocab"], 256), (shape["batch"], prompt))
  calls = {}
  for name, steps in (("EBT, authors'", 2), ("Transformer++", 0)):
    params = init(shape, ebt=steps > 0)

    def call(params=params, steps=steps):
      return generate(params, texts, count, shape["heads"], steps)

    calls[f"{name}: {count} tokens after {prompt}"] = call
  return calls, count


def measured(calls, rounds):
  """Rows of a table; rivals take turns, after one warm-up round."""
  times = {name: [] for name in calls}
  for i in range(rounds + 1):
    for name, call in calls.items():
      start = time.perf_counter()
      call()
      if i:
        times[name].append(time.perf_counter() - start)
  return [{"name": n, "seconds": statistics.median(t), "low": min(t), "high": max(t)} for n, t in times.items()]


def main():
  parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
  parser.add_argument("--suite", default="train,decode")
  parser.add_argument("--rounds", type=int, default=5)
  parser.add_argument("--only", default="", help="names or parts of names to run, separated by semicolons")
  parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
  parser.add_argument("--out", help="also write the numbers as JSON")
  shape = dict(layers=4, heads=4, width=256, context=256, vocab=257, batch=0)
  for name, default in shape.items():
    parser.add_argument(f"--{name}", type=int, default=default)
  args = parser.parse_args()
  unknown = set(args.suite.split(",")) - {"train", "decode"}
  if unknown:
    parser.error(f"argument --suite: no suite {', '.join(sorted(unknown))}; known: train, decode")
  torch.set_num_threads(args.threads)
  shape = {name: getattr(args, name) for name in shape}

  def picked(calls):
    return {n: c for n, c in calls.items() if any(part in n for part in args.only.split(";"))}

  rows = []
  for suite in args.suite.split(","):
    if suite == "train":
      rows += measured(picked(training_calls({**shape, "batch": args.batch or 8})), args.rounds)
    else:
      calls, count = decoding_calls({**shape, "batch": args.batch or 1})
      written = measured(picked(calls), args.rounds)
      rows += [{**r, "tokens_per_second": (args.batch or 1) * count / r["seconds"]} for r in written]
  shape["batch"] = args.batch or "8 in training, 1 in decoding"
  print(f"PyTorch {torch.__version__}, {torch.get_num_threads()} threads, {shape}")
  for r in rows:
    rate = f"{r['tokens_per_second']:10.1f} tokens/s" if "tokens_per_second" in r else ""
    print(f"{r['name']:<40}{r['seconds']:>9.3f} s{r['low']:>9.3f}..{r['high']:.3f}{rate}")
  if args.out:
    with open(args.out, "w", encoding="utf-8") as f:
      json.dump({"torch": torch.__version__, "threads": args.threads, "shape": shape, "rows": rows}, f, indent=2)


if __name__ == "__main__":
  main()
