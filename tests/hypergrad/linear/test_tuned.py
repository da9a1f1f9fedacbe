"""A solver that chooses among solvers: right answers, few products, and a state that is kept."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad import BilevelProblem, ImplicitDifferentiation, Newton
from hypergrad.linear import (
    CG,
    PCG,
    Dense,
    DensePreconditioner,
    Diagonal,
    Jacobi,
    RecyclingCG,
    Tuned,
    symmetric_operator,
)
from hypergrad.outer import HOAG, run

SIZE, TOL = 60, 1e-8
DIAGONAL = jnp.asarray(np.logspace(0, 3, SIZE))


def system(t, rng):
    """An ill-conditioned operator that moves a little, and a right-hand side."""
    diagonal = DIAGONAL * (1 + 0.01 * t)
    low = rng.normal(size=(SIZE, 2)) / SIZE
    matrix = jnp.diag(diagonal) + jnp.asarray(low @ low.T)
    return matrix, jnp.asarray(rng.normal(size=SIZE))


SYSTEMS = [system(t, np.random.default_rng(t)) for t in range(40)]
GOOD, BAD = PCG(Diagonal(DIAGONAL), tol=TOL), CG(tol=TOL)
SOLVERS = {
    "good": GOOD,
    "bad": BAD,
    "good first": Tuned([GOOD, BAD]),
    "bad first": Tuned([BAD, GOOD]),
    "broken": Tuned([GOOD, PCG(Diagonal(jnp.full(SIZE, jnp.nan)), tol=TOL)]),
}


@cache
def solves(name):
    """Products of each of a sequence of solves, the states after each, and the worst error."""
    solver = SOLVERS[name]

    @jax.jit
    def one(matrix, rhs, state):
        operator = symmetric_operator(lambda v: matrix @ v)
        return solver.with_state(state).solve(operator, rhs)

    state, products, states, worst = solver.init_state(jnp.zeros(SIZE)), [], [], 0.0
    for matrix, rhs in SYSTEMS:
        solution = one(matrix, rhs, state)
        state = solution.state
        states.append(state)
        products.append(int(solution.products))
        left = jnp.linalg.norm(rhs - matrix @ solution.value) / jnp.linalg.norm(rhs)
        worst = max(worst, float(left))
    return np.array(products), states, worst


@pytest.mark.parametrize("name", ["good first", "bad first"])
def test_it_finds_the_best_arm_and_every_answer_is_as_accurate(name):
    alone = solves("good")[0]
    assert alone.sum() < 0.2 * solves("bad")[0].sum()
    products, states, worst = solves(name)
    assert worst <= 10 * TOL
    good = 0 if name == "good first" else 1
    assert [int(s.arm) for s in states[10:]].count(good) >= 28
    # After the solves by which each arm is judged: nearly what the best arm takes alone.
    judged = 2 if good == 0 else 3
    assert products[judged:].sum() <= 1.1 * alone[judged:].sum()
    assert float(states[-1].spent) == products.sum()


def test_an_arm_that_is_worse_is_cut_short():
    products, states, _ = solves("good first")
    arms = np.array([int(s.arm) for s in states])
    # Its limit, and the best arm from there on.
    assert products[arms == 1].max() <= 2.5 * solves("good")[0].max()


def test_it_solves_in_float32():
    matrix, rhs = (jnp.asarray(a, jnp.float32) for a in SYSTEMS[0])
    operator = symmetric_operator(lambda v: matrix @ v)
    solver = Tuned([PCG(Diagonal(jnp.float32(DIAGONAL)), tol=1e-5), CG(tol=1e-5)])
    solve = jax.jit(lambda state: solver.with_state(state).solve(operator, rhs))
    state = solver.init_state(rhs)
    for _ in range(3):
        solution = solve(state)
        state = solution.state
        assert float(solution.residual) <= 1e-5
    assert int(state.plays.sum()) == 3


def test_without_a_state_it_is_its_first_arm():
    matrix, rhs = SYSTEMS[0]
    operator = symmetric_operator(lambda v: matrix @ v)
    found, first = Tuned([GOOD, BAD]).solve(operator, rhs), GOOD.solve(operator, rhs)
    assert int(found.products) == int(first.products)
    assert found.state is None


def test_an_arm_that_breaks_down_is_finished_by_the_best_one():
    _, states, worst = solves("broken")
    assert worst <= 10 * TOL
    assert [int(s.arm) for s in states].count(1) <= 3


def test_a_tolerance_reaches_every_arm():
    solver = Tuned([GOOD, RecyclingCG(tol=TOL, memory=8)]).with_tol(1e-3)
    assert [arm.tol for arm in solver.arms] == [1e-3, 1e-3]
    assert solver.tol == 1e-3


def ridge():
    rng = np.random.default_rng(0)
    data = [
        (jnp.asarray(rng.normal(size=(40, 12)) * np.logspace(0, 1.5, 12)),
         jnp.asarray(rng.normal(size=40)))
        for _ in range(2)
    ]  # fmt: skip

    def loss(w, h, batch):
        return jnp.mean((batch[0] @ w - batch[1]) ** 2)

    problem = BilevelProblem(lambda w, h, b: loss(w, h, b) + jnp.exp(h) @ w**2, loss)
    return problem, jnp.zeros(12), jnp.zeros(12), *data


def test_an_outer_run_learns_and_is_resumed_bit_for_bit(tmp_path):
    problem, *start = ridge()
    linear = Tuned([RecyclingCG(memory=8), PCG(Jacobi(2))])
    algorithm = HOAG(ImplicitDifferentiation(Newton(), linear, error_estimate=False))

    def tuned(steps, name):
        return run(problem, algorithm, *start, steps=steps, every=4, checkpoint=tmp_path / name)

    whole = tuned(12, "whole")
    tuned(4, "parts")
    parts = tuned(12, "parts")
    assert (whole.hparams == parts.hparams).all()
    one, two = (r.state.estimator_state.linear_state for r in (whole, parts))
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True):
        assert (a == b).all()
    assert int(one.plays.sum()) >= 6
    assert (one.plays > 0).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least 2, received 1"):
        Tuned([CG()])
    with pytest.raises(ValueError, match=r"iterate to a tolerance .*received Dense"):
        Tuned([CG(), Dense()])
    with pytest.raises(ValueError, match="one tolerance"):
        Tuned([CG(tol=1e-3), CG(tol=1e-6)])
    with pytest.raises(ValueError, match="share expected from 0 to 1"):
        Tuned([CG(), PCG(DensePreconditioner())], share=2.0)
