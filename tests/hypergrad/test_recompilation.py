"""New numbers compile nothing; new functions in a loop are named once."""

import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

from hypergrad import CG, BilevelProblem, ImplicitDifferentiation, Newton, hypergradient
from hypergrad.outer import BOME, F2SA, MRBO, PBGD, SABA, SOBA, SRBA, SUSTAIN, VRBO, StocBiO, run
from hypergrad.recompilation import RecompilationWarning, note_compilation
from tests.hypergrad.problems import RIDGE, XV, YV, X, Y, half_mse

COMPILED = [0]


def _count(event, duration, **_):
    COMPILED[0] += event == "/jax/core/compile/backend_compile_duration"


jax.monitoring.register_event_duration_secs_listener(_count)
ALGORITHMS = [SOBA, SABA, F2SA, StocBiO, MRBO, VRBO, SUSTAIN, SRBA, BOME, PBGD]
W, TRAIN, VALID = jnp.zeros(2), (X, Y), (XV, YV)


def compilations(call):
    before = COMPILED[0]
    call()
    return COMPILED[0] - before


def test_a_new_number_is_no_new_program():
    def call(factor):
        estimator = ImplicitDifferentiation(
            Newton(tol=1e-9 * factor), CG(tol=1e-6 * factor), damping=1e-3 * factor
        )
        return hypergradient(RIDGE, W, -1.0, TRAIN, VALID, estimator=estimator)

    assert compilations(lambda: call(1.0)) > 0
    call(2.0)
    assert compilations(lambda: call(3.0)) == 0


def test_a_new_number_of_an_outer_algorithm_is_no_new_program():
    def call(factor):
        run(RIDGE, SOBA(step_size=0.1 * factor), W, -1.0, TRAIN, VALID, steps=1)

    assert compilations(lambda: call(1.0)) > 0
    assert compilations(lambda: call(0.5)) == 0


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_default_optimizer_is_one_object(algorithm):
    def call(start):
        run(RIDGE, algorithm(), W, start, TRAIN, VALID, steps=1)

    assert algorithm() == algorithm()
    call(-1.0)
    assert compilations(lambda: call(-1.5)) == 0


def test_a_problem_made_in_a_loop_is_named_once():
    def make():
        return BilevelProblem(
            lambda w, h, b: half_mse(w, h, b) + jnp.exp(h) * jnp.sum(w**2), half_mse
        )

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(6):
            hypergradient(make(), W, -1.0, TRAIN, VALID, estimator=ImplicitDifferentiation())
    found = [w for w in caught if issubclass(w.category, RecompilationWarning)]
    assert len(found) == 1
    assert "outside of the loop" in str(found[0].message)


def test_a_problem_made_for_each_outer_run_is_named_once():
    def make():
        return BilevelProblem(
            lambda w, h, b: half_mse(w, h, b) + jnp.exp(h) * jnp.sum(w**2), half_mse
        )

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(6):
            run(make(), SOBA(), W, -1.0, TRAIN, VALID, steps=1)
    found = [w for w in caught if issubclass(w.category, RecompilationWarning)]
    assert len(found) == 1
    assert "outer.run has been compiled" in str(found[0].message)


def test_other_optimizers_are_other_programs_and_the_same_one_made_anew_is_not():
    def noted(optimizers):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for optimizer in optimizers:
                note_compilation("a test", optimizer, jnp.zeros(2))
        return len(caught)

    assert noted([optax.adam(0.1), optax.rmsprop(0.1), optax.lion(0.1), optax.adabelief(0.1)]) == 0
    assert noted([optax.yogi(0.1 * factor) for factor in range(1, 6)]) == 1
