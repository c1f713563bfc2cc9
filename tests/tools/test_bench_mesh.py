"""Collectives counted in compiled programs."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from tools.bench.mesh import collectives

PROGRAM = """HloModule jit_step, num_partitions=8

%add (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  ROOT %sum = f32[] add(%a, %b)
}

%body (arg: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %all-gather.1 = f32[8,4]{1,0} all-gather(%slice), channel_id=1, metadata={op_name="x all-gather(y)"}
  %start = (bf16[2]{0}, bf16[16]{0}) all-gather-start(%other), channel_id=2
  %all-gather-done.3 = bf16[16]{0:T(256)} all-gather-done(%start)
}

ENTRY %main.1_spmd (p: f32[8,4]) -> f32[8,4] {
  %loop = (s32[], f32[8,4]{1,0}) while(%t), condition=%cond, body=%body, backend_config={"known_trip_count":{"n":"24"}}
  ROOT %all-reduce = (f32[3]{0}, pred[5]{0}) all-reduce(%x, %y), to_apply=%add
}
"""


def test_bytes_and_trip_counts():
  found, step_bytes = collectives(PROGRAM)
  assert found == {"all-gather": (2, 128 + 32), "all-reduce": (1, 12 + 5)}
  assert step_bytes == 24 * (128 + 32) + 17


def test_a_real_program():
  mesh = jax.make_mesh((8,), ("data",))
  sliced, whole = (NamedSharding(mesh, spec) for spec in (P(None, "data"), P()))
  weights = jax.ShapeDtypeStruct((5, 16, 16), jnp.float32, sharding=sliced)
  x = jax.ShapeDtypeStruct((16, 16), jnp.float32, sharding=whole)

  @functools.partial(jax.jit, out_shardings=whole)
  def layers(weights, x):
    gathered = lambda w: jax.lax.with_sharding_constraint(w, whole)
    return jax.lax.scan(lambda x, w: (jnp.tanh(x @ gathered(w)), None), x, weights)[0]

  found, step_bytes = collectives(layers.lower(weights, x).compile().as_text())
  assert found["all-gather"] == (1, 1024)
  assert step_bytes >= 5 * 1024  # one for each layer
