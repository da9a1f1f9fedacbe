import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import (
    Envelope,
    FunctionSolver,
    ImplicitDifferentiation,
    OptaxSolver,
    hypergradient,
    recommend,
)
from hypergrad.outer import (
    Alternating,
    ConstrainedProblem,
    DualAscent,
    Extragradient,
    NuPI,
    PairedBatches,
    optimality_report,
    run,
)

# minimise ‖w − t‖² / 2 subject to M w <= c: the first two bind.
T = jnp.array([1.0, 2.0, -1.0])
M = jnp.array([[1.0, 1.0, 0.0], [0.0, 1.0, -1.0], [1.0, 0.0, 0.0]])
C = jnp.array([2.0, 2.0, 5.0])


def quadratic(bounds, **options):
    return ConstrainedProblem(
        lambda w, target: jnp.sum((w - target) ** 2) / 2, lambda w, _: M @ w, bounds, **options
    )


def kkt_point(bounds, binding=(0, 1)):
    """Solution and multipliers by the linear system of the constraints that bind."""
    rows, m = list(binding), np.asarray(M)
    a, k = m[rows], len(rows)
    system = np.block([[np.eye(3), a.T], [a, np.zeros((k, k))]])
    solved = np.linalg.solve(system, np.concatenate([T, np.asarray(bounds)[rows]]))
    multipliers = np.zeros(3)
    multipliers[rows] = solved[3:]
    return solved[:3], multipliers


SOLVE = FunctionSolver(lambda w, m, target: target - M.T @ m)
ONE_STEP = OptaxSolver(optax.sgd(0.3), steps=1)
QP = quadratic(C)
ZERO = jnp.zeros(3)


def solved(problem=QP, algorithm=None, **options):
    algorithm = DualAscent(ONE_STEP, 0.3) if algorithm is None else algorithm
    options = {"steps": 2000, "every": 20, **options}
    return run(problem, algorithm, ZERO, ZERO, T, T, **options)


@pytest.mark.parametrize(
    "algorithm",
    [
        DualAscent(ONE_STEP, 0.3),
        DualAscent(ONE_STEP, 0.3, momentum=NuPI(0.5, smoothing=0.5)),
        DualAscent(SOLVE, 0.3),
        Extragradient(0.3),
    ],
    ids=["single loop", "nuPI", "exact", "extragradient"],
)
def test_a_quadratic_program_reaches_its_kkt_point(algorithm):
    result = solved(algorithm=algorithm)
    w, multipliers = kkt_point(C)
    np.testing.assert_allclose(result.params, w, atol=1e-8)
    np.testing.assert_allclose(result.hparams, multipliers, atol=1e-8)
    report = optimality_report(QP, result.params, result.hparams, T)
    assert report.residual < 1e-6
    assert report.feasible


def test_multipliers_are_sensitivities():
    result = solved()
    slopes = optimality_report(QP, result.params, result.hparams, T).sensitivities
    step = 1e-4
    for k in range(3):
        shift = step * np.eye(3)[k]
        ends = [0.5 * np.sum((kkt_point(C + s * shift)[0] - T) ** 2) for s in (1, -1)]
        difference = float(ends[0] - ends[1]) / (2 * step)
        assert float(slopes[k]) == pytest.approx(difference, abs=1e-8)


def test_the_history_tells_objective_violation_and_the_best_feasible_point():
    result = solved()
    rows = result.history
    assert len({r["violation"] <= 1e-3 for r in rows}) == 2
    assert [np.isfinite(r["value"]) for r in rows] == [r["violation"] <= 1e-3 for r in rows]
    feasible = [r["objective"] for r in rows if r["violation"] <= 1e-3]
    assert float(result.best.value) == pytest.approx(min(feasible))
    at_best = optimality_report(QP, result.best.params, result.best.hparams, T)
    assert at_best.feasible
    assert at_best.objective == pytest.approx(min(feasible))


def test_the_dual_gradient_is_the_slack():
    m = jnp.array([0.3, 0.1, 0.0])
    for estimator in (Envelope(SOLVE), ImplicitDifferentiation(SOLVE)):
        out = hypergradient(QP, ZERO, m, T, T, estimator=estimator)
        np.testing.assert_allclose(out.grad, C - M @ (T - M.T @ m), rtol=1e-10)


def test_nupi_without_smoothing_is_optimistic_ascent():
    problem = ConstrainedProblem(lambda w, _: w**2, lambda w, _: 1.0 - w, 0.0)
    still = FunctionSolver(lambda w, m, _: w)
    algorithm = DualAscent(still, 0.1, momentum=NuPI(0.1))
    seen = []

    def note(report):
        seen.append(float(report.state.hparams))

    run(problem, algorithm, 0.5, 0.0, None, None, steps=3, callbacks=[note])
    # The excess is 0.5 throughout: 2 η e first, η e after.
    np.testing.assert_allclose(seen, [0.1, 0.15, 0.2], rtol=1e-12)


def test_an_equality_may_push_either_way():
    problem = quadratic(jnp.array([4.0, 1.0, 2.0]), equality=True)
    result = solved(problem, DualAscent(ONE_STEP, 0.2), steps=4000, every=4000)
    w, multipliers = kkt_point([4.0, 1.0, 2.0], binding=(0, 1, 2))
    np.testing.assert_allclose(result.params, w, atol=1e-6)
    np.testing.assert_allclose(result.hparams, multipliers, atol=1e-6)
    assert np.min(multipliers) < 0


@pytest.mark.parametrize(
    "inner",
    [
        pytest.param(ONE_STEP, id="single loop"),
        pytest.param(SOLVE, id="exact", marks=pytest.mark.slow),
    ],
)
def test_bounds_that_cannot_be_met_end_the_run(inner):
    # w₀ + w₁ <= −1 and −w₀ − w₁ <= −1.
    sides = jnp.array([[1.0, 1.0, 0.0], [-1.0, -1.0, 0.0]])
    problem = ConstrainedProblem(
        lambda w, target: jnp.sum((w - target) ** 2) / 2, lambda w, _: sides @ w, -1.0
    )
    start = FunctionSolver(lambda w, m, target: target - sides.T @ m) if inner is SOLVE else inner
    algorithm = DualAscent(start, 0.2)
    result = run(problem, algorithm, ZERO, jnp.zeros(2), T, T, steps=5000, every=100)
    assert result.status == "infeasible"
    assert len(result.history) < 5000
    last = result.history[-1]
    assert last["reach"] > 100
    assert last["violation"] > 0.9
    assert not np.isfinite(result.value)
    assert np.all(np.isfinite(result.hparams))


@pytest.mark.parametrize("step", [1e-4, 0.3])
def test_what_can_be_met_is_not_given_up(step):
    """However slow: the multipliers still grow, and no constraint is met for long."""
    result = solved(algorithm=DualAscent(ONE_STEP, step), steps=3000)
    assert result.status == "steps"
    reach = max(row["reach"] for row in result.history)
    w, _ = kkt_point(C)
    assert reach <= np.linalg.norm(w - T) + 3  # a feasible point is no further


def test_slack_is_bought_at_its_price():
    # ‖w‖² / 2 with w >= 1 at price α: w = λ, λ = α (1 − w).
    problem = ConstrainedProblem(lambda w, _: w**2 / 2, lambda w, _: 1.0 - w, 0.0, slack=3.0)
    result = run(problem, DualAscent(ONE_STEP, 0.3), 0.0, 0.0, None, None, steps=500, every=500)
    assert float(result.params) == pytest.approx(0.75, abs=1e-9)
    assert float(result.hparams) == pytest.approx(0.75, abs=1e-9)
    contradicting = ConstrainedProblem(None, lambda w, _: jnp.stack([w, -w]), -1.0, slack=2.0)
    algorithm = DualAscent(ONE_STEP, 0.3)
    start = (jnp.asarray(0.3), jnp.zeros(2))
    result = run(contradicting, algorithm, *start, None, None, steps=500, every=500)
    assert result.status == "steps"
    np.testing.assert_allclose(result.hparams, 2.0, atol=1e-6)  # α times the excess of 1


#: Four examples, of which one is far off; the squared loss of each at most 0.3.
EXAMPLES = {"x": jnp.array([0.0, 0.1, 0.2, 1.0]), "row": jnp.arange(4)}
EACH = ConstrainedProblem(None, lambda w, b: (w - b["x"]) ** 2, 0.3, rows=lambda b: b["row"])
BATCHED = DualAscent(OptaxSolver(optax.adam(0.05), steps=1), 0.5, momentum=NuPI(0.2, smoothing=0.9))


def batched(steps, start, path=None, callbacks=()):
    """Steps on two examples at a time."""
    return run(
        EACH,
        BATCHED,
        start,
        EACH.multipliers(jnp.asarray(start), EXAMPLES, 4, value=1.0),
        EXAMPLES,
        EXAMPLES,
        steps=steps,
        sampler=PairedBatches(2),
        checkpoint=path,
        checkpoint_seconds=0,
        callbacks=callbacks,
    )


def test_only_the_multipliers_of_the_batch_move():
    result = batched(1, -1.0)
    moved = np.asarray(result.state.hparams != 1.0)
    assert moved.sum() == 2
    excess = (np.asarray(result.params) - EXAMPLES["x"]) ** 2 - 0.3
    # Step, and gain times what smoothing lets through.
    expected = 1 + (0.5 + 0.2 * 0.1) * excess[moved]
    np.testing.assert_allclose(result.state.hparams[moved], expected, rtol=1e-10)


def test_feasible_learning_meets_every_example():
    start = EACH.multipliers(jnp.asarray(0.0), EXAMPLES, 4, value=1.0)
    data = (EXAMPLES, EXAMPLES)
    result = run(EACH, DualAscent(ONE_STEP, 0.5), 0.0, start, *data, steps=800, every=800)
    assert result.history[-1]["violation"] < 1e-3
    assert 1 - 0.3**0.5 - 1e-3 < float(result.params) < 0.3**0.5 + 1e-3


def test_multipliers_follow_what_is_measured():
    """The count above one half binds, the smooth surrogate alone would not."""
    problem = ConstrainedProblem(
        lambda w, _: -w,
        lambda w, _: w,
        0.5,
        measured=lambda w, _: jnp.where(w > 0.2, 1.0, 0.0),
    )
    still = FunctionSolver(lambda w, m, _: jnp.asarray(0.3))
    result = run(problem, DualAscent(still, 0.1), 0.3, 0.0, None, None, steps=2)
    assert float(result.state.hparams) == pytest.approx(0.1)
    assert result.history[-1]["violation"] == pytest.approx(0.5)


def test_a_killed_run_goes_on_bit_for_bit(tmp_path):
    whole = batched(12, 0.0)

    def kill(report):
        if report.step == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        batched(12, 0.0, tmp_path / "run", [kill])
    again = batched(12, 0.0, tmp_path / "run")
    for one, other in zip(jax.tree.leaves(whole.state), jax.tree.leaves(again.state), strict=True):
        np.testing.assert_array_equal(one, other)
    columns = ("value", "objective", "violation", "reach")
    for row, other in zip(whole.history, again.history, strict=True):
        assert [row[c] for c in columns] == [other[c] for c in columns]


def test_exact_dual_ascent_by_any_outer_algorithm():
    algorithm = Alternating(Envelope(SOLVE), optax.sgd(0.3))
    result = solved(algorithm=algorithm, steps=300, every=300)
    # Nothing keeps the third multiplier from becoming negative but a constraint: it has slack.
    assert float(result.hparams[2]) < 0


def test_the_doctor_knows_them():
    doctor = recommend(QP, ZERO, ZERO, T, T)
    assert doctor["hparams"].family == "envelope"
    assert isinstance(doctor.estimator, Envelope)
    assert "DualAscent" in str(doctor)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"bounds\['rate'\]: expected finite numbers"):
        ConstrainedProblem(None, lambda w, b: w, {"rate": jnp.nan})
    listed = ConstrainedProblem(None, lambda w, b: w, [1.0, 2.0, 3.0])
    with pytest.raises(ValueError, match="bounds: expected a prefix of what the constraints"):
        listed.parts(ZERO, T)
    with pytest.raises(ValueError, match="slack: expected a number > 0"):
        quadratic(C, slack=0.0)
    with pytest.raises(ValueError, match="multipliers of inequalities: expected numbers >= 0"):
        run(QP, DualAscent(ONE_STEP, 0.1), ZERO, -jnp.ones(3), T, T, steps=1)
    with pytest.raises(ValueError, match=r"expected shapes \(3,\), received \(2,\)"):
        run(QP, DualAscent(ONE_STEP, 0.1), ZERO, jnp.zeros(2), T, T, steps=1)
    with pytest.raises(ValueError, match="count: expected the number of examples"):
        QP.multipliers(ZERO, T, 4)
    with pytest.raises(ValueError, match="smoothing: expected a number in"):
        NuPI(0.1, smoothing=1.0)
    with pytest.raises(ValueError, match="step: expected a number > 0"):
        DualAscent(ONE_STEP, -1.0)
