"""Tokenises a large text source once, into a folder for `config.data.source`.

If it is killed, run the same command again: it continues after the last finished part and ends with the same files.

  python tools/tokenize_text.py --source 'corpus/*.jsonl.xz' --tokenizer tokenizer.json --out tokens
"""

import argparse
from collections.abc import Sequence
import sys

from ebt_jax import cli
from ebt_jax.config import ConfigError, DataConfig
from ebt_jax.data import coverage
from ebt_jax.data.answers import Fields
from ebt_jax.data.progress import Progress
from ebt_jax.data.sources import Source
from ebt_jax.data.text import split_documents, tokenized
from ebt_jax.data.token_folder import Writer
from ebt_jax.data.tokenizers import Tokenizer, load_tokenizer


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the tool; raises ConfigError if a flag, the source or the tokenizer is unusable."""
  default = DataConfig()
  parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--source", required=True, help="as config.data.source: files, globs, folders, tfds:NAME")
  parser.add_argument("--tokenizer", required=True, help="`bytes` or the path of a tokenizer.json")
  parser.add_argument("--out", type=cli.path, required=True, help="folder to write")
  parser.add_argument("--context_length", type=cli.at_least(2), default=default.context_length)
  parser.add_argument("--layout", choices=("packed", "document"), default=default.layout)
  parser.add_argument("--held_out", type=float, default=default.held_out, help="fraction of documents to hold out")
  parser.add_argument("--text_key", default=default.text_key, help="field or column of jsonl, parquet and tfds")
  parser.add_argument("--max_documents", type=cli.at_least(0), default=0, help="0: all")
  parser.add_argument(
    "--part_tokens", type=cli.at_least(1), default=2**24, help="tokens after which the state is saved"
  )
  args = parser.parse_args(argv)
  if not 0 < args.held_out < 1:
    parser.error(f"--held_out: expected a fraction between 0 and 1, found {args.held_out}")
  args.out = str(args.out)
  run(args)


def run(args: argparse.Namespace) -> None:
  """Tokenises as `args` say; raises ConfigError if the source or the tokenizer is unusable."""
  tokenizer = load_tokenizer(args.tokenizer)
  source = Source(args.source, Fields(args.text_key), args.max_documents)
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
  docs = writer.follow(split_documents(source, args.source, Fields(args.text_key)))
  for n, one in enumerate(tokenized(docs, tokenizer, args.held_out), writer.documents + 1):
    if one.counted is not None:
      raise ConfigError(
        f"--text_key: {args.text_key!r} holds chats, and a folder of tokens has no place for what is not learnt; train "
        "on the files themselves"
      )
    writer.add(one.split, one.ids, one.covered)
    tokens += len(one.ids)
    text_bytes += one.covered.text_bytes
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
  sys.exit(cli.door(main, sys.argv[1:]))
