"""Replaces `ebt_jax.main` in tests of sweeps: it takes the same flags and writes the same files, but trains nothing.

As a launcher: `--launcher="python tests/experiments/fake_trainer.py"`. The loss is a power law. It saves every second
step, resumes, and ends as main does. `FAKE_FAIL=text` fails runs whose name contains the text; `FAKE_SLEEP` is the
time of a step in seconds.
"""

import ast
import json
import math
import os
import pathlib
import random
import sys
import time

from ebt_jax import files, metrics
from ebt_jax.sweep import Run


def main(words: list[str]) -> None:
  flags = dict(w.removeprefix("--").partition("=")[::2] for w in words if w.startswith("--"))
  folder = pathlib.Path(flags["workdir"])
  overrides = {k.removeprefix("config."): _value(v) for k, v in flags.items() if k.startswith("config.")}
  config = Run(folder.name, flags["config"], overrides).resolve().to_dict()
  config["model"]["vocab_size"] = 257
  fail = os.environ.get("FAKE_FAIL")
  if fail and fail in folder.name:
    sys.exit(f"error: config.model: refused {folder.name}")
  train, width, layers = config["train"], config["model"]["width"], config["model"]["layers"]
  ebt = config["model"]["kind"] == "ebt"
  params = 7 * layers * width**2
  cost, paper = (35.0 * params, 40.0 * params) if ebt else (7.0 * params, 6.0 * params)  # FLOPs for each item
  folder.mkdir(parents=True, exist_ok=True)
  files.write_json(folder / "config.json", config)
  saved = folder / "saved.json"
  start = json.loads(saved.read_text()) if saved.exists() else 0
  with open(folder / "starts", "a") as f:
    f.write(f"{start}\n")
  per_step = train["batch_size"] * config["data"]["context_length"]
  with metrics.MetricsWriter(folder, tensorboard=False) as writer:
    writer.truncate_after(start)
    for step in range(start + 1, train["steps"] + 1):
      time.sleep(float(os.environ.get("FAKE_SLEEP", 0)))
      noise = 1 + 0.002 * random.Random(f"{config['seed']} {step} {width} {ebt}").gauss(0, 1)
      loss = (1 + (30 if ebt else 20) * (step * per_step) ** (-0.32 if ebt else -0.28) + 5 * params**-0.3) * noise
      writer.write(step, {"train/final_loss": loss, "time/wall_seconds": step * 0.1})
      if step == train["steps"] or step % config["eval"]["every"] == 0:
        writer.write(step, {"eval/loss": loss, "eval/perplexity": math.exp(loss), "eval/hard/loss": 2 * loss,
                            "progress/items": step * per_step, "progress/flops": cost * step * per_step})  # fmt: skip
      if step % 2 == 0:
        files.write_json(saved, step)
  items = train["steps"] * per_step
  result = {
    "kind": config["model"]["kind"], "params": params + 514 * width, "params_non_embedding": params,
    "steps": train["steps"], "item": "frame", "items": items, "unit": "nats/frame", "headline": "perplexity",
    "flops_paper": paper * items, "devices": 2, "device": "2 x fake", "git": "fake",
    "wall_seconds": 0.1, "train_seconds": 1e-9 * paper * items,
  }  # fmt: skip
  files.write_json(folder / "final_result.json", result)


def _value(text: str):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


if __name__ == "__main__":
  main(sys.argv[1:])
