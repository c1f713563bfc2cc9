"""A ladder of texts from the training distribution to noise, to measure thinking under distribution shift.

The order is fixed, by kind of text. The distance of a rung from a model's training text is measured: its perplexity
over that of the first rung. Texts come from `tools/fetch_data.py` (groups `prose` and `ladder`). A rung that was not
fetched is replaced by a small stand-in that needs no download, or left out if there is none.

  rungs = ladder.rungs("data", trained_on="data/text/sotu.jsonl.xz", held_out=0.02)
  paths = ladder.write_texts(rungs, "runs/ladder")    # each for --mode=eval --source=PATH
"""

from collections.abc import Callable, Iterable, Sequence
import dataclasses
import hashlib
import json
import logging
import os
import pathlib
import random
import sysconfig

from ebt_jax import files
from ebt_jax.config import ConfigError
from ebt_jax.data.sources import Document, Source, documents
from ebt_jax.data.text import is_held_out, split_documents

log = logging.getLogger(__name__)

_SHARES = 16  # a rung takes text from at least this number of documents, if there are enough


@dataclasses.dataclass(frozen=True)
class Rung:
  """Text of one kind.

  Attributes:
    name: file name of the rung in `write_texts`.
    why: how the text differs from the rungs before, in one line.
    origin: where the text comes from.
    fetched: True for the intended text, False for a stand-in, which is reported as one.
    documents: texts, in a fixed order.
  """

  name: str
  why: str
  origin: str
  fetched: bool
  documents: list[str]


def rungs(
  data_dir: str = "data", trained_on: str = "embedded", held_out: float = 0.02, max_bytes: int = 2**18
) -> list[Rung]:
  """The ladder, from the training distribution to noise.

  Args:
    data_dir: `--out` of tools/fetch_data.py.
    trained_on: `config.data.source` of the model, as given in its training; its held-out documents are the first rung.
    held_out: `config.data.held_out` of the model.
    max_bytes: most UTF-8 bytes of a rung; its documents are chosen by a hash of their ids.

  Raises:
    ConfigError: a source is missing or broken, or `trained_on` holds out no document.
  """
  prose = Source(trained_on)
  kept = [d for d in split_documents(prose, trained_on) if is_held_out(d.id, held_out)]
  if not kept:
    raise ConfigError(
      f"config.data.held_out: found {held_out}, at which {trained_on!r} holds out no document; give a larger fraction"
    )
  out = [Rung("prose", "the training distribution, held out", trained_on, True, _drawn(kept, max_bytes))]
  for name, why, fetched, stand_in, origin in _KINDS:
    path = pathlib.Path(data_dir) / "text" / f"{fetched}.jsonl.xz"
    if path.exists():
      out.append(Rung(name, why, str(path), True, _drawn(documents(str(path)), max_bytes)))
    elif stand_in:
      out.append(Rung(name, why, origin, False, _drawn(stand_in(), max_bytes)))
    else:
      log.warning("rung %s is left out: run `python tools/fetch_data.py --out=%s %s`", name, data_dir, fetched)
  text = "".join(out[0].documents)
  out.append(Rung("shuffled", "letters of the first rung, their order lost", "seeded", True, [_shuffled(text)]))
  out.append(Rung("noise", "printable characters, all alike", "seeded", True, [_noise(len(text))]))
  return out


def write_texts(ladder: Sequence[Rung], folder: str) -> dict[str, str]:
  """Writes each rung as `FOLDER/NAME.jsonl`, completely or not at all.

  Returns:
    the paths of the rungs by name, in order; each can be a `config.data.source` or a `--source`.
  """
  os.makedirs(folder, exist_ok=True)
  paths = {}
  for rung in ladder:
    path = os.path.join(folder, f"{rung.name}.jsonl")
    lines = [json.dumps({"text": text}, ensure_ascii=False) + "\n" for text in rung.documents]
    files.replace_text(path, "".join(lines))
    paths[rung.name] = path
  return paths


def _drawn(found: Iterable[Document], max_bytes: int) -> list[str]:
  """Beginnings of documents, in the order of a hash of their ids, up to `max_bytes`."""
  order = sorted(found, key=lambda d: hashlib.sha256(d.id.encode("utf-8", "replace")).digest())
  share = max_bytes // max(1, min(_SHARES, len(order)))
  out, left = [], max_bytes
  for document in order:
    # an incomplete last character is dropped
    text = document.text.encode()[: min(left, share)].decode("utf-8", "ignore")
    if text.strip():
      out.append(text)
      left -= len(text.encode())
    if left < 4:  # a character has at most 4 bytes
      break
  return out


def _legal() -> Iterable[Document]:
  python = pathlib.Path(sysconfig.get_path("stdlib")) / "LICENSE.txt"
  for name, path in {"python": python, "ebt_jax": pathlib.Path(__file__).parents[2] / "LICENSE"}.items():
    if path.exists():  # some builds of Python do not have it
      text = path.read_text(encoding="utf-8")
      yield from (Document(f"{name}#{i}", text[i : i + 4096]) for i in range(0, len(text), 4096))


def _technical() -> Iterable[Document]:
  from pydoc_data import topics  # 0.7 MB, read only if nothing was fetched

  return (Document(name, text) for name, text in topics.topics.items())


def _code() -> Iterable[Document]:
  for path in pathlib.Path(sysconfig.get_path("stdlib")).glob("*.py"):
    if not path.name.startswith("_"):  # _sysconfigdata and similar files differ between machines
      yield Document(path.name, path.read_text(encoding="utf-8", errors="replace"))


def _derivations() -> Iterable[Document]:
  """Sums and products of integers, computed one operation at a time."""
  rng = random.Random(0)

  def below(n):
    return int(rng.random() * n)  # only random() is the same in every version of Python

  def term(depth: int):
    if not depth or below(4) == 0:
      return below(100)
    return (term(depth - 1), "+-*"[below(3)], term(depth - 1))

  def shown(t) -> str:
    return str(t) if isinstance(t, int) else f"({shown(t[0])} {t[1]} {shown(t[2])})"

  def reduced(t):
    """The term after its first innermost operation."""
    if isinstance(t, int):
      return t
    a, sign, b = t
    if isinstance(a, int) and isinstance(b, int):
      return {"+": a + b, "-": a - b, "*": a * b}[sign]
    return (reduced(a), sign, b) if not isinstance(a, int) else (a, sign, reduced(b))

  for n in range(2000):
    t, steps = term(4), []
    while not isinstance(t, int):
      steps.append(shown(t))
      t = reduced(t)
    yield Document(str(n), "\n= ".join([*steps, str(t)]) + "\n")


def _shuffled(text: str) -> str:
  rng = random.Random(1)
  return "".join(sorted(text, key=lambda _: rng.random()))


def _noise(length: int) -> str:
  rng = random.Random(2)
  return "".join(chr(32 + int(rng.random() * 95)) for _ in range(length))


# name, why, set of tools/fetch_data.py, stand-in, origin of the stand-in
_KINDS: tuple[tuple[str, str, str, Callable[[], Iterable[Document]] | None, str], ...] = (
  ("encyclopedia", "edited English, other subjects", "wiki", None, ""),
  ("e-mail", "English as people type it, with quotes and addresses", "email", None, ""),
  ("legal", "English under other rules", "licences", _legal, "licences of Python and of this repository"),
  ("technical", "English between names and markup", "kernel-docs", _technical, "pydoc_data.topics"),
  ("code", "another language, English in its names", "python-code", _code, "standard library"),
  ("formal", "proofs, hardly a word of English", "set.mm", _derivations, "generated arithmetic, seed 0"),
)
