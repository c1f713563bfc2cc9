"""Suite `image`: training steps of EBT, DiT and flow matching on pictures of 32 pixels, 64 patches each."""

import functools
import sys

import jax
import numpy as np

from ebt_jax.config import ConfigError, resolve
from ebt_jax.data.loader import Loader
from ebt_jax.tasks import registry
from tools.bench import timing
from tools.bench.rivals import COST, LAST, STEP, Rival, Steps, chosen

# layers, heads, width; thinking steps of mode `each` and of `last`
SHAPES = {"laptop": ((4, 4, 128), (1, 2, 4, 8), (2, 3, 16)), "12 layers": ((12, 6, 384), (1, 2), (3,))}
BASE = "DiT"
PYTORCH = "PyTorch, "
PRODUCTS = "matrix products"
LOADED = 20  # batches that are loaded to time one
REPEATED = 20  # products that are timed together


def configured(shape, kind, batch, dtype, thinking=None, residual=False):
  """A resolved config of one rival."""
  layers, heads, width = shape
  start = {"start": "context" if residual else "input", "step_size": 1000.0} if kind == "ebt" else {}
  model = {"kind": kind, "layers": layers, "heads": heads, "width": width, "dtype": dtype, "residual": residual}
  return resolve(
    {
      "task": "image",
      "model": model,
      "thinking": {**start, **(thinking or {})},
      "image": {"size": 32, "patch": 4, "eval_levels": "0.2"},
      "data": {"held_out": 0.2},
      "train": {"batch_size": batch},
    }
  )


def rivals_of(shape, each, last, batch, dtype):
  """DiT, flow matching, and EBT by gradient mode and thinking steps."""

  def ebt(name, steps, residual=False, **thinking):
    config = configured(shape, "ebt", batch, dtype, {"steps": steps, **thinking}, residual)
    return Rival(name, registry.make(config), name.rstrip("0123456789 "), steps)

  out = [Rival(name, registry.make(configured(shape, kind, batch, dtype)), name)
         for name, kind in ((BASE, "dit"), ("flow matching", "flow"))]  # fmt: skip
  out += [ebt(f"EBT, each {n}", n) for n in each]
  out += [ebt(f"EBT, last {n}", n, **LAST) for n in last]
  return [*out, ebt("EBT, residual 1", 1, residual=True)]


def pytorch_calls(steps: Steps, x: np.ndarray, w: np.ndarray) -> dict:
  """The authors' formulation of EBT, and DiT, in PyTorch, with the parameters of their counterparts here; products.

  Raises:
    ConfigError: this Python has no PyTorch.
  """
  try:
    import torch

    from tools.bench import pytorch_images
  except ImportError as e:
    raise ConfigError(f"--torch: suite image takes turns with PyTorch in one process, which lacks it ({e})") from e
  torch.set_num_threads(timing.machine()["cores"])
  found = {PYTORCH + PRODUCTS: functools.partial(multiplied, *map(torch.from_numpy, (x, w)))}
  for rival in steps.rivals:
    if rival.name in (BASE, "EBT, each 1", "EBT, each 2"):
      params = jax.device_get(steps.params_of(rival))
      found[PYTORCH + rival.name] = pytorch_images.calls(
        rival.task.config, params, thinks=rival.steps > 0, steps=rival.steps
      )
  return found


def factors(rows: int, width: int) -> tuple[np.ndarray, np.ndarray]:
  """`[rows, width]` and `[width, width]`: what most products of a step are of."""
  w = np.random.default_rng(0).normal(0, width**-0.5, (width, width))
  return np.ones((rows, width), np.float32), w.astype(np.float32)


def multiplied(x, w):
  """`REPEATED` products, one after the other."""
  for _ in range(REPEATED):
    x = x @ w
  return x


def add_shares(rows, products: float) -> float:
  """Adds to each row of a step which share it reaches of the fastest `products`, and returns their FLOPs a second.

  Args:
    products: FLOPs of `multiplied`.
  """
  timed = {row["name"]: row for row in rows if "seconds" in row}
  rate = max(products / timed[name]["low"] for name in (PRODUCTS, PYTORCH + PRODUCTS) if name in timed)
  for name, row in timed.items():
    if work := timed.get(name.removeprefix(PYTORCH), {}).get("progress_flops"):
      row["utilisation"] = work / row["seconds"] / rate
  return rate


def loading(rival) -> float:
  """Seconds of loading one batch: what a step waits for where nothing overlaps."""
  loader = Loader(rival.task.problem.data().train, rival.task.config.train.batch_size, 0)
  load = {"load": lambda: [loader.batch(i) for i in range(LOADED)]}
  return float(np.median(timing.interleaved(load, 3)["load"])) / LOADED


def image(args):
  """Training steps on pictures: EBT beside DiT and flow matching, and with --torch the authors' EBT in PyTorch."""
  found = {}
  for name, (shape, *counts) in SHAPES.items():
    batch = args.batch or 16
    steps = Steps(chosen(args, rivals_of(shape, *counts, batch, args.dtype)), args.max_gb)
    layers, heads, width = shape
    patches = steps.rivals[0].task.config.image.side ** 2
    x, w = factors(batch * patches, width)
    steps.programs[PRODUCTS] = functools.partial(jax.jit(multiplied), x, w)
    steps.rows.append({"name": PRODUCTS})
    steps.run(args.rounds, also=pytorch_calls(steps, x, w) if args.torch else {})
    steps.compare(BASE)
    rate = add_shares(steps.rows, 2 * batch * patches * width**2 * REPEATED)
    seconds = {row["name"]: row["seconds"] for row in steps.rows if "seconds" in row}
    said = f"{name}: layers {layers}, heads {heads}, width {width}, batch {batch}, {args.dtype}"
    print(timing.table(steps.rows, STEP + COST, said))
    print(f"of peak: of the fastest matrix products of this run, {rate / 1e9:,.0f} GFLOP/s")
    shares = {row["name"]: row["utilisation"] for row in steps.rows if "utilisation" in row}
    for theirs in (n for n in shares if n.startswith(PYTORCH)):
      ours = theirs.removeprefix(PYTORCH)
      print(
        f"{theirs}: {seconds[theirs] / seconds[ours]:.2f} times the seconds of {ours}; twice as fast as that would be "
        f"{2 * shares[theirs]:.0%} of the peak"
      )
    load = loading(steps.rivals[0])
    if shares:
      fastest = min(seconds[row] for row in shares)
      print(f"loading a batch: {1e3 * load:.1f} ms, {load / fastest:.1%} of the fastest step")
    found[name] = {"rows": steps.rows, "loading": load, "batch": batch}
    print(file=sys.stdout, flush=True)
  return found
