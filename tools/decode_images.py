"""Decodes pictures once into squares of fixed size, for `config.data.source`.

Run the same command after an interruption: it goes on where it stopped. Pictures that cannot be used (broken, cut
short, CMYK, of 16 bits, animated, too small) are named and left out, up to a share of --max_bad.

  python tools/decode_images.py --source=photos --size=128 --out=data/photos_128
  python -m ebt_jax.main --config=configs/image_ebt.py --workdir=runs/photos --config.data.source=data/photos_128 \
      --config.image.size=128 --config.image.patch=16
"""

import argparse
from collections.abc import Sequence
import sys

from ebt_jax import cli
from ebt_jax.config import DataConfig, ImageConfig
from ebt_jax.data import picture_items
from ebt_jax.data.image_folder import Writer
from ebt_jax.data.progress import Progress
from ebt_jax.owner import Owner

PART = 1024  # files after which the state is saved


def main(argv: Sequence[str] | None = None) -> None:
  """Runs the tool; raises UserError if a flag or the source is unusable."""
  data, image = DataConfig(), ImageConfig()
  parser = cli.Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--source", required=True, help="pictures: files, globs, folders, or tfds:NAME")
  parser.add_argument("--out", type=cli.path, required=True, help="folder to write")
  parser.add_argument(
    "--size", type=cli.at_least(1), default=image.size, help=f"pixels on a side (default {image.size})"
  )
  parser.add_argument("--channels", type=int, choices=(1, 3), default=image.channels)
  parser.add_argument("--held_out", type=float, default=data.held_out, help="fraction of pictures to hold out")
  parser.add_argument("--max_bad", type=float, default=data.max_bad, help="largest share of pictures left out as bad")
  args = parser.parse_args(argv)
  data = DataConfig(source=args.source, held_out=args.held_out, max_bad=args.max_bad)
  data.check()
  image = ImageConfig(size=args.size, channels=args.channels, patch=1)
  items = picture_items.items(args.source)  # raises before a folder is made where there is no picture
  with Owner(args.out, "--out"):
    run(Writer(str(args.out), items, data, image))


def run(writer: Writer) -> None:
  """Decodes what the folder does not hold yet."""
  total = len(writer.items)
  if writer.finished:
    print("complete", file=sys.stderr)
    return
  if writer.done:
    print(f"going on after {writer.done:,} pictures", file=sys.stderr)
  progress = Progress("decoding", quiet_s=1.0, unit="pictures")
  while writer.done < total:
    writer.step()
    if writer.done % PART == 0:
      writer.commit()
    progress.update(writer.done, 0, 0.0, writer.done / total)
  progress.close()
  for split, count in writer.finish().items():
    print(f"{split}: {count}")
  print(f"left out: {str(writer.left_out) or 'nothing'}")


if __name__ == "__main__":
  sys.exit(cli.door(main, sys.argv[1:]))
