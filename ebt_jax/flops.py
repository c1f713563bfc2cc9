"""Floating-point operations, counted by hand from the architecture; a multiplication and an addition are two.

Only matrix products are counted, attention over the full square (blocks of long contexts compute less). XLA's own
count is wrong for loops (it counts their body once). Recomputation in the backward pass is kept apart: it costs time
but is no progress. What candidates over large vocabularies rebuild of themselves (`spaces.ChunkedSimplex`) is left out.
"""

from ebt_jax.config import Config

PARTS = ("trunk", "context", "candidate", "vocabulary", "modulation")

# dense bfloat16 FLOPs a second of one device, by a part of its name; the vendors' data sheets
PEAKS = {
    "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "V100": 125e12, "T4": 65e12,
    "TPU v2": 46e12, "TPU v3": 123e12, "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5": 459e12,
    "TPU v6": 918e12, "TPU7x": 2307e12,
}  # fmt: skip


def peak(device_kind: str) -> float | None:
  """bfloat16 FLOPs a second of a device; None where it is not known (CPUs)."""
  return next((value for name, value in PEAKS.items() if name in device_kind), None)


def utilisation(config: Config, tokens_per_second: float, devices: int, device_kind: str) -> float | None:
  """Model FLOPs utilisation in training: the FLOPs of progress a second over the devices' peak; None without a peak."""
  top = peak(device_kind)
  tokens = config.train.batch_size * config.data.context_length
  return top and tokens_per_second / tokens * train_step(config) / (top * devices)


def _stream(config: Config, tokens: int, entries: int) -> tuple[int, int]:
  """FLOPs of one stream through all blocks, attention over `entries`: forward, and what a backward pass does anew."""
  m = config.model
  last, attention = m.width * m.hidden, 2 * m.width * entries
  rest = 4 * m.width**2 + 2 * m.width * m.hidden
  # a layer keeps what its projections gave, with remat nothing; what its last product gave is not needed again
  again = rest + attention if m.remat else attention
  return 2 * tokens * m.layers * (rest + last + attention), 2 * tokens * m.layers * again


def _modulation(config: Config) -> tuple[int, int]:
  """FLOPs of adaLN's shifts, scales and gates, which all rows and tokens share: of one context, of one energy."""
  m = config.model
  part = 2 * m.width**2 if m.kind == "ebt" and m.variant.startswith("adaln") else 0
  return 6 * m.layers * part, (6 * m.layers + 2) * part


def forward(config: Config) -> dict[str, int]:
  """FLOPs of one forward pass for one row of `context_length` tokens, by part, and what a backward pass does anew."""
  n, m = config.data.context_length, config.model
  vocabulary = 2 * n * m.width * m.vocab_size
  if m.kind == "transformer":
    trunk, again = _stream(config, n, n)
    return {"trunk": trunk, "vocabulary": vocabulary, "trunk again": again}
  entries = n + (m.variant == "time_embed")
  context, context_again = _stream(config, entries, entries)
  candidate, candidate_again = _stream(config, n, entries)
  return {
    "context": context,
    "candidate": candidate + 2 * n * m.width,
    "vocabulary": vocabulary,
    "context again": context_again,
    "candidate again": candidate_again,
  }


def mean_steps(config: Config) -> float:
  """Thinking steps of a training step, on average where their number is random."""
  t = config.thinking
  if not t.random_steps_min:
    return t.steps
  repeats = (t.random_steps_min + t.steps - t.landscapes + 1) / 2
  return t.landscapes * repeats if t.random_steps_of == "every" else t.landscapes - 1 + repeats


def _parts_of_thinking(config: Config) -> tuple[int, float, float]:
  """Contexts, steps that are differentiated, and steps that are not."""
  t, steps = config.thinking, mean_steps(config)
  learnt = 1 if t.gradient == "last" else steps
  return 1 if config.model.variant == "default" else t.landscapes, learnt, steps - learnt


def train_row(config: Config, stores: bool = False) -> dict[str, int]:
  """FLOPs of training on one row, by part; `recomputation` is not progress and not in `total`.

  Args:
    stores: whether the second order stores activations (`thinking.second_order`), and computes anew attention alone.
  """
  part, t, m = forward(config), config.thinking, config.model
  if m.kind == "transformer":
    out = {name: 3 * part[name] for name in ("trunk", "vocabulary")}
    recomputation = part["trunk again"]
  else:
    contexts, learnt, free = _parts_of_thinking(config)
    candidate, again = part["candidate"], part["candidate again"]
    # learnt steps whose start has a derivative too, which goes back through the embedding
    path = t.step_size_path and (t.learn_step_size or t.learn_noise)
    started = {"each": 0, "last": int(path), "unrolled": learnt}[t.gradient]
    contrast = int(t.authors.contrastive > 0)  # energy of the truth: forward and backward
    out = {
      "context": 3 * contexts * part["context"],
      # forward, inner gradient, and the second order's reverse of both
      "candidate": (6 * learnt + 2 * free + 3 * contrast) * candidate,
      # embedding and its transpose; reverse of both for the weights, and of the transpose for the slope
      "vocabulary": (5 * learnt + 2 * free + started) * part["vocabulary"],
    }
    recomputation = contexts * part["context again"] + free * again
    if stores:
      recomputation += 5 * learnt * again
    else:  # the forward pass and its tangent anew, each with its own backward pass
      recomputation += learnt * (2 * candidate + 3 * again)
    # the contrast counts once; every learnt step computes it, but a loop that is differentiated whole forward only once
    forwards = 1 if t.gradient == "unrolled" else learnt
    recomputation += contrast * ((forwards + 2 * learnt - 3) * candidate + learnt * again)
    of_context, of_energy = _modulation(config)
    if of_context:  # inner gradients do not reach it; each row has its share
      share = config.train.microbatches / _rows(config)
      out["modulation"] = share * (3 * contexts * of_context + (3 * learnt + free + 3 * contrast) * of_energy)
      if not stores:
        recomputation += share * learnt * of_energy
      if m.remat:  # the derivative of a gate needs what the last product of its layer gave
        last = 2 * config.data.context_length * m.layers * m.width * m.hidden
        recomputation += (contexts + (2 + contrast) * learnt) * (last + share * of_context)
  out["total"] = sum(out.values())
  return {name: int(value) for name, value in {**out, "recomputation": recomputation}.items()}


def _rows(config: Config) -> int:
  """Rows of a training step: the batch and what is replayed beside it."""
  return config.train.batch_size + config.replayed_rows


def train_step(config: Config) -> int:
  """FLOPs of one training step over the whole batch and what is replayed beside it, without recomputation."""
  return _rows(config) * train_row(config)["total"]


def token(config: Config) -> dict[str, int]:
  """FLOPs of writing one token for one row: an append to every context, and thinking at one position.

  Attention is counted over the whole cache of `context_length` entries, as it is computed, and all steps that
  `eval.steps` allows.
  """
  m, how = config.model, config.eval
  entries = config.data.context_length + (m.kind == "ebt" and m.variant == "time_embed")
  (stream, _), vocabulary = _stream(config, 1, entries), 2 * m.width * m.vocab_size
  if m.kind == "transformer":
    out = {"trunk": stream, "vocabulary": vocabulary}
  else:
    steps, contexts = how.steps or config.thinking.steps, _parts_of_thinking(config)[0]
    energies = steps * (1 + (how.accept != "all")) + 1  # of each step, of what it may reject, of the finished thought
    passes = how.candidates * (energies + steps)  # each step has a gradient too
    # landscapes that are a token in front do not change what the first layer projects of a new one
    shared = 6 * m.width**2 * (contexts - 1) if m.variant == "time_embed" else 0
    out = {
      "context": contexts * stream - shared,
      "candidate": passes * (stream + 2 * m.width),
      "vocabulary": passes * vocabulary,
    }
    of_context, of_energy = _modulation(config)
    if of_context:
      out["modulation"] = contexts * of_context + energies * of_energy
  return {**out, "total": sum(out.values())}


def least(config: Config) -> float:
  """Training FLOPs a token that no implementation of the method can do without, in units of N, the weights in blocks.

  Transformer++ 6; EBT 6 for each context, 12 for each step that is learnt and 4 for each other one; attention,
  vocabulary and recomputation come on top.
  """
  if config.model.kind == "transformer":
    return 6.0
  contexts, learnt, free = _parts_of_thinking(config)
  return 6.0 * contexts + 12 * learnt + 4 * free
