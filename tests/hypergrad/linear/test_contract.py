"""What every linear solver promises, and the accuracy of those that iterate to a tolerance."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad import HasTolerance, Outcome
from hypergrad.linear import (
    CG,
    GMRES,
    MINRES,
    PCG,
    BiCGStab,
    Dense,
    Diagonal,
    Fallback,
    Identity,
    Jacobi,
    LinearOperator,
    Neumann,
    NormalCG,
    Nystrom,
    NystromPreconditioner,
    RecyclingCG,
    symmetric_operator,
    vector,
)
from tests.hypergrad.linear.systems import RHS, SIZE, error, flat, matrix, residual, solve, tree

SYMMETRIC = {
    "cg": lambda **stop: CG(**stop),
    "pcg": lambda **stop: PCG(**stop),
    "pcg_nystrom": lambda **stop: PCG(NystromPreconditioner(4), **stop),
    "recycling_cg": lambda **stop: RecyclingCG(**stop),
    "minres": lambda **stop: MINRES(**stop),
    "fallback": lambda **stop: Fallback(CG(**stop), MINRES(**stop)),
}
GENERAL = {
    "gmres": lambda **stop: GMRES(**stop),
    "bicgstab": lambda **stop: BiCGStab(**stop),
    "normal_cg": lambda **stop: NormalCG(**stop),
}
ITERATIVE = SYMMETRIC | GENERAL
OTHERS = {
    "dense": lambda **_: Dense(),
    "identity": lambda **_: Identity(0.3),
    "neumann": lambda **_: Neumann(8),
    "nystrom": lambda **_: Nystrom(4, 0.1),
}
EVERY = ITERATIVE | OTHERS
TOL = {np.float64: 1e-10, np.float32: 1e-5}


def make(name: str, dtype: type = np.float64, steps: int = 1000):
    # Traced options: one compilation serves the whole file.
    return EVERY[name](tol=jnp.asarray(TOL[dtype], dtype), max_steps=jnp.asarray(steps))


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("name", ITERATIVE)
def test_solves_a_positive_definite_system(name: str, dtype: type) -> None:
    a = matrix("spd")
    solution = solve(make(name, dtype), a, dtype=dtype)
    assert error(solution, a) < 40 * TOL[dtype]
    assert residual(solution, a) < 2 * TOL[dtype]
    assert abs(float(solution.residual) - residual(solution, a)) < TOL[dtype]
    assert not solution.nonpositive_curvature
    assert not solution.breakdown
    assert 0.19 < float(solution.curvature_min) <= float(solution.curvature_max) < 8.1


@pytest.mark.parametrize("kind", ["nonsymmetric", "indefinite"])
@pytest.mark.parametrize("name", [*GENERAL, "minres", "fallback", "dense"])
def test_solves_what_conjugate_gradient_cannot(name: str, kind: str) -> None:
    if kind == "nonsymmetric" and name in SYMMETRIC:
        pytest.skip("symmetric operators only")
    a = matrix(kind)
    solution = solve(make(name), a)
    assert error(solution, a) < 1e-8
    assert not solution.breakdown
    if kind == "indefinite" and name in ("minres", "fallback", "dense"):
        assert solution.nonpositive_curvature


@pytest.mark.parametrize("name", [*SYMMETRIC, "nystrom"])
def test_refuses_an_operator_that_is_not_symmetric(name: str) -> None:
    with pytest.raises(ValueError, match="symmetric"):
        solve(make(name), matrix("nonsymmetric"))


@pytest.mark.parametrize("name", EVERY)
def test_a_zero_right_hand_side_gives_zero(name: str) -> None:
    solution = solve(make(name), matrix("spd"), np.zeros(SIZE))
    assert not np.any(flat(solution.value))
    assert float(solution.residual) == 0
    assert not solution.breakdown


@pytest.mark.parametrize("when", ["at once", "later"])
@pytest.mark.parametrize("name", sorted(set(EVERY) - {"identity"}))
def test_a_product_that_is_not_finite_is_contained(name: str, when: str) -> None:
    poison = np.ones(SIZE)
    if when == "later":
        # The first product, that with the right-hand side, is sound.
        poison -= poison @ RHS / (RHS @ RHS) * RHS
    solution = solve(make(name), matrix("spd"), poison=poison)
    assert solution.breakdown
    assert np.all(np.isfinite(flat(solution.value)))
    assert not float(solution.residual) < 1e-3


@pytest.mark.parametrize("name", EVERY)
def test_vmap_gives_what_a_loop_gives(name: str) -> None:
    a = matrix("spd")
    rows = np.stack([RHS, RHS[::-1], 0 * RHS])
    operator = symmetric_operator(lambda v: tree(jnp.asarray(a) @ flat(v)))
    batched = jax.jit(jax.vmap(lambda b: make(name).solve(operator, tree(b))))(rows)
    for i, row in enumerate(rows):
        alone = solve(make(name), a, row)
        got = jax.tree.map(lambda leaf, i=i: leaf[i], batched)
        np.testing.assert_allclose(flat(got.value), flat(alone.value), rtol=1e-7, atol=1e-9)
        assert bool(got.breakdown) == bool(alone.breakdown)


@pytest.mark.parametrize("name", ITERATIVE)
def test_a_solved_start_costs_next_to_nothing_and_a_bad_one_does_no_harm(name: str) -> None:
    a = matrix("spd")
    answer = np.linalg.solve(a, RHS)
    building = {"pcg": 10, "pcg_nystrom": 4}.get(name, 0)
    # Of another length too: a start is scaled.
    done = solve(make(name), a, initial=7.0 * answer)
    assert error(done, a) < 1e-9
    assert int(done.products) - building <= 3
    for start in (1e8 * np.ones(SIZE), np.full(SIZE, np.nan)):
        away = solve(make(name), a, initial=start)
        assert error(away, a) < 1e-8
        assert np.all(np.isfinite(flat(away.value)))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
@pytest.mark.parametrize("name", [*ITERATIVE, "dense", "neumann", "nystrom"])
def test_the_length_of_the_right_hand_side_does_not_matter(name: str, scale: float) -> None:
    a = matrix("spd")
    solution = solve(make(name, np.float32), a, scale * RHS, dtype=np.float32)
    if name in OTHERS:
        alone = flat(solve(make(name, np.float32), a, dtype=np.float32).value)
        np.testing.assert_allclose(flat(solution.value) / scale, alone, rtol=1e-4)
    if name not in ("neumann", "nystrom"):
        assert error(solution, a, scale * RHS) < 40 * TOL[np.float32]


@pytest.mark.parametrize("name", ITERATIVE)
def test_another_tolerance_is_met_and_no_more(name: str) -> None:
    solver = make(name)
    assert isinstance(solver, HasTolerance)
    loose = solve(solver.with_tol(jnp.asarray(1e-2, np.float64)), matrix("spd"))
    tight = solve(solver, matrix("spd"))
    assert 1e-6 < residual(loose, matrix("spd")) <= 1e-2
    assert int(loose.products) < int(tight.products)
    assert loose.outcome == Outcome.solved


@pytest.mark.parametrize("name", OTHERS)
def test_what_has_no_tolerance_does_not_say_so(name: str) -> None:
    assert not isinstance(make(name), HasTolerance)


@pytest.mark.parametrize("name", EVERY)
def test_says_how_it_ended(name: str) -> None:
    whole = solve(make(name), matrix("spd"))
    by_design = name in ("identity", "neumann", "nystrom")
    assert whole.outcome == (Outcome.approximate if by_design else Outcome.solved)
    poisoned = solve(make(name), matrix("spd"), poison=np.ones(SIZE))
    assert poisoned.outcome == (Outcome.approximate if name == "identity" else Outcome.not_finite)
    nowhere = solve(make(name), matrix("spd"), np.full(SIZE, np.inf))
    assert nowhere.outcome == Outcome.not_finite
    assert not np.any(flat(nowhere.value))
    if name in ITERATIVE:
        assert solve(make(name, steps=2), matrix("spd")).outcome == Outcome.max_steps_reached
    if name in SYMMETRIC:
        stopped = (
            Outcome.indefinite
            if name in ("minres", "fallback")
            else (Outcome.nonpositive_curvature)
        )
        assert solve(make(name), matrix("indefinite")).outcome == stopped


@pytest.mark.parametrize("name", ITERATIVE)
def test_no_steps_give_the_start(name: str) -> None:
    solution = solve(make(name, steps=0), matrix("spd"))
    assert not np.any(flat(solution.value))
    assert float(solution.residual) == pytest.approx(1.0)
    assert not solution.breakdown


@pytest.mark.parametrize("name", SYMMETRIC)
def test_more_steps_never_have_a_larger_energy_error(name: str) -> None:
    # Along the way the residuals of conjugate gradient are up to twice the first: the iterate of
    # smallest residual would be zero for six of twelve steps.
    q = np.linalg.eigh(matrix("spd"))[1]
    a = (q * np.geomspace(1e-2, 10, SIZE)) @ q.T
    b = q @ np.r_[np.ones(SIZE - 1), 0.2]
    answer = np.linalg.solve(a, b)

    def energy(steps: int) -> float:
        gap = flat(solve(make(name, steps=steps), a, b).value) - answer
        return float(jnp.sqrt(gap @ a @ gap))

    errors = [energy(steps) for steps in range(SIZE)]
    assert np.all(np.diff(errors) < 0)


@pytest.mark.parametrize("name", ["cg", "pcg", "recycling_cg"])
def test_non_positive_curvature_leaves_the_iterate_before(name: str) -> None:
    a = matrix("indefinite")
    q = np.linalg.eigh(a)[1]
    b = q @ np.r_[0.1, 0.1, np.ones(SIZE - 2)]
    steps = [solve(make(name, steps=steps), a, b) for steps in range(SIZE)]
    sound = [solution for solution in steps if not solution.nonpositive_curvature]
    whole = solve(make(name), a, b)
    assert len(sound) > 2
    assert whole.nonpositive_curvature
    assert not whole.breakdown
    np.testing.assert_array_equal(flat(whole.value), flat(sound[-1].value))
    # The quadratic is lower at every step: what was found so far is worth having.
    lower = [float(x @ a @ x / 2 - b @ x) for x in (flat(s.value) for s in sound)]
    assert np.all(np.diff(lower) < 0)
    gap = np.linalg.norm(b - a @ flat(whole.value)) / np.linalg.norm(b)
    assert float(whole.residual) == pytest.approx(gap, rel=1e-9)


@pytest.mark.parametrize("name", [*ITERATIVE, "dense", "nystrom"])
def test_bfloat16_systems_are_solved_in_float32(name: str) -> None:
    diagonal = jnp.linspace(1.0, 4.0, 100)
    solver = Nystrom(101, 1e-3) if name == "nystrom" else EVERY[name](tol=1e-3)
    b = jnp.cos(jnp.arange(100.0)).astype(jnp.bfloat16)

    def mv(v):
        scalar, w = v
        assert w.dtype == jnp.bfloat16
        return 4 * scalar, (diagonal * w.astype(jnp.float32)).astype(jnp.bfloat16)

    operator = LinearOperator(mv, mv, symmetric=True)
    solution = eqx.filter_jit(solver.solve)(operator, (jnp.asarray(3.0, jnp.float32), b))
    scalar, w = solution.value
    assert w.dtype == jnp.bfloat16
    assert scalar.dtype == solution.residual.dtype == jnp.float32
    assert float(scalar) == pytest.approx(0.75, rel=8e-3)
    wrong = w.astype(jnp.float64) - b.astype(jnp.float64) / diagonal
    # Rounding to bfloat16 alone is 2e-3.
    assert float(jnp.linalg.norm(wrong) / jnp.linalg.norm(b.astype(jnp.float64))) < 8e-3


@pytest.mark.parametrize("name", ITERATIVE)
def test_many_well_conditioned_float32_unknowns(name: str) -> None:
    # lineax's CG and BiCGStab give NaN here.
    b = jax.random.normal(jax.random.key(0), (200_000,), jnp.float32)
    solver = EVERY[name](tol=1e-5)
    solution = eqx.filter_jit(solver.solve)(symmetric_operator(lambda v: 2.0 * v), b)
    assert float(vector.norm(2 * solution.value - b) / vector.norm(b)) < 1e-5
    assert not solution.breakdown


@pytest.mark.parametrize(
    "build",
    [
        lambda: PCG(tol=-1.0),
        lambda: PCG(1e-3),
        lambda: MINRES(tol=float("nan")),
        lambda: GMRES(max_steps=-1),
        lambda: GMRES(restart=0),
        lambda: BiCGStab(tol=-1e-3),
        lambda: NormalCG(max_steps=-2),
        lambda: Neumann(-1),
        lambda: Neumann(3, step=0.0),
        lambda: Neumann(3, power_iterations=0),
        lambda: Nystrom(0),
        lambda: Nystrom(damping=0.0),
        lambda: Nystrom(sketch="rows"),
        lambda: Nystrom(chunk=0),
        lambda: NystromPreconditioner(0),
        lambda: Jacobi(1),
        lambda: Dense(chunk=0),
    ],
)
def test_impossible_options_are_refused(build) -> None:
    with pytest.raises(ValueError, match="received"):
        build()


def test_a_built_preconditioner_is_passed_on_as_an_array() -> None:
    a = matrix("ill")
    d = np.diagonal(a).copy()
    solution = solve(PCG(Diagonal(tree(jnp.asarray(d))), tol=1e-10), a)
    assert residual(solution, a) < 1e-9
