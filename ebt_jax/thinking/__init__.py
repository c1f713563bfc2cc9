"""The inner optimiser: give `think` an energy, a candidate space and a start, and it descends.

Imports neither flax nor any model of this package.
"""

from ebt_jax.thinking.spaces import Euclidean, Simplex
from ebt_jax.thinking.think import Draws, Schedule, Thoughts, at_landscape, schedule, think, thinking_loss

__all__ = [
    "Draws",
    "Euclidean",
    "Schedule",
    "Simplex",
    "Thoughts",
    "at_landscape",
    "schedule",
    "think",
    "thinking_loss",
]
