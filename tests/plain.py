"""The training loss as a plain loop, from the model's energy alone: what `tasks` and `thinking` are compared with."""

import jax
import jax.numpy as jnp


def cross_entropy(x, target, smoothing=0.0):
  """Against targets of which a share is spread over the vocabulary."""
  wanted = (1 - smoothing) * jax.nn.one_hot(target, x.shape[-1]) + smoothing / x.shape[-1]
  return -jnp.sum(wanted * jax.nn.log_softmax(x), -1)


def text_loss(task, params, batch, start):
  """Sum over the tokens that count of the loss of `thinking.gradient=each`, and what is logged of it, as sums."""
  t, model, p = task.config.thinking, task.model, params["model"]
  target, weights, x, total = batch["tokens"][:, 1:], batch["weights"], start, 0.0
  losses, energies = [], []
  for i in range(t.steps):
    k = min(i, t.landscapes - 1)
    x = jax.lax.stop_gradient(x)
    context = model.encode(p, batch["tokens"][:, :-1], k)

    def energy(probabilities):
      found = model.energy(p, context, probabilities @ model.table(p), k)
      return jnp.sum(found), found

    probabilities = jax.nn.softmax(x)
    slope, now = jax.grad(energy, has_aux=True)(probabilities)
    x = probabilities - params["thinking"]["step_size"] * slope
    smoothing = t.authors.soften_targets * (t.steps - 1 - i) / max(t.steps - 1, 1)
    losses.append(jnp.sum(weights * cross_entropy(x, target, smoothing)))
    energies.append(now)
  total = sum(losses) / t.steps
  if t.authors.contrastive:
    true = model.energy(p, context, model.table(p)[target], k)
    of_truth = jnp.exp(-true) / (jnp.exp(-true) + jnp.exp(-now))
    total = total - t.authors.contrastive * jnp.sum(weights * jnp.log(of_truth))
  gap = jnp.sum(weights * (energies[0] - energies[-1]))
  return total, {"first_loss": losses[0], "final_loss": losses[-1], "energy_gap": gap}
