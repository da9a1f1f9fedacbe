import csv
import io
import math
from types import SimpleNamespace

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import outer
from hypergrad.compiled import InaccurateHypergradientWarning
from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.inner import Newton, OptaxSolver
from hypergrad.linear.cg import CG
from hypergrad.outer import (
    HOAG,
    MAID,
    SOBA,
    Alternating,
    Box,
    FullBatch,
    Minibatches,
    OverTuningWarning,
    Progress,
    Smoothness,
    driver,
    programs,
    run,
)
from hypergrad.problem import BilevelProblem

# The cheapest algorithm to compile: the driver is the same for all.
ALGORITHM = SOBA(optax.sgd(1.0), step_size=0.3, exponent=0.0, constraint=Box(-3.0, 1.0))


def drive(ridge, algorithm=ALGORITHM, **options):
    options = {"steps": 6, **options}
    parts = (ridge.params, ridge.hparams, ridge.inner, ridge.outer)
    return run(ridge.problem, algorithm, *parts, **options)


def test_the_history_is_a_plain_table(ridge, tmp_path):
    result = drive(ridge)
    assert [row["step"] for row in result.history] == [1, 2, 3, 4, 5, 6]
    assert result.status == "steps"
    first = result.history[0]
    assert all(type(cell) in (float, int, bool) for cell in first.values())
    assert first["value"] == pytest.approx(
        float(ridge.problem.outer(ridge.params, ridge.hparams, ridge.outer))
    )
    result.write_csv(tmp_path / "history.csv")
    with (tmp_path / "history.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["value"]) for row in rows] == [row["value"] for row in result.history]
    assert list(rows[0])[:3] == ["step", "seconds", "value"]


def test_several_steps_in_one_program_give_the_same_run(ridge):
    one, many = drive(ridge, steps=7), drive(ridge, steps=7, every=3)
    np.testing.assert_allclose(one.hparams, many.hparams, rtol=1e-12)
    values = [[row["value"] for row in result.history] for result in (one, many)]
    np.testing.assert_allclose(*values, rtol=1e-12)
    looks = [math.isnan(row["validation"]) for row in many.history]
    assert looks == [True, True, False, True, True, False, False]


def test_minibatches_are_looked_at_with_all_outer_data(ridge):
    result = drive(ridge, sampler=Minibatches(6), every=3, seed=4)
    at = ridge.problem.outer(result.params, result.hparams, ridge.outer)
    assert result.value == pytest.approx(float(at), rel=1e-12)
    assert result.value == result.history[-1]["validation"]
    again = drive(ridge, sampler=Minibatches(6), every=3, seed=4)
    np.testing.assert_array_equal(result.hparams, again.hparams)
    other = drive(ridge, sampler=Minibatches(6), every=3, seed=5)
    assert not np.array_equal(result.hparams, other.hparams)


def test_callbacks_see_the_run_and_can_stop_it(ridge):
    seen = []

    def watch(report):
        seen.append((report.step, report.steps, report.row["step"], report.seconds_left >= 0))
        return report.step == 4

    result = drive(ridge, callbacks=[watch])
    assert result.status == "callback"
    assert seen == [(k, 6, k, True) for k in (1, 2, 3, 4)]
    assert len(result.history) == 4


def test_the_time_left_does_not_count_on_compiling_again(ridge, monkeypatch):
    clock, reports, advance = [0.0], [], driver.advance

    def timed(*arguments):
        clock[0] += 2 if clock[0] else 100
        return advance(*arguments)

    monkeypatch.setattr(driver, "time", SimpleNamespace(monotonic=lambda: clock[0]))
    monkeypatch.setattr(driver, "advance", timed)
    drive(ridge, callbacks=[reports.append])
    assert [report.seconds for report in reports] == [100, 102, 104, 106, 108, 110]
    assert [report.seconds_left for report in reports] == [500, 8, 6, 4, 2, 0]


def test_progress_prints_what_matters(ridge):
    stream = io.StringIO()
    drive(ridge, callbacks=[Progress(stream, every=0.0)])
    lines = stream.getvalue().splitlines()
    assert len(lines) == 6
    assert lines[-1].startswith("step 6/6  outer loss 0.")
    for word in ("|hypergradient|", "error", "s left"):
        assert word in lines[0]


def test_it_stops_when_stationary(ridge):
    result = drive(ridge, steps=4000, every=200, tol=1e-3)
    assert result.status == "stationary"
    assert len(result.history) < 4000
    assert result.history[-1]["stationarity"] <= 1e-3


def test_it_stops_when_out_of_patience_and_keeps_the_best(ridge):
    still = SOBA(optax.sgd(-5.0), step_size=0.3, exponent=0.0, constraint=Box(-1.0, 1.0))
    result = drive(ridge, still, steps=200, patience=20, min_delta=1e-9)
    assert result.status == "patience"
    assert len(result.history) == int(result.best.step) + 20
    values = [row["validation"] for row in result.history]
    assert float(result.best.value) == pytest.approx(min(values), abs=1e-8)


def test_a_breakdown_ends_the_run_at_the_last_good_point(ridge):
    wild = SOBA(optax.sgd(0.0), step_size=1e3, exponent=0.0)
    result = drive(ridge, wild, steps=400, every=50)
    assert result.status == "breakdown"
    assert len(result.history) < 400
    assert np.all(np.isfinite(result.params))


# The inner loss has a saddle at w = 0 for λ = 0: the hypergradient computed there is zero, although
# the outer loss falls with λ on either side.
SADDLE = BilevelProblem(lambda w, h, _: (w**2 - 1) ** 2 / 4 - h * w, lambda w, h, _: (w - 1.2) ** 2)


@pytest.mark.parametrize("estimate", [True, False])
@pytest.mark.parametrize("name", ["Alternating", "HOAG"])
def test_a_saddle_of_the_inner_problem_is_not_stationary(name, estimate):
    estimator = ImplicitDifferentiation(Newton(), error_estimate=estimate)
    algorithm = HOAG(estimator) if name == "HOAG" else Alternating(estimator, optax.sgd(0.02))
    zero = jnp.asarray(0.0)
    with pytest.warns(InaccurateHypergradientWarning, match="error inf") as warned:
        result = run(SADDLE, algorithm, zero, zero, None, None, steps=12, tol=1e-6)
    assert result.status == "steps"
    assert len(warned) == 1
    assert result.history[-1]["stationarity"] <= 1e-6


def test_parameters_that_are_never_trained_do_not_pass_without_a_word(ridge):
    algorithm = Alternating(ImplicitDifferentiation(), optax.sgd(0.1))
    start = (jnp.ones(4) * 2, ridge.hparams, ridge.inner, ridge.outer)
    with pytest.warns(InaccurateHypergradientWarning, match="moving the wrong way.*have a solver"):
        run(ridge.problem, algorithm, *start, steps=3)


def test_what_converges_is_stationary_without_a_word(recwarn):
    # Solved roughly: at the end the error of the hypergradient is as large as the hypergradient.
    solver = OptaxSolver(optax.sgd(0.7), steps=200, tol=1e-5)
    problem = BilevelProblem(
        lambda w, h, _: 0.5 * jnp.sum((w - jnp.sin(h)) ** 2),
        lambda w, h, _: 0.5 * jnp.sum((w - 0.3) ** 2),
    )
    algorithm = Alternating(ImplicitDifferentiation(solver), optax.sgd(0.5))
    start = (jnp.zeros(2), jnp.ones(2), None, None)
    result = run(problem, algorithm, *start, steps=200, tol=1e-4)
    assert result.status == "stationary"
    drifting = run(problem, algorithm, *start, steps=200)
    assert max(row["error"] for row in drifting.history) > 1
    assert not any(issubclass(w.category, InaccurateHypergradientWarning) for w in recwarn)


@pytest.mark.parametrize("make", [HOAG, MAID])
def test_what_needs_fixed_data_refuses_minibatches(ridge, make):
    algorithm = make(ImplicitDifferentiation(Newton()))
    with pytest.raises(ValueError, match=r"expected all of the data .* received mini-batches"):
        drive(ridge, algorithm, sampler=Minibatches(6))


def test_the_best_point_is_the_smallest_whatever_counts_as_progress(ridge):
    plain, coarse = drive(ridge), drive(ridge, patience=50, min_delta=1.0)
    assert float(coarse.best.value) == float(plain.best.value)


def test_the_guard_warns_when_hyperparameters_fit_the_validation_set():
    # One target per hyperparameter: the validation set can be fitted exactly, noise and all.
    rng = np.random.default_rng(0)
    truth = np.ones(20)
    noisy = [jnp.asarray(truth + rng.normal(size=20)) for _ in range(2)]
    problem = BilevelProblem(
        lambda w, h, _: 0.5 * jnp.sum((w - h) ** 2),
        lambda w, h, target: 0.5 * jnp.mean((w - target) ** 2),
    )
    parts = (problem, SOBA(optax.sgd(2.0), step_size=0.5, exponent=0.0))
    start = (jnp.zeros(20), jnp.zeros(20), None)
    with pytest.warns(
        OverTuningWarning, match="20 hyperparameters are fitting the validation"
    ) as w:
        result = run(*parts, *start, noisy[0], steps=100, holdout_data=noisy[1])
    assert len(w) == 1
    assert result.history[-1]["overtuned"]
    assert result.holdout_best is not None
    held_out = [row["holdout"] for row in result.history]
    assert float(result.holdout_best.value) == pytest.approx(min(held_out))
    assert min(held_out) < held_out[-1]


def test_no_guard_without_over_tuning(ridge, recwarn):
    result = drive(ridge, holdout_data=ridge.outer)
    assert not any(issubclass(w.category, OverTuningWarning) for w in recwarn)
    assert not result.history[-1]["overtuned"]
    assert drive(ridge).holdout_best is None


def test_data_that_are_not_finite_are_named(ridge):
    broken = {**ridge.inner, "x": ridge.inner["x"].at[5, 2].set(jnp.nan)}
    with pytest.raises(
        ValueError, match=r"inner_data\['x'\]: expected finite values, received 1 of 96.*\[5, 2\]"
    ):
        run(ridge.problem, ALGORITHM, ridge.params, ridge.hparams, broken, ridge.outer, steps=1)


def test_a_start_outside_the_bounds_is_named(ridge):
    tight = SOBA(constraint=Box(1.0, 2.0))
    with pytest.raises(ValueError, match=r"hparams starts outside.*expected 1.0.*received 0.0"):
        drive(ridge, tight)


def test_losses_that_do_not_depend_on_what_they_must_are_named(ridge):
    parts = (ridge.params, {"l2": ridge.hparams, "rate": 0.1}, ridge.inner, ridge.outer)
    problem = BilevelProblem(
        lambda w, h, b: ridge.problem.inner(w, h["l2"], b),
        lambda w, h, b: ridge.problem.outer(w, h["l2"], b),
    )
    with pytest.raises(ValueError, match="cannot see hyperparameter 'rate'"):
        run(problem, SOBA(), *parts, steps=1)
    problem = BilevelProblem(problem.inner, lambda w, h, b: jnp.sum(h["l2"] ** 2))
    with pytest.raises(ValueError, match=r"outer loss does not depend on params.*only on hparams"):
        run(problem, SOBA(), *parts, steps=1)


def test_no_steps_are_refused(ridge):
    with pytest.raises(ValueError, match="steps: expected an integer >= 1, received 0"):
        drive(ridge, steps=0)


@pytest.mark.parametrize(
    "name",
    [
        "Alternating",
        "HOAG",
        "MAID",
        "SOBA",
        "SABA",
        "F2SA",
        "StocBiO",
        "MRBO",
        "VRBO",
        "SUSTAIN",
        "SRBA",
        "BOME",
        "PBGD",
    ],
)
@pytest.mark.parametrize("types", ["double", "params single", "hparams single"])
def test_the_second_step_does_not_compile_anew(ridge, name, types):
    """Traced abstractly: the state that a step returns has the types of the one it was given."""
    params, hparams = (
        x.astype(jnp.float32 if types == f"{which} single" else jnp.float64)
        for which, x in (("params", ridge.params), ("hparams", ridge.hparams))
    )
    estimator = ImplicitDifferentiation(
        OptaxSolver(optax.sgd(0.1), steps=2), CG(), error_estimate=False
    )
    algorithm = {
        "Alternating": lambda: Alternating(estimator, optax.adam(0.1)),
        "HOAG": lambda: HOAG(estimator),
        "MAID": lambda: MAID(estimator, Smoothness(1.0, 1.0, 1.0)),
    }.get(name, getattr(outer, name))()
    data = (ridge.inner, ridge.outer, jax.random.key(0))
    setting = programs.Setting(ridge.problem, algorithm, FullBatch(), *data)
    begin, advance = programs.begin.__wrapped__, programs.advance.__wrapped__
    first = eqx.filter_eval_shape(begin, setting, params, hparams).state
    second, _ = eqx.filter_eval_shape(advance, setting, first, 1)
    assert jax.tree.structure(first) == jax.tree.structure(second)
    for one, other in zip(jax.tree.leaves(first), jax.tree.leaves(second), strict=True):
        if hasattr(one, "dtype"):
            assert (one.shape, one.dtype, one.weak_type) == (
                other.shape,
                other.dtype,
                other.weak_type,
            )
