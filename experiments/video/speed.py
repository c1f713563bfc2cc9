"""Time of a rollout from the cache, and of the same frames with the whole film computed again for each.

  python -m experiments.video.speed [--config=configs/video_ebt.py] [--given=8] [--frames=64] [--width=128] [--layers=4]

The model has random weights and a window that holds all frames. Computing again thinks about all positions so far, as
the authors' code does; lengths are rounded up to multiples of 8, so that few programs are compiled. Both give the same
frames.
"""

import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import cli, sweep
from ebt_jax.config import resolve, set_keys
from ebt_jax.tasks import registry, rollout
from ebt_jax.tasks.base import Thinks

ROUND = 8


def from_scratch(task, keys):
  """`(params, given, count) -> frames` as `rollout.rollout` adds them, each found from the whole film so far."""

  @jax.jit
  def last(params, frames, n):
    batch = {"frames": frames, "weights": jnp.ones((len(frames), frames.shape[1] - 1))}
    if isinstance(task, Thinks):
      answers = task.verified(params, batch, keys).candidates[0]
    else:
      answers = task.model.predict(params["model"], frames[:, :-1])
    return jnp.take(answers, n - 1, axis=1)[:, None]

  def frames_after(params, given, count):
    frames = np.asarray(given)
    for n in range(given.shape[1], given.shape[1] + count):
      length = -(-n // ROUND) * ROUND
      padded = np.pad(frames, ((0, 0), (0, length + 1 - n), *[(0, 0)] * (frames.ndim - 2)))
      frames = np.concatenate([frames, last(params, padded, n)], 1)
    return frames[:, given.shape[1] :]

  return frames_after


def seconds(f, again: int = 3) -> float:
  """The least of several times."""
  times = []
  for _ in range(again):
    start = time.perf_counter()
    jax.block_until_ready(f())
    times.append(time.perf_counter() - start)
  return min(times)


def main(argv: list[str]) -> None:
  parser = cli.Parser(prog="experiments.video.speed", description=__doc__.split("\n")[0])
  parser.add_argument("--config", default="configs/video_ebt.py")
  for name, default in (("given", 8), ("frames", 64), ("width", 128), ("layers", 4)):
    parser.add_argument(f"--{name}", type=cli.at_least(1), default=default)
  args = parser.parse_args(argv)
  keys = [f"model.width={args.width}", f"model.layers={args.layers}", "thinking.start_scale=0.0",
          f"data.context_length={args.given + args.frames}"]  # fmt: skip
  task = registry.make(set_keys(resolve(sweep.read_config(args.config)), keys))
  params = task.init(jax.random.key(0))
  given = jax.random.normal(jax.random.key(1), (1, args.given, *task.config.video.frame_shape))
  row_keys = jax.random.split(jax.random.key(2), 1)

  def cached(count):
    run = jax.jit(lambda params, given: rollout.rollout(task, params, given, count, row_keys).frames)
    return seconds(lambda: run(params, given)), run(params, given)

  for count in (args.frames // 4, args.frames // 2, args.frames):
    took, found = cached(count)
    print(f"cached: {count} frames after {args.given}: {took:.4f} s, {1000 * took / count:.3f} ms a frame")
  scratch = from_scratch(task, row_keys)
  again = scratch(params, given, args.frames)  # compiles
  apart = float(np.abs(again - np.asarray(found)).max())
  longer = seconds(lambda: scratch(params, given, args.frames))
  print(f"computed again for each frame: {longer:.4f} s, {longer / took:.1f} times as long")
  print(f"largest difference of the frames: {apart:.2e}")


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
