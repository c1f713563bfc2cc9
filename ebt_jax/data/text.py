"""Text data: documents are split, tokenised and cut into windows."""

from collections.abc import Iterator
import hashlib
import itertools
import os

import numpy as np

from ebt_jax.config import ConfigError, DataConfig
from ebt_jax.data import token_folder
from ebt_jax.data.progress import Progress
from ebt_jax.data.sources import Document, Source, documents
from ebt_jax.data.tokenizers import Tokenizer
from ebt_jax.data.windows import Assembler, TextData, Windows, finish, from_flat, token_dtype

__all__ = ["TextData", "Windows", "build", "is_held_out", "split_documents", "tokenized"]

FEW_DOCUMENTS = 10
PIECE = 16384  # characters
_BATCH = 4_000_000  # characters tokenised at once


def is_held_out(document_id: str, fraction: float, salt: str = "") -> bool:
  """Whether a document is kept for evaluation, by a hash of its id alone.

  The answer does not depend on other documents, their order, the tokenizer or any limit. A larger
  `fraction` holds out the same documents and more.
  """
  digest = hashlib.sha256((salt + document_id).encode("utf-8", "replace")).digest()
  return int.from_bytes(digest[:8], "big") < fraction * 2**64


def split_documents(source: Source, name: str, text_key: str) -> Iterator[Document]:
  """The documents that the split is made of.

  These are the documents of the source; but where the whole source `name` has fewer than ten, each is cut
  into pieces of about 16 kB at line ends (else at spaces), whose ids end in `#k`, so that some can be held out.
  """
  few = len(list(itertools.islice(documents(name, text_key), FEW_DOCUMENTS))) < FEW_DOCUMENTS
  for document in source:
    if few:
      yield from _cut(document)
    else:
      yield document


def tokenized(docs: Iterator[Document], tokenizer: Tokenizer, held_out: float) -> Iterator[tuple[str, np.ndarray]]:
  """Tokenises documents in batches; yields their split (`train` or `held_out`) and ids, int32 [tokens]."""

  def encode(batch):
    ids = tokenizer.encode_batch([d.text for d in batch])
    return [("held_out" if is_held_out(d.id, held_out) else "train", i) for d, i in zip(batch, ids)]

  batch, size = [], 0
  for document in docs:
    batch.append(document)
    size += len(document.text)
    if size >= _BATCH:
      yield from encode(batch)
      batch, size = [], 0
  yield from encode(batch)


def build(config: DataConfig, tokenizer: Tokenizer) -> TextData:
  """Windows of both splits.

  Text is tokenised in memory, which suits some 200 MB; more goes through `tools/tokenize_text.py`, whose
  folder is a `config.source` too and gives the same windows.

  Raises:
    ConfigError: the source is missing or bad, a split is empty, the text is shorter than one window, or a
      folder of tokens was made with other settings.
  """
  if token_folder.is_folder(config.source):
    return token_folder.load(config, tokenizer)
  dtype = token_dtype(tokenizer.vocab_size)
  splits = {
    name: Assembler(config.layout, config.context_length, tokenizer.end_of_text, dtype)
    for name in ("train", "held_out")
  }
  source = Source(config.source, config.text_key, config.max_documents)
  progress = Progress(f"tokenising {os.path.basename(config.source)}", quiet_s=5.0)
  tokens = text_bytes = 0
  docs = split_documents(source, config.source, config.text_key)
  for n, (split, ids) in enumerate(tokenized(docs, tokenizer, config.held_out), 1):
    splits[split].add(ids)
    tokens += len(ids)
    text_bytes += int(tokenizer.token_bytes[ids].sum())
    progress.update(n, tokens, text_bytes / 1e6, source.fraction)
  progress.close()
  windows = {}
  for name, split in splits.items():
    split.finish()
    windows[name] = from_flat(*split.drain(), config.layout, config.context_length)
  counts = {name: split.state() for name, split in splits.items()}
  return finish(config, tokenizer, windows["train"], windows["held_out"], counts)


def whole(config: DataConfig, tokenizer: Tokenizer) -> Windows:
  """Windows of every document of the source, for evaluation on text that no model has been trained on.

  Raises:
    ConfigError: the source is missing, bad or empty, or a folder of tokens, which is split already.
  """
  if token_folder.is_folder(config.source):
    raise ConfigError(
      f"--source: {config.source} holds tokens that are split already; give text files, or set config.data.source "
      "and evaluate its held-out split"
    )
  assembler = Assembler(config.layout, config.context_length, tokenizer.end_of_text, token_dtype(tokenizer.vocab_size))
  for document in Source(config.source, config.text_key, config.max_documents):
    assembler.add(tokenizer.encode(document.text))
  assembler.finish()
  windows = from_flat(*assembler.drain(), config.layout, config.context_length)
  if not len(windows):
    raise ConfigError(f"--source: {config.source} holds no text to predict; give files with some")
  return windows


def _cut(document: Document) -> Iterator[Document]:
  text, start, k = document.text, 0, 0
  while start < len(text):
    end = start + PIECE
    if end < len(text):
      end = max(text.rfind("\n", start, end), text.rfind(" ", start, end) if "\n" not in text[start:end] else -1) + 1
      end = end or start + PIECE
    yield Document(f"{document.id}#{k}", text[start:end])
    start, k = end, k + 1
