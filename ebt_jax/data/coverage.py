"""How much of a text is left in its tokens: characters that a tokenizer drops, calls unknown or replaces."""

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ebt_jax.data.tokenizers import Tokenizer

MUCH = 1e-3  # share of lost bytes from which a user is warned


class Coverage(NamedTuple):
  """Of one text.

  Attributes:
    text_bytes: its UTF-8 bytes as given.
    token_bytes: the bytes that its tokens stand for, as `Tokenizer.token_bytes` counts them.
    lost: characters of the text that the decoded tokens do not have, and how many of each.
  """

  text_bytes: int
  token_bytes: int
  lost: dict[str, int]


def measure(texts: Sequence[str], ids: Sequence[np.ndarray], tokenizer: Tokenizer) -> list[Coverage]:
  """The coverage of texts, given the ids of each.

  A text whose bytes an exact tokenizer has all kept is not looked at further. Others are decoded, and their characters
  counted: what is replaced (by lower case, say) counts as lost, and what is only moved does not.
  """
  given = [_size(t) for t in texts]
  kept = [int(tokenizer.token_bytes[i].sum(dtype=np.int64)) for i in ids]
  lost: list[dict[str, int]] = [{} for _ in texts]
  check = [k for k in range(len(texts)) if not (tokenizer.exact and given[k] == kept[k])]
  for k, left in zip(check, tokenizer.decode_batch([ids[k] for k in check])):
    if left != texts[k]:
      lost[k] = dict(Counter(texts[k]) - Counter(left))
  return [Coverage(*one) for one in zip(given, kept, lost)]


def size_of(lost: dict[str, int]) -> int:
  """UTF-8 bytes of lost characters."""
  return sum(_size(c) * n for c, n in lost.items())


def scale(counts: dict[str, Any]) -> float:
  """Bytes of text for each byte that tokens stand for, in one split: 1 where nothing is lost or unknown.

  Args:
    counts: `Assembler.state()`; folders of older versions lack the bytes.
  """
  given, kept = counts.get("text_bytes", 0), counts.get("token_bytes", 0)
  return given / kept if given and kept else 1.0


def summary(counts: dict[str, dict[str, Any]]) -> dict[str, Any]:
  """What is known of both splits: `text_bytes`, `lost_bytes`, `lost_share` and the characters that are lost most."""
  states = [c for c in counts.values() if c.get("text_bytes")]
  if not states:
    return {}
  lost: Counter[str] = Counter()
  for state in states:
    lost.update(state["lost"])
  given, bad = sum(s["text_bytes"] for s in states), sum(s["lost_bytes"] for s in states)
  most = {shown(c): n for c, n in sorted(lost.items(), key=_by_count)[:5]}
  return {"text_bytes": given, "lost_bytes": bad, "lost_share": bad / given, "lost_most": most}


def warning(found: dict[str, Any], tokenizer: str) -> str:
  """What a user should know of a `summary`; empty where next to nothing is lost."""
  if found.get("lost_share", 0.0) < MUCH:
    return ""
  most = ", ".join(f"{c} ({n:,})" for c, n in found["lost_most"].items())
  return (
    f"{found['lost_share']:.1%} of the text's bytes are lost in tokens: {tokenizer} drops or replaces {most}; no "
    "model is asked for them, so bits/byte is too low; give a tokenizer that represents all text, such as bytes, or "
    "other text"
  )


def shown(character: str) -> str:
  """A character as people can see it in any file: `д`, `'\\n'`, `'\\ud800'`."""
  return character if character.isprintable() and character != " " else repr(character)


def _by_count(item: tuple[str, int]) -> tuple[int, str]:
  return -item[1], item[0]


def _size(text: str) -> int:
  return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))
