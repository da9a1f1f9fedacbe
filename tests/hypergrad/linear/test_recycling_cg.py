"""Conjugate gradient that learns from earlier systems: what it saves, and that it stays right."""

from collections.abc import Callable, Iterator

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from hypergrad import BilevelProblem, ImplicitDifferentiation
from hypergrad.linear import CG, LinearSolution, RecyclingCG, symmetric_operator
from hypergrad.linear.recycling_cg import Memory
from tests.hypergrad.linear.systems import matrix, solve

SIZE = 200


def drifting(steps: int, dtype: type = np.float64) -> Iterator[tuple[Array, Array]]:
    """Systems of condition 1e2 that change smoothly by about 3 % a step."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(150, SIZE)) / np.sqrt(SIZE)
    slopes, rhs, turn = rng.normal(size=(3, SIZE))
    for k in range(steps):
        a = features.T @ features + np.diag(0.01 * np.exp(0.03 * k * slopes))
        yield jnp.asarray(a, dtype), jnp.asarray(rhs + 0.03 * k * turn, dtype)


@eqx.filter_jit
def _solve(solver: RecyclingCG, a: Array, b: Array, initial: Array) -> LinearSolution:
    return solver.solve(symmetric_operator(lambda v: a @ v), b, initial=initial)


def follow(
    solver: Callable[[], RecyclingCG | CG], systems: Iterator[tuple[Array, Array]]
) -> tuple[list[int], list[float]]:
    """Products and true relative residuals along a sequence of systems."""
    products, residuals = [], []
    now = solver()
    last = None
    for a, b in systems:
        now = now if last is None else now.with_state(last.state)
        if last is None:
            now = now.with_state(now.init_state(b))
        last = _solve(now, a, b, jnp.zeros_like(b) if last is None else last.value)
        products.append(int(last.products))
        residuals.append(float(jnp.linalg.norm(b - a @ last.value) / jnp.linalg.norm(b)))
    return products, residuals


def test_a_drifting_system_takes_under_half_of_the_products_of_warm_cg() -> None:
    plain, _ = follow(lambda: CG(tol=1e-8), drifting(12))
    ours, residuals = follow(lambda: RecyclingCG(tol=1e-8), drifting(12))
    assert ours[0] <= plain[0] + 2
    assert sum(ours[4:]) < sum(plain[4:]) / 2
    assert max(residuals) < 2e-8


def test_float32_keeps_to_its_tolerance() -> None:
    products, residuals = follow(lambda: RecyclingCG(tol=1e-4), drifting(12, np.float32))
    assert max(residuals) < 3e-4
    assert max(products[4:]) < products[0] / 2


def test_the_same_system_again_costs_only_the_start() -> None:
    a, b = next(drifting(1))
    products, residuals = follow(lambda: RecyclingCG(tol=1e-8), iter([(a, b)] * 4))
    assert products[1:] == [1, 1, 1]
    assert max(residuals) < 2e-8


def test_the_memory_of_another_operator_does_not_spoil_the_answer() -> None:
    (a, b), rng = next(drifting(1)), np.random.default_rng(3)
    q = np.linalg.qr(rng.normal(size=(SIZE, SIZE)))[0]
    other = jnp.asarray(q * np.geomspace(1e-3, 1e3, SIZE) @ q.T)
    (_, second), residuals = follow(
        lambda: RecyclingCG(tol=1e-6), iter([(other, b), (a, jnp.asarray(rng.normal(size=SIZE)))])
    )
    assert residuals[1] < 2e-6
    assert second < 1000


def test_knows_as_many_pairs_as_it_has_memory_for_and_writes_over_the_oldest() -> None:
    a, b = next(drifting(1))

    def pairs(memory: int, steps: int) -> tuple[Memory, Array]:
        solver = RecyclingCG(memory=memory, max_steps=jnp.asarray(steps))
        known = _solve(solver, a, b, jnp.zeros_like(b)).state
        (rows,) = known.pairs
        return known, rows[:, np.argsort(known.age())]

    short, rows = pairs(60, 4)
    assert short.used().sum() == 4
    assert jnp.all(short.used()[np.argsort(short.age())[-4:]])
    assert not jnp.any(rows[:, :-4])
    _, every = pairs(20, 13)
    for steps in (5, 10, 13):  # just full, full twice, and in a third round
        long, rows = pairs(5, steps)
        assert jnp.all(long.used())
        np.testing.assert_allclose(rows, every[:, 7 + steps - 5 : 7 + steps], atol=1e-12)
        np.testing.assert_allclose(rows[1], rows[0] @ a, atol=1e-10)


def test_the_order_of_the_ring_does_not_matter() -> None:
    """A ring that begins elsewhere makes the same preconditioner, and so the same iterates."""
    systems = list(drifting(2))
    a, b = systems[0]
    known = _solve(RecyclingCG(memory=20, max_steps=20), a, b, jnp.zeros_like(b)).state
    rolled = eqx.tree_at(
        lambda k: (k.pairs, k.recorded),
        known,
        ([jnp.roll(rows, 7, axis=1) for rows in known.pairs], known.recorded + 7),
    )
    a, b = systems[1]
    one, two = (
        _solve(RecyclingCG(memory=20, max_steps=15).with_state(k), a, b, jnp.zeros_like(b)).value
        for k in (known, rolled)
    )
    assert jnp.linalg.norm(b - a @ one) < 0.5 * jnp.linalg.norm(b)
    np.testing.assert_allclose(one, two, rtol=1e-8, atol=1e-10)


def test_says_when_an_earlier_solution_meets_non_positive_curvature() -> None:
    a = matrix("indefinite")
    solution = solve(RecyclingCG(), a, initial=np.linalg.eigh(a)[1][:, 0])
    assert solution.nonpositive_curvature


@pytest.mark.parametrize("limit", [0, 1, 3])
def test_a_limit_too_small_for_a_start_goes_without(limit: int) -> None:
    a = matrix("spd")
    solution = solve(RecyclingCG(max_steps=limit), a, initial=np.ones(len(a)))
    assert int(solution.products) <= limit


def test_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="memory: expected an integer >= 4, received 3"):
        RecyclingCG(memory=3)
    with pytest.raises(ValueError, match="symmetric"):
        solve(RecyclingCG(), matrix("nonsymmetric"))


def test_implicit_differentiation_carries_what_it_learned() -> None:
    rng = np.random.default_rng(1)
    x = jnp.asarray(rng.normal(size=(40, 60)))
    y = jnp.asarray(rng.normal(size=40))
    x_out, y_out = jnp.asarray(rng.normal(size=(30, 60))), jnp.asarray(rng.normal(size=30))

    def inner(w: Array, h: Array, _: None) -> Array:
        return 0.5 * jnp.mean((x @ w - y) ** 2) + 0.5 * jnp.sum(jnp.exp(h) * w**2)

    def outer(w: Array, h: Array, _: None) -> Array:
        return 0.5 * jnp.mean((x_out @ w - y_out) ** 2)

    def solution(h: Array) -> Array:
        return jnp.linalg.solve(x.T @ x / 40 + jnp.diag(jnp.exp(h)), x.T @ y / 40)

    problem = BilevelProblem(inner, outer)
    traces = []

    def search(linear_solver: CG | RecyclingCG) -> tuple[list[int], list[Array], list[Array]]:
        estimator = ImplicitDifferentiation(linear_solver=linear_solver, error_estimate=False)
        h = jnp.full(60, -5.0, jnp.float64)
        state = estimator.init(problem, solution(h), h, None)

        @jax.jit
        def step(state, h):
            traces.append(1)
            state = eqx.tree_at(lambda s: s.params, state, solution(h))
            return estimator.hypergradient(problem, state, h, None, None)

        products, grads, truths = [], [], []
        for _ in range(8):
            result = step(state, h)
            state = result.state
            products.append(int(result.info.iterations))
            grads.append(result.grad)
            truths.append(jax.grad(lambda h: outer(solution(h), h, None))(h))
            h = h - 0.1 * jnp.sign(result.grad)
        return products, grads, truths

    products, grads, truths = search(RecyclingCG(tol=1e-9))
    plain, _, _ = search(CG(tol=1e-9))
    assert len(traces) == 2
    for grad, truth in zip(grads, truths, strict=True):
        np.testing.assert_allclose(grad, truth, rtol=1e-6, atol=1e-9)
    assert sum(products[3:]) < 0.7 * sum(plain[3:])
