"""Picture files: what cannot be used is named, counted and refused beyond a share; splits do not overlap."""

import base64
import dataclasses
import io
import json
import lzma
import os
import struct
import zlib

import numpy as np
from PIL import Image
import pytest

from ebt_jax.config import ConfigError, DataConfig, ImageConfig
from ebt_jax.data import image_folder, images, picture_items, pictures
from ebt_jax.data.loader import Loader

IMAGE = ImageConfig(size=8)
DATA = DataConfig(held_out=0.3)


def picture(seed=0, size=(16, 12), mode="RGB"):
  pixels = np.random.default_rng(seed).integers(0, 255, (*size[::-1], 3), np.uint8)
  return Image.fromarray(pixels).convert(mode)


def saved(image, kind="PNG", **options):
  out = io.BytesIO()
  image.save(out, kind, **options)
  return out.getvalue()


def png_of_16_bits():
  """A colour PNG of 16 bits, which Pillow reads and cannot write."""

  def chunk(name, content):
    body = name + content
    return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

  rows = b"".join(b"\0" + bytes(9 * 6) for _ in range(9))
  head = struct.pack(">IIBBBBB", 9, 9, 16, 2, 0, 0, 0)
  return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


BAD = {
  "zero.png": (b"", "empty files"),
  "noise.jpg": (bytes(range(200)), "broken"),
  "cut.jpg": (saved(picture(size=(90, 90)), "JPEG")[:-900], "cut short"),
  "cut.png": (saved(picture(size=(90, 90)))[:-9000], "cut short"),
  "cmyk.jpg": (saved(picture(mode="CMYK"), "JPEG"), "CMYK"),
  "grey16.png": (saved(Image.fromarray(np.zeros((9, 9), np.uint16))), "of 16 bits"),
  "rgb16.png": (png_of_16_bits(), "of 16 bits"),
  "moving.webp": (saved(picture(), "WEBP", save_all=True, append_images=[picture(1)], duration=9), "animated"),
  "small.png": (saved(picture(size=(16, 7))), "smaller than image.size=8"),
}


@pytest.fixture
def folder(tmp_path):
  """20 good pictures of two kinds."""
  for i in range(20):
    place = tmp_path / "photos" / "ab"[i % 2]
    place.mkdir(parents=True, exist_ok=True)
    name, kind = ((f"{i}.png", "PNG"), (f"{i}.webp", "WEBP"))[i % 3 == 0]
    picture(i, (20 + i, 16)).save(place / name, kind)
  return tmp_path / "photos"


@pytest.mark.parametrize("name", BAD)
def test_a_bad_picture_is_named(name, folder):
  content, reason = BAD[name]
  with pytest.raises(pictures.BadPicture, match=reason):
    pictures.decode(content, IMAGE)
  (folder / name).write_bytes(content)
  data = DataConfig(source=str(folder), held_out=0.3, max_bad=0.05)
  split = images.build(data, IMAGE)
  assert len(split.train) + len(split.held_out) == 20
  assert f"{name}" in images.lines(split.summary)[1] and reason in images.lines(split.summary)[1]
  with pytest.raises(ConfigError, match=r"1 of 21 pictures cannot be used .*max_bad \(now 0.02\)"):
    images.build(DataConfig(source=str(folder), held_out=0.3, max_bad=0.02), IMAGE)


def test_all_kinds_of_good_pictures_are_read(folder):
  for mode in ("L", "P", "RGBA", "LA"):
    picture(mode="RGB").convert(mode).save(folder / f"{mode}.png")
  split = images.build(DataConfig(source=str(folder), held_out=0.3), IMAGE)
  assert len(split.train) + len(split.held_out) == 24 and "left_out" not in split.summary
  assert pictures.decode(saved(picture(mode="L")), ImageConfig(size=8, channels=1)).shape == (8, 8, 1)
  assert set(split.train.labels) == {0, 1, 2}  # the folders


def test_pictures_are_held_out_by_name_alone(folder):
  split = images.build(DataConfig(source=str(folder), held_out=0.3), IMAGE)
  (folder / "a" / "0.webp").unlink()
  fewer = images.build(DataConfig(source=str(folder), held_out=0.3), IMAGE)
  assert abs(len(split.train) - len(fewer.train)) + abs(len(split.held_out) - len(fewer.held_out)) == 1
  rows = Loader(split.train, 4, 0).batch(0)
  assert (
    rows["picture"].shape == (4, 8, 8, 3) and rows["picture"].dtype == np.uint8 and rows["weights"].tolist() == [1] * 4
  )


def test_the_middle_is_kept():
  half = np.zeros((8, 24, 3), np.uint8)
  half[:, 8:16] = 200
  assert (pictures.fit(Image.fromarray(half), IMAGE) == 200).all()
  assert pictures.fit(Image.fromarray(half.repeat(5, 0).repeat(5, 1)), IMAGE).min() > 180


def test_embedded_crops_do_not_overlap_those_held_out():
  split = images.build(DataConfig(held_out=0.2), ImageConfig(size=32))
  _, photos = images.embedded_photos(ImageConfig())
  assert len(photos) == 8 and photos.shape[1:] == (288, 384, 3)
  train, held_out = split.train, split.held_out
  assert train.right == held_out.left and held_out.right == 384
  rows = train.rows(np.array([0, len(train) - 1]))
  assert (rows["picture"][1] == photos[7, 256:, train.right - 32 : train.right]).all() and rows["label"].tolist() == [
    0,
    7,
  ]
  assert set(held_out.rows(np.arange(len(held_out)))["label"]) == set(range(8))
  with pytest.raises(ConfigError, match="image.size: 300 is too large for the embedded photographs"):
    images.build(DataConfig(), ImageConfig(size=300))
  assert len(images.whole(DataConfig(), ImageConfig(size=32))) == 8 * 9 * 12


def test_arrays(tmp_path):
  good = np.random.default_rng(0).integers(0, 255, (20, 12, 10, 3), np.uint8)
  np.savez(tmp_path / "good.npz", images=good, labels=np.arange(20))
  split = images.build(DataConfig(source=str(tmp_path / "good.npz"), held_out=0.3), IMAGE)
  assert sorted([*split.train.labels, *split.held_out.labels]) == list(range(20))
  for name, arrays, words in (
    (
      "grey",
      {"images": good[..., :1]},
      r"expected pictures uint8 \[n, height, width, 3\], found uint8 \[n, 12, 10, 1\]",
    ),
    ("float", {"images": good / 255}, "found float64"),
    ("small", {"images": good[:, :7]}, r"image.size: 8 is more than the pictures of .* have \(7 x 10\)"),
    ("other", {"x": good}, "has no array `images`; found x"),
    ("none", {"images": good[:0]}, "holds no picture"),
    ("labels", {"images": good, "labels": np.arange(3)}, "20 images and 3 labels"),
  ):
    np.savez(tmp_path / f"{name}.npz", **arrays)
    with pytest.raises(ConfigError, match=words):
      images.build(DataConfig(source=str(tmp_path / f"{name}.npz")), IMAGE)
  rows = [{"id": f"{i}", "png": base64.b64encode(saved(picture(i))).decode(), "label": i % 3} for i in range(20)]
  rows[7]["png"] = base64.b64encode(png_of_16_bits()).decode()
  with lzma.open(tmp_path / "rows.jsonl.xz", "wt") as f:
    f.writelines(json.dumps(row) + "\n" for row in rows)
  split = images.build(DataConfig(source=str(tmp_path / "rows.jsonl.xz"), held_out=0.3), IMAGE)
  assert sorted([*split.train.labels, *split.held_out.labels]) == sorted(i % 3 for i in range(20) if i != 7)
  assert "of 16 bits a value or more: 1 (7)" in images.lines(split.summary)[1]
  (tmp_path / "broken.jsonl.xz").write_bytes(b"no xz")
  with pytest.raises(ConfigError, match="cannot be read as rows of id, png and label"):
    images.build(DataConfig(source=str(tmp_path / "broken.jsonl.xz")), IMAGE)
  (tmp_path / "broken.npz").write_bytes(b"no zip")
  with pytest.raises(ConfigError, match="cannot be read as .npz"):
    images.build(DataConfig(source=str(tmp_path / "broken.npz")), IMAGE)


def test_nothing_to_read(tmp_path):
  for source, words in (
    (tmp_path, "holds no picture; expected .png.*found nothing at all"),
    (tmp_path / "none", "no file, folder or match"),
  ):
    with pytest.raises(ConfigError, match=words):
      images.build(DataConfig(source=str(source)), IMAGE)
  (tmp_path / "text.txt").write_text("no picture")
  with pytest.raises(ConfigError, match="files of a kind that is not read: 1 .text.txt"):
    images.build(DataConfig(source=str(tmp_path)), IMAGE)
  (tmp_path / "one.png").write_bytes(saved(picture()))
  with pytest.raises(ConfigError, match="of 1 pictures leaves no (training|held-out) picture"):
    images.build(DataConfig(source=str(tmp_path)), IMAGE)


def writer(folder, source, image=IMAGE):
  return image_folder.Writer(str(folder), picture_items.items(source), dataclasses.replace(DATA, source=source), image)


def written(writer):
  while writer.done < len(writer.items):
    writer.step()
  writer.finish()


def test_decoding_that_is_killed_goes_on_to_the_same_files(folder, tmp_path):
  (folder / "bad.png").write_bytes(b"")
  source = str(folder)
  written(writer(tmp_path / "whole", source))
  part = str(tmp_path / "part")
  first = writer(part, source)
  for i in range(11):
    first.step()
    if i in (4, 8):
      first.commit()
  for name in ("train.pixels", "held_out.labels"):  # as if it had been killed while it wrote
    with open(os.path.join(part, name), "ab") as f:
      f.write(b"half a row")
  with pytest.raises(ConfigError, match="is unfinished; run tools/decode_images.py again"):
    images.build(DataConfig(source=part, held_out=0.3), IMAGE)
  again = writer(part, source)
  assert again.done == 9
  written(again)
  for name in sorted(os.listdir(tmp_path / "whole")):
    assert (tmp_path / "whole" / name).read_bytes() == (tmp_path / "part" / name).read_bytes(), name
  in_memory = images.build(DataConfig(source=source, held_out=0.3), IMAGE)
  mapped = images.build(DataConfig(source=part, held_out=0.3), IMAGE)
  for a, b in zip(in_memory[:2], mapped[:2]):
    assert (a.pixels == b.pixels).all() and (a.labels == b.labels).all()
  assert in_memory.summary == mapped.summary and in_memory.train.fingerprint() == mapped.train.fingerprint()
  for data, image, words in (
    (DataConfig(source=part, held_out=0.3), ImageConfig(size=12), "image.size: 12, but .* was made with 8"),
    (DataConfig(source=part, held_out=0.1), IMAGE, "data.held_out: 0.1, but .* was made with 0.3"),
  ):
    with pytest.raises(ConfigError, match=words):
      images.build(data, image)
  with pytest.raises(ConfigError, match="was begun with size=8, found 12"):
    writer(part, source, ImageConfig(size=12))
  os.truncate(os.path.join(part, "train.pixels"), 100)
  with pytest.raises(ConfigError, match="expected .* bytes, found 100"):
    images.build(DataConfig(source=part, held_out=0.3), IMAGE)
