"""The inner optimisation: give `think` an energy, a candidate space and a start, and it descends the energy.

Imports neither flax nor any model of this package.
"""

from ebt_jax.thinking import replay
from ebt_jax.thinking.chunked import ChunkedSimplex
from ebt_jax.thinking.descent import double_reverse, reverse_over_forward, second_order
from ebt_jax.thinking.diagnose import diagnose, warnings_for
from ebt_jax.thinking.explore import best_start
from ebt_jax.thinking.loss import ThinkingAux, thinking_loss
from ebt_jax.thinking.spaces import ArraySpace, Euclidean, NoisyEmbedding, Simplex, Space
from ebt_jax.thinking.think import PerLandscape, Randomness, StepPlan, Thoughts, at_landscape, step_plan, think
from ebt_jax.thinking.verify import Verified, think_and_verify

__all__ = [
  "ArraySpace",
  "ChunkedSimplex",
  "Euclidean",
  "NoisyEmbedding",
  "PerLandscape",
  "Randomness",
  "Simplex",
  "Space",
  "StepPlan",
  "ThinkingAux",
  "Thoughts",
  "Verified",
  "at_landscape",
  "best_start",
  "diagnose",
  "double_reverse",
  "replay",
  "reverse_over_forward",
  "second_order",
  "step_plan",
  "think",
  "think_and_verify",
  "thinking_loss",
  "warnings_for",
]
