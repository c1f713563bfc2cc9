"""The facets of the paper's Table 1, measured: dynamic compute, uncertainty, verification, and what they cost.

  python -m experiments.facets.train --workdir=runs/facets
  python -m experiments.facets.study --workdir=runs/facets --out=experiments/facets/results/laptop
  python -m experiments.facets.page experiments/facets/results/laptop

`--models` and `--facets` choose cells of the table: then they are printed, and nothing is written.
"""

import functools
import pathlib
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import cli, files, runs, streams
from ebt_jax.config import ConfigError, near
from ebt_jax.owner import Owner
from ebt_jax.tasks.base import Thinks, corrupted
from ebt_jax.tasks.denoise import DenoisingTask
from ebt_jax.tasks.ebt import EBTTask
from experiments.facets import measure
from experiments.facets.train import MODELS, PICTURES
from experiments.thinking import common, verifier

PASSES = (1, 2, 4, 8, 16)
PROPOSERS = {"text": ("transformer", "rnn"), "pictures": ("image_flow", "image_ebt")}
BASELINES = {"text": "transformer", "pictures": "image_flow"}  # of costs
FACETS = ("compute", "uncertainty", "verification", "cost")


def modality(name: str) -> str:
  return "pictures" if name in PICTURES else "text"


def compute(model: common.Model, name: str, seeds: list[common.Model], count: int) -> dict[str, Any]:
  """The held-out loss after each number of passes that the model can take for one prediction."""
  examples = common.held_out(model)
  if not isinstance(model.run.task, Thinks | DenoisingTask):
    return {"passes": [1], "loss": [float(common.scores(model, examples, count)["loss"][-1].mean())]}
  if isinstance(model.run.task, Thinks):  # every step of one long thought is the answer of a shorter one
    found = common.scores(model, examples, count, steps=PASSES[-1])["loss"].mean(-1)
    losses, trained = [float(found[n - 1]) for n in PASSES], model.config.thinking.steps
    beyond = {"trained_passes": trained, "beyond": measure.change(found[trained - 1], found[-1])}
  else:
    losses, beyond = [float(common.scores(model, examples, count, steps=n)["loss"][-1].mean()) for n in PASSES], {}
  return {"passes": list(PASSES), "loss": losses, "slope": measure.slope(np.array(PASSES), np.array(losses)), **beyond}


def known(task: Any, params: Any, batch: Any, keys: Any) -> dict[str, jax.Array]:
  """Of each token: the likeliest one, a number that may tell errors, and the cost of each answer `[v, b, s]`."""
  found = verifier.thought(task, params, batch, keys)
  if isinstance(task, EBTTask):
    return {**found, "costs": found["one_hot"], "signal": found["energy"]}
  x = task.model.predict(params["model"], task.problem.inputs(batch))
  costs = jnp.moveaxis(-jax.nn.log_softmax(x), -1, 0)
  return {**found, "costs": costs, "signal": found["entropy"], "answer": jnp.argmax(x, -1)}


def tokens_of(model: common.Model, count: int) -> dict[str, np.ndarray]:
  """`known` of the held-out tokens, flat."""
  return _tokens_of(model.run.folder, count)


@functools.lru_cache(maxsize=4)
def _tokens_of(folder: pathlib.Path, count: int) -> dict[str, np.ndarray]:
  model = common.open_model(folder)
  return verifier.collect(model, common.held_out(model), count, known)


def uncertainty(model: common.Model, name: str, seeds: list[common.Model], count: int) -> dict[str, Any]:
  """AUROC of errors by the number that a prediction comes with."""
  thinks = isinstance(model.run.task, Thinks)
  if name not in PICTURES:
    found = tokens_of(model, count)
    of = {"auroc": verifier.auroc(found["signal"], found["wrong"]), "number": "energy" if thinks else "entropy"}
    return {**of, "auroc_entropy": verifier.auroc(found["entropy"], found["wrong"])}
  if not thinks:
    return {"auroc": None, "number": None}
  found = common.scores(model, common.held_out(model), count)
  return {"auroc": verifier.auroc(found["final_energy"], measure.worse_half(found["loss"][-1])), "number": "energy"}


def answer_of(task: Any, params: Any, batch: Any, keys: Any) -> jax.Array:
  """The picture that a model ends with."""
  if isinstance(task, EBTTask):
    found = task.verified(params, batch, keys)
    return found.best(found.candidates)
  return task.answers(params, batch, keys)[-1]


def cost_of(task: Any, params: Any, batch: Any, keys: Any, picture: jax.Array) -> jax.Array:
  """Of a picture as the answer `[b]`: its energy; of a model without one, how far it is from the model's own answer."""
  if not isinstance(task, EBTTask):
    return jnp.mean((picture - answer_of(task, params, batch, keys)) ** 2, (1, 2, 3))
  return task.energy(params, task.context(params, batch), picture, task.model.for_inference().energy)


def pictures(judge: common.Model, proposer: common.Model, count: int) -> tuple[float, int]:
  """How often the clean picture is preferred to what another model made of the noised one, and the pairs."""
  task, other = judge.task(), proposer.task()

  @jax.jit
  def costs(params, others, batch, keys):
    batch = corrupted(task.problem, batch, keys)
    answers = (batch["clean"], answer_of(other, others, batch, keys))
    return [cost_of(task, params, batch, keys, x) for x in answers], batch["weights"]

  key, found = streams.key_for(0, streams.EVALUATE), []
  for numbers, batch in common.batches(common.held_out(judge), count):
    pair, weights = jax.device_get(costs(judge.params, proposer.params, batch, streams.each(key, numbers)))
    found.append(np.stack(pair)[:, weights > 0])
  clean, made = np.concatenate(found, 1)
  return measure.preferred(clean, made), len(clean)


def verification(model: common.Model, name: str, seeds: list[common.Model], count: int) -> dict[str, Any]:
  """How often the truth is preferred to the wrong answer of another model; `seeds`: the proposers."""
  out = {}
  for proposer, other in zip(PROPOSERS[modality(name)], seeds, strict=True):
    if name in PICTURES:
      share, pairs = pictures(model, other, count)
    else:
      mine, theirs = tokens_of(model, count), tokens_of(other, count)
      share, pairs = measure.verifies(mine["costs"], mine["target"], theirs["answer"])
    out |= {proposer: share, f"{proposer}_pairs": pairs}
  return out


def cost(model: common.Model, name: str, seeds: list[common.Model], count: int) -> dict[str, Any]:
  """Parts of the training loss that are no errors of predictions, and training FLOPs of an item."""
  t = model.config.thinking
  terms = {"thinking.contrast": t.contrast, "thinking.authors.contrastive": t.authors.contrastive}
  more = [key for key, weight in terms.items() if weight] if isinstance(model.run.task, Thinks) else []
  step = model.run.task.flops().row["total"] * runs.rows_of_step(model.config)  # replayed rows are no new items
  items = model.config.train.batch_size * (1 if name in PICTURES else model.config.data.context_length)
  return {"beyond_prediction": more, "flops": step / items}


MEASURES = {f.__name__: f for f in (compute, uncertainty, verification, cost)}


def opened(args: Any, name: str) -> dict[int, common.Model]:
  """Seed -> finished run. Raises ConfigError where there is none."""
  folder, room = args.workdir / modality(name), "facets"
  if name in PICTURES and args.pictures:
    folder, room = args.pictures, "denoising"
  found = common.find(folder.parent, f"{PICTURES.get(name, name)},seed", folder.name, room)
  found = map(common.open_model, found)
  return {model.config.seed: model for model in found}


def proposers_of(models: dict[str, dict[int, common.Model]], name: str, seed: int) -> list[common.Model]:
  """The models whose answers `name` judges: of the next seed, so that no model judges its own.

  Raises:
    ConfigError: there is but one seed.
  """
  out = []
  for proposer in PROPOSERS[modality(name)]:
    others = sorted(models[proposer])
    after = [s for s in others if s > seed] or [s for s in others if s != seed]
    if not after:
      raise ConfigError(
        f"--workdir: verification needs two seeds of {proposer}, whose answers others judge; found seed {others[0]} "
        "alone; train another one, or leave the facet out with --facets"
      )
    out.append(models[proposer][after[0]])
  return out


def chosen(flag: str, text: str, known: tuple[str, ...]) -> list[str]:
  """Names of a flag, comma-separated; all of them for an empty text. Raises ConfigError where one is unknown."""
  names = text.split(",") if text else list(known)
  for name in names:
    if name not in known:
      raise ConfigError(f"--{flag}: no {name!r}; {near(name, known)}")
  return names


def main(argv: list[str]) -> None:
  parser = cli.Parser(prog="experiments.facets.study", description=__doc__.split("\n")[0])
  parser.add_argument("--workdir", type=cli.path, default=pathlib.Path("runs/facets"), help="of train.py")
  parser.add_argument(
    "--pictures", type=cli.path, default=None, help="models of experiments.denoising.train; default: WORKDIR/pictures"
  )
  parser.add_argument("--windows", type=cli.at_least(1), default=128, help="held-out texts and pictures")
  parser.add_argument("--models", default="", help=f"comma-separated, of {', '.join(MODELS)}; default all")
  parser.add_argument("--facets", default="", help=f"comma-separated, of {', '.join(FACETS)}; default all")
  parser.add_argument("--out", type=cli.path, default=pathlib.Path("experiments/facets/results/laptop"))
  args = parser.parse_args(argv)
  names = chosen("models", args.models, MODELS)
  facets = chosen("facets", args.facets, FACETS)
  more = [p for name in names if "verification" in facets for p in PROPOSERS[modality(name)]]
  common.share_programs(args.workdir)
  models = {name: opened(args, name) for name in dict.fromkeys([*names, *more])}
  if args.models or args.facets:
    for row in rows_of(models, names, facets, args.windows):
      print(row)
    return
  with Owner(args.out, "--out"):
    rows = list(rows_of(models, names, facets, args.windows))
    settings = {"workdir": str(args.workdir), "windows": args.windows}
    settings |= {"pictures": str(args.pictures)} if args.pictures else {}
    trained = {name: next(iter(of.values())).config.train.steps for name, of in models.items()}
    files.write_json(args.out / "study.json", {"settings": settings, "trained": trained, "rows": rows})
  print(f"written to {args.out / 'study.json'}; python -m experiments.facets.page {args.out} makes the page")


def rows_of(models, names, facets, count):
  """One row for each model, seed and facet."""
  for name in names:
    for seed, model in models[name].items():
      for facet in facets:
        others = proposers_of(models, name, seed) if facet == "verification" else []
        start = time.perf_counter()
        found = MEASURES[facet](model, name, others, count)
        print(f"{name}, seed {seed}, {facet}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        kept = {key: None if value != value else value for key, value in found.items()}  # without pairs, no number
        yield {"model": name, "seed": seed, "facet": facet, **kept}


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
