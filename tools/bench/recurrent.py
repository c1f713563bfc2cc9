"""Suite `recurrent`: a training step of recurrent models, and one more token after short and long texts."""

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax.tasks import decoding, registry
from tools.bench import timing
from tools.bench.rivals import BASE, COST, STEP, Rival, Steps, chosen, configured, described, shaped, transformer

CELLS = {"rg_lru": "RG-LRU", "lstm": "LSTM"}
PREFIXES = (16, 256, 4096)
TOKENS = 32  # that are written in one timing


def recurrent(args):
  """Recurrent models beside Transformer++: a training step, and a token after 16 to 4,096 tokens."""
  shape = shaped(args, layers=4, heads=4, width=256, context=256, batch=8, vocab=257)
  rivals = [transformer(shape)]
  rivals += [Rival(name, registry.make(configured(shape, "rnn", {"cell": c})), name) for c, name in CELLS.items()]
  rivals = chosen(args, rivals)
  steps = Steps(rivals, args.max_gb)
  steps.run(args.rounds)
  steps.compare()
  print(timing.table(steps.rows, STEP + COST, described(shape)))
  calls = {(r.name, n): written(r.task, n) for r in rivals for n in PREFIXES}
  times = timing.interleaved(calls, args.rounds)
  rows = []
  for (name, n), found in times.items():
    row = {"name": f"{name}: a token after {n}", "family": name, "prefix": n}
    rows.append({**row, **timing.summary(np.array(found) / TOKENS)})
  first = {row["family"]: row["seconds"] for row in reversed(rows)}  # after the shortest text
  for row in rows:
    row["ratio"] = row["seconds"] / first[row["family"]]
  columns = (("s", "seconds", ".5f"), ("min..max", ("low", "high"), ".5f"), (f"over {PREFIXES[0]}", "ratio", ".2f"))
  print(timing.table(rows, columns, described({**shape, "batch": 1})))
  return {"shape": shape, "rows": steps.rows, "decode": rows, "base": BASE}


def written(task, prefix: int):
  """A call that writes `TOKENS` tokens of one row after so many."""
  writer, keys = decoding.writer(task), jax.random.split(jax.random.key(0), 1)
  params = jax.jit(writer.prepare)(task.init(jax.random.key(0)))
  text = jnp.asarray(np.random.default_rng(0).integers(0, 256, (1, prefix)), jnp.int32)
  state = jax.jit(lambda p, t: writer.prefill(p, t, jnp.array([prefix]), prefix + TOKENS))(params, text)

  @jax.jit
  def write(params, state):
    def one(_, state):
      found = writer.propose(params, state, keys)
      token = jnp.where(jnp.isfinite(found.energy), jnp.argmax(found.logits, -1), 0)  # as generation, which needs both
      return writer.append(params, state, token)

    return jax.lax.fori_loop(0, TOKENS, one, state)

  return lambda: jax.block_until_ready(write(params, state))
