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


def train_row(config: Config) -> dict[str, int]:
  """FLOPs of training on one row, by part; `recomputation` is not progress and not in `total`."""
  part, t = forward(config), config.thinking
  if config.model.kind == "transformer":
    out = {name: 3 * value for name, value in part.items()}
    recomputation = part["trunk"] if config.model.remat else 0
  else:
    contexts = 1 if config.model.variant == "default" else t.landscapes
    learnt = 1 if t.gradient == "last" else t.steps
    free = t.steps - learnt
    out = {
        "context": 3 * contexts * part["context"],
        # forward, inner gradient, and the second order's reverse of both
        "candidate": learnt * 6 * part["candidate"] + free * 2 * part["candidate"],
        # embedding and step forward; reverse of both but for the start, which has no derivative
        "vocabulary": learnt * 5 * part["vocabulary"] + free * 2 * part["vocabulary"],
    }
    recomputation = learnt * 2 * part["candidate"]  # the second-order rule runs the forward pass and its tangent anew
  out["total"] = sum(out.values())
  return {**out, "recomputation": recomputation}


def train_step(config: Config) -> int:
  """FLOPs of one training step over the whole batch, without recomputation."""
  return config.train.batch_size * train_row(config)["total"]
