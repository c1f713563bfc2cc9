"""Tokenises a large text source once, into a folder for `config.data.source`.

If it is killed, run the same command again: it continues after the last finished part and ends with the same files.

  python tools/tokenize_text.py --source 'corpus/*.jsonl.xz' --tokenizer tokenizer.json --out tokens
"""

import argparse
from collections.abc import Sequence
import itertools
import sys

from ebt_jax.config import ConfigError, DataConfig
from ebt_jax.data import coverage
from ebt_jax.data.progress import Progress
from ebt_jax.data.sources import Source
from ebt_jax.data.text import split_documents, tokenized
from ebt_jax.data.token_folder import Writer
from ebt_jax.data.tokenizers import Tokenizer, load_tokenizer


def main(argv: Sequence[str] | None = None) -> int:
  """Runs the tool. Returns 0, or 1 after an error, which is printed to standard error."""
  default = DataConfig()
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--source", required=True, help="as config.data.source: files, globs, folders, tfds:NAME")
  parser.add_argument("--tokenizer", required=True, help="`bytes` or the path of a tokenizer.json")
  parser.add_argument("--out", required=True, help="folder to write")
  parser.add_argument("--context_length", type=int, default=default.context_length)
  parser.add_argument("--layout", choices=("packed", "document"), default=default.layout)
  parser.add_argument("--held_out", type=float, default=default.held_out, help="fraction of documents to hold out")
  parser.add_argument("--text_key", default=default.text_key, help="field or column of jsonl, parquet and tfds")
  parser.add_argument("--max_documents", type=int, default=0, help="0: all")
  parser.add_argument("--part_tokens", type=int, default=2**24, help="tokens after which the state is saved")
  args = parser.parse_args(argv)
  if args.context_length < 2 or not 0 < args.held_out < 1 or args.max_documents < 0 or args.part_tokens < 1:
    parser.error("expected context_length >= 2, 0 < held_out < 1, max_documents >= 0 and part_tokens >= 1")
  try:
    run(args)
  except ConfigError as e:
    print(f"error: {e}", file=sys.stderr)
    return 1
  return 0


def run(args: argparse.Namespace) -> None:
  """Tokenises as `args` say; raises ConfigError if the source or the tokenizer is unusable."""
  tokenizer = load_tokenizer(args.tokenizer)
  source = Source(args.source, args.text_key, args.max_documents)
  arguments = {
    name: getattr(args, name)
    for name in ("source", "text_key", "context_length", "layout", "held_out", "max_documents")
  }
  arguments |= {"tokenizer": tokenizer.fingerprint, "input bytes": source.size}
  with Writer(args.out, arguments, tokenizer) as writer:
    write_windows(args, tokenizer, source, writer)


def write_windows(args: argparse.Namespace, tokenizer: Tokenizer, source: Source, writer: Writer) -> None:
  """Tokenises the documents that the folder does not hold yet."""
  if writer.finished:
    print(f"{args.out} is complete", file=sys.stderr)
    return
  if writer.documents:
    print(f"going on after {writer.documents:,} documents", file=sys.stderr)
  progress = Progress(f"tokenising to {args.out}", quiet_s=1.0)
  tokens = text_bytes = 0
  docs = itertools.islice(split_documents(source, args.source, args.text_key), writer.documents, None)
  for n, (split, ids, covered) in enumerate(tokenized(docs, tokenizer, args.held_out), writer.documents + 1):
    writer.add(split, ids, covered)
    tokens += len(ids)
    text_bytes += covered.text_bytes
    if writer.pending >= args.part_tokens:
      writer.commit()
    progress.update(n, tokens, text_bytes / 1e6, source.fraction)
  progress.close()
  summary = writer.finish(source.left_out.as_dict())
  for key, value in summary.items():
    print(f"{key}: {(str(source.left_out) or 'nothing') if key == 'left_out' else value}")
  if text := coverage.warning(summary, tokenizer.name):
    print(f"warning: {text}", file=sys.stderr)


if __name__ == "__main__":
  sys.exit(main())
