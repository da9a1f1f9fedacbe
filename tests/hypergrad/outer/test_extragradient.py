from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad import (
    BilevelProblem,
    Envelope,
    FunctionSolver,
    ImplicitDifferentiation,
    hypergradient,
)
from hypergrad.outer import (
    Batches,
    Box,
    Extragradient,
    PairedBatches,
    ScaledSimplex,
    run,
    second_order_report,
)

SOLVED = FunctionSolver(lambda y, x, m: -jnp.linalg.solve(m[1], m[2].T @ x))
TIMES = np.array([1.0, 4.0, 16.0, 64.0])


def f(y, x, matrices):
    a, b, c = matrices
    return x @ a @ x / 2 + y @ b @ y / 2 + x @ c @ y


QUADRATIC = BilevelProblem.minimax(f)


def game(a, b, c):
    """The data of `f(x, y) = xᵀAx/2 + yᵀBy/2 + xᵀCy`, two unknowns each."""
    return tuple(jnp.asarray(m * np.eye(2) if np.ndim(m) == 0 else m, float) for m in (a, b, c))


@partial(jax.jit, static_argnames="look_ahead")
def jacobian(step, ratio, matrices, look_ahead):
    """The matrix of one iteration."""
    algorithm = Extragradient(step, ratio, look_ahead=look_ahead)
    batches = Batches(matrices, matrices)

    def iterate(z):
        state = algorithm.init(QUADRATIC, z[2:], z[:2], batches)
        new, _ = algorithm.step(QUADRATIC, state, batches)
        return jnp.concatenate([new.hparams, new.params])

    return jax.jacobian(iterate)(jnp.zeros(4))


def radii(matrices, steps, ratios, look_ahead=True):
    """Spectral radius of one iteration, of every step with every ratio."""
    pairs = [(jnp.asarray(s), jnp.asarray(r)) for s in steps for r in ratios]
    found = [np.asarray(jacobian(*pair, matrices, look_ahead)) for pair in pairs]
    spectra = [np.abs(np.linalg.eigvals(m)).max() for m in found]
    return np.reshape(spectra, (len(steps), len(ratios)))


BILINEAR = game(0.0, 0.0, 1.0)
DEGENERATE = game(np.diag([-0.2, -0.1]), np.diag([-1.0, 0.0]), np.eye(2))
SADDLE = game(-2.0, -1.0, 1.0)


def test_contraction_on_the_bilinear_game():
    ahead = radii(BILINEAR, [0.5], TIMES)[0]
    s = 0.25 / TIMES
    np.testing.assert_allclose(ahead, np.sqrt((1 - s) ** 2 + s), rtol=1e-12)
    np.testing.assert_allclose(ahead, [0.90139, 0.97026, 0.99228, 0.99805], atol=5e-6)
    plain = radii(BILINEAR, [0.5], TIMES, look_ahead=False)[0]
    np.testing.assert_allclose(plain, [1.11803, 1.03078, 1.00778, 1.00195], atol=5e-6)


def test_a_degenerate_local_minimax_point_needs_a_step_that_is_not_small():
    ratios = [1.0, 4.0, 16.0, 64.0, 256.0]
    large, middle, small = radii(DEGENERATE, [0.5, 0.1, 0.05], ratios)
    np.testing.assert_allclose(large, [0.93675, 0.97716, 0.99388, 0.99845, 0.99961], atol=5e-6)
    assert middle[0] == pytest.approx(1.00015, abs=5e-6)
    assert np.all(middle > 1 - 1e-6)
    assert np.all(middle < 1.0002)
    assert np.all(small > 1)
    # The upper end of the step: 1 / L, with L = 1.677 the norm of the field's derivative.
    assert np.all(radii(DEGENERATE, [1 / 1.677], ratios) < 1)
    assert np.all(radii(DEGENERATE, [2.5], [1.0, 4.0]) > 1)
    assert np.all(radii(DEGENERATE, [0.5, 0.1], ratios, look_ahead=False) > 1)


def test_a_point_that_is_no_minimax_is_left():
    away = radii(SADDLE, [0.5], TIMES)[0]
    assert np.all(away > 1)


@pytest.mark.parametrize(
    ("matrices", "verdict", "restricted", "nullity"),
    [
        (BILINEAR, "necessary", [], 2),
        (DEGENERATE, "necessary", [0.8], 1),
        (SADDLE, "no", [-1.0, -1.0], 0),
        (game(1.0, -2.0, 3.0), "strict", [5.5, 5.5], 0),
        (game(1.0, 0.5, 1.0), "no", [-1.0, -1.0], 0),
        (game(1.0, 0.0, 0.0), "necessary", [1.0, 1.0], 2),
    ],
)
def test_the_second_order_report(matrices, verdict, restricted, nullity):
    report = second_order_report(f, jnp.zeros(2), jnp.zeros(2), matrices)
    assert report.verdict == verdict
    assert report.nullity == nullity
    np.testing.assert_allclose(report.restricted, restricted, atol=1e-12)
    assert report.ok == (verdict != "no")


def test_the_report_is_about_stationary_points():
    report = second_order_report(f, jnp.ones(2), jnp.ones(2), DEGENERATE)
    assert report.verdict == "not stationary"
    assert "not a stationary point" in str(report)


MATRIX = jnp.array([[3.0, -1.0], [-2.0, 1.0]])  # value 1/7 at x = (3/7, 4/7), y = (2/7, 5/7)
GAME = BilevelProblem.minimax(
    lambda y, x, _: x @ MATRIX @ y, opponent=ScaledSimplex(), worst=lambda x, _: jnp.max(x @ MATRIX)
)
HALF = jnp.array([0.5, 0.5])


def test_the_last_iterate_solves_a_matrix_game():
    algorithm = Extragradient(0.2, constraint=ScaledSimplex())
    result = run(GAME, algorithm, HALF, HALF, None, None, steps=2000, every=100, tol=1e-7)
    assert result.status == "stationary"
    np.testing.assert_allclose(result.hparams, [3 / 7, 4 / 7], atol=1e-6)
    np.testing.assert_allclose(result.params, [2 / 7, 5 / 7], atol=1e-6)
    assert result.value == pytest.approx(1 / 7, abs=1e-6)
    # Judged by the worst case, which is known here: the best point is the last.
    assert float(result.best.value) >= 1 / 7 - 1e-9
    plain = Extragradient(0.2, constraint=ScaledSimplex(), look_ahead=False)
    spiral = run(GAME, plain, HALF, HALF, None, None, steps=2000, every=100)
    assert spiral.value > 1 / 7 + 0.1


def test_the_envelope_is_what_the_linear_solve_gives():
    matrices = game(1.0, np.array([[-2.0, 0.5], [0.5, -1.0]]), np.array([[1.0, 2.0], [0.0, 3.0]]))
    a, b, c = (np.asarray(m) for m in matrices)
    x = np.array([0.4, -1.0])
    args = (QUADRATIC, jnp.zeros(2), jnp.asarray(x), matrices, matrices)
    envelope = hypergradient(*args, estimator=Envelope(SOLVED))
    implicit = hypergradient(*args, estimator=ImplicitDifferentiation(SOLVED))
    truth = (a - c @ np.linalg.solve(b, c.T)) @ x
    np.testing.assert_allclose(envelope.grad, truth, rtol=1e-7)
    np.testing.assert_allclose(implicit.grad, truth, rtol=1e-7)
    assert float(envelope.value) == pytest.approx(float(implicit.value), rel=1e-12)
    assert int(envelope.info.iterations) == 0


def test_a_singular_hessian_does_not_stop_the_linear_solve():
    # At these points ∂f/∂y is zero: so is the solution of the adjoint system, singular as it is.
    x = jnp.array([0.5, 0.0])
    out = hypergradient(QUADRATIC, x, x, DEGENERATE, DEGENERATE)
    np.testing.assert_allclose(out.grad, DEGENERATE[0] @ x + x)
    assert not bool(out.info.breakdown)


def test_a_set_that_binds_leaves_the_envelope_right():
    problem = BilevelProblem.minimax(
        lambda y, x, _: x @ (y * jnp.array([1.0, 2.0])) + x @ x, opponent=Box(-1.0, 1.0)
    )
    x = jnp.array([0.5, -0.7])  # the opponent's answer is the sign of x
    for estimator in (Envelope(), ImplicitDifferentiation()):
        out = hypergradient(problem, jnp.sign(x), x, estimator=estimator)
        np.testing.assert_allclose(out.grad, jnp.array([1.0, -2.0]) + 2 * x, rtol=1e-10)


def test_mini_batches_and_a_resumed_run(tmp_path):
    rng = np.random.default_rng(0)
    data = jnp.asarray(rng.normal(size=(40, 3)))
    problem = BilevelProblem.minimax(
        lambda p, w, rows: jnp.mean((rows - w) ** 2 @ p), opponent=ScaledSimplex()
    )
    start = (jnp.ones(3) / 3, jnp.zeros(3), data, data)

    def go(steps, path=None):
        algorithm = Extragradient(0.1, 2.0)
        options = {"sampler": PairedBatches(8), "every": 5, "checkpoint_seconds": 0}
        return run(problem, algorithm, *start, steps=steps, checkpoint=path, **options)

    whole = go(30)
    go(15, tmp_path / "run")
    again = go(30, tmp_path / "run")
    for one, other in zip(jax.tree.leaves(whole.state), jax.tree.leaves(again.state), strict=True):
        np.testing.assert_array_equal(one, other)
    assert [r["value"] for r in whole.history] == [r["value"] for r in again.history]


def test_bad_input_is_named():
    outside, unknown = jnp.array([1.0, 0.5]), jnp.array([jnp.nan, 0.5])
    with pytest.raises(ValueError, match=r"params \(the opponent\) starts outside.*expected 0.75"):
        run(GAME, Extragradient(0.1), outside, HALF, None, None, steps=1)
    with pytest.raises(ValueError, match="params"):
        run(GAME, Extragradient(0.1), unknown, HALF, None, None, steps=1)
    plain = BilevelProblem(lambda w, h, b: (w - h) ** 2, lambda w, h, b: w**2)
    one = jnp.asarray(1.0)
    with pytest.raises(ValueError, match=r"expected a MinimaxProblem.*received a BilevelProblem"):
        run(plain, Extragradient(0.1), one, one, None, None, steps=1)
    with pytest.raises(ValueError, match="Envelope: problem: expected"):
        hypergradient(plain, one, one, estimator=Envelope())
    with pytest.raises(ValueError, match="step: expected a number > 0, received 0"):
        Extragradient(0)
    with pytest.raises(ValueError, match=r"ratio: expected a number >= 1, received 0\.5"):
        Extragradient(0.1, 0.5)


def test_a_game_that_runs_away_ends_at_the_last_good_point():
    start = (jnp.ones(2), jnp.ones(2), BILINEAR, BILINEAR)
    result = run(QUADRATIC, Extragradient(1e30), *start, steps=60, every=20)
    assert result.status == "breakdown"
    assert np.all(np.isfinite(result.params))
    assert np.all(np.isfinite(result.hparams))
