"""Floating-point operations of matrix products; a multiplication and an addition are two.

A model says what one forward pass costs (`models.base.Energy.flops`, or a trace of it counts); the rules here say what
training and thinking make of it. XLA's own count is wrong for loops (it counts their body once). Recomputation in the
backward pass is kept apart: it costs time but is no progress.
"""

from typing import NamedTuple

from ebt_jax.config import InferenceConfig, ThinkingConfig

# dense bfloat16 FLOPs a second of one device, by a part of its name; the vendors' data sheets
PEAKS = {
    "H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "V100": 125e12, "T4": 65e12,
    "TPU v2": 46e12, "TPU v3": 123e12, "TPU v4": 275e12, "TPU v5 lite": 197e12, "TPU v5e": 197e12, "TPU v5": 459e12,
    "TPU v6": 918e12, "TPU7x": 2307e12,
}  # fmt: skip


class Pass(NamedTuple):
  """One stream through a model: FLOPs of a forward pass, and what its backward pass computes again."""

  forward: int
  again: int = 0
  last: int = 0  # what the last products of the layers cost, which gates need again where nothing is saved


class EnergyCost(NamedTuple):
  """What an energy costs for one row."""

  context: Pass  # once for each context
  candidate: Pass  # for each energy
  embedding: int = 0  # of a candidate: p -> y
  modulation: tuple[int, int] = (0, 0)  # by the landscape, of a context and of an energy: shared by all rows
  mutual: int = 0  # of the candidate's pass: products of two factors that both depend on the candidate
  answer: int = 0  # logits of what the context predicts: for a start there, and for the level of a residual energy


class PredictorCost(NamedTuple):
  """What a predictor costs for one row."""

  trunk: Pass
  output: int = 0  # of the last projection


def peak(device_kind: str) -> float | None:
  """bfloat16 FLOPs a second of a device; None where it is not known (CPUs)."""
  return next((value for name, value in PEAKS.items() if name in device_kind), None)


def utilisation(row_flops: float, rows_per_second: float, devices: int, device_kind: str) -> float | None:
  """Model FLOPs utilisation: the FLOPs of progress a second over the devices' peak; None without a peak."""
  top = peak(device_kind)
  return top and row_flops * rows_per_second / (top * devices)


def mean_steps(thinking: ThinkingConfig) -> float:
  """Thinking steps of a training step, on average where their number is random."""
  t = thinking
  if not t.random_steps_min:
    return t.steps
  repeats = (t.random_steps_min + t.repeats_max) / 2
  return t.landscapes * repeats if t.random_steps_of == "every" else t.landscapes - 1 + repeats


def learnt_and_free(thinking: ThinkingConfig) -> tuple[float, float]:
  """Steps that are differentiated in training, and steps that are not."""
  steps = mean_steps(thinking)
  learnt = 1 if thinking.gradient == "last" else steps
  return learnt, steps - learnt


def training_by_thinking(
  cost: EnergyCost, thinking: ThinkingConfig, contexts: int, share: float, saves_activations: bool, remat: bool
) -> dict[str, int]:
  """FLOPs of training on one row, by part; `recomputation` is not progress and not in `total`.

  Args:
    contexts: encoded for each row.
    share: of one row in what all rows of a batch share.
    saves_activations: whether the second order stores activations and recomputes what a backward pass does anyway.
    remat: whether layers save nothing.
  """
  t = thinking
  learnt, free = learnt_and_free(t)
  free += t.steps * t.explore if t.explore > 1 else 0  # of each start, to find the best
  candidate, again = cost.candidate.forward, cost.candidate.again
  # a gradient with respect to the candidate goes to both factors of such a product, which doubles its backward pass
  mutual = cost.mutual
  # learnt steps whose start has a derivative too, which goes back through the embedding
  path = t.step_size_path and (t.learn_step_size or t.learn_noise)
  started = {"each": 0, "last": int(path), "unrolled": learnt}[t.gradient]
  contrast = int(t.authors.contrastive > 0)  # energy of the truth: forward and backward
  pair = 2 * int(t.contrast > 0)  # of the truth and of a wrong answer, once
  out = {
    "context": 3 * contexts * cost.context.forward,
    # forward, inner gradient, and the second order's reverse of both
    "candidate": (6 * learnt + 2 * free + 3 * (contrast + pair)) * candidate + (3 * learnt + free) * mutual,
    # embedding and its transpose; reverse of both for the weights, and of the transpose for the slope
    "embedding": (5 * learnt + 2 * free + started) * cost.embedding + (t.start == "context") * cost.answer,
  }
  recomputation = contexts * cost.context.again + (free + pair) * again
  if saves_activations:
    recomputation += learnt * (5 * again + mutual)
  else:  # the forward pass and its tangent again, each with its own backward pass
    recomputation += learnt * (2 * candidate + 3 * again + 2 * mutual)
  # the contrast counts once; every learnt step computes it, but a loop that is differentiated whole only once forward
  forwards = 1 if t.gradient == "unrolled" else learnt
  recomputation += contrast * ((forwards + 2 * learnt - 3) * candidate + learnt * again)
  of_context, of_energy = cost.modulation
  if of_context:  # inner gradients do not reach it; each row has its share
    out["modulation"] = share * (3 * contexts * of_context + (3 * learnt + free + 3 * (contrast + pair)) * of_energy)
    if not saves_activations:
      recomputation += share * learnt * of_energy
    if remat:  # the derivative of a gate needs what the last product of its layer gave
      recomputation += (contexts + (2 + contrast) * learnt + pair) * (cost.candidate.last + share * of_context)
  out["total"] = sum(out.values())
  return {name: int(value) for name, value in {**out, "recomputation": recomputation}.items()}


def one_thought(
  cost: EnergyCost, thinking: ThinkingConfig, inference: InferenceConfig, candidates: int, contexts: int
) -> dict[str, int]:
  """FLOPs of one prediction: its contexts, and all thinking steps that `inference.steps` allows."""
  steps = inference.steps or thinking.steps
  energies = steps * (1 + (inference.accept != "all")) + 1  # of each step, of what it may reject, of the end
  passes = candidates * (energies + steps)  # each step has a gradient too
  out = {
    "context": contexts * (cost.context.forward + cost.answer) + (thinking.start == "context") * cost.answer,
    "candidate": passes * cost.candidate.forward + candidates * steps * cost.mutual,
    "embedding": passes * cost.embedding,
  }
  of_context, of_energy = cost.modulation
  if of_context:
    out["modulation"] = contexts * of_context + energies * of_energy
  return {**out, "total": sum(out.values())}


def least_by_thinking(thinking: ThinkingConfig, contexts: int) -> float:
  """Training FLOPs an item that no implementation can do without, in units of N, the weights in blocks."""
  learnt, free = learnt_and_free(thinking)
  return 6.0 * contexts + 12 * learnt + 4 * free


def paper_by_thinking(thinking: ThinkingConfig) -> float:
  """Training FLOPs an item as the paper counts them (appendix D.5), in units of N.

  20N for each step (10N, twice for the doubled sequence), of which one that is not differentiated has the forward and
  backward pass alone, 12N.
  """
  learnt, free = learnt_and_free(thinking)
  return 20.0 * learnt + 12.0 * free


def training_in_one_pass(cost: PredictorCost) -> dict[str, int]:
  """FLOPs of training on one row, by part; `recomputation` is not in `total`."""
  out = {"trunk": 3 * cost.trunk.forward, "output": 3 * cost.output}
  return {**out, "total": sum(out.values()), "recomputation": cost.trunk.again}


def one_pass(cost: PredictorCost) -> dict[str, int]:
  """FLOPs of one prediction."""
  out = {"trunk": cost.trunk.forward, "output": cost.output}
  return {**out, "total": sum(out.values())}
