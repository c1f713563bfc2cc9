"""Text data: splits documents into training and held-out ones, tokenises them and cuts them into windows."""

from collections.abc import Collection, Iterator
import hashlib
import itertools
import logging
import os
from typing import Any, NamedTuple

import numpy as np

from ebt_jax.config import ConfigError, DataConfig
from ebt_jax.data import coverage, token_folder
from ebt_jax.data.answers import Fields, Marked
from ebt_jax.data.coverage import Coverage
from ebt_jax.data.progress import Progress
from ebt_jax.data.sources import Document, Source, documents
from ebt_jax.data.tokenizers import Tokenizer
from ebt_jax.data.windows import Assembler, TextData, Windows, finish, token_dtype

log = logging.getLogger(__name__)

FEW_DOCUMENTS = 10
PIECE = 16384  # characters
_BATCH = 4_000_000  # characters that are tokenised at once


def is_held_out(document_id: str, fraction: float) -> bool:
  """Whether a document is held out for evaluation, decided by a hash of its id alone.

  The answer does not depend on other documents, their order, the tokenizer or any limit. A larger `fraction` holds out
  the same documents and more.
  """
  digest = hashlib.sha256(document_id.encode("utf-8", "replace")).digest()
  return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_documents(source: Source, name: str, fields: Fields = Fields("text")) -> Iterator[Document]:
  """The documents to split into training and held-out ones.

  These are the documents of `source`. If all of the source has fewer than ten, each is cut at line ends (or at spaces)
  into pieces of about 16 kB, with ids that end in `#k`, so that some can be held out. Prompts with answers stay whole.

  Args:
    source: the documents to read.
    name: `config.data.source`, which is read again, without a limit, to count documents.
    fields: which fields or columns hold the text.
  """
  few = len(list(itertools.islice(documents(name, fields), FEW_DOCUMENTS))) < FEW_DOCUMENTS
  for document in source:
    if few and document.answers is None:
      yield from _cut(document)
    else:
      yield document


class Encoded(NamedTuple):
  """A document: its split (`train` or `held_out`), its ids, int32 [tokens], and what they keep of its text.

  `counted` is bool [tokens], which of them are targets; None: all.
  """

  split: str
  ids: np.ndarray
  covered: Coverage
  counted: np.ndarray | None


def tokenized(docs: Iterator[Document], tokenizer: Tokenizer, held_out: float) -> Iterator[Encoded]:
  """Tokenises documents in batches.

  Args:
    docs: the documents.
    tokenizer: gives the ids.
    held_out: fraction of the documents that is held out.
  """

  def encode(batch: list[Document]) -> list[Encoded]:
    texts = [d.text for d in batch]
    pieces = [Marked(d.text, d.answers).pieces() for d in batch]
    found = iter(tokenizer.encode_batch([text for several in pieces for text, _ in several]))
    parts = [[next(found) for _ in several] for several in pieces]
    ids = [several[0] if len(several) == 1 else np.concatenate(several) for several in parts]
    counted = [
      None if d.answers is None else np.repeat([target for _, target in several], [len(part) for part in of_text])
      for d, several, of_text in zip(batch, pieces, parts)
    ]
    splits = ["held_out" if is_held_out(d.id, held_out) else "train" for d in batch]
    return [Encoded(*one) for one in zip(splits, ids, coverage.measure(texts, ids, tokenizer), counted)]

  batch, size = [], 0
  for document in docs:
    batch.append(document)
    size += len(document.text)
    if size >= _BATCH:
      yield from encode(batch)
      batch, size = [], 0
  yield from encode(batch)


def fields(config: DataConfig) -> Fields:
  """Which fields of a row a config reads."""
  return Fields(config.text_key, config.prompt_key)


def build(config: DataConfig, tokenizer: Tokenizer) -> TextData:
  """Windows of both splits.

  Text is tokenised in memory, which is practical up to about 200 MB. For more, run `tools/tokenize_text.py`: its folder
  can be given as `config.source` and yields the same windows.

  Raises:
    ConfigError: the source is missing or bad, a split is empty, the text is shorter than one window, or a folder of
      tokens was made with other settings.
  """
  if token_folder.is_folder(config.source):
    if config.prompt_key:
      raise ConfigError(
        f"config.data.prompt_key: {config.source} holds tokens, which have no prompts; leave it out, or give the text"
      )
    return _warned(token_folder.open_folder(config, tokenizer), tokenizer)
  dtype = token_dtype(tokenizer.vocab_size)
  splits = {
    name: Assembler(config.layout, config.context_length, tokenizer.end_of_text, dtype)
    for name in ("train", "held_out")
  }
  source = Source(config.source, fields(config), config.max_documents)
  progress = Progress(f"tokenising {os.path.basename(config.source)}", quiet_s=5.0)
  tokens = text_bytes = 0
  docs = split_documents(source, config.source, fields(config))
  for n, one in enumerate(tokenized(docs, tokenizer, config.held_out), 1):
    splits[one.split].add(one.ids, one.covered, one.counted)
    tokens += len(one.ids)
    text_bytes += one.covered.text_bytes
    progress.update(n, tokens, text_bytes / 1e6, source.fraction)
  progress.close()
  windows = {}
  for name, split in splits.items():
    split.finish()
    windows[name] = split.windows()
  counts = {name: split.state() for name, split in splits.items()}
  left_out = source.left_out.as_dict()
  _warn_shortened(config, list(counts.values()))
  return _warned(finish(config, tokenizer, windows["train"], windows["held_out"], counts, left_out), tokenizer)


def whole(config: DataConfig, tokenizer: Tokenizer) -> tuple[Windows, dict[str, Any]]:
  """Windows of all documents of a source, for evaluation on text that the model was not trained on.

  Returns:
    The windows, and `Assembler.state()`.

  Raises:
    ConfigError: the source is missing, bad or empty, or is a folder of tokens, which is split already.
  """
  if token_folder.is_folder(config.source):
    raise ConfigError(
      f"--source: {config.source} holds tokens that are split already; give text files, or set config.data.source "
      "and evaluate its held-out split"
    )
  assembler = Assembler(config.layout, config.context_length, tokenizer.end_of_text, token_dtype(tokenizer.vocab_size))
  source = Source(config.source, fields(config), config.max_documents)
  for one in tokenized(iter(source), tokenizer, 0.0):
    assembler.add(one.ids, one.covered, one.counted)
  assembler.finish()
  windows, counts = assembler.windows(), assembler.state()
  if not len(windows):
    raise ConfigError(f"--source: {config.source} holds no text to predict; give files with some")
  _warn_shortened(config, [counts])
  if source.left_out.counts:
    log.warning("left out of %s: %s", config.source, source.left_out)
  if text := coverage.warning(coverage.summary({"all": counts}), tokenizer.name):
    log.warning("%s: %s", config.source, text)
  return windows, counts


def _warn_shortened(config: DataConfig, counts: Collection[dict[str, Any]]) -> None:
  shortened, all_of = (sum(c[name] for c in counts) for name in ("shortened", "documents"))
  if shortened:
    log.warning(
      "%s: %d of %d examples are longer than data.context_length=%d and lose their beginning, most of it prompt",
      *(config.source, shortened, all_of, config.context_length),
    )


def _warned(data: TextData, tokenizer: Tokenizer) -> TextData:
  if text := coverage.warning(data.summary, tokenizer.name):
    log.warning("%s", text)
  return data


def _cut(document: Document) -> Iterator[Document]:
  """Pieces of at most `PIECE` characters, cut after the last line end within, or else after the last space."""
  text, start, k = document.text, 0, 0
  while start < len(text):
    end = start + PIECE
    if end < len(text):
      end = max(text.rfind("\n", start, end), text.rfind(" ", start, end) if "\n" not in text[start:end] else -1) + 1
      end = end or start + PIECE
    yield Document(f"{document.id}#{k}", text[start:end])
    start, k = end, k + 1
