import jax
import jax.numpy as jnp
import numpy as np

from hypergrad.linear import vector


def test_where_chooses_arrays_of_either_library_and_keeps_what_is_none():
    x = {"jax": jnp.ones(2), "numpy": np.ones(2), "key": jax.random.key(1), "function": abs}
    y = {"jax": jnp.zeros(2), "numpy": np.zeros(2), "key": jax.random.key(2), "function": max}
    for condition, chosen in ((True, x), (False, y), (jnp.asarray(True), x)):
        found = vector.where(condition, x, y)
        for name in ("jax", "numpy"):
            np.testing.assert_array_equal(found[name], chosen[name])
        assert found["key"] == chosen["key"]
        assert found["function"] is max
