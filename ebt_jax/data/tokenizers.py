"""Tokenizers: raw bytes, or any Hugging Face `tokenizer.json`, with one interface."""

import codecs
from collections.abc import Iterable, Sequence
import hashlib
import json
import logging
import os
import re
from typing import IO, Any, Protocol, runtime_checkable

import numpy as np

from ebt_jax import files
from ebt_jax.config import ConfigError

log = logging.getLogger(__name__)

END_OF_TEXT = ("<|endoftext|>", "</s>", "<eos>", "<|end_of_text|>", "[SEP]")


@runtime_checkable
class Tokenizer(Protocol):
  """The interface of a tokenizer.

  Attributes:
    name: `bytes`, or the file's name.
    fingerprint: `bytes`, or the SHA-256 of the file in hex; tokenizers with equal fingerprints give equal ids.
    vocab_size: number of ids; all ids are below it.
    end_of_text: id that ends a document; `encode` never returns it.
    token_bytes: int32 [vocab_size], the number of UTF-8 bytes of each token's text; 0 for control tokens.
    pieces: the bytes of each token, or None if tokens are not byte strings.
    exact: whether no text is replaced by another one before it is encoded, so that a text is encoded whole if its
      tokens have as many bytes as it has.
    content: the file, or None for `bytes`.
    byte_tokens: without pieces, the bytes of tokens that stand for one; a run of them is decoded as a whole.
  """

  name: str
  fingerprint: str
  vocab_size: int
  end_of_text: int
  token_bytes: np.ndarray
  pieces: list[bytes] | None
  exact: bool
  content: bytes | None
  byte_tokens: dict[int, bytes]

  def encode(self, text: str) -> np.ndarray:
    """The ids of a text, int32 [tokens], without special tokens; lone surrogates become `?`."""

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    """`encode` of each text, in parallel if the library can."""

  def decode_batch(self, ids: Sequence[np.ndarray]) -> list[str]:
    """What is left of texts that were encoded: `decode` of each, without what stands for unknown text."""

  def decode(self, ids: Iterable[int | np.integer]) -> str:
    """The text of ids; control tokens and unknown ids are skipped, invalid UTF-8 becomes U+FFFD. Never raises."""


def load_tokenizer(spec: str, name: str = "") -> Tokenizer:
  """The tokenizer of a spec: `bytes`, or the path of a `tokenizer.json`, which is called `name` if that is given.

  Raises:
    ConfigError: the file does not exist, is not a tokenizer or has no end-of-text token, or the package `tokenizers` is
      not installed.
  """
  if spec == "bytes":
    return ByteTokenizer()
  path = files.local(spec, "config.data.tokenizer")
  if os.path.isdir(path):
    raise ConfigError(f"config.data.tokenizer: {spec} is a folder; give the tokenizer.json in it")
  if not os.path.isfile(path):
    raise ConfigError(
      f"config.data.tokenizer: no file {spec!r}; expected `bytes` or the path of a Hugging Face tokenizer.json"
    )
  return HuggingFaceTokenizer(path, name)


def fingerprint_of(spec: str) -> str:
  """The fingerprint of `load_tokenizer(spec)`, without loading it; empty where there is no such file."""
  path = os.path.expanduser(spec)
  if spec == "bytes" or not os.path.isfile(path):
    return "bytes" if spec == "bytes" else ""
  with open(path, "rb") as f:
    return _fingerprint(_content(f))


class ByteTokenizer:
  """UTF-8 bytes as ids 0..255, and 256 for end-of-text."""

  name = "bytes"
  fingerprint = "bytes"
  vocab_size = 257
  end_of_text = 256
  exact = True
  content = None

  def __init__(self):
    self.byte_tokens = {}
    self.pieces = [bytes([i]) for i in range(256)] + [b""]
    self.token_bytes = np.array([len(p) for p in self.pieces], np.int32)

  def encode(self, text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-8", "replace"), np.uint8).astype(np.int32)

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    return [self.encode(t) for t in texts]

  def decode_batch(self, ids: Sequence[np.ndarray]) -> list[str]:
    return [self.decode(i) for i in ids]

  def decode(self, ids: Iterable[int | np.integer]) -> str:
    return _join(self.pieces, ids)


class HuggingFaceTokenizer:
  """A `tokenizer.json` of the library `tokenizers`.

  Truncation, padding and BPE dropout are switched off, whatever the file says, and special tokens that appear in raw
  text are encoded as ordinary characters.

  Raises:
    ConfigError: as `load_tokenizer`.
  """

  def __init__(self, path: str, name: str = ""):
    try:
      import tokenizers
    except ImportError as e:
      raise ConfigError(
        f"config.data.tokenizer: {path} needs the package `tokenizers`; run `pip install tokenizers`, "
        "or set data.tokenizer to bytes"
      ) from e
    with open(path, "rb") as f:
      content = _content(f)
    try:
      spec = json.loads(content)
      backend = tokenizers.Tokenizer.from_buffer(content)
    except Exception as e:  # the library raises bare Exception
      raise ConfigError(
        f"config.data.tokenizer: {path} is not a Hugging Face tokenizer.json ({str(e)[:200]}); "
        "give the file that `tokenizers.Tokenizer.save` or `save_pretrained` writes"
      ) from e
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    if getattr(backend.model, "dropout", None):
      backend.model.dropout = None
    vocab = backend.get_vocab(with_added_tokens=True)
    added = backend.get_added_tokens_decoder()
    end = _end_of_text(vocab, {t.content for t in added.values() if t.special}, path)
    if end is None:
      raise ConfigError(
        f"config.data.tokenizer: {path} has no end-of-text token; looked for {', '.join(END_OF_TEXT)}; "
        "add one of them to the file as a special token"
      )
    self._backend = backend
    self.name = name or os.path.basename(path)
    self.fingerprint = _fingerprint(content)
    self.vocab_size = max(backend.get_vocab_size(with_added_tokens=True), max(vocab.values()) + 1)
    self.end_of_text = vocab[end]
    self.content = content
    # the text of an added token is its own name, and a special token has no text
    special = {i for i, t in added.items() if t.special} | {self.end_of_text}
    literal = {i: t.content.encode("utf-8") for i, t in added.items()} | {i: b"" for i in special}
    tokens = {i: t for t, i in vocab.items()}
    self._known = frozenset(tokens) - special
    self.pieces = None
    fallback = {i for i in self._known if re.fullmatch("<0x[0-9A-Fa-f]{2}>", tokens[i])}
    by_bytes = "ByteFallback" in _types(spec.get("decoder"))
    self.byte_tokens = {i: bytes([int(tokens[i][3:5], 16)]) for i in fallback} if by_bytes else {}
    if "ByteLevel" in _types(spec.get("decoder")) | _types(spec.get("pre_tokenizer")):
      alphabet = _byte_alphabet()
      self.pieces = [
        literal[i] if i in literal else _byte_piece(tokens.get(i, ""), alphabet) for i in range(self.vocab_size)
      ]
      lengths = [len(p) for p in self.pieces]
    else:
      lengths = self._decoded_lengths(tokens, literal)
    unknown = _unknown(spec["model"], vocab)
    if unknown is not None:
      lengths[unknown] = 0  # it stands for text that is lost
    self.exact = self.pieces is not None and not spec.get("normalizer")
    self._lasting = np.array([i in self._known and i != unknown for i in range(self.vocab_size)])
    self.token_bytes = np.array(lengths, np.int32)

  def encode(self, text: str) -> np.ndarray:
    return self.encode_batch([text])[0]

  def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
    texts = [t.encode("utf-8", "replace").decode("utf-8") for t in texts]
    try:
      encodings = self._backend.encode_batch_fast(texts, add_special_tokens=False)
    except Exception as e:  # the library raises bare Exception, where a vocabulary lacks the unknown token
      raise ConfigError(
        f"config.data.tokenizer: {self.name} cannot encode the text ({str(e)[:200]}); "
        "add its unknown token to the file, or give another tokenizer"
      ) from e
    return [np.array(e.ids, np.int32) for e in encodings]

  def decode(self, ids: Iterable[int | np.integer]) -> str:
    if self.pieces is not None:
      return _join(self.pieces, ids)
    return self._backend.decode([int(i) for i in ids if int(i) in self._known])

  def decode_batch(self, ids: Sequence[np.ndarray]) -> list[str]:
    """What is left of texts: `decode` of each, in parallel, without the unknown token."""
    kept = [i[self._lasting[i]] for i in ids]
    if self.pieces is not None:
      return [_join(self.pieces, i) for i in kept]
    return self._backend.decode_batch([i.tolist() for i in kept])

  def _decoded_lengths(self, tokens: dict[int, str], literal: dict[int, bytes]) -> list[int]:
    """Number of UTF-8 bytes of each token, decoded after an ordinary token so that a leading space counts."""
    anchor = [int(i) for i in self.encode("a")[-1:]]
    prefix = self._backend.decode(anchor)
    texts = self._backend.decode_batch([anchor + [i] for i in range(self.vocab_size)], skip_special_tokens=False)
    lengths = []
    for i, text in enumerate(texts):
      if i in literal or i not in tokens:
        lengths.append(len(literal.get(i, b"")))
      elif len(tokens[i]) == 6 and tokens[i].startswith("<0x"):  # byte fallback
        lengths.append(1)
      else:
        lengths.append(len(text.removeprefix(prefix).encode("utf-8")))
    return lengths


class StreamDecoder:
  """Decodes one id at a time, and holds back what the next ids can still change.

  If tokens are byte strings, the joined output equals `tokenizer.decode` of all ids; for other tokenizers it does if
  their decoder works from left to right. A continuation is decoded after the ids of its prompt: the first token of a
  text may be decoded without its leading space.
  """

  def __init__(self, tokenizer: Tokenizer):
    self._tokenizer = tokenizer
    self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
    self._shown: list[int] = []  # ids of the last text shown, before which the next is decoded for its leading space
    self._pending: list[int] = []

  def push(self, token_id: int) -> str:
    """Takes one id; returns the text that is complete now, which is often empty."""
    pieces = self._tokenizer.pieces
    if pieces is not None:
      return self._utf8.decode(_piece(pieces, int(token_id)))
    before = self._pending_text() if self._pending else ""
    self._pending.append(int(token_id))
    text = self._pending_text()
    if int(token_id) in self._tokenizer.byte_tokens or text == before:
      return ""  # a run of byte tokens is not over, a control token inside it included
    self._shown, self._pending = self._pending, []
    return text

  def flush(self) -> str:
    """Ends the stream; returns the text that was held back, with invalid UTF-8 as U+FFFD."""
    if self._tokenizer.pieces is not None:
      return self._utf8.decode(b"", final=True)
    text = self._pending_text()
    self._shown, self._pending = [], []
    return text

  def _pending_text(self) -> str:
    context = self._tokenizer.decode(self._shown)
    return self._tokenizer.decode(self._shown + self._pending)[len(context) :]


def split_text(tokenizer: Tokenizer, before: Sequence[int], ids: Sequence[int]) -> tuple[str, list[str]]:
  """The text of some ids, and what each of `ids` adds to it; joined, they are the decoding of all.

  Several tokens may share one character, such as the bytes of an emoji: the last of them has it, the others have "".
  If `before` ends inside a character, the first of `ids` that complete it have the character.
  """
  stream = StreamDecoder(tokenizer)
  start = "".join(map(stream.push, before))
  texts = [stream.push(i) for i in ids]
  rest = stream.flush()
  if not texts:
    return start + rest, []
  texts[-1] += rest
  whole = start + "".join(texts)
  held = os.path.commonprefix([tokenizer.decode(before), whole])[len(start) :]  # belongs to `before`
  left = len(held)
  for i, text in enumerate(texts):
    texts[i], left = text[left:], max(0, left - len(text))
  return start + held, texts


def token_name(tokenizer: Tokenizer, token_id: int) -> str:
  """One token as people read it in a table, in quotes: with its leading space, and part of a character as its bytes."""
  if tokenizer.pieces is not None:
    piece = _piece(tokenizer.pieces, token_id)
  elif token_id in tokenizer.byte_tokens:
    piece = tokenizer.byte_tokens[token_id]
  else:
    return repr(split_text(tokenizer, tokenizer.encode("a")[-1:].tolist(), [token_id])[1][0])
  try:
    return repr(piece.decode("utf-8"))
  except UnicodeDecodeError:
    return repr(piece)


def _end_of_text(vocab: dict[str, int], special: set[str], path: str) -> str | None:
  """The token that ends a document: a special one, or else, as some files have no other, an ordinary one."""
  found = [t for t in END_OF_TEXT if t in special] or [t for t in END_OF_TEXT if t in vocab]
  if found and found[0] not in special:
    log.warning(
      "%s: %s is no special token there, so text that holds it ends a document; add it as a special token",
      path,
      found[0],
    )
  return found[0] if found else None


def _unknown(model: dict[str, Any], vocab: dict[str, int]) -> int | None:
  """Id of the token that stands for what the vocabulary does not have."""
  if model.get("unk_id") is not None:  # Unigram
    return model["unk_id"]
  return vocab.get(model.get("unk_token"))


def _content(file: IO[bytes]) -> bytes:
  return file.read().removeprefix(codecs.BOM_UTF8)  # some editors write this mark, and the library refuses it


def _fingerprint(content: bytes) -> str:
  return hashlib.sha256(content).hexdigest()


def _piece(pieces: list[bytes], token_id: int) -> bytes:
  return pieces[token_id] if 0 <= token_id < len(pieces) else b""


def _join(pieces: list[bytes], ids: Iterable[int | np.integer]) -> str:
  return b"".join(_piece(pieces, int(i)) for i in ids).decode("utf-8", "replace")


def _types(node: Any) -> set[str | None]:
  """All values of `type` in a part of tokenizer.json, nested parts included."""
  if isinstance(node, dict):
    return {node.get("type")}.union(*(_types(v) for v in node.values()))
  if isinstance(node, list):
    return set().union(*(_types(v) for v in node))
  return set()


def _byte_alphabet() -> dict[str, int]:
  """Character -> byte in byte-level vocabularies: printable Latin-1 as it is, other bytes from U+0100 on."""
  printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
  others = [b for b in range(256) if b not in printable]
  return {chr(b): b for b in printable} | {chr(256 + k): b for k, b in enumerate(others)}


def _byte_piece(token: str, alphabet: dict[str, int]) -> bytes:
  if all(c in alphabet for c in token):
    return bytes(alphabet[c] for c in token)
  return token.encode("utf-8")
