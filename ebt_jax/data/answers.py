"""Rows of which only a part is to be learnt: a prompt with its answer, or a chat."""

from collections.abc import Iterable
from typing import Any, NamedTuple

from ebt_jax.config import ConfigError

ROLE, CONTENT, ANSWERS = "role", "content", "assistant"


class Fields(NamedTuple):
  """Where a row keeps its text (`config.data.text_key`), and the prompt before it (`config.data.prompt_key`)."""

  text: str
  prompt: str = ""


class Marked(NamedTuple):
  """A text, and where the parts of it begin and end that are targets, in characters; None: all of it."""

  text: str
  answers: tuple[tuple[int, int], ...] | None = None

  def pieces(self) -> list[tuple[str, bool]]:
    """The text in pieces, and whether each is a target. They are tokenised one by one, as a prompt is in generation."""
    if self.answers is None:
      return [(self.text, True)]
    out, end = [], 0
    for start, stop in self.answers:
      out += [(self.text[end:start], False), (self.text[start:stop], True)]
      end = stop
    return [piece for piece in [*out, (self.text[end:], False)] if piece[0]]


def answered(prompt: str, answer: str) -> Marked:
  """A prompt and what is to follow it; no text where there is no answer."""
  return Marked(prompt + answer if answer else "", ((len(prompt), len(prompt) + len(answer)),))


def chat(messages: Iterable[Any], where: str) -> Marked:
  """Messages `{"role": ..., "content": ...}` as lines `role: content`; what an assistant says is a target.

  Raises:
    ConfigError: a message has no role or content; the text starts with `where`.
  """
  text, answers = "", []
  for n, message in enumerate(messages, 1):
    found = message if isinstance(message, dict) else {}
    role, content = found.get(ROLE), found.get(CONTENT)
    if not (isinstance(role, str) and isinstance(content, str)):
      raise ConfigError(
        f'{where}: message {n}: expected {{"{ROLE}": TEXT, "{CONTENT}": TEXT}}, found {str(message)[:60]}'
      )
    text += f"{role}: "
    if role == ANSWERS and content:
      answers.append((len(text), len(text) + len(content) + 1))  # its end too, so that it learns to stop
    text += f"{content}\n"
  return Marked(text if answers else "", tuple(answers))
