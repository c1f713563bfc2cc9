"""The inner optimiser: give `think` an energy, a candidate space and a start, and it descends.

Imports neither flax nor any model of this package.
"""

from ebt_jax.thinking.descent import double_reverse, reverse_over_forward, second_order
from ebt_jax.thinking.health import advice, look
from ebt_jax.thinking.replay import Replay
from ebt_jax.thinking.replay import add as add_replay
from ebt_jax.thinking.replay import capacity as replay_capacity
from ebt_jax.thinking.replay import draw as draw_replay
from ebt_jax.thinking.replay import empty as empty_replay
from ebt_jax.thinking.spaces import ChunkedSimplex, Euclidean, Simplex, Space
from ebt_jax.thinking.think import Draws, Schedule, Thoughts, at_landscape, schedule, think, thinking_loss
from ebt_jax.thinking.verify import Verified, think_and_verify

__all__ = [
  "ChunkedSimplex",
  "Draws",
  "Euclidean",
  "Replay",
  "Schedule",
  "Simplex",
  "Space",
  "Thoughts",
  "Verified",
  "add_replay",
  "advice",
  "at_landscape",
  "double_reverse",
  "draw_replay",
  "empty_replay",
  "look",
  "replay_capacity",
  "reverse_over_forward",
  "schedule",
  "second_order",
  "think",
  "think_and_verify",
  "thinking_loss",
]
