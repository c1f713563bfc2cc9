"""Mutants that no operator makes: mistakes of the kind that people make, which would change results in silence."""

from tools.mutation.mutants import Mutant, changed_lines

# (module, what stands there, what is put in its place)
CHANGES = [
  (  # the replay buffer stores another row's candidate beside a row's data
    "ebt_jax/tasks/ebt.py",
    "lambda a: a[:rows], aux.candidate)",
    "lambda a: jnp.roll(a[:rows], 1, 0), aux.candidate)",
  ),
  (  # it stores the replayed rows' candidates in place of the fresh ones
    "ebt_jax/tasks/ebt.py",
    "lambda a: a[:rows], aux.candidate)",
    "lambda a: a[-rows:], aux.candidate)",
  ),
  ("ebt_jax/tasks/ebt.py", "jnp.where(i == count - 1, contrast, 0.0)", "contrast"),  # at every step
  ("ebt_jax/tasks/ebt.py", "Mean(first_energy - last_energy,", "Mean(last_energy - first_energy,"),
  ("ebt_jax/tasks/ebt.py", "true = self.model.energy(", "true = -self.model.energy("),
  ("ebt_jax/tasks/ebt.py", 'total if t.gradient == "last" else total / count', "total"),
  ("ebt_jax/tasks/ebt.py", "smoothing * (count - 1 - i)", "smoothing * i"),
  ("ebt_jax/tasks/text.py", 'means["loss"] / math.log(2) / size', 'means["loss"] / math.log(2) * size'),
  ("ebt_jax/tasks/text.py", 'means["loss"] / math.log(2) / size', 'means["loss"] / size'),
  ("ebt_jax/tasks/text.py", 'return batch["tokens"][:, 1:]\n', 'return batch["tokens"][:, :-1]\n'),
  ("ebt_jax/tasks/direct.py", "self.problem.error(x, target), weights)", "self.problem.error(x, target), weights > 0)"),
  ("ebt_jax/thinking/think.py", 'if inference.adjust == "final" else new', "if False else new"),
  ("ebt_jax/thinking/think.py", "streams.fold(key, 1 + i)", "streams.fold(key, 1)"),  # one noise for all steps
  ("ebt_jax/thinking/think.py", "low + u * (high - low)", "base"),
  ("ebt_jax/thinking/verify.py", 'if inference.choose == "energy"', "if True"),
  ("ebt_jax/thinking/verify.py", "final = energies_of(x, config.landscapes - 1)", "final = energies[-1]"),
  ("ebt_jax/thinking/descent.py", "jnp.sum(along_v) + jnp.sum(d_energies * energies)", "jnp.sum(along_v)"),
  ("ebt_jax/thinking/loss.py", "lambda x, t: x + t * change", "lambda x, t: x - t * change"),
  ("ebt_jax/thinking/replay.py", "+ n - kept + jnp.arange(kept)", "+ n - kept + jnp.arange(kept)[::-1]"),
  ("ebt_jax/training/step.py", "g / count, gradient)", "g, gradient)"),
  ("ebt_jax/training/step.py", "replay.add(state.replay, finished, finite)", "replay.add(state.replay, finished)"),
  ("ebt_jax/evaluation/evaluator.py", "streams.each(key, numbers)", "streams.each(key, numbers - numbers[0])"),
  ("ebt_jax/evaluation/evaluator.py", "streams.each(key, numbers)", "streams.each(key, 0 * numbers)"),
  (  # a thought that diverged does not end its row
    "ebt_jax/use/generate.py",
    "jnp.where(jnp.isfinite(energy), token, self._end)",
    "jnp.where(jnp.isfinite(energy), token, token)",
  ),
  ("ebt_jax/scaling.py", "np.abs(b.slope) / np.abs(a.slope) - 1", "np.abs(a.slope) / np.abs(b.slope) - 1"),
  ("ebt_jax/scaling.py", "found.append(at[1] - at[0])", "found.append(at[0] - at[1])"),
  ("ebt_jax/training/loop.py", '"loss": values["final_loss"]}', '"loss": values["loss"]}'),
]


def of(module: str, source: str) -> list[Mutant]:
  """The mutants of a module. Raises ValueError where the text of one is not there exactly once."""
  found = []
  for name, old, new in CHANGES:
    if name == module:
      if source.count(old) != 1:
        raise ValueError(f"tools/mutation/by_hand.py: {module} has {source.count(old)} times, expected once: {old}")
      found.append(Mutant(source.replace(old, new), changed_lines(source, source.replace(old, new))))
  return found
