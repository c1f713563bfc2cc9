"""Makes the folder of a run from weights of the authors' PyTorch code, for evaluation, generation and fine-tuning.

  python tools/import_authors.py --weights=theirs.npz --options=options.json --out=runs/theirs \
      --set data.tokenizer=gpt-neox-20b/tokenizer.json
  python -m ebt_jax.main --workdir=runs/theirs --mode=eval

`--weights` is an .npz of their `state_dict` as numpy arrays (names may begin with `param/`), or their .ckpt or .pt
file, which needs PyTorch. `--options` is a JSON file of their command-line options; an .npz may hold them as `meta`.
"""

import dataclasses
import json
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np

from ebt_jax import checkpoint, cli, files, parallel, record
from ebt_jax.clock import Clock
from ebt_jax.config import CheckpointConfig, Config, ConfigError, MeshConfig, set_keys
from ebt_jax.interop import reference, reference_video
from ebt_jax.owner import Owner
from ebt_jax.tasks import registry
from ebt_jax.training import state as state_lib


def read_weights(path: pathlib.Path) -> tuple[dict[str, np.ndarray], dict]:
  """Their arrays by name, and the options that the file holds. Raises ConfigError where it cannot be read."""
  try:
    if path.suffix == ".npz":
      with np.load(path) as z:
        options = json.loads(str(z["meta"])).get("hparams", {}) if "meta" in z.files else {}
        names = [n for n in z.files if n.startswith("param/")] or [n for n in z.files if n != "meta"]
        return {n.removeprefix("param/"): z[n] for n in names}, options
    import torch  # reads their own files

    found = torch.load(path, map_location="cpu", weights_only=True)
    found = found.get("state_dict", found)
    # their trainer puts the model below `model`
    return {n.removeprefix("model."): a.float().numpy() for n, a in found.items()}, {}
  except ImportError as e:
    raise ConfigError(f"--weights: {path} needs PyTorch to be read ({e}); install torch, or save an .npz") from e
  except Exception as e:  # readers raise anything
    raise ConfigError(f"--weights: {path} cannot be read: {type(e).__name__}: {e}") from e


def config_of(arrays: dict[str, np.ndarray], options: dict, keys: list[str]) -> tuple[Config, dict]:
  """The config of their model, with `KEY=VALUE` strings applied, and the parameters."""
  try:
    model, params = reference.load(arrays, **options)
    config, video = Config(model=model), reference_video.is_video(arrays)
    if video:
      config = Config(task="video", model=model, video=reference_video.video_config(arrays))
    if model.kind == "ebt":
      thinking = reference.thinking_config(**options)
      config = dataclasses.replace(config, thinking=reference_video.thinking(thinking) if video else thinking)
  except KeyError as e:
    raise ConfigError(f"--options: {e} is missing; give the options that the model was trained with") from e
  length = options.get("context_length")
  keys = [*([f"data.context_length={length}"] if length else []), *keys]
  return set_keys(config, keys), params


def write_run(out: pathlib.Path, config: Config, params: dict) -> None:
  """The folder of a run that stands at step 0 with these parameters."""
  if (out / "config.json").exists():
    raise ConfigError(f"--out: {out} holds a run already; give another folder")
  mesh = parallel.make_mesh(MeshConfig(data=1), jax.devices()[:1])
  task = registry.make(config)
  with jax.set_mesh(mesh):
    state = state_lib.create(task, mesh)
    expected = {parallel.path_name(p): a.shape for p, a in jax.tree_util.tree_leaves_with_path(state.params)}
    found = {parallel.path_name(p): a.shape for p, a in jax.tree_util.tree_leaves_with_path(params)}
    if expected != found:
      differ = sorted(set(expected.items()) ^ set(found.items()))
      raise ConfigError(f"--weights: do not fit the model that --options describe: {differ[:4]}")
    put = jax.tree.map(lambda new, old: jnp.asarray(new, old.dtype), params, state.params)
    state = state._replace(params=put)
    out.mkdir(parents=True, exist_ok=True)
    extra = {"config": task.config.to_dict(), "position": {"step": 0, "items": 0.0}, "clock": Clock().state_dict()}
    with checkpoint.Checkpoints(out / "checkpoints", CheckpointConfig()) as checkpoints:
      checkpoints.save(0, state.split(), extra)
  try:
    record.keep(out, task, None)
  except ConfigError:  # a vocabulary that is not here yet; evaluation will ask for it
    pass
  files.write_json(out / "config.json", task.config.to_dict())


def main(argv: list[str]) -> None:
  parser = cli.Parser(description=__doc__.split("\n")[0])
  parser.add_argument("--weights", type=cli.path, required=True)
  parser.add_argument("--options", type=cli.path, help="JSON of their options")
  parser.add_argument("--out", type=cli.path, required=True, help="folder of the run that is made")
  parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="config keys")
  args = parser.parse_args(argv)
  arrays, options = read_weights(args.weights)
  if args.options:
    found = files.read_json(args.options, "their options", "give a JSON object of option names and values")
    options = {**options, **found}
  config, params = config_of(arrays, options, args.set)
  with Owner(args.out, "--out"):
    write_run(args.out, config, params)
  print(f"written to {args.out}: {config.model.kind} {config.model.variant}, {config.model.layers} layers")


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
