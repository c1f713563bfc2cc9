"""EBT as its authors compute it, with this package's parameters: the rival in every benchmark, the oracle of a test.

In each thinking step the embeddings of context and candidates are one sequence of 2n entries, which passes through all
layers. The scores of a candidate are a row of a dense n x (n + 1) matrix, into which its own score is written. The
whole `[b, n, v]` is in memory, autodiff differentiates the gradients a second time, and the graphs of all steps are
kept until the end. To generate a token, the whole prefix and a candidate for each of its positions are computed again.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import losses, parallel
from ebt_jax.models import layers
from ebt_jax.tasks import text
from ebt_jax.tasks.base import Flops, Mean, Output
from ebt_jax.tasks.ebt import EBTTask
from ebt_jax.use.sampling import sample


@dataclasses.dataclass(frozen=True)
class AuthorsText(EBTTask):
  """The text task in the authors' formulation: `default` and `time_embed`, fixed steps, noise only at the start."""

  @classmethod
  def of(cls, config):
    """The task of a resolved config."""
    ours = text.make(config)
    return cls(ours.config, ours.problem, ours.model, ours.space)

  def __post_init__(self):
    m, t = self.config.model, self.config.thinking
    a = t.authors
    plain = (m.norm, m.activation, m.embedder, a.normalize) == ("rms", "silu", "linear", "every")
    extras = t.noise or t.random_steps_min or t.random_step_size > 1 or a.clip_gradient or a.clip_candidate
    extras = extras or a.sharpen or a.soften_targets or a.contrastive
    if m.variant not in ("default", "time_embed") or not plain or extras:
      raise ValueError("tools/authors.py knows the variants default and time_embed without further options")

  def energies(self, model, tokens, p, landscape: int = 0):
    """Energies `[b, n]` of candidates p `[b, n, v]`, one for each token's successor."""
    c, n = self.config.model, tokens.shape[1]
    context = model["embed"]["embedding"][tokens]
    if c.variant == "time_embed":
      time = jnp.broadcast_to(model["time"]["embedding"][landscape], (len(tokens), 1, c.width))
      context = jnp.concatenate([time, context], axis=1)
    seen = context.shape[1]
    x = jnp.concatenate([context, p @ model["to_embed"]["kernel"]], axis=1)
    positions = jnp.concatenate([jnp.arange(seen), jnp.arange(n) + seen - n + 1])
    rotary = layers.rope(positions, c.head_dim, jnp.promote_types(x.dtype, jnp.float32))
    for i in range(c.layers):
      w = jax.tree.map(lambda a, i=i: a[i], model["layers"])
      x = x + self._attention(w["attention"], _norm(x, w["attention_norm"]), rotary, seen)
      h = _norm(x, w["ffn_norm"])
      h = jax.nn.silu(self._product(h, w["ffn"]["gate"])) * self._product(h, w["ffn"]["up"])
      x = x + self._product(h, w["ffn"]["down"])
    energies = _norm(x, model["norm"]) @ model["head"]["kernel"]
    return energies[:, seen:, 0]

  def loss(self, params, batch, key, *, start=None):
    """As `EBTTask.loss`, with a fixed number of steps."""
    t, tokens = self.config.thinking, batch["tokens"][:, :-1]
    shape = (*tokens.shape, self.config.model.vocab_size)
    x = parallel.shard_rows(self._start(key, shape) if start is None else start)
    found, means = [], []
    for i in range(t.steps):
      if t.gradient == "each":
        x = jax.lax.stop_gradient(x)
      constant = t.gradient == "last" and i < t.steps - 1
      x, energies = self._step(params, tokens, x, min(i, t.landscapes - 1), constant)
      found.append(jnp.sum(batch["weights"] * losses.token_losses(x, batch["tokens"][:, 1:])))
      means.append(jnp.sum(batch["weights"] * energies))
    count = jnp.sum(batch["weights"])
    metrics = {"final_loss": Mean(found[-1], count), "energy_gap": Mean(means[0] - means[-1], count)}
    total = found[-1] if t.gradient == "last" else sum(found) / t.steps
    return Mean(total, count), Output(jax.lax.stop_gradient(metrics))

  def predict(self, params, tokens, key):
    """Logits `[b, n, v]` after thinking at every position."""
    t = self.config.thinking
    x = self._start(key, (*tokens.shape, self.config.model.vocab_size))
    for i in range(self.eval_steps):
      x, _ = self._step(params, tokens, x, min(i, t.landscapes - 1), constant=True)
    return x

  def flops(self) -> Flops:
    """Of training on one row; nothing here is recomputation."""
    cost, t = self._cost(), self.config.thinking
    free = t.steps - 1 if t.gradient == "last" else 0
    learnt = t.steps - free
    stack = cost.context.forward + cost.candidate.forward
    total = (6 * learnt + 2 * free) * stack + (5 * learnt + 2 * free) * cost.embedding
    return Flops({"total": total, "recomputation": 0}, super().flops().prediction)

  def _start(self, key, shape):
    t = self.config.thinking
    return t.start_scale * jax.random.normal(key, shape) if t.start == "noise" else jnp.zeros(shape)

  def _step(self, params, tokens, x, landscape, constant):
    def total(p):
      energies = self.energies(params["model"], tokens, p, landscape)
      return jnp.sum(energies), energies

    p = jax.nn.softmax(x, axis=-1)
    slope, energies = jax.grad(total, has_aux=True)(p)
    if constant:
      slope = jax.lax.stop_gradient(slope)
    size = jnp.maximum(params["thinking"]["step_size"], self.config.thinking.step_size_min)
    return p - size * slope, energies

  def _attention(self, w, x, rotary, seen):
    c = self.config.model
    dtype = layers.compute_dtype(c)

    def product(spec, a, b):
      return layers.einsum(spec, a, b, dtype)

    def heads(y):
      return y.reshape(*y.shape[:2], c.heads, c.head_dim).transpose(0, 2, 1, 3)

    q, k, v = (heads(self._product(x, w[name])) for name in "qkv")
    q, k = layers.rotate(q, rotary) * c.head_dim**-0.5, layers.rotate(k, rotary)
    (q, own_q), (k, own_k), (v, own_v) = ((a[:, :, :seen], a[:, :, seen:]) for a in (q, k, v))

    scores = product("bhsk,bhtk->bhst", q, k)
    scores = jnp.where(jnp.tri(seen, dtype=bool), scores, -jnp.inf)
    context = product("bhst,bhtk->bhsk", jax.nn.softmax(scores, axis=-1), v)

    n = own_q.shape[2]
    first = seen - n + 1  # entries that the first candidate attends to; its own score is to the right of theirs
    own = jnp.eye(n, seen + 1, first, dtype=scores.dtype)
    scores = jnp.pad(product("bhsk,bhtk->bhst", own_q, k), ((0, 0), (0, 0), (0, 0), (0, 1)))
    scores = scores * (1 - own) + own * jnp.sum(own_q * own_k, -1, keepdims=True)
    scores = jnp.where(jnp.tri(n, seen + 1, first, dtype=bool), scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1)
    own_weight = jnp.sum(weights * own, -1, keepdims=True)
    candidates = product("bhst,bhtk->bhsk", (weights * (1 - own))[..., :-1], v) + own_weight * own_v

    y = jnp.concatenate([context, candidates], axis=2).transpose(0, 2, 1, 3)
    return self._product(y.reshape(x.shape), w["o"])

  def _product(self, x, weight):
    return layers.einsum("...i,io->...o", x, weight["kernel"], layers.compute_dtype(self.config.model))


def _norm(x, weight):
  x = layers.wide(x)
  return x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + layers.NORM_EPS) * weight["scale"]


class Generator:
  """Generates as `ebt_jax.use.generate.Generator` does, but computes the whole prefix again for each token.

  All prompts have one length.

  Args:
    multiple: prefixes are padded to a multiple of this number of tokens; each padded length is compiled once.
  """

  def __init__(self, task: AuthorsText, params, multiple: int = 32):
    self._params, self._multiple = params, multiple

    def next_tokens(params, tokens, length, key, how):
      think_key, sample_key = jax.random.split(key)
      sample_keys = jax.random.split(sample_key, len(tokens))
      return sample(task.predict(params, tokens, think_key)[:, length - 1], sample_keys, how)

    self._next = jax.jit(next_tokens, static_argnames="how")

  def __call__(self, prompts, max_tokens, how, seed=0) -> list[list[int]]:
    """The tokens that follow each prompt."""
    tokens, start = np.asarray(prompts, np.int32), len(prompts[0])
    for i in range(max_tokens):
      length = tokens.shape[1]
      padded = np.pad(tokens, ((0, 0), (0, -length % self._multiple)))
      new = self._next(self._params, padded, length, jax.random.fold_in(jax.random.key(seed), i), how)
      tokens = np.concatenate([tokens, np.asarray(new)[:, None]], axis=1)
    return tokens[:, start:].tolist()
