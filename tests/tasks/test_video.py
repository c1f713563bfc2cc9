"""Video as a task: who sees whom, where thinking starts, the residual energy, noise on embeddings, rollouts."""

import json

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image
import pytest

from ebt_jax import losses, thinking
from ebt_jax.config import ConfigError, resolve
from ebt_jax.data import film_pictures, shapes
from ebt_jax.tasks import registry, rollout
from ebt_jax.tasks.base import Kept
from ebt_jax.tasks.video import VideoProblem
from tests.experiments.test_own_task import KILL
from tests.helpers import run

B, S, F, A0 = 2, 5, 6, 3.0
KEYS = jax.random.split(jax.random.key(0), B)


def task_of(patches=1, kind="ebt", **groups):
  groups = {
    "task": "video",
    "model": {"kind": kind, "layers": 2, "heads": 2, "width": 8, **groups.pop("model", {})},
    "video": {"features": "given", "width": F, "places": patches, **groups.pop("video", {})},
    "data": {"context_length": S},
    "thinking": {"steps": 2, "step_size": A0, **groups.pop("thinking", {})},
    **groups,
  }
  return registry.make(resolve(groups))


def with_random_weights(task):
  """Nothing starts at 0, so that every part counts."""
  params = task.init(jax.random.key(1))
  leaves, structure = jax.tree.flatten(params["model"])
  keys = jax.random.split(jax.random.key(2), len(leaves))
  random = [a + 0.3 * jax.random.normal(k, a.shape) for k, a in zip(keys, leaves)]
  return jax.tree.map(lambda a: jnp.asarray(a, float), {**params, "model": structure.unflatten(random)})


def batch_of(task, rows=B):
  frames = jax.random.normal(jax.random.key(3), (rows, S + 1, *task.config.video.frame_shape))
  return {"frames": frames, "weights": jnp.ones((rows, S))}


@pytest.mark.parametrize("patches, residual", [pytest.param(1, False, marks=pytest.mark.slow), (3, False), (3, True)])
def test_an_energy_is_of_its_own_frame_and_of_those_before_it(patches, residual):
  task = task_of(patches, model={"residual": residual, "variant": "time_embed"},
                 thinking={"start": "context" if residual else "noise", "landscapes": 2})  # fmt: skip
  params, batch = with_random_weights(task)["model"], batch_of(task)
  y = task.space.embed(params, jax.random.normal(jax.random.key(4), batch["frames"][:, 1:].shape))

  @jax.jit
  def energies(inputs, y):
    return task.model.energy(params, task.model.encode(params, inputs, 1), y, 1)

  usual = energies(batch["frames"][:, :-1], y)
  for t in range(S):
    at = (1, t, 0) if patches > 1 else (1, t)  # one patch alone
    moved = energies(batch["frames"][:, :-1], y.at[at].add(1.0))
    np.testing.assert_array_equal(np.argwhere(np.asarray(moved != usual)), [[1, t]])
    moved = energies(batch["frames"][:, :-1].at[at].add(1.0), y)
    np.testing.assert_array_equal(np.argwhere(np.asarray(moved != usual))[:, 1], range(t, S))


def test_patches_of_a_candidate_see_each_other():
  task = task_of(3)
  params, batch = with_random_weights(task), batch_of(task)
  context, x = task.context(params, batch), batch["frames"][:, 1:]

  def total(x):
    return jnp.sum(task.model.energy(params["model"], context, task.space.embed(params["model"], x), 0))

  mixed = jax.jacfwd(jax.grad(total))(x)[0, 1, 0, :, 0, 1, 2, :]  # of two patches of one frame
  assert float(jnp.abs(mixed).max()) > 1e-4


@pytest.mark.parametrize("patches, change", [(1, False), (3, True)])
def test_without_a_learnt_energy_one_step_from_anywhere_is_transformer(patches, change, x64):
  more = {"model": {"residual": True, "energy_gain": 0.0}, "thinking": {"steps": 1, "start": "context"}}
  task = task_of(patches, video={"change": change}, **more)
  plain = task_of(patches, "transformer", video={"change": change})
  params, batch = with_random_weights(task), batch_of(task)
  model = params["model"]
  theirs = {name: model[name] for name in ("frame", "place", "output", "frame_out", "layers") if name in model}
  answer = plain.model.predict({**theirs, "norm": model["context_norm"]}, batch["frames"][:, :-1])
  start = jax.random.normal(jax.random.key(5), answer.shape)
  found = task.think(params, task.context(params, batch), start[None], jax.random.key(0))
  np.testing.assert_allclose(found.candidates[0], answer, rtol=1e-9, atol=1e-9)
  np.testing.assert_allclose(task.model.direct_answer(model, task.context(params, batch)), answer, rtol=1e-12)


def test_a_folder_that_is_named_as_films_that_are_made_is_not_taken_for_them(tmp_path):
  for name in ("shapes", "film.gif"):
    (tmp_path / name).mkdir()
    config = resolve({"task": "video", "data": {"source": name}})
    found = VideoProblem(config, Kept(tmp_path, config, (tmp_path,))).data_config.source
    assert found == ("shapes" if name == "shapes" else str(tmp_path / name))


@pytest.mark.parametrize("start", ["noise", "zeros", "input"])
def test_where_thinking_starts(start):
  task = task_of(thinking={"start": start, "start_scale": 0.5}, eval={"candidates": 1 if start == "zeros" else 3})
  batch = batch_of(task)
  last = batch["frames"][:, :-1]
  one = task.problem.start(task.space, jax.random.key(0), batch)
  if start == "noise":
    assert 0.3 < float(one.std()) < 0.7
  else:
    assert (one == (last if start == "input" else 0)).all()
  if start != "zeros":
    starts, _ = task.starts(task.init(jax.random.key(0)), (), KEYS, batch)
    assert starts.shape == (3, *last.shape) and len({float(x.std()) for x in starts}) == 3
    assert start == "noise" or (starts[0] == last).all()


def test_noise_on_embeddings_as_a_plain_loop(x64):
  task = task_of(thinking={"noise": 0.7, "gradient": "each", "authors": {"noise_embedding": True, "eval_noise": True}})
  params, batch = with_random_weights(task), batch_of(task)
  target = batch["frames"][:, 1:]
  start = jax.random.normal(jax.random.key(6), target.shape)
  noise = jax.random.normal(jax.random.key(7), (2, B, S, 8))
  random = thinking.Randomness(noise=noise)

  def plain(params):
    x, total = start, 0.0
    for n in noise:
      x = jax.lax.stop_gradient(x)
      context = task.model.encode(params["model"], batch["frames"][:, :-1])

      def energy(x):
        y = x @ params["model"]["frame"]["kernel"] + params["model"]["frame"]["bias"] + params["thinking"]["noise"] * n
        return jnp.sum(task.model.energy(params["model"], context, y))

      x = x - params["thinking"]["step_size"] * jax.grad(energy)(x)
      total = total + jnp.mean(losses.smooth_l1(x, target)) / 2
    return total

  def ours(params):
    return task.loss(params, batch, jax.random.key(0), start=start, randomness=random)[0].value()

  wanted, found = jax.value_and_grad(plain)(params), jax.value_and_grad(ours)(params)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12), wanted, found)
  other = random._replace(noise=2 * noise)
  assert (
    abs(float(task.loss(params, batch, jax.random.key(0), start=start, randomness=other)[0].value()) - found[0]) > 1e-6
  )


CASES = {
  "ebt": {},
  "ebt of patches": {"patches": 3, "model": {"variant": "time_embed"}, "thinking": {"start": "input", "landscapes": 2}},
  "residual": {"model": {"residual": True}, "thinking": {"start": "context"}, "patches": 3},
  "transformer": {"kind": "transformer", "patches": 3},
  "rnn": {"kind": "rnn", "video": {"change": True}},
}


@pytest.mark.parametrize(
  "case", [pytest.param(c, marks=[pytest.mark.slow] if c in ("ebt", "rnn") else []) for c in CASES]
)
def test_a_rollout_from_the_cache_is_one_from_scratch(case, x64):
  task = task_of(**{"thinking": {"start": "zeros"}, **CASES[case]})
  params, count = with_random_weights(task), 4
  frames = batch_of(task)["frames"]
  given = frames[:, :2]
  found = jax.jit(lambda p, g: rollout.rollout(task, p, g, count, KEYS))(params, given)
  assert found.frames.shape == (B, count, *given.shape[2:]) and found.energies.shape == (B, count)

  def after(before):
    """The frame after `before`, as evaluation finds it in a whole window; what comes later does not matter."""
    n = before.shape[1]
    rest = jnp.zeros((B, S + 1 - n, *given.shape[2:]))
    batch = {"frames": jnp.concatenate([before, rest], 1), "weights": jnp.ones((B, S))}
    if case in ("transformer", "rnn"):
      return task.model.predict(params["model"], batch["frames"][:, :-1])[:, n - 1]
    return task.verified(params, batch, KEYS).candidates[0][:, n - 1]

  before = given
  for i in range(3):  # the window is full after 3
    np.testing.assert_allclose(found.frames[:, i], after(before), rtol=1e-8, atol=1e-9, err_msg=f"frame {i}")
    before = jnp.concatenate([before, found.frames[:, i : i + 1]], 1)
  again = after(before)  # the fourth still sees a full window of five
  np.testing.assert_allclose(found.frames[:, 3], again, rtol=1e-8, atol=1e-9)


def test_a_full_window_goes_on_from_its_last_half():
  task = task_of(kind="transformer")
  params, frames = with_random_weights(task), batch_of(task)["frames"]
  found = rollout.rollout(task, params, frames[:, :S], 3, KEYS)
  kept = jnp.concatenate([frames[:, S - 1 : S], found.frames[:, :1]], 1)  # half of 5 is 2
  again = rollout.rollout(task, params, kept, 2, KEYS)
  np.testing.assert_allclose(found.frames[:, 1:], again.frames, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
  "groups, words",
  [
    ({"model": {"kind": "rnn"}, "video": {"patch": 8}}, "config.video.patch: 8, but model.kind=rnn reads one vector"),
    ({"thinking": {"start": "context"}}, "config.thinking.start: context is what a residual energy predicts"),
    ({"video": {"size": 10, "patch": 4}}, "config.video.patch: 4 does not divide size=10"),
    ({"video": {"size": 4, "rank": 40}}, "config.video.rank: 40 components of 4 x 4 pixels"),
    ({"video": {"features": "efficientnet"}}, "config.video.channels: 1, but features=efficientnet"),
    ({"model": {"kind": "looped"}}, "config.model.kind: no choice 'looped'"),
    (
      {"model": {"residual": True}, "thinking": {"authors": {"noise_embedding": True}}},
      "noise_embedding: is for video",
    ),
  ],
)
def test_options_that_do_not_go_together(groups, words):
  with pytest.raises(ConfigError, match=words.replace("(", r"\(")):
    resolve({"task": "video", **groups})


FLAGS = [
  f"--config.{flag}"
  for flag in (
    "model.layers=1", "model.heads=1", "model.width=8", "video.size=8", "video.rank=6", "video.clips=40",
    "video.clip_frames=10", "data.context_length=6", "train.steps=20", "train.batch_size=4", "train.warmup=1",
    "train.log_every=10", "checkpoint.every=10", "eval.max_windows=8", "sample.pictures=2", "sample.frames=5",
  )
]  # fmt: skip


def test_a_run_is_killed_resumes_and_goes_on_with_films(tmp_path):
  flags = ["--config=configs/video_ebt.py", *FLAGS]
  whole = run([*flags, f"--workdir={tmp_path}/whole"])
  assert whole.code == 0, whole.err
  assert run([*flags, f"--workdir={tmp_path}/killed"], KILL).code == -9
  again = run([*flags, f"--workdir={tmp_path}/killed"])
  assert again.code == 0 and "resuming from step 10" in again.out, again.err
  results = [(tmp_path / n / "sample.json").read_text() for n in ("whole", "killed")]
  assert results[0] == results[1] and "copy loss" in whole.out and "linear loss" in whole.out
  with Image.open(tmp_path / "whole/sample.gif") as gif:
    assert gif.n_frames == 4 + 5
  generate = [f"--workdir={tmp_path}/whole", "--mode=generate", "--max_tokens=20"]
  done = run(generate)
  assert done.code == 0 and "4 frames and 20" in done.out, done.err
  rows = json.loads((tmp_path / "whole/generated.json").read_text())
  assert run([*generate, f"--out={tmp_path}/page.html"]).code == 0
  page = (tmp_path / "page.html").read_text()
  assert page.count("<img ") == 2 * 21 and all(f"energy {e:.4f}" in page for e in rows[0]["energy"])
  assert len(rows) == 2 and len(rows[0]["energy"]) == 20 and len(rows[0]["loss"]) == 6  # of ten frames
  assert np.load(tmp_path / "whole/generated.npz")["features"].shape == (2, 20, 6)
  with Image.open(tmp_path / "whole/generated.png") as strip:
    assert strip.size[0] > 1000 and strip.size[1] > 250
  film = tmp_path / "mine.gif"
  film.write_bytes(film_pictures.gif(np.concatenate([shapes.shapes(0, 9, 12, 3)] * 2)))
  mine = run([*generate, f"--prompts_file={film}", f"--out={tmp_path}/mine.json"])
  assert mine.code == 0 and "mine.gif:0" in (tmp_path / "mine.json").read_text(), mine.err
  assert run([*generate, "--prompt=a"]).code == 2
  one = tmp_path / "one.gif"
  one.write_bytes(film_pictures.gif(shapes.shapes(0, 1, 12, 3)))
  refused = run([*generate, f"--prompts_file={one}"])
  assert refused.code == 2 and "one.gif: found 1 frame, expected at least 2" in refused.err
  (tmp_path / "whole/features.npz").write_bytes(b"other")
  refused = run(generate)
  assert refused.code == 2 and "features.npz: has changed since training" in refused.err
