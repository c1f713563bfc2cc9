"""Films: what is made here, components, splits, windows, and films that are broken."""

import io

import jax
import numpy as np
import pytest

from ebt_jax.config import ConfigError, DataConfig, VideoConfig, resolve
from ebt_jax.data import film_pictures, films, frame_features, shapes, videos
from ebt_jax.tasks import registry

VIDEO = VideoConfig(size=16, clips=40, clip_frames=12, rank=20)
SHAPES = DataConfig(source="shapes", held_out=0.2, context_length=5)


def film(frames=30, size=(24, 20), seed=0):
  """A moving square, uint8 `[t, h, w, 3]`; another colour from frame 15 on: a cut."""
  rng = np.random.default_rng(seed)
  out = np.zeros((frames, *size, 3), np.uint8)
  out[15:] = 200
  for t in range(frames):
    x = t % 12
    out[t, x : x + 6, 4:10] = rng.integers(60, 140, 3)
  return out


def mp4(frames) -> bytes:
  pytest.importorskip("av")
  return film_pictures.mp4(frames)


def config_of(path, **video):
  return DataConfig(source=str(path), held_out=0.4, context_length=4), VideoConfig(size=16, rank=4, **video)


def test_films_that_are_made_are_functions_of_their_number():
  for kind in shapes.KINDS:
    one = shapes.make(kind, 3, 12, 16, 1)
    assert one.shape == (12, 16, 16, 1) and one.dtype == np.uint8 and one.std() > 10
    assert (one == shapes.make(kind, 3, 12, 16, 1)).all() and (one[:9] == shapes.make(kind, 3, 9, 16, 1)).all()
    assert (one != shapes.make(kind, 4, 12, 16, 1)).any() and (one != shapes.make(kind, 3, 12, 16, 1, seed=1)).any()
  assert shapes.make("shapes", 0, 3, 16, 3).std(-1).max() > 5  # colours differ


def test_two_futures_are_the_same_film_until_the_turn():
  up = 0
  for number in range(30):
    found, at = shapes.futures(number, 20, 16), shapes.turn(number, 20, 16)
    other = found[:, ::-1]
    assert (found[:at] == other[:at]).all() and (found[at] != other[at]).any() and 3 < at < 20
    up += found[at][:8].sum() > found[at][8:].sum()
  assert 8 < up < 22


def test_a_shape_that_is_hidden_comes_back():
  places = shapes.rebound(np.arange(0.0, 40), 3, 13)
  assert places.min() >= 3 and places.max() <= 13 and np.abs(np.diff(places)).max() <= 1
  whole = shapes.cover("square", np.array([[8.0, 8.0]]), 3, 16)[0]
  assert whole.sum() == pytest.approx(36) and shapes.cover(
    "disc", np.array([[8.0, 8.0]]), 3, 16
  ).sum() == pytest.approx(9 * np.pi, rel=0.05)


@pytest.mark.parametrize("patch", [0, 8])
def test_components_are_exact_in_their_span(patch):
  frames = np.concatenate([shapes.shapes(i, 12, 16) for i in range(60)])
  whole = 64 if patch else 256
  for rank in (whole, 12):
    found = frame_features.fit(frames, VideoConfig(size=16, rank=rank, patch=patch))
    np.testing.assert_allclose(found.basis @ found.basis.T, np.eye(rank), atol=1e-5)
    features = found.encode(frames)
    assert features.shape == (len(frames), *((4, rank) if patch else (rank,))) and features.dtype == np.float32
    left = np.float32(frames) / 127.5 - 1 - found.values(features)
    if rank == whole:
      assert (found.decode(features) == frames).all() and np.abs(left).max() < 1e-4
    elif not patch:
      assert np.abs(left.reshape(len(frames), -1) @ found.basis.T).max() < 1e-4 < np.abs(left).mean()
    again = frame_features.load(found.content, "x")
    assert found.content == again.content and (again.encode(frames) == features).all()
    # squared errors of features are those of pixels in the span, but for a factor
    moved = features + np.random.default_rng(0).normal(size=features.shape).astype(np.float32)
    apart = np.sum((found.values(moved) - found.values(features)) ** 2)
    assert apart == pytest.approx(found.scale**2 * np.sum((moved - features) ** 2), rel=1e-3)
  with pytest.raises(ConfigError, match="config.video.rank: 256 components of 12 training"):
    frame_features.fit(frames[:12], VideoConfig(size=16, rank=256))


def test_splits_are_by_film_and_windows_stay_in_their_shot():
  found = videos.build(SHAPES, VIDEO)
  ids = [{s.id for s in part} for part in found[:2]]
  assert not ids[0] & ids[1] and len(ids[0] | ids[1]) == 40 and len(ids[1]) > 2
  shots = [np.arange(n, dtype=np.float32)[:, None] + 100 * i for i, n in enumerate((8, 3, 6))]
  examples = videos.FrameExamples.of(shots, 5, 1)
  rows = examples.rows(np.arange(len(examples)))
  assert [int(r[0, 0]) for r in rows["frames"]] == [0, 1, 2, 100, 200]
  assert rows["weights"].tolist() == [[1] * 5] * 3 + [[1, 1, 0, 0, 0]] + [[1] * 5]
  assert ((rows["frames"] // 100) == (rows["frames"][:, :1] // 100)).all()
  assert (np.diff(rows["frames"][..., 0]) == rows["weights"]).all()


def test_the_film_in_this_package():
  found = videos.embedded(VideoConfig(size=32, channels=3))
  assert len(found) == 82 and sum(len(s.frames) for s in found) == 4225 and found[0].frames.shape[1:] == (32, 32, 3)
  inside = np.mean([np.abs(np.diff(s.frames.astype(float), axis=0)).mean() for s in found])
  ends = [np.abs(a.frames[-1].astype(float) - b.frames[0]).mean() for a, b in zip(found, found[1:])]
  assert inside < 10 < 30 < np.mean(ends)  # shots are cut where they end
  assert videos.embedded(VideoConfig(size=16))[3].frames.shape[1:] == (16, 16, 1)
  with pytest.raises(ConfigError, match="config.video.size: 48 is more than the 32 pixels"):
    videos.embedded(VideoConfig(size=48))


def test_a_film_is_cut_at_cuts_and_held_out_by_time(tmp_path):
  path = tmp_path / "a.gif"
  path.write_bytes(film_pictures.gif(film()))
  data, video = config_of(path)
  found = videos.build(data, video)
  assert [(s.id, len(s.frames)) for s in found.train] == [("a.gif:0", 15), ("a.gif:15", 3)]
  assert [(s.id, len(s.frames)) for s in found.held_out] == [("a.gif:18", 12)]
  assert found.train[0].frames.shape[1:] == (16, 16, 1) and "by time" in found.summary["split"]


def test_a_film_that_av_decodes(tmp_path):
  path = tmp_path / "a.mp4"
  path.write_bytes(mp4(film()))
  frames, lost = films.read(str(path), "a.mp4", VideoConfig(size=16, channels=3))
  assert frames.shape == (30, 16, 16, 3) and not lost and films.cuts(frames).tolist() == [15]
  half, _ = films.read(str(path), "a.mp4", VideoConfig(size=16, interval=0.25))
  assert half.shape == (15, 16, 16, 1)  # of 8 frames a second


def test_the_frames_before_a_damaged_end_are_used(tmp_path, caplog):
  pytest.importorskip("av")
  import av

  whole, path = tmp_path / "a.mkv", tmp_path / "cut.mkv"
  with av.open(str(whole), "w") as container:
    stream = container.add_stream("mpeg4", rate=8)
    stream.width, stream.height = 24, 24
    for frame in film(60, (24, 24)):
      container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
    container.mux(stream.encode())
  content = whole.read_bytes()
  path.write_bytes(content[: len(content) * 2 // 3] + b"\0" * 50)
  data, video = config_of(path)
  found = videos.build(data, video)
  total = sum(len(s.frames) for part in found[:2] for s in part)
  assert 15 < total < 60
  broken = tmp_path / "b.mp4"
  broken.write_bytes(mp4(film())[:600])
  refuse(broken, "b.mp4: cannot be decoded")


def refuse(path, words, **video):
  data, video = config_of(path, **video)
  with pytest.raises(ConfigError) as e:
    videos.build(data, video)
  assert words in str(e.value) and "\n" not in str(e.value)


def test_films_that_cannot_be_used_are_named(tmp_path):
  one = tmp_path / "one.gif"
  one.write_bytes(film_pictures.gif(film(1)))
  refuse(one, "one.gif: found 1 frame, expected at least 2; give a longer film")
  refuse(tmp_path / "nowhere.gif", "no file, folder or match")
  small = tmp_path / "small.gif"
  small.write_bytes(film_pictures.gif(film(4, (12, 12))))
  refuse(small, "small.gif: frames have 12 x 12 pixels, expected at least video.size=16")
  for name, content, words in (("empty.mp4", b"", "an empty file"), ("text.gif", b"no film", "cannot be decoded")):
    (tmp_path / name).write_bytes(content)
    refuse(tmp_path / name, f"{name}: ")
    refuse(tmp_path / name, words)
  (tmp_path / "film.txt").write_text("no film")
  refuse(tmp_path / "film.txt", "holds no film; expected .mp4")
  good = tmp_path / "good.gif"
  good.write_bytes(film_pictures.gif(film()))
  data, video = config_of(f"{good},{one}")
  with pytest.raises(ConfigError, match="one.gif: found 1 frame.*or raise data.max_bad"):
    videos.build(data, video)
  found = videos.build(DataConfig(**{**data.__dict__, "max_bad": 0.5}), video)
  assert found.summary["left_out"]["films that cannot be used"]["names"] == ["one.gif"]


def test_sound_alone_and_frames_that_change_their_size(tmp_path):
  av = pytest.importorskip("av")
  sound = tmp_path / "sound.mp4"
  with av.open(str(sound), "w") as container:
    stream = container.add_stream("aac", rate=8000)
    frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
    frame.rate = 8000
    container.mux(stream.encode(frame))
    container.mux(stream.encode())
  refuse(sound, "sound.mp4: found audio, expected a video stream")
  content = b""
  for size in ((24, 32), (48, 32)):
    part = tmp_path / "part.ts"
    with av.open(str(part), "w") as container:
      stream = container.add_stream("mpeg2video", rate=25)
      stream.height, stream.width = size
      for image in film(12, size):
        container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
      container.mux(stream.encode())
    content += part.read_bytes()
  changes = tmp_path / "changes.mp4"  # what is in a file counts, not its name
  changes.write_bytes(content)
  refuse(changes, "has 32 x 48 pixels, expected 32 x 24 as the first; cut the film in two there")


def npz(path, **arrays):
  out = io.BytesIO()
  np.savez(out, **arrays)
  path.write_bytes(out.getvalue())
  return path


def test_arrays_of_frames_and_of_features(tmp_path):
  frames = np.stack([film(8, (16, 16), i)[..., :1] for i in range(12)])
  data, video = config_of(npz(tmp_path / "frames.npz", frames=frames, lengths=np.arange(12) % 4 + 5))
  found = videos.build(data, video)
  assert sorted(len(s.frames) for part in found[:2] for s in part) == sorted(np.arange(12) % 4 + 5)
  rng = np.random.default_rng(0)
  path = npz(tmp_path / "features.npz", features=rng.normal(size=(12, 8, 3, 5)))
  task = registry.make(resolve({
    "task": "video", "model": {"layers": 1, "heads": 2, "width": 8}, "video": {"features": "given"},
    "data": {"source": str(path), "held_out": 0.4, "context_length": 4},
  }))  # fmt: skip
  assert task.config.video.frame_shape == (3, 5) and not task.problem.files()
  batch = task.problem.data().train.rows(np.arange(2))
  assert jax.tree.map(np.shape, batch) == {"frames": (2, 5, 3, 5), "weights": (2, 4)}
  other = npz(tmp_path / "other.npz", features=rng.normal(size=(12, 8, 7)))
  with pytest.raises(ConfigError, match=r"other.npz: features of a frame are \[7\], expected \[3, 5\]"):
    task.problem.examples_of(str(other))
  refuse(path, "holds features, but video.features=pca; set video.features=given")
  refuse(npz(tmp_path / "bad.npz", frames=frames, lengths=np.full(12, 9)), "lengths: expected a number from 2 to 8")
  refuse(npz(tmp_path / "none.npz", x=frames), "expected an array `frames`")
  refuse(npz(tmp_path / "short.npz", frames=frames[:, :1]), "frames [12, 1, 16, 16, 1]; expected 4 or 5 axes")
  bad = rng.normal(size=(12, 8, 4))
  bad[3, 2, 1] = np.nan
  refuse(npz(tmp_path / "nan.npz", features=bad), "features are not finite", features="given")
