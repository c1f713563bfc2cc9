"""Pictures of a prepared TFDS data set, as `configs/image_ebt.py:paper` takes them."""

from tests.helpers import with_data_sets

PROGRAM = """
import dataclasses, io, pathlib, sys
import numpy as np
from PIL import Image
import tensorflow_datasets as tfds
from ebt_jax.config import ConfigError, DataConfig, ImageConfig
from ebt_jax.data import image_folder, images, picture_items

def png(shape, seed, kind="PNG"):
  out = io.BytesIO()
  Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).save(out, kind)
  return out.getvalue()

class TinyPhotos(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")
  def _info(self):
    features = {"image": tfds.features.Image(shape=(None, None, 3)), "label": tfds.features.ClassLabel(num_classes=3)}
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))
  def _split_generators(self, dl_manager):
    return {"train": self._generate_examples(30), "small": self._generate_examples(0)}
  def _generate_examples(self, n):
    for i in range(n):
      yield i, {"image": png((12, 10 + i % 5, 3), i), "label": i % 3}
    if not n:
      for i in range(4):
        yield i, {"image": png((7, 12, 3), i), "label": 0}
      for i in range(4, 20):
        yield i, {"image": png((12, 12, 3), i)[: -200 if i == 4 else None], "label": 0}

class TinyWords(tfds.core.GeneratorBasedBuilder):
  VERSION = tfds.core.Version("1.0.0")
  def _info(self):
    return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict({"text": tfds.features.Text()}))
  def _split_generators(self, dl_manager):
    return {"train": iter([(0, {"text": "a"})])}
  def _generate_examples(self, n):
    pass

IMAGE = ImageConfig(size=8)

def data(source, **more):
  return DataConfig(source=source, held_out=0.3, **more)

def error(source, image=IMAGE, **more):
  try:
    images.build(data(source, **more), image)
  except ConfigError as e:
    print(e)
    return str(e)

missing = error("tfds:tiny_photos")
assert "config.data.source" in missing and "not prepared" in missing and "array_record" in missing, missing
TinyPhotos(file_format="array_record").download_and_prepare()
TinyWords(file_format="array_record").download_and_prepare()
found = images.build(data("tfds:tiny_photos"), IMAGE)
assert len(found.train) + len(found.held_out) == 30 and len(found.held_out) > 3
row = found.train.rows(np.arange(2))
assert row["picture"].shape == (2, 8, 8, 3) and row["picture"].dtype == np.uint8 and row["picture"].std() > 10
assert set(found.train.labels) == {0, 1, 2} and "left_out" not in found.summary
few = images.build(data("tfds:tiny_photos:train[:50%]", max_documents=12), IMAGE)
assert len(few.train) + len(few.held_out) == 12
writer = image_folder.Writer(sys.argv[1], picture_items.items("tfds:tiny_photos"), data("tfds:tiny_photos"), IMAGE)
while writer.done < 30:
  writer.step()
writer.finish()
mapped = images.build(data(sys.argv[1]), IMAGE)
assert mapped.train.fingerprint() == found.train.fingerprint(), "decoded ahead and in memory differ"

# each mistake names the key, what is wrong and what to do; single pictures are left out and counted
some = images.build(data("tfds:tiny_photos:small", max_bad=0.5), IMAGE)
line = images.lines(some.summary)[1]
assert "smaller than image.size=8: 4" in line and "broken: 1" in line, line
refused = error("tfds:tiny_photos:small")
assert "5 of 20 pictures cannot be used" in refused and "data.max_bad" in refused, refused
grey = error("tfds:tiny_photos", ImageConfig(size=8, channels=1))
assert "30 of 30" in grey and "of 3 channels, where image.channels=1" in grey, grey
assert "no feature `image`, expected one; found text" in error("tfds:tiny_words")
assert "found small, train" in error("tfds:tiny_photos:valid")
assert "did you mean tiny_photos" in error("tfds:tiny_fotos")
assert "tensorflow" not in sys.modules
"""


def test_pictures_of_a_prepared_data_set(tmp_path):
  with_data_sets(PROGRAM, tmp_path / "sets", str(tmp_path / "decoded"))
