"""Non-smooth and constrained inner problems, against closed forms and finite differences."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.datasets import load_diabetes

from hypergrad import (
    CG,
    KKT,
    BilevelProblem,
    FunctionSolver,
    ImplicitDifferentiation,
    Newton,
    ProximalStep,
    check_hypergradient,
    hypergradient,
)
from hypergrad.linear.gmres import GMRES
from tests.hypergrad.problems import relative_error


def mean_square(w, lam, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def soft_threshold(point, lam, step):
    return jnp.sign(point) * jnp.maximum(jnp.abs(point) - step * jnp.exp(lam), 0)


def diabetes():
    x, y = load_diabetes(return_X_y=True)
    x = (x - x.mean(0)) / x.std(0)
    y = (y - y.mean()) / y.std()
    half = len(x) // 2
    return tuple(map(jnp.asarray, (x[:half], y[:half]))), tuple(
        map(jnp.asarray, (x[half:], y[half:]))
    )


def iterate(step):
    """The fixed point by plain iteration."""

    @eqx.filter_jit
    def fixed_point(w, lam, batch):
        move = lambda _, w: step.prox(step.forward(w, lam, batch), lam, step.step)  # noqa: E731
        return jax.lax.fori_loop(0, 5000, move, w)

    return fixed_point


@pytest.mark.parametrize("polyhedral", [True, False])
def test_lasso_on_its_support_equals_finite_differences(polyhedral):
    train, valid = diabetes()
    step = ProximalStep(mean_square, soft_threshold, 0.2, polyhedral=polyhedral)
    problem = BilevelProblem(None, mean_square, step)
    solve = iterate(step)
    estimator = ImplicitDifferentiation(FunctionSolver(solve), CG(tol=1e-11))
    for lam in (-1.5, -2.5):
        out = hypergradient(problem, jnp.zeros(10), lam, train, valid, estimator=estimator)
        values = [
            mean_square(solve(out.state.params, lam + shift, train), lam, valid)
            for shift in (1e-5, -1e-5)
        ]
        difference = (values[0] - values[1]) / 2e-5
        assert abs(out.grad - difference) < 1e-6 * abs(difference)
        assert out.info.error < 1e-6
        assert not out.info.breakdown
        support = int(jnp.sum(out.state.params != 0))
        assert 0 < support < 10
        if polyhedral:
            assert out.info.iterations <= support + 1


def test_lasso_error_estimate_covers_an_early_stop():
    train, valid = diabetes()
    step = ProximalStep(mean_square, soft_threshold, 0.2, polyhedral=True)
    problem = BilevelProblem(None, mean_square, step)
    star = iterate(step)(jnp.zeros(10), -2.5, train)
    truth = hypergradient(problem, star, -2.5, train, valid).grad
    near = star + 0.003 * (star != 0)
    out = hypergradient(problem, near, -2.5, train, valid)
    true = abs(out.grad - truth) / abs(out.grad)
    assert 1e-4 < true <= out.info.error < 30 * true


def test_a_false_polyhedral_declaration_is_found():
    train, valid = diabetes()

    def elastic(point, lam, step):
        return soft_threshold(point, lam, step) / (1 + step)

    step = ProximalStep(mean_square, elastic, 0.2, polyhedral=True)
    star = iterate(step)(jnp.zeros(10), -2.5, train)
    problem = BilevelProblem(None, mean_square, step)
    with pytest.warns(UserWarning, match="breakdown"):
        out = hypergradient(problem, star, -2.5, train, valid)
    assert out.info.breakdown
    general = ProximalStep(mean_square, elastic, 0.2)
    right = BilevelProblem(None, mean_square, general)
    report = check_hypergradient(
        right,
        star,
        -2.5,
        train,
        valid,
        directions=1,
        estimator=ImplicitDifferentiation(Newton(), GMRES(tol=1e-11)),
    )
    assert report.ok


def test_a_box_whose_bound_is_the_hyperparameter():
    target = jnp.array([2.0, 0.3, 1.5])
    problem = BilevelProblem(
        None,
        lambda w, lam, b: jnp.sum(w**2) + w[0] * w[1],
        ProximalStep(
            lambda w, lam, b: 0.5 * jnp.sum((w - b) ** 2) + 0.1 * w[0] * w[1],
            lambda point, lam, step: jnp.clip(point, -1.0, lam),
            0.5,
            polyhedral=True,
        ),
    )
    # w0 and w2 at the bound, w1 = 0.3 - 0.1 * lam inside.
    lam = 1.2
    w = jnp.array([lam, 0.3 - 0.1 * lam, lam])
    out = hypergradient(problem, w, lam, target, None)
    truth = 2 * lam + 2 * w[1] * -0.1 + 2 * lam + w[1] - 0.1 * lam
    assert abs(out.grad - truth) < 1e-10
    assert out.info.inner_residual < 1e-12


def project_simplex(v):
    ordered = jnp.sort(v)[::-1]
    excess = jnp.cumsum(ordered) - 1
    count = jnp.sum(ordered - excess / jnp.arange(1, v.size + 1) > 0)
    return jnp.maximum(v - excess[count - 1] / count, 0)


def test_the_simplex():
    rng = np.random.default_rng(0)
    half = rng.normal(size=(6, 6))
    matrix = jnp.asarray(half @ half.T + np.eye(6))
    step = ProximalStep(
        lambda w, lam, b: 0.5 * w @ matrix @ w - lam @ w,
        lambda point, lam, step: project_simplex(point),
        0.05,
        polyhedral=True,
    )
    problem = BilevelProblem(None, lambda w, lam, b: jnp.sum(jnp.sin(3 * w)), step)
    lam = jnp.asarray(rng.normal(size=6))
    solve = iterate(step)
    w = solve(jnp.ones(6) / 6, lam, None)
    assert 1 < jnp.sum(w > 0) < 6
    out = hypergradient(
        problem, w, lam, estimator=ImplicitDifferentiation(linear_solver=CG(tol=1e-11))
    )
    direction = jnp.asarray(rng.normal(size=6))
    shifted = [problem.outer(solve(w, lam + s * direction, None), lam, None) for s in (1e-5, -1e-5)]
    difference = (shifted[0] - shifted[1]) / 2e-5
    assert abs(out.grad @ direction - difference) < 1e-5 * abs(difference)


def central_difference(problem, solve, w, lam, batch, outer_batch, shift=1e-5):
    """Derivative of the solved outer loss with respect to a scalar hyperparameter."""
    high, low = (
        problem.outer(solve(w, lam + s, batch), lam + s, outer_batch) for s in (shift, -shift)
    )
    return (high - low) / (2 * shift)


def test_total_variation_through_its_dual():
    # min ½‖w − y‖² + λ Σ|w[i+1] − w[i]| has the dual min ½‖y − Dᵀu‖², |u| ≤ λ, and w = y − Dᵀu.
    rng = np.random.default_rng(0)
    clean = np.repeat([0.0, 2.0, 1.0, -1.0], 8)
    noisy = jnp.asarray(clean + 0.3 * rng.normal(size=clean.size))

    def primal(u, noisy):
        return noisy + jnp.diff(u, prepend=0.0, append=0.0)

    step = ProximalStep(
        lambda u, lam, noisy: 0.5 * jnp.sum(primal(u, noisy) ** 2),
        lambda point, lam, step: jnp.clip(point, -jnp.exp(lam), jnp.exp(lam)),
        0.25,
        polyhedral=True,
    )
    problem = BilevelProblem(None, lambda u, lam, b: jnp.mean((primal(u, b[0]) - b[1]) ** 2), step)
    solve, batch, lam = iterate(step), (noisy, jnp.asarray(clean)), jnp.asarray(-0.5)
    u = solve(jnp.zeros(clean.size - 1), lam, noisy)
    at_bound = int(jnp.sum(jnp.abs(u) >= jnp.exp(lam)))
    assert 2 <= at_bound < u.size - 8
    estimator = ImplicitDifferentiation(linear_solver=CG(tol=1e-11))
    out = hypergradient(problem, u, lam, noisy, batch, estimator=estimator)
    difference = central_difference(problem, solve, u, lam, noisy, batch)
    assert abs(out.grad - difference) < 1e-6 * abs(difference)
    assert out.info.error < 1e-4


def test_the_dual_of_a_support_vector_machine():
    rng = np.random.default_rng(1)
    x = jnp.asarray(
        np.concatenate([rng.normal(size=(30, 2)) - 0.6, rng.normal(size=(30, 2)) + 0.6])
    )
    y = jnp.repeat(jnp.array([-1.0, 1.0]), 30)
    train, valid = (x[::2], y[::2]), (x[1::2], y[1::2])

    def kernel(a, b, lam):
        square = jnp.sum((a[:, None] - b[None]) ** 2, axis=-1)
        return jnp.exp(-jnp.exp(lam["width"]) * square)

    def dual(alpha, lam, batch):
        x, y = batch
        gram = y[:, None] * kernel(x, x, lam) * y
        return 0.5 * alpha @ gram @ alpha - jnp.sum(alpha)

    def outer(alpha, lam, batch):
        x, y = batch
        margin = y * (kernel(x, train[0], lam) @ (alpha * train[1]))
        return jnp.mean(jax.nn.softplus(-margin))

    step = ProximalStep(
        dual, lambda point, lam, step: jnp.clip(point, 0.0, jnp.exp(lam["C"])), 0.1, polyhedral=True
    )
    problem = BilevelProblem(None, outer, step)
    lam = {"C": jnp.asarray(-0.7), "width": jnp.asarray(0.5)}

    @eqx.filter_jit
    def solve(alpha, lam, batch):
        move = lambda _, a: step.prox(step.forward(a, lam, batch), lam, step.step)  # noqa: E731
        return jax.lax.fori_loop(0, 40000, move, alpha)

    alpha = solve(jnp.zeros(30), lam, train)
    inside = (alpha > 0) & (alpha < jnp.exp(lam["C"]))
    assert min(int(jnp.sum(inside)), int(jnp.sum(alpha == 0)), int(jnp.sum(alpha > 0.49))) >= 2
    estimator = ImplicitDifferentiation(linear_solver=CG(tol=1e-11))
    out = hypergradient(problem, alpha, lam, train, valid, estimator=estimator)
    for name in lam:
        shifted = [
            outer(
                solve(alpha, lam | {name: lam[name] + s}, train), lam | {name: lam[name] + s}, valid
            )
            for s in (1e-5, -1e-5)
        ]
        difference = (shifted[0] - shifted[1]) / 2e-5
        assert abs(out.grad[name] - difference) < 1e-5 * abs(difference)


def test_equality_constraints_by_kkt():
    def objective(x, lam, batch):
        return 0.5 * jnp.sum((x - lam["target"]) ** 2)

    normal = jnp.array([1.0, 2.0, -1.0])
    problem = BilevelProblem(
        None,
        lambda p, lam, batch: jnp.sum(p[0] ** 3),
        KKT(objective, lambda x, lam, batch: normal @ x - lam["level"]),
    )
    lam = {"target": jnp.array([1.0, -0.5, 2.0]), "level": jnp.asarray(0.7)}

    def closed_form(lam):
        gap = (normal @ lam["target"] - lam["level"]) / (normal @ normal)
        return jnp.sum((lam["target"] - gap * normal) ** 3)

    estimator = ImplicitDifferentiation(Newton(), CG(tol=1e-12))
    out = hypergradient(problem, (jnp.zeros(3), jnp.zeros(())), lam, estimator=estimator)
    assert abs(out.value - closed_form(lam)) < 1e-10
    assert relative_error(out.grad, jax.grad(closed_form)(lam)) < 1e-9
    # A saddle by nature: its indefinite system is no reason for distrust.
    assert not out.info.nonpositive_curvature
    assert out.info.error < 1e-6
    with pytest.raises(ValueError, match="pair"):
        hypergradient(problem, jnp.zeros(3), lam)
    with pytest.raises(ValueError, match="multipliers"):
        hypergradient(problem, (jnp.zeros(3), jnp.zeros(2)), lam)


def test_a_box_by_kkt_and_an_equation_beside_it():
    # A quadratic programme whose solution has entries at the lower, at the upper bound and inside.
    rng = np.random.default_rng(3)
    half = rng.normal(size=(6, 6))
    matrix = jnp.asarray(half @ half.T + 2 * np.eye(6))
    row = jnp.ones(6)

    def objective(x, lam, batch):
        return 0.5 * x @ matrix @ x - lam["slope"] @ x

    def box(x, lam, batch):
        return {"low": -lam["width"] - x, "high": x - lam["width"]}

    problem = BilevelProblem(
        None,
        lambda p, lam, batch: jnp.sum(jnp.sin(p[0])) + jnp.sum(p[2]["high"] ** 2),
        KKT(objective, lambda x, lam, batch: row @ x - lam["sum"], box),
    )
    lam = {
        "slope": jnp.asarray(4 * rng.normal(size=6)),
        "width": jnp.asarray(0.5),
        "sum": jnp.asarray(0.4),
    }
    start = (jnp.zeros(6), jnp.zeros(()), {"low": jnp.zeros(6), "high": jnp.zeros(6)})
    estimator = ImplicitDifferentiation(Newton(), CG(tol=1e-12))
    out = hypergradient(problem, start, lam, estimator=estimator)
    x, _, z = out.state.params
    low, high, inside = np.asarray(z["low"] > 0), np.asarray(z["high"] > 0), np.abs(x) < 0.5 - 1e-9
    assert low.sum() >= 1
    assert high.sum() >= 1
    assert inside.sum() >= 2
    assert np.all(low + high + inside == 1)  # strictly complementary

    def closed_form(lam):
        # On these active sets the programme is linear in its data.
        pinned = jnp.where(low, -lam["width"], jnp.where(high, lam["width"], 0.0))
        keep = jnp.diag(inside.astype(float))
        kkt = jnp.block(
            [
                [keep @ matrix @ keep + jnp.diag(1.0 - inside), (row * inside)[:, None]],
                [(row * inside)[None], jnp.zeros((1, 1))],
            ]
        )
        rest = jnp.append(inside * (lam["slope"] - matrix @ pinned), lam["sum"] - row @ pinned)
        solved = jnp.linalg.solve(kkt, rest)
        x = pinned + solved[:6]
        z_high = high * (lam["slope"] - matrix @ x - solved[6] * row)
        return jnp.sum(jnp.sin(x)) + jnp.sum(z_high**2)

    assert abs(out.value - closed_form(lam)) < 1e-10
    assert relative_error(out.grad, jax.grad(closed_form)(lam)) < 1e-9
    assert out.info.error < 1e-6


def test_inequalities_alone_and_what_kkt_refuses():
    def objective(x, lam, batch):
        return 0.5 * jnp.sum((x - lam) ** 2)

    ball = KKT(objective, inequality=lambda x, lam, batch: 0.5 * (x @ x - 1))
    problem = BilevelProblem(None, lambda p, lam, batch: p[0][0], ball)
    lam = jnp.array([3.0, 4.0])
    estimator = ImplicitDifferentiation(Newton(), CG(tol=1e-12))
    start = (jnp.array([0.5, 0.5]), jnp.asarray(1.0))
    out = hypergradient(problem, start, lam, estimator=estimator)
    # The projection onto the unit ball, λ/‖λ‖: its Jacobian is (I − nnᵀ)/‖λ‖.
    assert relative_error(out.grad, jnp.array([16.0, -12.0]) / 125) < 1e-9
    with pytest.raises(ValueError, match="both are None"):
        KKT(objective)
    with pytest.raises(ValueError, match=r"pair \(x, z\)"):
        hypergradient(problem, jnp.zeros(2), lam)
