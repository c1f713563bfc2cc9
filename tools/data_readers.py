"""Readers of the packages that `fetch_data.py` fetches: they turn the files of a package into documents.

A reader takes the wanted files of a package (path -> content, sorted by path) and yields rows: `{"id", "text"}` for
a text. Rows of a downstream set also hold `context` and `continuation` (`text` is both joined, without few-shot
examples), and `choices` if the question is multiple choice.
"""

import base64
from collections.abc import Iterable, Iterator
import email
import gzip
import hashlib
import io
import json
import os
import re
import zipfile
import zlib

Files = dict[str, bytes]
SHORTEST = 200  # characters; a shorter document of a text is dropped
PAGE = 8192  # characters of a page, to which short entries of a dictionary are joined


def cleaned(documents: Iterable[tuple[str, str]]) -> Iterator[dict]:
  """Rows of (id, text) pairs: stripped, with `\\n` as line end, without short and repeated documents."""
  seen = set()
  for name, text in documents:
    text = text.replace("\r\n", "\n").replace("\r", "\n").replace("\0", "").strip()
    digest = hashlib.sha256(text.encode()).digest()
    if len(text) >= SHORTEST and digest not in seen:
      seen.add(digest)
      yield {"id": name, "text": text}


def decoded(content: bytes) -> str:
  """UTF-8, or else Windows-1252, which can decode every byte string."""
  try:
    return content.decode("utf-8-sig")
  except UnicodeDecodeError:
    return content.decode("cp1252", "replace")


def unpacked(files: Files) -> Iterator[tuple[str, str]]:
  """(path without .gz or .dz, text)."""
  for path, content in files.items():
    if path.endswith((".gz", ".dz")):
      path, content = path[:-3], gzip.decompress(content)
    yield path, decoded(content)


def stem(path: str) -> str:
  return os.path.splitext(os.path.basename(path))[0]


def pages(name: str, entries: Iterable[str]) -> Iterator[tuple[str, str]]:
  page, size, n = [], 0, 0
  for entry in entries:
    page.append(entry)
    size += len(entry)
    if size >= PAGE:
      yield f"{name}-{n}", "\n".join(page)
      page, size, n = [], 0, n + 1
  yield f"{name}-{n}", "\n".join(page)


def plain(files: Files) -> Iterator[dict]:
  """Each file is a document."""
  return cleaned((stem(path), text) for path, text in unpacked(files))


def code(files: Files) -> Iterator[dict]:
  return cleaned((path, text) for path, text in unpacked(files) if "/locale/" not in path)


def wiki(files: Files) -> Iterator[dict]:
  (content,) = files.values()
  return cleaned((title, row["extract"]) for title, row in json.loads(content).items())


def brown(files: Files) -> Iterator[dict]:
  """`word/tag` -> running text: Brown separates all tokens by spaces and repeats some punctuation marks."""
  tight = [
    (r"(\S+)/[^\s/]+", r"\1"),
    (r"\s+", " "),
    (r"([?!;:]) \1", r"\1"),
    (r"`` ?", '"'),
    (r" ?''", '"'),
    (r" ([,.;:?!)\]])", r"\1"),
    (r"([(\[]) ", r"\1"),
  ]

  def running(paragraph: str) -> str:
    for pattern, new in tight:
      paragraph = re.sub(pattern, new, paragraph)
    return paragraph.strip()

  return cleaned(
    (stem(path), "\n\n".join(filter(None, map(running, re.split(r"\n\s*\n", text))))) for path, text in unpacked(files)
  )


def austen(files: Files) -> Iterator[dict]:
  """An R data store: for each novel 4 bytes of length and a zlib stream, which holds an XDR vector of lines."""
  (store,) = files.values()

  def novels() -> Iterator[tuple[str, str]]:
    at = 0
    while at < len(store):
      stream = zlib.decompressobj()
      vector = stream.decompress(store[at + 4 :])
      at = len(store) - len(stream.unused_data)
      lines, p = [], 31  # past the header: format, versions, encoding, type, number of lines
      while p < len(vector):
        n = int.from_bytes(vector[p + 4 : p + 8], "big")
        lines.append(decoded(vector[p + 8 : p + 8 + n]))
        p += 8 + n
      yield lines[0].title(), "\n".join(lines)

  return cleaned(novels())


def anarchism(files: Files) -> Iterator[dict]:
  """Markdown -> text, without lists of links and tables of contents."""

  def essays() -> Iterator[tuple[str, str]]:
    for path, text in unpacked(files):
      links = text.count("](")
      text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
      text = re.sub(r"\*\*|__|(?<!\w)_|_(?!\w)|^ *[‹›].*$", "", text, flags=re.MULTILINE)
      if stem(path) not in ("alinks", "arlinks", "biblio") and links < len(text) / 250:
        yield stem(path), re.sub(r"\n\s*\n\s*\n", "\n\n", text)

  return cleaned(essays())


def gcide(files: Files) -> Iterator[dict]:
  """Entries joined to pages, without pronunciations, sources and marks of cross-references."""
  (content,) = files.values()

  def entries() -> Iterator[str]:
    for entry in re.split(rb"\n(?=[^\s])", gzip.decompress(content)):
      text = re.sub(r"\s*\\[^\\]{1,80}\\", "", decoded(entry))
      text = re.sub(r"\s*\[[^\[\]]*(?:Webster|WordNet|PJC|GG)[^\[\]]*\]", "", text)
      text = re.sub(r"[{}]", "", text)
      if not text.startswith("00-database"):
        yield text.strip() + "\n"

  return cleaned(pages("gcide", entries()))


def wordnet(files: Files) -> Iterator[dict]:
  """`word, word: gloss` lines, joined to pages; a file holds one part of speech, sorted by field."""

  def glosses(text: str) -> Iterator[str]:
    for line in text.splitlines():
      if line[0] != " ":  # the licence
        fields, _, gloss = line.partition(" | ")
        fields = fields.split(" ")
        words = fields[4 : 4 + 2 * int(fields[3], 16) : 2]
        yield ", ".join(re.sub(r"\(\w+\)$", "", w).replace("_", " ") for w in words) + ": " + gloss.strip()

  return cleaned(page for path, text in unpacked(files) for page in pages(path.rpartition(".")[2], glosses(text)))


def ham(files: Files) -> Iterator[dict]:
  """Subject and first plain text of each message that is not spam; other headers are addresses and routes."""

  def messages() -> Iterator[tuple[str, str]]:
    for path, content in files.items():
      message = email.message_from_bytes(content)
      subject = re.sub(r"\s+", " ", str(message["subject"] or ""))
      body = next((p for p in message.walk() if p.get_content_type() == "text/plain"), None)
      if body is not None:
        yield "/".join(path.split("/")[-2:]), f"Subject: {subject}\n\n" + decoded(body.get_payload(decode=True))

  return cleaned(messages())


def licences(files: Files) -> Iterator[dict]:
  """Texts without their YAML header."""
  return cleaned((stem(path), text.split("\n---\n", 1)[-1]) for path, text in unpacked(files))


def kernel_docs(files: Files) -> Iterator[dict]:
  """reStructuredText, unchanged; without translations."""
  texts = ((path.split("/Documentation/")[-1], text) for path, text in unpacked(files))
  return cleaned((path, text) for path, text in texts if not path.startswith("translations/"))


def python_docs(files: Files) -> Iterator[dict]:
  """Each node of the Info file is a document; menus, indices, footnotes and note marks are removed."""
  ((_, info),) = unpacked(files)

  def nodes() -> Iterator[tuple[str, str]]:
    for node in info.split("\x1f\n"):
      head, _, text = node.partition("\n")
      name = re.match(r"File: .*?,  Node: (.*?),  ", head)
      if name and "Index" not in name[1]:
        text = re.sub(r"^\* Menu:\n.*", "", text, flags=re.MULTILINE | re.DOTALL)
        text = re.sub(r"^ *-+ Footnotes -+\n.*", "", text, flags=re.MULTILINE | re.DOTALL)
        yield name[1], re.sub(r"\*note\s+([^:]+?)(?:: [^.,]+?\.|::)", r"\1", text)

  return cleaned(nodes())


def metamath(files: Files) -> Iterator[dict]:
  """Each section of the database is a document."""
  (content,) = files.values()
  sections = re.split(r"(?m)^(?=[ \t]*\$\(\s*\n[ \t]*(?:#\*#\*|=-=-|-\.-\.))", decoded(content))

  def named() -> Iterator[tuple[str, str]]:
    for n, section in enumerate(sections):
      yield f"{n}: {(section.split(chr(10)) + [''] * 3)[2].strip()}", section

  return cleaned(named())


def row(name: str, context: str, continuation: str, **more) -> dict:
  return {"id": name, "text": context + continuation, "context": context, "continuation": continuation, **more}


def lines(files: Files) -> Iterator[dict]:
  ((_, text),) = unpacked(files)
  return map(json.loads, filter(str.strip, text.split("\n")))  # rows may hold U+2028 and the like


def gsm8k(files: Files) -> Iterator[dict]:
  for r in lines(files):
    yield row(f"gsm8k-{r['doc_id']}", f"Question: {r['doc']['question']}\nAnswer:", r["request"]["continuation"])


def squad(files: Files) -> Iterator[dict]:
  for r in lines(files):
    yield row(r["doc"]["id"], r["doc"]["query"], r["request"]["continuation"])


def lambada(files: Files) -> Iterator[dict]:
  for r in lines(files):
    yield row(f"lambada-{r['doc_id']}", r["request"]["context"], r["request"]["continuation"])


def bigbench(files: Files, name: str, before: str, after: str) -> Iterator[dict]:
  """The correct choice is the continuation; each row keeps the canary of the benchmark."""
  task = json.loads(files[next(iter(files))])
  for n, example in enumerate(task["examples"]):
    choices = [" " + c for c in example["target_scores"]]
    gold = " " + max(example["target_scores"], key=example["target_scores"].get)
    yield row(f"{name}-{n}", before + example["input"] + after, gold, choices=choices, canary=task["canary"])


def dyck(files: Files) -> Iterator[dict]:
  return bigbench(files, "dyck", "", "")


def math_qa(files: Files) -> Iterator[dict]:
  return bigbench(files, "math", "Question: ", "\nAnswer:")


def cifar10(files: Files) -> Iterator[dict]:
  """Rows of `png` (base64), `label` and `name` of its class; the package has them class by class."""
  task = json.loads(files[next(iter(files))])
  names = sorted(task["examples"][0]["target_scores"])
  for n, example in enumerate(task["examples"]):
    name = max(example["target_scores"], key=example["target_scores"].get)
    yield {"id": f"cifar10-{n}", "png": example["input"], "label": names.index(name), "name": name}


def fashion_mnist(files: Files) -> Iterator[dict]:
  """Rows like those of `cifar10`; black margins of two pixels make the pictures 32 pixels wide."""
  import numpy as np
  from PIL import Image

  names = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "boot")
  pictures, labels = (gzip.decompress(content) for content in files.values())  # images before labels, by name
  pixels = np.frombuffer(pictures, np.uint8, offset=16).reshape(-1, 28, 28)
  for n, (picture, label) in enumerate(zip(np.pad(pixels, ((0, 0), (2, 2), (2, 2))), labels[8:], strict=True)):
    png = io.BytesIO()
    Image.fromarray(picture).save(png, "png", compress_level=0)  # whose bytes do not depend on a library's version
    encoded = base64.b64encode(png.getvalue()).decode()
    yield {"id": f"fashion-mnist-{n}", "png": encoded, "label": label, "name": names[label]}


def neox(files: Files) -> Iterator[dict]:
  """The tokenizer without the three tokens for personal data that this package adds: 50,277 ids."""
  (content,) = files.values()
  tokenizer = json.loads(content)
  tokenizer["added_tokens"] = [t for t in tokenizer["added_tokens"] if t["id"] < 50277]
  yield tokenizer


def film(files: Files) -> Iterator[bytes]:
  """The film in a zip inside the package, as it is."""
  (archive,) = files.values()
  with zipfile.ZipFile(io.BytesIO(archive)) as z:
    (name,) = [n for n in z.namelist() if n.endswith("bbb.mp4")]
    yield z.read(name)
