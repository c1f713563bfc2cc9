"""Suite `image`: training steps of EBT, DiT and flow matching on pictures of 32 pixels, 64 patches each."""

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
LOADED = 20  # batches that are loaded to time one


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


def pytorch_calls(steps: Steps) -> dict:
  """The authors' formulation of EBT, and DiT, in PyTorch, with the parameters of their counterparts here.

  Raises:
    ConfigError: this Python has no PyTorch.
  """
  try:
    import torch

    from tools.bench import pytorch_images
  except ImportError as e:
    raise ConfigError(f"--torch: suite image takes turns with PyTorch in one process, which lacks it ({e})") from e
  torch.set_num_threads(timing.machine()["cores"])
  found = {}
  for rival in steps.rivals:
    if rival.name in (BASE, "EBT, each 1", "EBT, each 2"):
      params = jax.device_get(steps.params_of(rival))
      found[PYTORCH + rival.name] = pytorch_images.calls(
        rival.task.config, params, thinks=rival.steps > 0, steps=rival.steps
      )
  return found


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
    steps.run(args.rounds, also=pytorch_calls(steps) if args.torch else {})
    steps.compare(BASE)
    seconds = {row["name"]: row["seconds"] for row in steps.rows if "seconds" in row}
    layers, heads, width = shape
    said = f"{name}: layers {layers}, heads {heads}, width {width}, batch {batch}, {args.dtype}"
    print(timing.table(steps.rows, STEP + COST, said))
    for theirs in (n for n in seconds if n.startswith(PYTORCH)):
      ours = theirs.removeprefix(PYTORCH)
      if ours in seconds:
        print(f"{theirs}: {seconds[theirs] / seconds[ours]:.2f} times the seconds of {ours}")
    load = loading(steps.rivals[0])
    if seconds:
      print(f"loading a batch: {1e3 * load:.1f} ms, {load / min(seconds.values()):.1%} of the fastest step")
    found[name] = {"rows": steps.rows, "loading": load, "batch": batch}
    print(file=sys.stdout, flush=True)
  return found
