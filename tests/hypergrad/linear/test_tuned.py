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
GOOD, BAD = PCG(Diagonal(DIAGONAL**0.85), tol=TOL), CG(tol=TOL)
BROKEN = PCG(Diagonal(jnp.full(SIZE, jnp.nan)), tol=TOL)
SOLVERS = {
    "good": GOOD,
    "bad": BAD,
    "good first": Tuned([GOOD, BAD]),
    "bad first": Tuned([BAD, GOOD]),
    "broken": Tuned([GOOD, BROKEN]),
    "broken first": Tuned([BROKEN, GOOD]),
    "level": Tuned([GOOD, PCG(Diagonal(2 * DIAGONAL**0.85), tol=TOL)]),
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
    # They are compared on the first system that takes more than those before it, or soon after.
    assert all(int(s.arm) == good for s in states[2:])
    assert products[2:].sum() <= 1.1 * alone[2:].sum()
    assert float(states[-1].spent) == products.sum()


def test_arms_are_compared_on_one_system():
    good, bad = solves("good")[0], solves("bad")[0]
    products, states, _ = solves("bad first")
    assert products[0] == bad[0] < bad[1]
    assert products[1] == bad[1] + good[1]
    np.testing.assert_allclose(states[1].costs, [bad[1] / good[1], 1], rtol=1e-12)


def test_an_arm_that_is_tried_takes_no_more_than_the_best_one():
    alone = solves("good")[0]
    products, states, _ = solves("good first")
    trial = products - alone
    assert (trial >= 0).all()
    assert (trial > 0).any()
    assert (trial <= alone).all()
    assert float(states[-1].tried[1]) == trial.sum()


@pytest.mark.parametrize("name", ["good first", "level"])
def test_trials_have_a_share_of_the_products(name):
    """After the first, as long as what went into them is below it, by the square of the cost."""
    _, states, _ = solves(name)
    trials = np.diff([0, *(float(s.tried[1]) for s in states)])
    first = int(np.argmax(trials > 0)) + 1
    for before, trial in zip(states[first - 1 :], trials[first:], strict=False):
        due = before.tried[1] * before.costs[1] ** 2 <= 0.05 * before.spent
        assert (trial > 0) == due
    many = (trials > 0).sum()
    assert many >= 2 if name == "level" else many == 1


def test_a_first_trial_waits_for_dearer_solves_or_for_its_share():
    """Of solves that become cheaper it takes a later one."""
    diagonals = np.logspace(0, np.linspace(3, 2, 40), SIZE).T
    solver, rhs = Tuned([CG(tol=TOL), GOOD]), jnp.ones(SIZE)

    @jax.jit
    def solve(diagonal, state):
        operator = symmetric_operator(lambda v: diagonal * v)
        after = solver.with_state(state).solve(operator, rhs).state
        return solver.arms[0].solve(operator, rhs).products, after

    state, alone = solver.init_state(rhs), []
    for diagonal in diagonals:
        before, (first, state) = state, solve(diagonal, state)
        alone.append(int(first))
        if state.tried[1] > 0:
            break
    means = np.cumsum(alone) / np.arange(1, len(alone) + 1)
    assert (alone[1:] < means[:-1]).all()
    assert len(alone) > 10
    spent = np.cumsum(alone)
    assert spent[-2] == float(before.spent)
    assert alone[-1] <= 0.05 * spent[-2]
    assert alone[-2] > 0.05 * spent[-3]


def test_on_short_solves_nothing_is_tried():
    solver, rhs = Tuned([CG(tol=TOL), GOOD]), jnp.ones(SIZE)
    operator = symmetric_operator(lambda v: jnp.linspace(1, 1.1, SIZE) * v)
    state = solver.init_state(rhs)
    for _ in range(3):
        solution = solver.with_state(state).solve(operator, rhs)
        state = solution.state
    assert 0 < int(solution.products) < 10
    assert (state.tried == 0).all()


def test_an_arm_that_learns_is_judged_by_its_second_solve_in_a_row():
    arms = [CG(tol=TOL), RecyclingCG(tol=TOL)]
    solver, rhs, seen = Tuned(arms), jnp.ones(SIZE), []

    @jax.jit
    def solve(diagonal, state):
        return solver.with_state(state).solve(symmetric_operator(lambda v: diagonal * v), rhs)

    state = solver.init_state(rhs)
    for power in (0.8, 1.0, 1.01):
        state = solve(DIAGONAL**power, state).state
        seen.append((int(state.arm), int(state.left), float(state.tried[1])))
    assert seen[0] == (0, 0, 0)
    assert seen[1][:2] == (0, 1)
    assert seen[2][:2] == (1, 0)
    assert 0 < seen[1][2] < seen[2][2]
    assert float(state.costs[0]) > 1


def test_a_right_hand_side_of_zero_teaches_nothing():
    state = solves("bad first")[1][0]
    solver = SOLVERS["bad first"].with_state(state)
    solution = solver.solve(symmetric_operator(lambda v: 2 * v), jnp.zeros(SIZE))
    assert int(solution.products) == 0
    for a, b in zip(jax.tree.leaves(solution.state), jax.tree.leaves(state), strict=True):
        assert (a == b).all()


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
    assert float(state.spent) > 0


def test_without_a_state_it_is_its_first_arm():
    matrix, rhs = SYSTEMS[0]
    operator = symmetric_operator(lambda v: matrix @ v)
    found, first = Tuned([GOOD, BAD]).solve(operator, rhs), GOOD.solve(operator, rhs)
    assert int(found.products) == int(first.products)
    assert found.state is None


@pytest.mark.parametrize("name", ["broken", "broken first"])
def test_an_arm_that_breaks_down_gives_no_answer(name):
    _, states, worst = solves(name)
    assert worst <= 10 * TOL
    good = SOLVERS[name].arms.index(GOOD)
    assert all(int(s.arm) == good for s in states)


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
    assert (one.tried > 0).any()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="at least 2, received 1"):
        Tuned([CG()])
    with pytest.raises(ValueError, match=r"iterate to a tolerance .*received Dense"):
        Tuned([CG(), Dense()])
    with pytest.raises(ValueError, match="one tolerance"):
        Tuned([CG(tol=1e-3), CG(tol=1e-6)])
    with pytest.raises(ValueError, match="share expected from 0 to 1"):
        Tuned([CG(), PCG(DensePreconditioner())], share=2.0)
