"""The energy landscape along lines and over a plane through three points: start, thought and truth.

  python -m experiments.thinking.landscape --workdir=runs/thinking

The points are probability vectors: p of the start, p of the thought (the candidate after `--steps` steps), and the
one-hot truth. Away from these points the plane leaves the simplex; the energy is defined there too.
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import cli, streams, thinking
from ebt_jax.config import ConfigError
from ebt_jax.data.tokenizers import split_text
from experiments.thinking import common


def energies_at(model, contexts, row: int, position: int, points: np.ndarray) -> np.ndarray:
  """Energies `[n]` of probability vectors `[n, v]` at one position of one row."""
  task = model.task()
  one = thinking.at_landscape(contexts, 0)
  one = one._replace(
    keys=one.keys[:, row : row + 1],
    values=one.values[:, row : row + 1],
    positions=one.positions[position : position + 1],
    state=None if one.state is None else one.state[row : row + 1, position : position + 1],
  )
  y = task.space.embed(model.params["model"], jnp.asarray(points))[:, None, None]
  return np.asarray(task.model.energies(model.params["model"], one, y, 0)[:, 0, 0])


def spread(values: np.ndarray, count: int) -> np.ndarray:
  """`count` numbers over the range of `values` and a quarter of it on each side; the range is taken as 0.3 or more."""
  middle, half = (values.max() + values.min()) / 2, max(0.3, values.max() - values.min()) * 0.75
  return np.linspace(middle - half, middle + half, count)


def main():
  args = common.arguments(__doc__, "landscape", kind="s2", steps=10, panels=3, grid=41)
  if args.grid < 2:
    raise ConfigError(f"--grid: expected 2 or more points on each axis, found {args.grid}")
  model = common.open_model(common.of_kind(args.workdir, args.kind)[0])
  windows = common.held_out(model)
  numbers, batch = next(common.batches(windows, 8, rows=8))
  batch = jax.tree.map(jnp.asarray, batch)
  tokens, targets = jnp.asarray(batch["tokens"][:, :-1]), batch["tokens"][:, 1:]
  task = model.task(steps=args.steps)
  contexts = task.context(model.params, batch)
  keys = streams.each(streams.key_for(0, streams.EVALUATE), numbers)
  found = jax.jit(lambda p, t, k: task.verified(p, t, k, observe=lambda x: x))(model.params, batch, keys)
  start, _ = task.starts(model.params, contexts, keys, batch)
  path = np.concatenate([np.asarray(jax.nn.softmax(start))[None, 0], np.asarray(jax.nn.softmax(found.observed))[:, 0]])
  thought = np.asarray(jax.nn.log_softmax(found.observed[-1, 0]))
  loss = -np.take_along_axis(thought, targets[..., None], -1)[..., 0]
  middle = tokens.shape[1] // 2
  chosen = [np.argsort(loss[:, middle])[i] for i in np.linspace(0, len(loss) - 1, args.panels).round().astype(int)]
  fig, axes = common.figure(3.1 * args.panels, 5.6, nrows=2, ncols=args.panels, squeeze=False)
  t, result, rows = np.linspace(-0.25, 1.25, args.grid), [], []
  for column, row in enumerate(chosen):
    p0, p1 = path[0, row, middle], path[-1, row, middle]
    truth = np.eye(len(p0), dtype=np.float32)[targets[row, middle]]

    def line(a, b):
      return energies_at(model, contexts, row, middle, a + t[:, None] * (b - a))

    to_thought, to_truth = line(p0, p1), line(p1, truth)
    top, bottom = axes[0, column], axes[1, column]
    top.plot(t, to_thought, color=common.KINDS["s2"].color, label="start (0) to thought (1)")
    top.plot(t, to_truth, color=common.KINDS["s1"].color, label="thought (0) to truth (1)")
    known = tokens[row, max(0, middle - 10) : middle + 1].tolist()
    before, (target,) = split_text(model.problem.tokenizer, known, [int(targets[row, middle])])
    top.set_title(f"…{before!r} → {target!r}\nloss {loss[row, middle]:.2f} nats", fontsize=7)
    top.set(xlabel="along the line", ylabel="energy" if not column else "")
    # an orthonormal basis: from the start towards the thought, and orthogonal to it towards the truth
    along = (p1 - p0) / np.linalg.norm(p1 - p0)
    across = truth - p0 - ((truth - p0) @ along) * along
    across /= np.linalg.norm(across)
    way = np.stack([(path[:, row, middle] - p0) @ e for e in (along, across)])
    marks = {k: ((p - p0) @ along, (p - p0) @ across) for k, p in (("start", p0), ("thought", p1), ("truth", truth))}
    u, v = np.meshgrid(*(spread(np.append(w, [m[i] for m in marks.values()]), args.grid) for i, w in enumerate(way)))
    plane = p0 + u[..., None] * along + v[..., None] * across
    height = energies_at(model, contexts, row, middle, plane.reshape(-1, len(p0))).reshape(u.shape)
    drawn = bottom.contourf(u, v, height, 24, cmap="viridis")
    fig.colorbar(drawn, ax=bottom)
    bottom.plot(*way, "w.-", ms=4, lw=0.8)
    for mark, at in marks.items():
      bottom.plot(*at, "r.", ms=5)
      bottom.annotate(mark, at, color="w", fontsize=7, xytext=(3, 3), textcoords="offset points")
    bottom.set(xlabel="towards the thought", ylabel="across, to the truth" if not column else "")
    bottom.grid(False)
    at = {
      k: float(energies_at(model, contexts, row, middle, p[None])[0])
      for k, p in (("start", p0), ("thought", p1), ("truth", truth))
    }
    rows.append(f"{before!r} -> {target!r}: " + ", ".join(f"energy of the {k} {e:.3f}" for k, e in at.items()))
    result.append({"before": before, "target": target, "energies": at, "t": t.tolist(),
                   "to_thought": to_thought.tolist(), "to_truth": to_truth.tolist()})  # fmt: skip
  axes[0, 0].legend(frameon=False, fontsize=7, loc="upper right")
  common.write_study(args, {"panels": result}, "\n".join(rows), fig)


if __name__ == "__main__":
  sys.exit(cli.door(main))
