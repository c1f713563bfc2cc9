"""Trained models of blanks, puzzles, pictures and films in Python, as `ebt_jax/use/README.md` shows them."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

import ebt_jax
from ebt_jax import files, record, weights
from ebt_jax.config import Config, ConfigError, set_keys
from ebt_jax.data import film_pictures, shapes, sudoku, sudoku_rules
from ebt_jax.tasks import registry
from tests.helpers import REPOSITORY

README = (REPOSITORY / "ebt_jax/use/README.md").read_text(encoding="utf-8")
SMALL = ["model.layers=1", "model.heads=1", "model.width=8", "eval.steps=2"]
SUDOKU = ["sudoku.size=4", "sudoku.givens_min=8", "sudoku.givens_max=10", "sudoku.harder_min=5", "sudoku.harder_max=6"]
IMAGE = ["task=image", "image.size=8", "image.patch=4"]
VIDEO = ["task=video", "video.size=8", "video.rank=4", "video.clips=30", "video.clip_frames=9", "data.context_length=6"]
VIDEO += ["data.source=shapes", "data.held_out=0.2"]
RUNS = {
  "infill": ["task=infill", "data.context_length=32"],
  "sudoku": ["task=sudoku", *SUDOKU],
  "looped": ["task=sudoku", *SUDOKU, "model.kind=looped"],
  "image_ebt": [*IMAGE, "thinking.start=input"],
  "image_dit": [*IMAGE, "model.kind=dit", "image.passes=2"],
  "video_ebt": [*VIDEO, "thinking.start=input"],
  "video_transformer": [*VIDEO, "model.kind=transformer"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  """A working directory with untrained runs, exported, and a picture."""
  there = tmp_path_factory.mktemp("models")
  for name, keys in RUNS.items():
    task, run = registry.make(set_keys(Config(), [*SMALL, *keys])), there / "runs" / name
    params = task.init(jax.random.key(1))
    draw = np.random.default_rng(2).normal
    params["model"] = jax.tree.map(lambda a: np.float32(a + 0.1 * draw(size=a.shape)), params["model"])
    run.mkdir(parents=True)
    weights.write(run, params, 7)
    files.write_json(run / record.CONFIG, task.config.to_dict())
    record.keep(run, task, None)
  (there / "photos").mkdir()
  pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
  Image.fromarray(pixels).save(there / "photos/a.png")
  (there / "film.gif").write_bytes(film_pictures.gif(shapes.shapes(0, 9, 12, 3)))
  return there


@pytest.fixture
def load(folder, monkeypatch):
  monkeypatch.chdir(folder)
  return lambda name: ebt_jax.load(pathlib.Path("runs") / name)


def test_the_examples_run(load, capsys):
  names = {}
  for block in re.findall(r"```python\n(.*?)```", README, re.S):
    exec(block, names)
  assert "(4, 4)" not in capsys.readouterr().out
  assert names["filled"].text.startswith("The ") and len(names["filled"].steps) == 4
  assert names["solved"].boards.shape == (2, 16) and names["solved"].steps == 2
  assert names["denoised"].answer.shape == (1, 8, 8, 3) and names["denoised"].answer.dtype == np.uint8
  # the energy of the answer is the one that thinking ended with
  found = names["pictures"].energy(names["denoised"].batch["noised"], names["denoised"].steps[-1], level=0.2)
  np.testing.assert_allclose(found, names["denoised"].energies[-1], rtol=1e-4)
  assert names["clean"].shape == (1, 8, 8, 3) and names["pictures"].step == 7
  assert names["more"].frames.shape == (8, 4) and names["found"].errors.shape == names["found"].steps.shape == (8,)


def test_a_board_has_the_energy_of_its_one_hot_cells(load):
  model = load("sudoku")
  puzzle, right = "0010400003001030", "3214412323411432"
  found = model.energy(puzzle, [right, "3214412323414132"])
  np.testing.assert_allclose(model.energy(puzzle, right), found[:1], rtol=1e-5)
  task, params = model._run.task, model._run.params
  one = sudoku_rules.Puzzles(np.array([[*map(int, right)]], np.int8), np.array([[d != "0" for d in puzzle]]))
  batch = sudoku.batch_of(one)
  y = jax.nn.one_hot(batch["target"], 4) @ task.space.table(params["model"])
  np.testing.assert_allclose(task.energy(params, task.context(params, batch), y), found[:1], rtol=1e-4)
  assert found[0] != found[1]
  several = model.solve([puzzle, "3010400003001030"])
  assert (several[0].boards == model.solve(puzzle).boards).all() and several[0].grid.tolist() == [*map(int, right)]


def test_the_doors_of_films_agree(load):
  """A thought is the first frame that is added, its energy that of the frame, and scores are those of thoughts."""
  model = load("video_ebt")
  film, problem = model.read("film.gif").features[0], model._run.task.problem
  several = model.think(film[:4], candidates=3, steps=3, seed=1)
  assert several.frames.shape == (3, 4) and several.energies.shape == (4, 3)
  assert several.kept == several.energies[-1].argmin()
  found = model.energy(film[:4], several.frames[-1:])
  np.testing.assert_allclose(found, several.energies[-1, several.kept :][:1], rtol=1e-4)
  thought = model.think(film[:4])  # one candidate, which starts at the last frame
  first, _, other = model.generate([film[:4], film[:3], film[2:6]], 2)
  np.testing.assert_allclose(first.frames[0], thought.frames[-1], rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(first.energies[0], thought.energies[-1, 0], rtol=1e-4)
  np.testing.assert_allclose(other.frames, model.generate(film[2:6], 2).frames, rtol=1e-4, atol=1e-5)
  scores, pixels = model.score(film), model.decode(film)
  np.testing.assert_array_equal(model.score(pixels).errors, model.score(model.encode(pixels)).errors)
  wanted = problem.error(jnp.asarray(thought.frames[None, -1:]), jnp.asarray(film[None, 4:5]))[0, 0]
  np.testing.assert_allclose(scores.errors[3], wanted, rtol=1e-4)
  np.testing.assert_allclose(scores.energies[:, 3], thought.energies[:, 0], rtol=1e-4)
  copies = problem.error(jnp.asarray(film[None, :-1]), jnp.asarray(film[None, 1:]))[0]
  np.testing.assert_allclose(scores.copy_errors, copies, rtol=1e-5)
  # after six frames the window is full, and another begins with the last of them
  np.testing.assert_allclose(scores.errors[6:], model.score(film[6:]).errors, rtol=1e-4)


def test_rivals_answer_without_energies(load):
  solved = load("looped").solve("0010400003001030", steps=3)
  assert solved.boards.shape == (3, 16) and solved.energies is None and solved.steps is None
  model = load("image_dit")
  found = model.denoise(np.zeros((2, 8, 8, 3), np.uint8), seed=1)
  assert found.steps.shape == (2, 2, 8, 8, 3) and found.energies is None
  films, film = load("video_transformer"), np.ones((4, 4))
  assert films.score(film).energies is None and films.generate(film, 2).energies is None
  noised = model.denoise(np.asarray(found.batch["noised"]), noised=True, seed=1)
  assert "clean" not in noised.batch and (noised.batch["noised"] == found.batch["noised"]).all()
  for call in (lambda: model.energy(found.steps[0], found.steps[1]), lambda: load("looped").energy("0", "0")):
    with pytest.raises(ConfigError, match="energy: model.kind=(dit|looped) has no energies"):
      call()


def test_what_does_not_fit_is_named(load):
  image, puzzles, blanks, films = (load(name) for name in ("image_ebt", "sudoku", "infill", "video_ebt"))
  for call, words in [
    (lambda: image.denoise(np.zeros((2, 8, 8), np.uint8)), r"expected uint8 or float .* \[n, 8, 8, 3\], found uint8"),
    (lambda: image.denoise(np.zeros((2, 8, 8, 3), int)), r"found int64 \[2, 8, 8, 3\]"),
    (lambda: image.denoise(np.zeros((2, 8, 8, 3), np.uint8), 2.0), r"level: expected 0 .* to 1, found 2"),
    (lambda: image.read("nothing"), "no file, folder or match 'nothing'"),
    (lambda: puzzles.solve("123"), "puzzle 1: expected 16 digits, row by row, found 3"),
    (lambda: puzzles.solve(["0010400003001030", "0" * 16]), "puzzle 2: the puzzle has more than one solution"),
    (lambda: puzzles.energy("0010400003001030", "0" * 16), "a board has blanks"),
    (lambda: blanks.fill("no blank"), "prompt 1, 'no blank', has no blank"),
    (lambda: blanks.fill("_" * 33), "has 33 tokens, more than the 32 places of the model"),
    (
      lambda: films.generate(np.zeros((3, 5))),
      r"expected uint8 pixels or float features \[t, 4\], found float64 \[3, 5\]",
    ),
    (
      lambda: films.think(np.zeros((3, 9, 9, 1), np.uint8)),
      r"expected uint8 \[t, 8, 8, 1\], found uint8 \[3, 9, 9, 1\]",
    ),
    (lambda: films.score(np.zeros((1, 4))), "expected 2 or more, found 1"),
    (lambda: films.read("none.gif"), "no file, folder or match 'none.gif'"),
    (lambda: load("video_transformer").think(np.zeros((3, 4))), "think: model.kind=transformer has no energies"),
    (lambda: ebt_jax.load("runs/none"), "runs/none: the folder holds no run .*one of bundled"),
  ]:
    with pytest.raises(ConfigError, match=words):
      call()
