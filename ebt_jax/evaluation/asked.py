"""What a user asks of a trained run: prompts, and how they are to be answered."""

import pathlib
from typing import NamedTuple

from ebt_jax.config import ConfigError
from ebt_jax.use.sampling import Sampling


class Asked(NamedTuple):
  """The flags of mode `generate`."""

  prompts: list[str]
  prompts_file: str
  max_tokens: int
  sampling: Sampling
  seed: int
  out: str  # a JSON file, or a page (`.html`)
  home: str = "."  # where answers go that need files of their own and have no `out`

  @property
  def page(self) -> bool:
    """Whether the answers are to be shown on a page."""
    return is_page(self.out)


def is_page(out: str) -> bool:
  """Whether --out names a page."""
  return out.lower().endswith((".html", ".htm"))


def read_prompts(prompts: list[str], file: str) -> list[str]:
  """Prompts given one by one, and one a line in a file; blank lines are left out."""
  if file:
    try:
      lines = pathlib.Path(file).read_text(encoding="utf-8-sig").split("\n")  # a line of Windows ends in "\n" too
    except (OSError, UnicodeDecodeError) as e:
      raise ConfigError(f"--prompts_file: {file} cannot be read as UTF-8 text: {e}") from e
    found = [line for line in lines if line.strip()]
    if not found:
      raise ConfigError(f"--prompts_file: {file} holds no prompt; write one a line")
    prompts = prompts + found
  if not prompts:
    raise ConfigError('--prompt: give at least one, e.g. --prompt="The people of", or --prompts_file')
  if not all(prompts):
    raise ConfigError("--prompt: expected some text, found an empty prompt")
  return prompts
