"""An object store for tests: fsspec's files of this machine by the name of a bucket, `s3://...`."""

import os

from etils.epath import backend
import fsspec
from fsspec.implementations.local import LocalFileSystem

ROOT = "EBT_TEST_BUCKET"


class Bucket(LocalFileSystem):
  """`s3://a/b` is the file `$EBT_TEST_BUCKET/a/b`."""

  protocol = "s3"
  cachable = False

  def __init__(self, **options):
    super().__init__(auto_mkdir=True, **options)

  @classmethod
  def _strip_protocol(cls, path):
    path = os.fspath(path)
    path = os.path.join(os.environ[ROOT], path.removeprefix("s3://")) if path.startswith("s3://") else path
    return super()._strip_protocol(path)


def use(root) -> None:
  """Puts it in the place of S3."""
  os.environ |= {ROOT: os.fspath(root), "EPATH_USE_TF": "false"}
  fsspec.register_implementation("s3", Bucket, clobber=True)
  backend.fsspec_backend._get_filesystem.cache_clear()
