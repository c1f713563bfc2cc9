"""Pages that show thinking: their numbers are those of the models, and browsers, paper and listeners can use them."""

import html.parser
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import runs
from ebt_jax.config import Config, set_keys
from ebt_jax.evaluation import filling, image_report, puzzles, text_report, thoughts, video_report
from ebt_jax.evaluation.asked import Asked
from ebt_jax.tasks import registry
from ebt_jax.use.image import Pictures
from ebt_jax.use.sampling import Sampling

SMALL = ["model.layers=1", "model.heads=1", "model.width=8", "data.context_length=16", "eval.steps=3"]
SUDOKU = ["sudoku.size=4", "sudoku.givens_min=8", "sudoku.givens_max=10", "sudoku.harder_min=5", "sudoku.harder_max=6"]
VIDEO = [
  "data.source=shapes",
  "data.held_out=0.6",
  "video.size=8",
  "video.rank=4",
  "video.clips=6",
  "thinking.start=zeros",
]
VOID = {"meta", "br", "img", "polyline", "circle"}
ASKED = Asked(["Of <b>"], "", 12, Sampling(), 0, "page.html")


def run_of(*keys: str) -> runs.Run:
  task = registry.make(set_keys(Config(), [*SMALL, *keys]))
  return runs.Run(task.config, task, task.init(jax.random.key(3)), 0, pathlib.Path("a&b"))


def page_of(name: str) -> tuple[str, object, runs.Run]:
  """A page, what it shows, and the run."""
  if name.startswith("text"):
    kind = name.partition(" ")[2]
    run = run_of(f"model.kind={kind}", *(["eval.candidates=2"] if kind == "ebt" else ["eval.steps=0"]))
    report, questions = text_report, ASKED.prompts
  elif name == "infill":
    run, report, questions = run_of("task=infill"), filling, ["a <__> b_"]
  elif name == "sudoku":
    run, report = run_of("task=sudoku", *SUDOKU), puzzles
    questions = report.read(ASKED._replace(prompts=["0010400003001030"]), run.config)
  elif name == "video":
    run, report, questions = run_of("task=video", *VIDEO), video_report, "shapes"
  else:
    run, report = run_of("task=image", "image.size=8", "image.patch=4", "thinking.start=input"), image_report
    questions = Pictures(np.zeros((1, 8, 8, 3), np.uint8), ["a picture"], "")
    questions = questions._replace(left_out=image_report.LeftOut())
  found = report.answer(run, questions, ASKED)
  return thoughts.whole(run, "How it thinks", report.sections(run, found)), found, run


class Reader(html.parser.HTMLParser):
  """What a page holds; complains about tags that are not closed in order."""

  def __init__(self, text: str):
    super().__init__()
    self.open, self.tags, self.attributes = [], [], []
    self.feed(text)
    assert not self.open, self.open

  def handle_starttag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes.append((tag, dict(attrs)))
    if tag not in VOID:
      self.open.append(tag)

  def handle_startendtag(self, tag, attrs):
    self.tags.append(tag)
    self.attributes.append((tag, dict(attrs)))

  def handle_endtag(self, tag):
    assert self.open.pop() == tag


PAGES = ["text ebt", "text transformer", "infill", "sudoku", "image", "video"]


@pytest.fixture(scope="module")
def pages():
  return {name: page_of(name) for name in PAGES}


@pytest.mark.parametrize("name", PAGES)
def test_a_page_stands_alone_and_can_be_listened_to(pages, name):
  page, _, _ = pages[name]
  found = Reader(page)
  assert page.startswith("<!doctype html>") and ("html", {"lang": "en"}) in found.attributes
  assert found.tags.count("h1") == found.tags.count("main") == found.tags.count("title") == 1 <= found.tags.count("h2")
  assert "a&amp;b" in page and "a&b" not in page  # what a user has named is text
  outside = re.findall(r"""(?:src|href|url\()=?["']?(?!data:)([a-z]+:|//|[\w/]+\.)""", page)
  assert not outside and not {"link", "iframe", "object"} & set(found.tags)
  for tag, attributes in found.attributes:
    assert tag != "img" or (attributes["alt"] and attributes["src"].startswith("data:image/png;base64,"))
    assert tag != "svg" or (attributes["role"] == "img" and attributes["aria-label"])
    assert "onclick" not in attributes and "style" not in attributes
  ids = [a["id"] for _, a in found.attributes if "id" in a]
  assert len(ids) == len(set(ids)) and {a["data-thought"] for _, a in found.attributes if "data-thought" in a} <= {*ids}


def test_the_page_of_a_text_has_the_numbers_of_its_thoughts(pages):
  page, found, run = pages["text ebt"]
  ((prompt, tokens),) = found.thoughts
  assert prompt == "Of <b>" and "Of &lt;b&gt;" in page and "<b>\n" not in page
  assert [t.text for t in tokens] == [t["text"] for t in text_report.results(run, found)[0]["tokens"]]
  assert page.count("data-thought=") == len(tokens) == page.count("<template")
  for token in tokens:
    assert f"<i>{token.energy:.2f}</i>" in page  # the number beside the colour
    assert f"energy {token.energy:.4f}, probability {token.p:.4f}" in page
    assert token.energy == pytest.approx(token.energies[-1, token.kept]) == pytest.approx(token.energies[-1].min())
    assert len(token.likeliest) == 3 and [t.p for t in token.likeliest[-1]] == sorted(
      (t.p for t in token.likeliest[-1]), reverse=True
    )
  plain = text_report.answer(run, ASKED.prompts, ASKED._replace(out=""))
  assert plain.written[0].tokens == found.written[0].tokens and plain.written[0].energies == found.written[0].energies


def test_held_out_tokens_are_those_of_evaluation():
  """Probabilities, energies and what the likeliest tokens cost alone, against the doors of evaluation."""
  run = run_of("thinking.start=zeros")
  model, one = text_report.TextModel(run), run.task
  text = "plain text"
  found, scores = model.thoughts(text, top=3), model.score(text)
  assert "".join(t.text for t in found) == text
  np.testing.assert_allclose([t.p for t in found], np.exp(scores.log_likelihood), rtol=1e-4)
  np.testing.assert_allclose(np.stack([t.energies[:, 0] for t in found], 1), scores.energies, rtol=1e-4, atol=1e-5)
  for i in (1, 5):
    likely = found[i].likeliest[-1][0]
    tokens = np.zeros((1, 17), np.int32)
    tokens[0, : i + 1] = [model.tokenizer.end_of_text, *model.encode(text[:i])]
    tokens[0, i + 1] = _id(likely.text)  # the likeliest token, put there
    y = one.space.embed_target(run.params["model"], jnp.asarray(tokens[:, 1:]))
    wanted = one.energy(run.params, one.context(run.params, {"tokens": jnp.asarray(tokens)}), y)[0, i]
    np.testing.assert_allclose(likely.energy, wanted, rtol=1e-4, atol=1e-5)


def _id(name: str) -> int:
  """Of a byte, as a page names it."""
  value = eval(name)  # a literal of str or bytes
  return (value if isinstance(value, bytes) else value.encode())[0]


def test_boards_blanks_and_pictures_show_each_step(pages):
  page, (solved,), _ = pages["sudoku"]
  for i, energy in enumerate(solved.energies, 1):
    assert f"step {i}: energy {energy:.4f}, " in page
  assert page.count('<table class="board">') == 4 and page.count("×<span") == solved.wrong.sum()
  page, (filled,), _ = pages["infill"]
  assert all(f"<td>{s.score:.4f}</td>" in page for s in filled.steps) and "&lt;__&gt;" in page
  assert page.count("<mark>") == 3 * 2
  page, films, _ = pages["video"]
  assert page.count("<img ") == 6 * 13 and all(f"energy {e:.4f}" in page for film in films for e in film.energies)
  page, answers, _ = pages["image"]
  assert page.count("<img ") == 5 and f"step 3, energy {answers.found.energies[3, 0]:.4f}, PSNR" in page


def _luminance(color: str) -> float:
  values = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
  linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in values]
  return float(np.dot(linear, (0.2126, 0.7152, 0.0722)))


def _contrast(a: str, b: str) -> float:
  high, low = sorted((_luminance(a), _luminance(b)), reverse=True)
  return (high + 0.05) / (low + 0.05)


def test_every_pair_of_colours_can_be_read(pages):
  style = pages["text ebt"][0]
  style = style[style.index("<style>") : style.index("</style>")]
  light, dark = style.split("@media (prefers-color-scheme: dark)")
  colors = {}
  for text in (light, dark):
    found = {n: c if len(c) == 7 else "#" + "".join(2 * x for x in c[1:]) for n, c in
             re.findall(r"--(\w+): (#[0-9a-fA-F]{3,6})", text)}  # fmt: skip
    colors = {**colors, **found}
    for paper in ("paper", "box", *(f"e{i}" for i in range(thoughts.LEVELS)), "fill"):
      assert _contrast(colors["ink"], colors[paper]) >= 4.5, paper
    for ink, paper in (("soft", "paper"), ("soft", "box"), ("wrong", "paper")):
      assert _contrast(colors[ink], colors[paper]) >= 4.5, (ink, paper)
    assert all(_contrast(colors["mark"], colors[p]) >= 3 for p in ("paper", "box"))
  assert len(re.findall(r"--e\d: ", dark)) == thoughts.LEVELS


def test_in_a_browser(pages, tmp_path):
  """With Playwright and EBT_BROWSER, a Chromium: keys, a tap, no message; with EBT_AXE, axe.min.js: no violation."""
  sync_api = pytest.importorskip("playwright.sync_api")
  if not os.environ.get("EBT_BROWSER"):
    pytest.skip("EBT_BROWSER names no Chromium")
  axe = os.environ.get("EBT_AXE")
  with sync_api.sync_playwright() as play:
    browser = play.chromium.launch(executable_path=os.environ["EBT_BROWSER"], args=["--no-sandbox"])
    for name in PAGES:
      path = tmp_path / "page.html"
      path.write_text(pages[name][0], encoding="utf-8")
      for size, scheme in (((1100, 900), "light"), ((360, 740), "dark")):
        view = browser.new_context(
          viewport={"width": size[0], "height": size[1]}, color_scheme=scheme, has_touch=True
        ).new_page()
        said = []
        view.on("console", lambda message: said.append(message.text))
        view.on("pageerror", lambda error: said.append(str(error)))
        view.on("request", lambda request: request.url.startswith(("file:", "data:")) or said.append(request.url))
        view.goto(path.as_uri())
        if name.startswith("text"):
          view.keyboard.press("Tab")
          view.keyboard.press("ArrowRight")
          assert view.locator("#panel h3").inner_text().startswith("Token 2:")
          view.locator(".tokens button").nth(4).tap()
          assert view.locator("#panel h3").inner_text().startswith("Token 5:")
        assert view.evaluate("document.documentElement.scrollWidth <= innerWidth")
        if axe:
          view.evaluate(pathlib.Path(axe).read_text(encoding="utf-8"))
          assert [v["id"] for v in view.evaluate("axe.run()")["violations"]] == []
        assert said == []
    browser.close()
