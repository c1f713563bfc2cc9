"""Floating-point operations, counted by hand from the architecture; a multiplication and an addition are two.

Only matrix products are counted, attention over the full square as it is computed. XLA's own count is wrong for loops
(it counts their body once). Recomputation in the backward pass is kept apart: it costs time but is no progress.
"""

from ebt_jax.config import Config

PARTS = ("trunk", "context", "candidate", "vocabulary")


def _stream(config: Config, tokens: int, entries: int) -> tuple[int, int]:
  """Forward FLOPs of one stream through all blocks: projections, attention over `entries`."""
  m = config.model
  weights = m.layers * (4 * m.width**2 + 3 * m.width * m.hidden)
  return 2 * tokens * weights, 4 * tokens * m.layers * m.width * entries


def forward(config: Config) -> dict[str, int]:
  """FLOPs of one forward pass for one row of `context_length` tokens, by part."""
  n, m = config.data.context_length, config.model
  vocabulary = 2 * n * m.width * m.vocab_size
  if m.kind == "transformer":
    return {"trunk": sum(_stream(config, n, n)), "vocabulary": vocabulary}
  entries = n + (m.variant == "time_embed")
  return {
      "context": sum(_stream(config, entries, entries)),
      "candidate": sum(_stream(config, n, entries)) + 2 * n * m.width,
      "vocabulary": vocabulary,
  }


def mean_steps(config: Config) -> float:
  """Thinking steps of a training step, on average where their number is random."""
  t = config.thinking
  if not t.random_steps_min:
    return t.steps
  repeats = (t.random_steps_min + t.steps - t.landscapes + 1) / 2
  return t.landscapes * repeats if t.random_steps_of == "every" else t.landscapes - 1 + repeats


def train_row(config: Config) -> dict[str, int]:
  """FLOPs of training on one row, by part; `recomputation` is not progress and not in `total`."""
  part, t, remat = forward(config), config.thinking, config.model.remat
  if config.model.kind == "transformer":
    out = {name: 3 * value for name, value in part.items()}
    recomputation = part["trunk"] if remat else 0
  else:
    contexts = 1 if config.model.variant == "default" else t.landscapes
    steps = mean_steps(config)
    learnt = 1 if t.gradient == "last" else steps
    free = steps - learnt
    # learnt steps whose start has a derivative too, which goes back through the embedding
    path = t.step_size_path and (t.learn_step_size or t.learn_noise)
    started = {"each": 0, "last": int(path), "unrolled": steps}[t.gradient]
    contrast = int(t.contrastive > 0)  # energy of the truth: forward and backward
    out = {
        "context": 3 * contexts * part["context"],
        # forward, inner gradient, and the second order's reverse of both
        "candidate": (6 * learnt + 2 * free + 3 * contrast) * part["candidate"],
        # embedding and its transpose; reverse of both for the weights, and of the transpose for the slope
        "vocabulary": (5 * learnt + 2 * free + started + 2 * contrast) * part["vocabulary"],
    }
    # the second-order rule runs the forward pass and its tangent anew; remat repeats every forward pass and tangent
    recomputation = 2 * learnt * part["candidate"]
    if remat:
      recomputation += contexts * part["context"] + (3 * learnt + free + contrast) * part["candidate"]
  out["total"] = sum(out.values())
  return {name: int(value) for name, value in {**out, "recomputation": recomputation}.items()}


def train_step(config: Config) -> int:
  """FLOPs of one training step over the whole batch, without recomputation."""
  return config.train.batch_size * train_row(config)["total"]
