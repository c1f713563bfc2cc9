"""Stands in for `ebt_jax.main` in tests of sweeps: takes its flags and leaves its files, in no time.

As a launcher: `--launcher="python tests/experiments/fake_trainer.py"`. A power law takes the place of training. It
saves every second step, resumes, and ends as main does; `FAKE_FAIL=text` fails runs whose name holds the text, and
`FAKE_SLEEP` is the seconds of a step.
"""

import ast
import json
import math
import os
import pathlib
import random
import sys
import time

from ebt_jax import metrics
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
  folder.mkdir(parents=True, exist_ok=True)
  metrics.write_json(folder / "config.json", config)
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
        writer.write(step, {"eval/loss": loss, "eval/bits_per_byte": loss / math.log(2)})
      if step % 2 == 0:
        metrics.write_json(saved, step)
  result = {"params": params + 514 * width, "params_non_embedding": params, "device": "1 x fake", "git": "fake"}
  seconds = {"wall_seconds": 0.1, "train_seconds": 1e-9 * params * train["steps"] * per_step * (40 if ebt else 6)}
  metrics.write_json(folder / "final_result.json", {**result, **seconds})


def _value(text: str):
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


if __name__ == "__main__":
  main(sys.argv[1:])
