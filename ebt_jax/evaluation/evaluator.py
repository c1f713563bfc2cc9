"""The held-out loss: token-weighted exact means over every window of a split."""

from collections.abc import Callable
import math
from typing import Any

import jax
import numpy as np

from ebt_jax import parallel, streams
from ebt_jax.config import Config
from ebt_jax.data.loader import eval_batches


class Evaluator:
  """Evaluates parameters on fixed windows.

  Args:
    task: a text task.
    windows: of the split.
    token_bytes: int `[vocab]`, bytes that each token stands for.
  """

  def __init__(self, task: Any, config: Config, mesh: jax.sharding.Mesh, windows: Any, token_bytes: np.ndarray):
    self._config, self._mesh, self._windows, self._token_bytes = config, mesh, windows, token_bytes
    self._step = jax.jit(self._evaluate, out_shardings=parallel.replicated(mesh))
    self._task = task
    parts = mesh.shape["replica"] * mesh.shape["data"]
    wanted = config.eval.batch_size or config.train.batch_size
    self._rows = math.ceil(wanted / parts) * parts  # padded rows weigh nothing, so any multiple will do

  def _evaluate(self, params, batch, numbers):
    """Each window draws by its own number, so that no result depends on how windows are batched."""
    key = streams.key_for(self._config.eval.seed, streams.EVALUATE)
    return self._task.evaluate(params, batch, streams.each(key, numbers))

  def __call__(self, params: Any, progress: Callable[[int, int], None] | None = None) -> dict[str, Any]:
    """Evaluates on the whole split, or on `eval.max_windows` of it.

    Returns:
      `loss` (nats per token after the last step), `perplexity` (exp of it), `bits_per_byte`, `loss_by_step` and, for
      EBT, `energy_by_step` (before each step and at the end) and `steps_used` (mean), `tokens`, `bytes`, `windows`.
    """
    limit = self._config.eval.max_windows
    count = min(len(self._windows), limit or len(self._windows))
    rows = parallel.process_rows(self._rows, self._mesh)
    sums: dict[str, np.ndarray] = {}
    tokens = n_bytes = 0.0
    for i, batch in enumerate(eval_batches(self._windows, self._rows, limit)):
      numbers = np.arange(i * self._rows, (i + 1) * self._rows)
      mine = parallel.global_batch({k: v[rows] for k, v in {**batch, "numbers": numbers}.items()}, self._mesh)
      result = jax.device_get(self._step(params, {k: mine[k] for k in batch}, mine["numbers"]))
      for name, value in result.items():
        sums[name] = sums.get(name, 0.0) + np.asarray(value, np.float64)
      tokens += float(batch["weights"].sum())
      n_bytes += float((self._token_bytes[batch["tokens"][:, 1:]] * batch["weights"]).sum())
      if progress:
        progress(min((i + 1) * self._rows, count), count)
    means = {name: total / tokens for name, total in sums.items()}
    used = {"steps_used": float(means.pop("steps")[0])} if "steps" in means else {}
    by_step = {f"{name}_by_step": [float(x) for x in mean] for name, mean in means.items()}
    loss = by_step["loss_by_step"][-1]
    return {
      "loss": loss,
      "perplexity": math.exp(min(loss, 700.0)),
      "bits_per_byte": loss * tokens / (math.log(2) * n_bytes),
      **by_step,
      **used,
      "tokens": int(tokens),
      "bytes": int(n_bytes),
      "windows": count,
    }


def table(result: dict[str, Any]) -> str:
  """Loss and energy after each thinking step, to print; step 0 is the start, whose energy alone is known."""
  lines = [f"{'step':>6} {'nats/token':>11} {'bits/byte':>10} {'energy':>9}"]
  per_byte = result["bits_per_byte"] / result["loss"] if result["loss"] else 0.0
  energies = result.get("energy_by_step")
  if energies:
    lines.append(f"{0:>6} {'':>11} {'':>10} {energies[0]:>9.4f}")
  for i, loss in enumerate(result["loss_by_step"], 1):
    shown = f"{energies[i]:.4f}" if energies else "-"
    lines.append(f"{i:>6} {loss:>11.4f} {loss * per_byte:>10.4f} {shown:>9}")
  if result.get("steps_used", len(result["loss_by_step"])) < len(result["loss_by_step"]):
    lines.append(f"steps used, on average: {result['steps_used']:.2f}")
  return "\n".join(lines)
