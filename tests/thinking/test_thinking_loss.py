"""Gradient modes of the thinking loss against plain autodiff, and the memory they need."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ebt_jax import thinking
from ebt_jax.config import AuthorsConfig, ThinkingConfig

MODES = ("each", "last", "unrolled")
ALONE = ThinkingConfig(steps=3, landscapes=2, learn_noise=True, noise=0.3, random_step_size=2.0)
RANDOM = dataclasses.replace(ALONE, steps=4, random_steps_min=1)  # either landscape once to three times
CLIPPED = dataclasses.replace(ALONE, authors=AuthorsConfig(clip_gradient=0.4))  # about half of the entries
MOVING = dataclasses.replace(ALONE, momentum=0.6)
DETACHED = dataclasses.replace(ALONE, step_size_path=False)
SPACE = thinking.Simplex(table=lambda params: params["embed"])


def energy(params, context, y, landscape):
  h = jnp.tanh(y @ params["w"] + context["h"] + params["time"][landscape])
  chosen = jnp.take_along_axis(h, context["index"][..., None], -1)[..., 0]
  return chosen**2 + jnp.sum(jnp.sin(h * params["u"]), -1)


def measure(batch, params, context, x, energies, i, count):
  """Candidates, energies, contexts and parameters all matter; so do the step and their number."""
  h = context.contexts["h"] if isinstance(context, thinking.PerLandscape) else context["h"]
  cross_entropy = -jnp.sum(jax.nn.log_softmax(x) * batch["targets"])
  extra = jnp.sum(jnp.sin(energies) * batch["weights"]) + jnp.sum(params["model"]["u"] ** 2) * jnp.mean(h)
  return (cross_entropy + 0.3 * (1 + i) * extra) / count, {"ce": cross_entropy}


def problem(config):
  keys = iter(jax.random.split(jax.random.key(0), 12))
  normal = lambda *shape: jax.random.normal(next(keys), shape)
  rows, seq, v, d = 2, 3, 5, 4
  model = {"embed": normal(v, d), "w": normal(d, d), "time": normal(2, d), "u": normal(d)}
  params = {"model": model, "thinking": {"step_size": jnp.asarray(0.7), "noise": jnp.asarray(0.3)}}
  index = jax.random.randint(next(keys), (2, rows, seq), 0, d)
  contexts = {"h": normal(2, rows, seq, d), "index": index}
  batch = {"targets": jax.nn.softmax(normal(rows, seq, v)), "weights": normal(rows, seq)}
  longest = 6
  randomness = thinking.Randomness(
    step_size=jax.random.uniform(next(keys), (rows, seq)), noise=normal(longest, rows, seq, v), repeats=None
  )
  return params, contexts, batch, normal(rows, seq, v), randomness


def oracle(mode, config, order, params, contexts, batch, x, randomness):
  """Thinking as a plain loop. Returns three times the loss, and the cross-entropy of each step."""
  stop, total, seen, m = jax.lax.stop_gradient, 0.0, [], 0.0
  inner = params["thinking"]
  base = jnp.maximum(inner["step_size"], config.step_size_min)
  low, high = base / config.random_step_size, base * config.random_step_size
  for i, k in enumerate(order):
    last = i == len(order) - 1
    if mode == "each" or (mode == "last" and last and not config.step_size_path):
      x, m = stop((x, m))
    x = x + inner["noise"] * randomness.noise[i]
    p = SPACE.read(x, k)
    context = {name: a[k] for name, a in contexts.items()}
    energies_of = lambda y: energy(params["model"], context, y, k)
    y = SPACE.embed(params["model"], p)
    m = config.momentum * m + jax.grad(lambda y: jnp.sum(energies_of(y)))(y)
    slope = SPACE.embed_vjp(params["model"], p, m)
    if mode == "last" and not last:
      slope, m = stop((slope, m))
    if config.authors.clip_gradient:
      slope = jnp.clip(slope, -config.authors.clip_gradient / base, config.authors.clip_gradient / base)
    energies = energies_of(y)
    x = p - (low + randomness.step_size[..., None] * (high - low)) * slope
    loss, now = measure(batch, params, contexts, x, energies, i, len(order))
    seen.append(now["ce"])
    if mode != "last" or last:
      total = total + loss
  return 3 * total, jnp.stack(seen)


@functools.cache
def gradient_of(mode, config):
  """Three times the loss and its gradients for (params, float contexts), jitted; repeats are an argument."""
  config = dataclasses.replace(config, gradient=mode)

  def loss(params, h, contexts, batch, x, randomness):
    context = thinking.PerLandscape({**contexts, "h": h})
    closure = functools.partial(measure, batch)
    loss, aux = thinking.thinking_loss(
      energy, SPACE, closure, params, context, x, jax.random.key(0), config, randomness=randomness
    )
    return 3 * loss, aux

  return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))


def plain_gradient(mode, config, order, params, contexts, *rest):
  loss = lambda params, h: oracle(mode, config, order, params, {**contexts, "h": h}, *rest)
  return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, contexts["h"])


def assert_close(ours, theirs, tolerance):
  theirs = dict(jax.tree_util.tree_leaves_with_path(theirs))
  for path, a in jax.tree_util.tree_leaves_with_path(ours):
    b = theirs[path]
    error = np.linalg.norm(a - b) / np.linalg.norm(b)
    assert error < tolerance, f"{jax.tree_util.keystr(path)}: relative error {error:.1e}"


CASES = [
  ("plain", ALONE, None),
  ("random", RANDOM, (2, 1)),
  ("random", RANDOM, (1, 3)),
  ("random", RANDOM, (3, 3)),
  ("clipped", CLIPPED, None),
  ("momentum", MOVING, None),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name, config, repeats", CASES, ids=lambda a: str(a) if isinstance(a, (str, tuple)) else "")
def test_gradients_equal_plain_autodiff(x64, mode, name, config, repeats):
  params, contexts, batch, x, randomness = problem(config)
  order = [0] * repeats[0] + [1] * repeats[1] if repeats else [0, 1, 1]
  (expected, steps), theirs = plain_gradient(mode, config, order, params, contexts, batch, x, randomness)
  randomness = randomness._replace(repeats=repeats and jnp.array(repeats))
  (loss, aux), ours = gradient_of(mode, config)(params, contexts["h"], contexts, batch, x, randomness)
  np.testing.assert_allclose(loss, expected, rtol=1e-11)
  seen = aux.seen["ce"]
  wanted = steps[-1:] if mode == "last" else np.pad(steps, (0, len(seen) - len(steps)))
  np.testing.assert_allclose(seen, wanted, rtol=1e-11)
  assert aux.steps == len(order)
  assert_close(ours, theirs, 1e-9)


def test_without_its_path_the_step_size_of_mode_last_sees_the_last_step_only(x64):
  params, contexts, batch, x, randomness = problem(DETACHED)
  _, theirs = plain_gradient("last", DETACHED, [0, 1, 1], params, contexts, batch, x, randomness)
  _, ours = gradient_of("last", DETACHED)(params, contexts["h"], contexts, batch, x, randomness)
  assert_close(ours, theirs, 1e-9)
  _, whole = gradient_of("last", ALONE)(params, contexts["h"], contexts, batch, x, randomness)
  assert_close(whole[0]["model"], ours[0]["model"], 1e-9)
  for name in ("step_size", "noise"):
    assert abs(whole[0]["thinking"][name] / ours[0]["thinking"][name] - 1) > 0.01


def test_the_modes_have_one_value_and_three_gradients(x64):
  args = problem(ALONE)
  params, contexts, batch, x, randomness = args
  (each, last, unrolled) = [gradient_of(m, ALONE)(params, contexts["h"], contexts, batch, x, randomness) for m in MODES]
  np.testing.assert_allclose(each[0][0], unrolled[0][0], rtol=1e-12)
  flat = [np.concatenate([a.ravel() for a in jax.tree.leaves(g)]) for _, g in (each, last, unrolled)]
  for i in range(3):
    for j in range(i):
      assert np.linalg.norm(flat[i] - flat[j]) > 0.05 * np.linalg.norm(flat[i])


def test_unrolled_is_the_derivative_of_the_loss(x64):
  params, contexts, batch, x, randomness = problem(ALONE)
  run = gradient_of("unrolled", ALONE)
  theta = (params, contexts["h"])
  direction = jax.tree.map(lambda a: jax.random.normal(jax.random.key(a.size), a.shape), theta)
  step = 1e-5

  def value(distance):
    params, h = jax.tree.map(lambda a, d: a + distance * d, theta, direction)
    return run(params, h, contexts, batch, x, randomness)[0][0]

  _, gradient = run(*theta, contexts, batch, x, randomness)
  slope = sum(jnp.vdot(g, d) for g, d in zip(jax.tree.leaves(gradient), jax.tree.leaves(direction)))
  np.testing.assert_allclose((value(step) - value(-step)) / (2 * step), slope, rtol=1e-7)


def test_training_alone_uses_the_randomness_of_the_key(x64):
  params, contexts, batch, x, _ = problem(RANDOM)

  def run(key, training, config=dataclasses.replace(RANDOM, gradient="last")):
    closure, context = functools.partial(measure, batch), thinking.PerLandscape(contexts)
    return thinking.thinking_loss(
      energy, SPACE, closure, params, context, x, jax.random.key(key), config, training=training
    )[0]

  assert run(0, False) == run(1, False) == run(0, True, ThinkingConfig(steps=4, landscapes=2, gradient="last"))
  assert run(0, True) != run(1, True)


@pytest.mark.parametrize("mode", MODES)
def test_targets_come_in_by_closure_also_under_scans_of_microbatches(mode):
  """Arrays of either kind that `measure` closes over are traced, and are not what is differentiated."""
  config = dataclasses.replace(ALONE, gradient=mode, noise=0.0, random_step_size=1.0)
  params, contexts, batch, x, _ = problem(config)
  targets = {"index": jnp.argmax(batch["targets"], -1), "weights": batch["weights"]}

  def loss(params, rows):
    contexts, x, targets = rows

    def measure(params, context, x, energies, i, count):
      chosen = jnp.take_along_axis(jax.nn.log_softmax(x), targets["index"][..., None], -1)[..., 0]
      seen = jnp.sum(targets["weights"] * energies)
      return -jnp.sum(targets["weights"] * chosen) + seen, {"energy": seen, "index": targets["index"][0, 0]}

    start = jax.random.key(0)
    context = thinking.PerLandscape(jax.tree.map(lambda a: jnp.stack([a, a]), contexts))
    loss, aux = thinking.thinking_loss(energy, SPACE, measure, params, context, x, start, config)
    return loss, aux.seen["energy"][-1]

  rows = ({name: a[0] for name, a in contexts.items()}, x, targets)
  whole = jax.jit(jax.value_and_grad(loss, has_aux=True))(params, rows)

  @jax.jit
  def by_microbatch(params, parts):
    def body(total, part):
      return jax.tree.map(jnp.add, total, jax.value_and_grad(loss, has_aux=True)(params, part)), None

    zeros = jax.tree.map(jnp.zeros_like, whole)
    return jax.lax.scan(body, zeros, parts)[0]

  parts = jax.tree.map(lambda a: a[:, None], rows)  # a row in each
  for a, b in zip(jax.tree.leaves(by_microbatch(params, parts)), jax.tree.leaves(whole)):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("mode", MODES)
def test_a_candidate_in_parts_has_the_loss_and_gradients_of_one_array(x64, mode):
  """Rows of five numbers with one energy each, and the same numbers as a pair of arrays; all modes log alike."""
  config = ThinkingConfig(steps=3, noise=0.2, learn_noise=True, gradient=mode, step_size=0.3)
  params = {"model": {"w": jax.random.normal(jax.random.key(0), (5, 4))}}
  params["thinking"] = {"step_size": jnp.asarray(0.3), "noise": jnp.asarray(0.2)}
  x, noise = jax.random.normal(jax.random.key(1), (2, 5)), jax.random.normal(jax.random.key(2), (3, 2, 5))
  parts = lambda a: {"label": a[..., 0], "image": a[..., 1:].reshape(*a.shape[:-1], 2, 2)}
  whole = lambda p: jnp.concatenate([p["label"][..., None], p["image"].reshape(*p["label"].shape, 4)], -1)
  energy = lambda params, context, y: jnp.sum(jnp.cos(y @ params["w"] + context), -1)
  energy_of_parts = lambda params, context, y: energy(params, context, whole(y))

  def run(energy, read, x, noise):
    def measure(params, context, x, energies, i, count):
      return jnp.sum(read(x) ** 3) + jnp.sum(energies), {"energy": energies}

    def loss(params, context):
      randomness = thinking.Randomness(noise=noise)
      space = thinking.Euclidean()
      return thinking.thinking_loss(
        energy, space, measure, params, context, x, jax.random.key(0), config, randomness=randomness
      )

    return jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(params, jnp.ones((2, 4)))

  (loss, aux), gradient = run(energy, lambda x: x, x, noise)
  (loss_of_parts, aux_of_parts), gradient_of_parts = run(energy_of_parts, whole, parts(x), parts(noise))
  np.testing.assert_allclose(loss_of_parts, loss, rtol=1e-12)
  assert_close(gradient_of_parts, gradient, 1e-12)
  np.testing.assert_allclose(whole(aux_of_parts.candidate), aux.candidate, rtol=1e-12)
  first = energy(params["model"], jnp.ones((2, 4)), x + 0.2 * noise[0])
  for found in (aux, aux_of_parts):
    np.testing.assert_allclose(found.first_energies, first, rtol=1e-12)
    assert found.steps == 3 and found.seen["energy"].shape == (1 if mode == "last" else 3, 2)


def test_without_parameters_of_thinking_the_config_counts(x64):
  params, contexts, batch, x, randomness = problem(ALONE)
  config = dataclasses.replace(ALONE, step_size=0.7, noise=0.3)
  given = gradient_of("each", config)(params, contexts["h"], contexts, batch, x, randomness)
  without = gradient_of("each", config)({"model": params["model"]}, contexts["h"], contexts, batch, x, randomness)
  np.testing.assert_allclose(without[0][0], given[0][0], rtol=1e-12)
  assert_close(without[1][0]["model"], given[1][0]["model"], 1e-12)


def test_memory_does_not_grow_with_the_steps_unless_they_are_unrolled():
  params, contexts, batch, x, _ = problem(ALONE)
  many = lambda a, axis: jnp.broadcast_to(jnp.expand_dims(a, axis), (*a.shape[:axis], 256, *a.shape[axis:]))
  context = jax.tree.map(lambda a: many(a[0], 0), contexts)  # [256, rows, seq, ...]
  batch, x = jax.tree.map(lambda a: many(a, 0), batch), many(x, 0)

  def peak(mode, steps):
    config = ThinkingConfig(steps=steps, gradient=mode)

    def loss(params):
      closure = functools.partial(measure, batch)
      return thinking.thinking_loss(energy, SPACE, closure, params, context, x, jax.random.key(0), config)[0]

    return jax.jit(jax.grad(loss)).lower(params).compile().memory_analysis().temp_size_in_bytes

  for mode in ("each", "last"):
    assert peak(mode, 16) < 1.1 * peak(mode, 2), mode
  assert peak("unrolled", 16) > 1.5 * peak("unrolled", 2)
