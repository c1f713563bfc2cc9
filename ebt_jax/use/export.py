"""A run as a folder to share: parameters, config, tokenizer and a model card, in the layout of Hugging Face's hub."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import shutil
from typing import Any

from ebt_jax import files, record, runs, weights
from ebt_jax.config import Config, ConfigError, differences

CARD = "README.md"
_CARD = """\
---
library_name: ebt_jax
license: other
tags:
- energy-based-transformer
- {task}
---

# {name}

{kind}, {params:,} parameters, trained with ebt_jax ([the method](https://arxiv.org/abs/2507.02092)) on task
`{task}` for {steps:,} steps ({items:,} {item}s of `{source}`).

```python
import ebt_jax

model = ebt_jax.load("{name}")
```

`python -m ebt_jax.main --workdir={name} --mode=eval` evaluates it, `--mode=generate` answers prompts, and
`--config.init_from={name}` starts another run with its parameters.

## Numbers

Held out, at the end of training:

| | |
|---|---|
{numbers}

## Training

Config keys that differ from the defaults of ebt_jax {version}:

```
{keys}
```

{weights}
"""
_KINDS = {"ebt": "Energy-Based Transformer", "transformer": "Transformer++", "dit": "Diffusion Transformer"}


def export(
  run: str | pathlib.Path, out: str | pathlib.Path, step: int | None = None, half: bool = False
) -> pathlib.Path:
  """Writes a trained run as a folder that `load`, every mode and `init_from` read; nothing of its optimiser.

  Args:
    run: folder of the run, which must be finished.
    out: the folder to make; it appears whole or not at all.
    step: of the checkpoint; None: the newest that is intact.
    half: parameters are rounded to 16 bits.

  Returns:
    The folder.

  Raises:
    ConfigError: there is no run, it is not finished, or `out` holds something already.
    CheckpointError: there is no intact checkpoint.
  """
  out, found = pathlib.Path(out), runs.open_run(run, step)
  result_path = found.folder / runs.RESULT
  if not result_path.exists():
    raise ConfigError(f"--workdir: {found.folder} is not finished (no {runs.RESULT}); train it to its end first")
  result = files.read_json(result_path, "a final result", "put it back from a copy, or train the run to its end again")
  with new_folder(out) as partial:
    size = weights.write(partial, found.params, found.step, half)
    for name in (record.CONFIG, record.DATA, *found.task.problem.files(), runs.RESULT):
      if (found.folder / name).exists():
        shutil.copy2(found.folder / name, partial / name)
    if found.config.data.source == "embedded":  # nothing is looked for in the folders of this machine
      path = partial / record.DATA
      remembered = files.read_json(path, "what was trained on", "train the run again")
      files.write_json(path, {**remembered, "place": ".", "absolute_place": "."})
    bits = "16 bits each (load widens them to 32)" if half else "as they were trained"
    text = f"`{weights.FILE}` holds the parameters of step {found.step}, {bits}; {size / 1e6:.1f} MB."
    text += f" SHA-256 of their names, types and numbers: `{weights.digest(partial)}`."
    files.replace_text(partial / CARD, _card(out.name, found.config, result, text))
  return out


@contextlib.contextmanager
def new_folder(out: pathlib.Path) -> Iterator[pathlib.Path]:
  """A folder to fill, which takes the name `out` at the end, or is gone where an error ends it.

  Raises:
    ConfigError: `out` holds something already.
  """
  if out.exists() and (not out.is_dir() or any(out.iterdir())):
    raise ConfigError(f"--out: {out} exists already; name a folder that does not")
  partial = out.with_name(out.name + ".partial")
  shutil.rmtree(partial, ignore_errors=True)
  partial.mkdir(parents=True)
  try:
    yield partial
    if out.exists():
      out.rmdir()
    os.replace(partial, out)
  except BaseException:
    shutil.rmtree(partial, ignore_errors=True)
    raise


def _card(name: str, config: Config, result: dict[str, Any], text: str) -> str:
  numbers = {k: v for k, v in result["eval"].items() if isinstance(v, float)}
  rows = [f"| {k.replace('_per_', '/').replace('_', ' ')} | {v:.4f} |" for k, v in numbers.items()]
  keys = [line.split(" -> ")[0].replace(": ", "=", 1) for line in differences(config, Config())]
  return _CARD.format(
    name=name, task=config.task, kind=_KINDS.get(config.model.kind, config.model.kind), params=result["params"],
    steps=result["steps"], items=result["items"], item=result["item"], source=config.data.source,
    numbers="\n".join(rows), keys="\n".join(keys), version=result.get("versions", {}).get("ebt_jax", ""), weights=text,
  )  # fmt: skip
