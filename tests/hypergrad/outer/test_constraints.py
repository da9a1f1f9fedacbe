import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.optimize import minimize

from hypergrad.outer import Box, Budget, L1Ball, ScaledSimplex, project
from hypergrad.outer.base import may_move
from hypergrad.outer.constraints import check_start

points = arrays(np.float64, 5, elements=st.floats(-4, 4))
SETS = {
    "box": (Box(-1.0, 2.0), lambda x: np.min(np.r_[x + 1, 2 - x])),
    "simplex": (ScaledSimplex(1.5), lambda x: min(np.min(x), -abs(np.sum(x) - 1.5))),
    "l1": (L1Ball(2.0), lambda x: 2 - np.sum(np.abs(x))),
    "budget": (Budget(2.0), lambda x: min(np.min(x), np.min(1 - x), 2 - np.sum(x))),
}


@pytest.mark.parametrize("name", SETS)
@settings(max_examples=25, deadline=None)
@given(x=points, other=points)
def test_the_projection_is_feasible_and_nearest(name, x, other):
    constraint, slack = SETS[name]
    near = np.asarray(constraint.project(jnp.asarray(x)))
    assert slack(near) >= -1e-12
    # The angle to any other feasible point is obtuse: what characterises a Euclidean projection.
    feasible = np.asarray(constraint.project(jnp.asarray(other)))
    assert (x - near) @ (feasible - near) <= 1e-9


def test_budget_against_a_solver():
    x = np.array([1.3, 0.9, 0.4, -0.2, 0.6])
    solved = minimize(
        lambda z: np.sum((z - x) ** 2),
        np.full(5, 0.1),
        bounds=[(0, 1)] * 5,
        constraints={"type": "ineq", "fun": lambda z: 1.7 - np.sum(z)},
        options={"ftol": 1e-14},
    ).x
    near = Budget(1.7).project(jnp.asarray(x))
    np.testing.assert_allclose(near, solved, atol=1e-6)
    assert np.sum(near) <= 1.7


def test_float32_stays_float32_and_feasible():
    x = jnp.asarray([3.0, 0.2, -1.0], jnp.float32)
    for constraint, _ in SETS.values():
        assert constraint.project(x).dtype == jnp.float32
    assert float(jnp.sum(Budget(1.0).project(x))) <= 1.0


def test_a_prefix_constrains_some_leaves():
    hparams = {"mix": jnp.asarray([3.0, 0.0]), "l2": jnp.asarray(7.0), "name": "adam"}
    constraint = {"mix": ScaledSimplex(), "l2": None, "name": None}
    moved = project(constraint, hparams)
    np.testing.assert_allclose(moved["mix"], [1.0, 0.0])
    assert moved["l2"] == 7.0
    assert moved["name"] == "adam"


def test_a_box_with_bounds_for_each_leaf():
    hparams = {"a": jnp.asarray([5.0, -5.0]), "b": jnp.asarray(5.0)}
    box = Box({"a": jnp.asarray([-1.0, -2.0]), "b": 0.0}, 3.0)
    moved = box.project(hparams)
    np.testing.assert_allclose(moved["a"], [3.0, -2.0])
    np.testing.assert_allclose(moved["b"], 3.0)


def test_an_empty_box_is_refused():
    with pytest.raises(ValueError, match=r"lower <= upper, received lower=2.0, upper=1.0"):
        Box(2.0, 1.0)


@pytest.mark.parametrize("bad", [7.0, jnp.nan])
def test_a_start_outside_is_named(bad):
    hparams = {"l2": jnp.asarray([0.0, bad])}
    with pytest.raises(ValueError, match=r"hparams\['l2'\] starts outside.*received (7.0|nan)"):
        check_start(Box(-1.0, 5.0), hparams)
    check_start(Box(-1.0, 7.0), {"l2": jnp.asarray([0.0, 7.0])})


SUMS = {
    "simplex": (ScaledSimplex(), lambda x: (np.min(x, initial=0), abs(np.sum(x) - 1))),
    "l1": (L1Ball(1.0), lambda x: (0, max(np.sum(np.abs(x)) - 1, 0))),
    "budget": (
        Budget(1.0, 0.6),
        lambda x: (min(np.min(x), 0.6 - np.max(x)), max(np.sum(x) - 1, 0)),
    ),
}


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("name", SUMS)
@settings(max_examples=30, deadline=None)
@given(
    parts=st.lists(st.floats(-1, 1), min_size=7, max_size=7),
    power=st.floats(-30, 30),
    common=st.booleans(),
)
def test_the_projection_is_feasible_at_any_magnitude(name, dtype, parts, power, common):
    constraint, violation = SUMS[name]
    largest = float(jnp.finfo(dtype).max)
    wide = np.asarray(parts) * min(10.0**power, largest) + (largest / 4 if common else 0)
    x = jnp.asarray(np.clip(wide, -largest, largest), dtype)
    near = constraint.project(x)
    assert near.dtype == x.dtype
    below, off = violation(np.asarray(near, np.float64))
    rounding = float(jnp.finfo(dtype).eps)
    assert below >= -rounding
    assert off <= 4 * rounding


@pytest.mark.parametrize("scale", [1e4, 1e5, 3e7, 1e9, 1e30])
def test_one_large_entry_takes_all(scale):
    x = jnp.asarray([1.0, 0.9, -0.5], jnp.float32) * scale
    assert project(ScaledSimplex(), x).tolist() == [1, 0, 0]
    assert project(L1Ball(1.0), -x).tolist() == [-1, 0, 0]
    np.testing.assert_allclose(project(Budget(1.0), x), [1, 0, 0], atol=1e-7)


def test_many_large_entries_share_the_total():
    x = jnp.full(100_000, 1e6, jnp.float32)
    for constraint in (ScaledSimplex(), L1Ball(1.0), Budget(1.0)):
        near = np.asarray(project(constraint, x), np.float64)
        assert abs(near.sum() - 1) < 1e-4
        np.testing.assert_allclose(near, 1e-5, rtol=1e-4)


def test_only_a_bound_holds_an_entry_however_small_its_slope():
    at = jnp.asarray([1.0, 1.0, -3.0, -3.0, 1.0], jnp.float32)
    slope = jnp.asarray([1e-9, 0.0, 1e-9, -1e-9, -1e-30], jnp.float32)
    found = may_move(at, slope, Box(-3.0, 2.0))
    np.testing.assert_array_equal(found, [True, False, False, True, True])
