"""The inner optimiser: give `think` an energy, a candidate space and a start, and it descends.

Imports neither flax nor any model of this package.
"""

from ebt_jax.thinking.spaces import ChunkedSimplex, Euclidean, Simplex, Space
from ebt_jax.thinking.think import Draws, Schedule, Thoughts, at_landscape, schedule, think, thinking_loss

__all__ = [
    "ChunkedSimplex",
    "Draws",
    "Euclidean",
    "Schedule",
    "Simplex",
    "Space",
    "Thoughts",
    "at_landscape",
    "schedule",
    "think",
    "thinking_loss",
]
