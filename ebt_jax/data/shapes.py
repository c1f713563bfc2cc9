"""Films that are made here: moving shapes that hide each other, and a disc whose way has two futures.

Each film is a function of a seed and its own number, whatever the number of films. Values are uint8
`[frames, size, size, channels]`.
"""

import numpy as np

KINDS = ("shapes", "futures")
_CHANNELS = np.array([1.0, 0.8, 0.6])  # of a colour film: shades of one brightness, in an order of the film's own


def make(kind: str, number: int, frames: int, size: int, channels: int, seed: int = 0) -> np.ndarray:
  """Film `number` of a kind, see `KINDS`."""
  return {"shapes": shapes, "futures": futures}[kind](number, frames, size, channels, seed)


def shapes(number: int, frames: int, size: int, channels: int = 1, seed: int = 0) -> np.ndarray:
  """A disc and a square that rebound from the walls; the square hides the disc, and a fixed pillar hides both."""
  rng = np.random.default_rng([seed, number, 0])
  film = np.full((frames, size, size, channels), rng.uniform(0, 60))
  radii = rng.uniform(0.12, 0.2, 2) * size
  levels = rng.permutation([rng.uniform(120, 170), rng.uniform(200, 255)])
  for form, radius, level in zip(("disc", "square"), radii, levels):
    start = rng.uniform(radius, size - radius, 2)
    velocity = rng.uniform(0.03, 0.09, 2) * size * rng.choice([-1, 1], 2)
    places = rebound(start + np.arange(frames)[:, None] * velocity, radius, size - radius)
    film = _drawn(film, cover(form, places, radius, size), _shade(rng, level, channels))
  left = rng.uniform(0.25, 0.6) * size
  across = np.arange(size) + 0.5
  pillar = np.clip(0.5 + size / 16 - np.abs(across - left - size / 16), 0, 1) * np.ones((frames, size, 1))
  return _pixels(_drawn(film, pillar, _shade(rng, 90.0, channels)))


def futures(number: int, frames: int, size: int, channels: int = 1, seed: int = 0) -> np.ndarray:
  """A disc that moves to the middle and then up or down, each as likely; nothing before says which.

  Upside down, a film shows the other future: until the turn it is the same film. See `turn`.
  """
  places = _way(number, frames, size, seed)
  film = np.zeros((frames, size, size, channels))
  film = _drawn(film, cover("disc", places, 0.16 * size, size), np.full(channels, 255.0))
  return _pixels(film)


def turn(number: int, frames: int, size: int, seed: int = 0) -> int:
  """The first frame of a film of `futures` that shows which way it goes; `frames` where none does."""
  moved = np.flatnonzero(np.abs(_way(number, frames, size, seed)[:, 1] - size / 2) > 1e-9)
  return int(moved[0]) if len(moved) else frames


def _way(number, frames, size, seed):
  """Centres `[frames, 2]`, across and down."""
  rng = np.random.default_rng([seed, number, 1])
  up, before, speed = rng.integers(2), rng.integers(3, 13), size / 8
  t = np.arange(frames)
  across = size / 2 + np.minimum(t - before, 0) * size * 0.34 / 12  # from the left wall at most
  down = size / 2 + np.maximum(t - before, 0) * speed * (1 - 2 * up)
  return np.stack([across, rebound(down, 0.16 * size, 0.84 * size)], -1)


def rebound(x: np.ndarray, low, high) -> np.ndarray:
  """Where a point is that moves on a line between two walls, of where it would be without them."""
  width = high - low
  phase = np.mod(x - low, 2 * width)
  return low + np.where(phase > width, 2 * width - phase, phase)


def cover(form: str, places: np.ndarray, radius: float, size: int) -> np.ndarray:
  """Share of each pixel that a shape covers, `[frames, size, size]`; `places` `[frames, 2]` are across and down."""
  at = np.arange(size) + 0.5
  across, down = at - places[:, :1], at - places[:, 1:]
  x, y = across[:, None, :], down[:, :, None]
  away = np.hypot(x, y) if form == "disc" else np.maximum(np.abs(x), np.abs(y))
  return np.clip(radius - away + 0.5, 0, 1)


def _shade(rng, level, channels):
  return np.full(1, level) if channels == 1 else level * rng.permutation(_CHANNELS)


def _drawn(film, share, shade):
  share = share[..., None]
  return film * (1 - share) + share * shade


def _pixels(film):
  return np.round(np.clip(film, 0, 255)).astype(np.uint8)
