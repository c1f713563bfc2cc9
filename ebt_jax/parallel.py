"""Devices: the mesh, which array goes where on it, and which rows a process loads.

One mesh with the axes `replica` (copies of everything), `data` (the batch's rows, and
parameters in slices: FSDP) and `model` (tensor parallelism). `RULES` is the only place
that says how a parameter is sliced.
"""

import logging
import math
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from ebt_jax.config import Config, ConfigError, MeshConfig

log = logging.getLogger(__name__)

AXES = ("replica", "data", "model")
ROW_AXES = ("replica", "data")  # that the rows of a batch lie over
BATCH = P(ROW_AXES)

# (end of the slash-joined path, slices of each dimension); the first match counts. Parameters of layers are
# stacked, so their first dimension is the layer. Optimiser states end with their parameter's path.
RULES = (
  (r"(embed|to_embed)/(embedding|kernel)", P("model", "data")),  # [V, D]
  (r"output/kernel", P("data", "model")),  # [D, V]
  (r"attention/(q|k|v)/kernel", P(None, "data", "model")),  # [L, D, D], column-parallel
  (r"attention/o/kernel", P(None, "model", "data")),  # [L, D, D], row-parallel
  (r"ffn/(gate|up)/kernel", P(None, "data", "model")),  # [L, D, H], column-parallel
  (r"ffn/down/kernel", P(None, "model", "data")),  # [L, H, D], row-parallel
  (r"layers/modulation/kernel", P(None, "data", "model")),  # [L, D, 6D]
  (r"layers/modulation/bias", P(None, "model")),  # [L, 6D]
  (r"head_modulation/kernel", P("data", "model")),  # [D, 2D]
  (r"head_modulation/bias", P("model")),  # [2D]
  (r"head/kernel", P("data", None)),  # [D, 1]
  (r"time/embedding", P(None, "data")),  # [M, D], M is small
  (r"(norm|\w+_norm)/\w+", P()),
  (r"thinking/\w+", P()),
  (r"replay/rows/\w+", P(ROW_AXES)),  # [capacity, ...], like the rows of a batch
)
_RULES = tuple((re.compile(rf"(^|/){end}$"), spec) for end, spec in RULES)
_SMALL = 2**14  # elements up to which a leaf without a rule is left whole


def initialize_distributed(**kwargs) -> None:
  """Joins the other processes of this run, once; call it before any other use of JAX.

  Args:
    **kwargs: of `jax.distributed.initialize`, where neither the cluster nor the environment (JAX_COORDINATOR_ADDRESS,
      JAX_NUM_PROCESSES, JAX_PROCESS_ID) tells them.

  Raises:
    ConfigError: the cluster is unknown or its processes do not meet.
  """
  if not jax.distributed.is_initialized():
    log.info("waiting for the other processes")
    try:
      for name in ("num_processes", "process_id"):  # the address is read by JAX itself
        if f"JAX_{name.upper()}" in os.environ:
          kwargs.setdefault(name, int(os.environ[f"JAX_{name.upper()}"]))
      jax.distributed.initialize(**kwargs)
    except (ValueError, RuntimeError) as e:
      raise ConfigError(
        f"--distributed: processes of this run do not meet: {e}; leave the flag out on one machine, or set "
        "JAX_COORDINATOR_ADDRESS=HOST:PORT, JAX_NUM_PROCESSES and JAX_PROCESS_ID for each"
      ) from e
  log.info(
      "process %d of %d, %d of %d devices are local",
      jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count(),
  )  # fmt: skip


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
  """The mesh of a run, axes `AXES`, all of type Auto.

  Args:
    config: devices along each axis; -1 takes what is left.
    devices: all by default.

  Raises:
    ConfigError: the axes do not fit the number of devices.
  """
  devices = jax.devices() if devices is None else list(devices)
  sizes = {axis: getattr(config, axis) for axis in AXES}
  known = math.prod(n for n in sizes.values() if n != -1)
  free = [axis for axis, n in sizes.items() if n == -1]
  if len(devices) % known or (not free and known != len(devices)):
    raise ConfigError(
      f"config.mesh: {' x '.join(f'{axis}={n}' for axis, n in sizes.items())} needs "
      f"{'a multiple of ' if free else ''}{known} devices, found {len(devices)}; "
      f"set {_fitting(sizes, len(devices))}"
    )
  for axis in free:
    sizes[axis] = len(devices) // known
  return jax.make_mesh(tuple(sizes.values()), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def _fitting(sizes: dict[str, int], devices: int) -> str:
  """Sizes near `sizes` that use all devices: model and replica shrink to what divides, data takes the rest."""
  left, fit = devices, {}
  for axis in ("model", "replica"):
    fit[axis] = max(n for n in range(1, max(1, sizes[axis]) + 1) if left % n == 0)
    left //= fit[axis]
  return f"replica={fit['replica']}, data={left}, model={fit['model']}"


def check_batch(config: Config, mesh: Mesh) -> None:
  """Raises ConfigError unless the rows of every (micro)batch divide over `replica` x `data`."""
  ways = mesh.shape["replica"] * mesh.shape["data"]
  parts = config.train.microbatches
  if config.train.batch_size % (parts * ways):
    near = max(1, round(config.train.batch_size / (parts * ways))) * parts * ways
    raise ConfigError(
      f"config.train.batch_size: {config.train.batch_size} rows in {parts} microbatch(es) do not divide over "
      f"replica x data = {ways} devices; the nearest batch_size is {near}, or set mesh.model to use devices otherwise"
    )
  if config.eval.batch_size % ways:
    near = max(1, round(config.eval.batch_size / ways)) * ways
    raise ConfigError(
      f"config.eval.batch_size: {config.eval.batch_size} rows do not divide over replica x data = {ways} devices; "
      f"the nearest is {near}, or 0 for train.batch_size"
    )


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  """How a leaf is sliced: its rule, changed where a dimension does not divide.

  An axis that does not divide its dimension moves to another dimension of the leaf, the
  largest first, after the axes that are there already; where none divides it is dropped.

  Args:
    path: slash-joined, ends with a path of `RULES`.
    shape: of the leaf.
    mesh: of `make_mesh`.
  """
  rule = next((spec for end, spec in _RULES if end.search(path)), None)
  if rule is None or len(rule) > len(shape):
    large = math.prod(shape) > _SMALL
    fit = [d for d in range(len(shape)) if large and shape[d] % mesh.shape["data"] == 0]
    rule = P(*(None,) * max(fit, key=lambda d: shape[d]), "data") if fit else P()
  axes = [[] for _ in shape]
  homeless = []

  def divides(dim, axis):
    return shape[dim] % math.prod(mesh.shape[a] for a in [*axes[dim], axis]) == 0

  for dim, those in enumerate(rule):
    for axis in (those,) if isinstance(those, str) else those or ():
      (axes[dim] if divides(dim, axis) else homeless).append(axis)
  for axis in homeless:
    fit = [d for d in range(len(shape)) if divides(d, axis)]
    if fit:
      axes[max(fit, key=lambda d: shape[d])].append(axis)
  return P(*(tuple(a) if len(a) > 1 else a[0] if a else None for a in axes))


def shardings(tree: Any, mesh: Mesh) -> Any:
  """Tree of NamedSharding for a tree of arrays or `jax.ShapeDtypeStruct`."""
  return jax.tree_util.tree_map_with_path(lambda p, x: NamedSharding(mesh, spec_for(_name(p), x.shape, mesh)), tree)


def describe_rows(rows: Any, mesh: Mesh) -> str:
  """How many rows a replay buffer holds, and the memory they take."""
  placed = _placed(rows, mesh)
  held, total = sum(p[3] for p in placed), sum(_bytes(p[1]) for p in placed)
  return f"{placed[0][1].shape[0]} rows, {total / 1e6:,.1f} MB, {held / 1e6:,.1f} MB on each device"


def replicated(mesh: Mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows over `replica` and `data`, whole over `model`."""
  return NamedSharding(mesh, BATCH)


def sharding_report(tree: Any, mesh: Mesh) -> tuple[str, float]:
  """Where each leaf lies.

  Args:
    tree: arrays, or `jax.ShapeDtypeStruct`; without a sharding of their own they get that of `shardings`.
    mesh: of `make_mesh`.

  Returns:
    A table (path, shape, spec, bytes on each device) and the fraction of bytes left
    whole on every device; 0 where `data` x `model` is 1 and nothing can be sliced.
  """
  rows = _placed(tree, mesh)
  cells = [("path", "shape", "spec", "bytes/device")]
  cells += [(name, str(list(x.shape)), _show(s), f"{held:,}") for name, x, s, held, _ in rows]
  widths = [max(len(row[i]) for row in cells) for i in range(3)]
  lines = [f"{a:{widths[0]}}  {b:{widths[1]}}  {c:{widths[2]}}  {d:>12}" for a, b, c, d in cells]
  total, whole = sum(_bytes(x) for _, x, *_ in rows), sum(_bytes(x) for _, x, *_, w in rows if w)
  fraction = whole / total if total else 0.0
  lines.append(f"{sum(r[3] for r in rows):,} of {total:,} bytes on each device; {fraction:.1%} left whole")
  return "\n".join(lines), fraction


def assert_sharded(params: Any, mesh: Mesh, tolerance: float = 0.02) -> None:
  """Raises ConfigError when more than `tolerance` of the parameters' bytes is whole on every device."""
  _, fraction = sharding_report(params, mesh)
  if fraction > tolerance:
    whole = sorted((r for r in _placed(params, mesh) if r[4]), key=lambda r: -r[3])[:3]
    leaves = ", ".join(f"{name} {list(x.shape)}" for name, x, *_ in whole)
    raise ConfigError(
      f"config.mesh: data={mesh.shape['data']} x model={mesh.shape['model']} leaves {fraction:.1%} of the parameters "
      f"whole on every device, at most {tolerance:.0%} expected; the largest: {leaves}; choose config.mesh.data and "
      "config.mesh.model that divide config.model.width and config.model.vocab_size, or use config.mesh.replica"
    )


def process_rows(batch_size: int, mesh: Mesh | None = None) -> slice:
  """Rows of the global batch that this process loads for `global_batch`.

  Args:
    batch_size: rows over all processes.
    mesh: gives the rows that this process's devices hold, which differ from equal parts
      where the `model` axis spans processes; None: equal parts in the order of processes.

  Raises:
    ConfigError: the rows do not divide, or those of this process do not lie together.
  """
  parts = jax.process_count() if mesh is None else mesh.shape["replica"] * mesh.shape["data"]
  if batch_size % parts:
    raise ConfigError(
      f"config.train.batch_size: {batch_size} rows do not divide into {parts} equal parts; "
      f"the nearest is {max(1, round(batch_size / parts)) * parts}"
    )
  if mesh is None:
    rows = batch_size // parts
    return slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
  places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  held = {rows.indices(batch_size)[:2] for (rows,) in places.values()}
  start, stop = min(a for a, _ in held), max(b for _, b in held)
  if sum(b - a for a, b in held) != stop - start:
    raise ConfigError(
      f"config.mesh: the rows of process {jax.process_index()} do not lie together ({sorted(held)}); "
      "make config.mesh.model divide the devices of a process"
    )
  return slice(start, stop)


def keep_rows(x: jax.Array) -> jax.Array:
  """Tells the compiler that the first axis of `x` lies over devices like the rows of a batch; no mesh, no effect."""
  mesh = jax.sharding.get_abstract_mesh()
  return x if mesh.empty else jax.lax.with_sharding_constraint(x, BATCH)


def gather_tables(params: Any) -> Any:
  """Parameters outside the layers as a step uses them: whole over `data`, which the rows have, sliced over `model`.

  Left to itself the compiler gathers the candidates `[b, s, v]` instead, which are far larger.
  """
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return params

  def place(path, x):
    path = _name(path)
    if "layers/" in path:
      return x
    rule = next((spec for end, spec in _RULES if end.search(path)), P())

    def fits(axis, n):
      return axis == "model" and n % mesh.shape["model"] == 0

    return jax.lax.with_sharding_constraint(x, P(*("model" if fits(a, n) else None for a, n in zip(rule, x.shape))))

  return jax.tree_util.tree_map_with_path(place, params)


def row_ways() -> int:
  """Into how many parts the mesh in use cuts the rows of a batch."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else math.prod(mesh.shape[a] for a in ROW_AXES)


def model_ways() -> int:
  """Into how many parts the mesh in use cuts heads, hidden units and the vocabulary."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape["model"]


def deal_rows(batch: Any, parts: int) -> Any:
  """`[b, ...]` -> `[parts, b / parts, ...]`, strided: each device's contiguous rows give every part its share."""
  return jax.tree.map(lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), batch)


def slice_vocabulary(table: jax.Array, axis: int) -> jax.Array:
  """A vocabulary table as a step uses it: whole over `data`, sliced over `model` along `axis`, padded there with zeros
  where `model` does not divide it."""
  mesh = jax.sharding.get_abstract_mesh()
  if mesh.empty:
    return table
  pad = [(0, -n % mesh.shape["model"] if i == axis else 0) for i, n in enumerate(table.shape)]
  spec = P(*("model" if i == axis else None for i in range(table.ndim)))
  return jax.lax.with_sharding_constraint(jnp.pad(table, pad), spec)


def global_batch(batch: dict[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
  """Global arrays [rows of all processes, ...] from this process's rows (see `process_rows`)."""
  sharding = batch_sharding(mesh)
  return {name: jax.make_array_from_process_local_data(sharding, rows) for name, rows in batch.items()}


def _placed(tree: Any, mesh: Mesh) -> list[tuple]:
  """(path, leaf, sharding, bytes on each device, left whole although it could be sliced) of each leaf."""
  out = []
  sliced = mesh.shape["data"] * mesh.shape["model"] > 1
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    sharding = getattr(x, "sharding", None) or NamedSharding(mesh, spec_for(_name(path), x.shape, mesh))
    shard = sharding.shard_shape(tuple(x.shape))
    held = math.prod(shard) * np.dtype(x.dtype).itemsize
    out.append((_name(path), x, sharding, held, sliced and shard == tuple(x.shape)))
  return out


def _bytes(x) -> int:
  return math.prod(x.shape) * np.dtype(x.dtype).itemsize


def _show(sharding) -> str:
  """`model, data` for P('model', 'data'); `-` for a dimension left whole."""
  if not isinstance(sharding, NamedSharding):
    return type(sharding).__name__
  return ", ".join("+".join((s,) if isinstance(s, str) else s) if s else "-" for s in sharding.spec) or "-"


def _name(path) -> str:
  return jax.tree_util.keystr(path, simple=True, separator="/")
