"""Joining small leaves changes the layout of a vector and nothing else."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from hypergrad.linear.packing import Packing


def vector(dtype: type = jnp.float32) -> dict:
    return {
        "big": jnp.ones((100, 100), dtype),
        "scalar": jnp.asarray(2.0, dtype),
        "none": None,
        "rows": jnp.arange(6.0, dtype=dtype).reshape(2, 3),
        "other": jnp.arange(4, dtype=jnp.bfloat16),
    }


def test_there_and_back() -> None:
    packing = Packing(vector())
    packed = packing.pack(vector())
    assert sorted(leaf.shape for leaf in packed) == [(4,), (7,), (100, 100)]
    back = packing.unpack(packed)
    assert jax.tree.structure(back) == jax.tree.structure(vector())
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(vector()), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


def test_a_product_sees_the_vector_it_knows() -> None:
    packing = Packing(vector())
    double = packing.around(lambda v: jax.tree.map(lambda a: 2 * a, v))
    for a, b in zip(double(packing.pack(vector())), packing.pack(vector()), strict=True):
        np.testing.assert_array_equal(a, 2 * b)


def test_a_sharded_leaf_stays_by_itself() -> None:
    mesh = jax.make_mesh((1,), ("x",), axis_types=(AxisType.Explicit,))
    rows = NamedSharding(mesh, PartitionSpec("x"))
    tree = [jax.device_put(jnp.ones(4), rows), jnp.ones(2), jnp.ones(3)]
    assert [leaf.shape for leaf in Packing(tree).pack(tree)] == [(4,), (5,)]
