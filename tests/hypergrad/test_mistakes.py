"""The commonest mistakes are answered in one line that says what to do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import (
    CG,
    BilevelProblem,
    ErrorEstimate,
    ImplicitDifferentiation,
    Newton,
    OverKeys,
    Unrolled,
    hypergradient,
    implicit_solver,
    recommend,
)
from hypergrad.expected import require_scalar
from hypergrad.gaussian_process import Gaussian
from hypergrad.hypernetwork import Hypernetwork
from hypergrad.implicit import KKT, FixedPoint, GaussNewton, Hessian, ProximalStep
from hypergrad.linear import MINRES, PCG, Fallback, Jacobi
from hypergrad.outer import HOAG, SOBA, Alternating, run
from hypergrad.self_tuning import SelfTuning
from hypergrad.unrolled import OptaxStep, StepFunction
from tests.hypergrad.problems import RIDGE, XV, YV, X, Y

W, TRAIN, VALID = jnp.zeros(2), (X, Y), (XV, YV)


def refused(match, **options):
    with pytest.raises(ValueError, match=match) as caught:
        hypergradient(RIDGE, W, -1.0, TRAIN, VALID, **options)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize(
    ("estimator", "match"),
    [
        (ImplicitDifferentiation, r"the class ImplicitDifferentiation \(make one"),
        ("implicit", r"the text 'implicit'"),
        (optax.adam, r"the function adam \(call it: optax.adam"),
        (optax.adam(0.1), r"optax optimizer; write ImplicitDifferentiation\(optimizer\)"),
        (Newton(), r"write ImplicitDifferentiation\(Newton"),
        (CG(), r"write ImplicitDifferentiation\(linear_solver=CG"),
    ],
)
def test_what_is_no_estimator(estimator, match):
    refused(match, estimator=estimator)


def test_a_function_of_optax_as_a_solver():
    with pytest.raises(ValueError, match=r"function adam \(call it: optax.adam"):
        ImplicitDifferentiation(optax.adam)


@pytest.mark.parametrize("solver", [Newton, "newton"])
def test_a_solver_given_as_a_class_or_text(solver):
    with pytest.raises(ValueError, match=r"received the (class Newton|text 'newton')"):
        ImplicitDifferentiation(solver)
    with pytest.raises(ValueError, match=r"received the (class Newton|text 'newton')"):
        Unrolled(solver, 3)


MADE = ImplicitDifferentiation()


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: OptaxStep(optax.sgd(0.1)), "OptaxStep: .*lambda hparams: .*an optax optimizer"),
        (lambda: OptaxStep(0.1), "OptaxStep: 'optimizer': expected a function, .*a float"),
        (lambda: StepFunction(3), "StepFunction: 'fn': expected a function, received an int"),
        (lambda: FixedPoint(None), "FixedPoint: 'step': .*received None"),
        (lambda: ProximalStep(W, W), "ProximalStep: 'smooth': expected a function"),
        (lambda: KKT(RIDGE.inner, inequality=0.0), "KKT: 'inequality': .*a float"),
        (lambda: GaussNewton(RIDGE.inner, RIDGE.outer, 0.1), "GaussNewton: 'penalty': .*a float"),
        (lambda: Gaussian(0.1), "Gaussian: 'log_variance': .*a float"),
        (lambda: Hypernetwork(activation="relu"), "'activation': .*the text 'relu'"),
    ],
)
def test_what_is_no_function(make, match):
    with pytest.raises(ValueError, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: ImplicitDifferentiation(None, CG), "'linear_solver': .*received the class CG"),
        (lambda: ImplicitDifferentiation(None, "cg"), "'linear_solver': .*received the text 'cg'"),
        (lambda: Newton(linear_solver=CG), "Newton: 'linear_solver': .*the class CG"),
        (lambda: implicit_solver(RIDGE, Newton(), CG), "'linear_solver': .*the class CG"),
        (lambda: ImplicitDifferentiation(curvature=Hessian), "'curvature': .*the class Hessian"),
        (lambda: ImplicitDifferentiation(error_estimate=None), "error_estimate .*received None"),
        (lambda: ErrorEstimate(solver=MINRES), "'solver': .*the class MINRES"),
        (lambda: ImplicitDifferentiation(warm_start="yes"), "warm_start: .*True or False"),
        (lambda: Fallback(CG), "'first': .*the class CG"),
        (lambda: PCG(Jacobi), "'preconditioner': .*the class Jacobi"),
        (lambda: BilevelProblem(Newton, RIDGE.outer), "'inner': .*a function.*the class Newton"),
        (lambda: BilevelProblem(RIDGE.inner, None), "'outer': .*a function.*None"),
        (lambda: Alternating(Unrolled, optax.sgd(0.1)), "estimator: .*the class Unrolled"),
        (lambda: Alternating(MADE, optax.sgd), r"'optimizer': .*function sgd \(call it"),
        (lambda: HOAG(ImplicitDifferentiation), "HOAG: 'estimator': .*the class ImplicitDiff"),
        (lambda: SOBA(optax.adam), r"'optimizer': .*function adam \(call it"),
        (lambda: OverKeys(Unrolled, 3), "'estimator': .*the class Unrolled"),
        (lambda: run(RIDGE, SOBA, W, 0.0, TRAIN, VALID, steps=1), "'algorithm': .*class SOBA"),
    ],
)
def test_a_class_or_a_function_where_an_object_is_expected(make, match):
    with pytest.raises(ValueError, match=match) as caught:
        make()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "given"),
    [("1e-3", "the text '1e-3'"), (None, "None"), (True, "True"), (jnp.ones(2), r"shape \(2,\)")],
)
def test_an_option_that_is_one_number(value, given):
    with pytest.raises(ValueError, match=f"CG: tol: expected .*number, received .*{given}"):
        require_scalar("CG", "tol", value)
    for number in (0, 0.1, np.float32(1), np.ones(()), jnp.asarray(0.1)):
        require_scalar("CG", "tol", number)


def test_the_state_of_another_estimator_and_a_result_in_place_of_its_state():
    out = hypergradient(RIDGE, W, -1.0, TRAIN, VALID, estimator=Unrolled(optax.sgd(0.1), 3))
    refused("received an UnrolledState", state=out.state)
    for other in (Hypernetwork(), SelfTuning()):
        refused(f"expected the state of {type(other).__name__}", state=out.state, estimator=other)
    refused("pass its `.state`", state=out, estimator=Unrolled(optax.sgd(0.1), 3))


def square(w, h, b, *key):
    return jnp.sum((w - h) ** 2)


@pytest.mark.parametrize(
    ("problem", "match"),
    [
        (BilevelProblem(lambda w, h: jnp.sum(w**2), square), r"The inner loss: .*\(params, hp"),
        (BilevelProblem(square, lambda w: jnp.sum(w**2)), r"The outer loss: .*one of \(w\)"),
        (BilevelProblem(lambda w, h, b, k: w, square), "inner loss.*without stochastic=True"),
        (
            BilevelProblem(lambda w, h, b: w, square, stochastic=True),
            "The inner loss: .*key.*with stochastic=True",
        ),
        (BilevelProblem(None, square, lambda w, h: w - h), "The optimality map: .*batch"),
        (BilevelProblem(lambda w, h, b: None, square), "The inner loss: .*scalar, received None"),
        (BilevelProblem(square, lambda w, h, b: [w]), "The outer loss: .*scalar, received a list"),
    ],
)
def test_a_loss_of_other_arguments_or_without_a_value(problem, match):
    with pytest.raises(ValueError, match=match) as caught:
        hypergradient(problem, W, 1.0, key=jax.random.key(0))
    assert "\n" not in str(caught.value)


def test_params_without_entries_and_hyperparameters_that_are_integers():
    with pytest.raises(ValueError, match=r"params: .*with entries, received none"):
        hypergradient(BilevelProblem(square, square), jnp.zeros(0), 1.0)
    with pytest.raises(ValueError, match=r"hparams: .*1\.0 in place of 1"):
        hypergradient(BilevelProblem(square, square), W, 1)


def test_a_seed_is_no_key():
    refused(r"write jax.random.key\(0\)", key=0)


def test_a_step_function_with_a_state_that_is_no_function():
    with pytest.raises(ValueError, match="expected a function state"):
        StepFunction(lambda w, s, h, b: (w, s), jnp.zeros(2))


def test_objects_of_other_packages_are_named():
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(np.ones((3, 2)))
    with pytest.raises(ValueError, match=r"inner_batch\[0\].*DataFrame of pandas.*to_numpy"):
        hypergradient(RIDGE, W, -1.0, (frame, Y), VALID)
    with pytest.raises(ValueError, match=r"outer_batch\[0\].*DataFrame of pandas.*to_numpy"):
        recommend(RIDGE, W, -1.0, TRAIN, (frame, YV))


def test_a_flax_module_is_no_params():
    nnx = pytest.importorskip("flax.nnx")
    model = nnx.Linear(2, 1, rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"params: .*Linear.*nnx\.split"):
        hypergradient(RIDGE, model, -1.0, TRAIN, VALID)


def complex_problem():
    return BilevelProblem(
        lambda w, h, b: jnp.abs((1 + 2j) * w["z"] - 0.5) ** 2 + h * jnp.abs(w["z"]) ** 2,
        lambda w, h, b: jnp.real(w["z"]) ** 2,
    )


@pytest.mark.parametrize(
    "estimator",
    [ImplicitDifferentiation(), ImplicitDifferentiation(Newton()), Unrolled(optax.sgd(0.1), 2)],
)
def test_complex_params_are_refused_by_name(estimator):
    start = {"z": jnp.asarray(0.1 + 0.2j)}
    with pytest.raises(ValueError, match=r"params\['z'\]: .*received complex128.*imaginary"):
        hypergradient(complex_problem(), start, 0.7, estimator=estimator)
    with pytest.raises(ValueError, match=r"params\['z'\]: .*received complex128.*imaginary"):
        run(complex_problem(), SOBA(), start, 0.7, None, None, steps=1)


def test_the_way_out_of_complex_params_gives_the_closed_form():
    problem = complex_problem()

    def split(loss):
        return lambda p, h, b: loss({"z": p["re"] + 1j * p["im"]}, h, b)

    real = BilevelProblem(split(problem.inner), split(problem.outer))
    start = {"re": jnp.asarray(0.0), "im": jnp.asarray(0.0)}
    out = hypergradient(real, start, 0.7, estimator=ImplicitDifferentiation(Newton()))

    def outer(h):
        return np.real(np.conj(1 + 2j) * 0.5 / (5 + h)) ** 2

    assert abs(out.grad - (outer(0.7 + 1e-6) - outer(0.7 - 1e-6)) / 2e-6) < 1e-9


def test_keys_are_still_keys():
    assert jnp.isfinite(hypergradient(RIDGE, W, -1.0, TRAIN, VALID, key=jax.random.key(0)).value)


def test_the_seed_and_the_callbacks_of_a_run():
    def call(**options):
        run(RIDGE, SOBA(), W, -1.0, TRAIN, VALID, steps=1, **options)

    with pytest.raises(ValueError, match="seed: expected an integer >= 0, received None"):
        call(seed=None)
    with pytest.raises(ValueError, match=r"expected True to stop the run.*received a dict"):
        call(callbacks=[lambda report: {}])
