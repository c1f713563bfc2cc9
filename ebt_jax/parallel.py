"""Devices: the mesh, how arrays are sharded over it, and which rows a process loads.

One mesh with the axes `replica` (copies of everything), `data` (rows of a batch, shards of parameters: FSDP) and
`model` (tensor parallelism). `RULES` is the only place that says how a parameter is sharded.
"""

import logging
import math
import os
import re
import sys
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
import numpy as np

from ebt_jax.config import Config, ConfigError, MeshConfig

log = logging.getLogger(__name__)

AXES = ("replica", "data", "model")
ROW_AXES = ("replica", "data")  # axes that the rows of a batch are sharded over
BATCH = P(ROW_AXES)

# (end of the slash-joined path, mesh axis of each dimension); the first match counts. Parameters of layers are stacked,
# so their first dimension is the layer. The path of an optimiser state ends with its parameter's path.
RULES = (
  (r"(embed|to_embed)/(embedding|kernel)", P("model", "data")),  # [V, D]
  (r"output/kernel", P("data", "model")),  # [D, V]
  (r"attention/(q|k|v)/kernel", P(None, "data", "model")),  # [L, D, D], column-parallel
  (r"attention/o/kernel", P(None, "model", "data")),  # [L, D, D], row-parallel
  (r"ffn/(gate|up)/kernel", P(None, "data", "model")),  # [L, D, H], column-parallel
  (r"ffn/down/kernel", P(None, "model", "data")),  # [L, H, D], row-parallel
  (r"recurrent/(branch|x)/kernel", P(None, "data", "model")),  # [L, D, D], column-parallel: channels are independent
  (r"recurrent/out/kernel", P(None, "model", "data")),  # [L, D, D] or [L, H, D], row-parallel
  (r"recurrent/\w+_gate/kernel", P(None, "model", "data")),  # [L, blocks, D / blocks, D / blocks]
  (r"recurrent/conv/kernel", P(None, None, "model")),  # [L, 4, D]
  (r"recurrent/(\w+/bias|decay)", P(None, "model")),  # [L, D]
  (r"recurrent/cell/\w+/kernel", P(None, "data", "model")),  # [L, D, H] or [L, H, H]
  (r"recurrent/cell/\w+/bias", P(None, "model")),  # [L, H]
  (r"attention/(q|k|v)/bias|ffn/up/bias", P(None, "model")),  # [L, D] or [L, H]
  (r"attention/o/bias|ffn/down/bias", P()),  # [L, D], added to the stream
  (r"layers/modulation/kernel", P(None, "data", "model")),  # [L, D, 6D]
  (r"layers/modulation/bias", P(None, "model")),  # [L, 6D]
  (r"head_modulation/kernel", P("data", "model")),  # [D, 2D]
  (r"head_modulation/bias", P("model")),  # [2D]
  (r"head/kernel", P("data", None)),  # [D, 1], of pictures [D, pixels of a patch]
  (r"(head|patches|frame|frame_out)/bias", P()),
  (r"(patches|frame)/kernel", P(None, "data")),  # [pixels of a patch, D], [features of a frame, D]
  (r"frame_out/kernel", P("data", None)),  # [D, features of a frame]
  (r"time/up/kernel", P("data", "model")),  # [features, D]
  (r"time/up/bias", P("model")),
  (r"time/down/kernel", P("model", "data")),  # [D, D]
  (r"time/down/bias", P()),
  (r"(time|place|blank|condition)/embedding", P(None, "data")),  # [M, D], M is small
  (r"(norm|\w+_norm)/\w+", P()),
  (r"thinking/\w+", P()),
  (r"replay/rows/.+", P(ROW_AXES)),  # [capacity, ...], like the rows of a batch
)
_RULES = tuple((re.compile(rf"(^|/)(?:{end})$"), spec) for end, spec in RULES)
_SMALL = 2**14  # leaves without a rule and with at most this many elements are left whole


def initialize_distributed(**kwargs) -> None:
  """Joins the other processes of this run, once; call it before any other use of JAX.

  Args:
    **kwargs: of `jax.distributed.initialize`, for what neither the cluster nor the environment says
      (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID).

  Raises:
    ConfigError: the cluster is unknown or its processes do not find each other.
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


def leave(code: int) -> None:
  """Ends this process at once if it is one of several: JAX would wait for the others, which know of no error."""
  if jax.distributed.is_initialized() and jax.process_count() > 1:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def print_once(text: str) -> None:
  """Prints on the first process of a run of several."""
  if jax.process_index() == 0:
    print(text)


def make_mesh(config: MeshConfig, devices=None) -> Mesh:
  """The mesh of a run, axes `AXES`, all of type Auto.

  Args:
    config: devices along each axis; -1 takes the remaining ones.
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
  """Raises ConfigError unless the rows of every training (micro)batch divide over `replica` x `data`.

  Batches of evaluation are filled up with rows that do not count.
  """
  shards, parts = shards_of(mesh), config.train.microbatches
  if config.train.batch_size % (parts * shards):
    near = max(1, round(config.train.batch_size / (parts * shards))) * parts * shards
    raise ConfigError(
      f"config.train.batch_size: {config.train.batch_size} rows in {parts} microbatch(es) do not divide over "
      f"replica x data = {shards} devices; the nearest batch_size is {near}, or set mesh.model to use devices otherwise"
    )


def rule_for(path: str) -> P | None:
  """The first of `RULES` that the path of a leaf ends with; None where there is none."""
  return next((spec for end, spec in _RULES if end.search(path)), None)


def spec_for(path: str, shape: tuple[int, ...], mesh: Mesh) -> P:
  """How a leaf is sharded: by its rule, changed where a dimension does not divide.

  An axis that does not divide its dimension moves to another dimension of the leaf, the largest first, after the axes
  that are there already; where none divides, it is dropped. A large leaf without a rule is sharded over `data`, along
  its largest dimension that divides.

  Args:
    path: slash-joined.
    shape: of the leaf.
    mesh: of `make_mesh`.
  """
  rule = rule_for(path)
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

  def place(path, x):
    return NamedSharding(mesh, spec_for(path_name(path), x.shape, mesh))

  return jax.tree_util.tree_map_with_path(place, tree)


def describe_rows(rows: Any, mesh: Mesh) -> str:
  """How many rows a replay buffer `rows` holds, and the memory they take."""
  placed = _placed(rows, mesh)
  held, total = sum(p[3] for p in placed), sum(_bytes(p[1]) for p in placed)
  return f"{placed[0][1].shape[0]} rows, {total / 1e6:,.1f} MB, {held / 1e6:,.1f} MB on each device"


def replicated(mesh: Mesh) -> NamedSharding:
  """Whole on every device."""
  return NamedSharding(mesh, P())


def batch_sharding(mesh: Mesh) -> NamedSharding:
  """Rows sharded over `replica` and `data`, whole over `model`."""
  return NamedSharding(mesh, BATCH)


def sharding_report(tree: Any, mesh: Mesh) -> tuple[str, float]:
  """Where each leaf lies.

  Args:
    tree: arrays or `jax.ShapeDtypeStruct`; those without a sharding of their own get that of `shardings`.
    mesh: of `make_mesh`.

  Returns:
    A table (path, shape, axes of each dimension, bytes on each device), with "no rule" at large leaves that `RULES` do
    not name; and the fraction of bytes left whole on every device, 0 where `data` x `model` is 1.
  """
  rows = _placed(tree, mesh)
  cells = [("path", "shape", "spec", "bytes/device")]
  cells += [(name, str(list(x.shape)), _show(s) + _no_rule(name, x), f"{held:,}") for name, x, s, held, _ in rows]
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
      "config.mesh.model that divide these shapes, or use config.mesh.replica"
    )


def process_rows(batch_size: int, mesh: Mesh) -> slice:
  """Rows of the global batch that this process loads for `global_batch`: those that its devices hold.

  Args:
    batch_size: rows over all processes.

  Raises:
    ConfigError: the rows do not divide, or those of this process are not contiguous.
  """
  parts = shards_of(mesh)
  if batch_size % parts:
    raise ConfigError(
      f"config.train.batch_size: {batch_size} rows do not divide into {parts} equal parts; "
      f"the nearest is {max(1, round(batch_size / parts)) * parts}"
    )
  places = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
  held = {rows.indices(batch_size)[:2] for (rows,) in places.values()}
  start, stop = min(a for a, _ in held), max(b for _, b in held)
  if sum(b - a for a, b in held) != stop - start:
    raise ConfigError(
      f"config.mesh: the rows of process {jax.process_index()} are not contiguous ({sorted(held)}); "
      "make config.mesh.model divide the devices of a process"
    )
  return slice(start, stop)


def global_batch(batch: Any, mesh: Mesh) -> Any:
  """Global arrays [rows of all processes, ...] from this process's rows (see `process_rows`); a tree of arrays."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda rows: jax.make_array_from_process_local_data(sharding, rows), batch)


def shard_rows(x: jax.Array) -> jax.Array:
  """Tells the compiler to shard the first axis of `x` like the rows of a batch; no mesh, no effect."""
  mesh = jax.sharding.get_abstract_mesh()
  return x if mesh.empty else jax.lax.with_sharding_constraint(x, BATCH)


def split_microbatches(batch: Any, parts: int) -> Any:
  """`[b, ...]` -> `[parts, b / parts, ...]`, interleaved, so that each part takes equally from every device's rows."""
  return jax.tree.map(lambda a: a.reshape(a.shape[0] // parts, parts, *a.shape[1:]).swapaxes(0, 1), batch)


def shards_of(mesh: Mesh | AbstractMesh) -> int:
  """Parts that a mesh cuts the rows of a batch into; 1 for an empty mesh."""
  return 1 if mesh.empty else math.prod(mesh.shape[a] for a in ROW_AXES)


def row_shards() -> int:
  """`shards_of` the mesh in use."""
  return shards_of(jax.sharding.get_abstract_mesh())


def model_shards() -> int:
  """Parts that the mesh in use cuts heads, hidden units and vocabularies into."""
  mesh = jax.sharding.get_abstract_mesh()
  return 1 if mesh.empty else mesh.shape["model"]


def path_name(path: tuple) -> str:
  """A path of `jax.tree_util`, slash-joined."""
  return jax.tree_util.keystr(path, simple=True, separator="/")


def _placed(tree: Any, mesh: Mesh) -> list[tuple]:
  """(path, leaf, sharding, bytes on each device, left whole although it could be sharded) of each leaf."""
  out = []
  several = mesh.shape["data"] * mesh.shape["model"] > 1
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    sharding = getattr(x, "sharding", None) or NamedSharding(mesh, spec_for(path_name(path), x.shape, mesh))
    shard = sharding.shard_shape(tuple(x.shape))
    held = math.prod(shard) * np.dtype(x.dtype).itemsize
    out.append((path_name(path), x, sharding, held, several and shard == tuple(x.shape)))
  return out


def _bytes(x) -> int:
  return math.prod(x.shape) * np.dtype(x.dtype).itemsize


def _show(sharding) -> str:
  """`model, data` for P('model', 'data'); `-` for a dimension left whole."""
  if not isinstance(sharding, NamedSharding):
    return type(sharding).__name__
  return ", ".join("+".join((s,) if isinstance(s, str) else s) if s else "-" for s in sharding.spec) or "-"


def _no_rule(name: str, x) -> str:
  rule = rule_for(name)
  unnamed = rule is None or len(rule) > len(x.shape)
  return "  (no rule)" if unnamed and math.prod(x.shape) > _SMALL else ""
