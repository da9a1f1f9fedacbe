"""One wrong argument in a call that works: it works still, or an error says what was expected."""

import inspect
import random
import traceback
import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

import hypergrad
from hypergrad import (
    BilevelProblem,
    ForwardUnrolled,
    ImplicitDifferentiation,
    Newton,
    OnlineUnrolled,
    OverKeys,
    TruncatedUnrolled,
    Unrolled,
    outer,
)
from hypergrad.evidence import LaplaceEvidence
from tests.hypergrad.test_fuzz import VALUES


def inner(w, lam, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2) + 0.5 * jnp.exp(lam) * jnp.sum(w**2)


def validation(w, lam, batch):
    x, y = batch
    return 0.5 * jnp.mean((x @ w - y) ** 2)


def game(w, lam, batch):
    return jnp.sum(w**2) - lam**2


X = jnp.eye(3)
Y = jnp.ones(3)
PROBLEM = BilevelProblem(inner, validation)
W, LAM, BATCH = jnp.zeros(3), jnp.asarray(0.1), (X, Y)
IMPLICIT = ImplicitDifferentiation(solver=Newton())
UNROLLED = Unrolled(optax.sgd(0.1), steps=2)
#: As many as this would be done, if not in this century.
HUGE = VALUES[7]
POINT = {
    "problem": PROBLEM, "params": W, "hparams": LAM, "inner_batch": BATCH, "outer_batch": BATCH,
}  # fmt: skip


def run_of(algorithm):
    return outer.run, {
        "problem": PROBLEM, "algorithm": algorithm, "params": W, "hparams": LAM,
        "inner_data": BATCH, "outer_data": BATCH, "steps": 1, "seed": 0, "every": 1,
        "holdout_data": None, "overtuning_margin": 0.05, "tol": None, "patience": None,
        "min_delta": 0.0, "callbacks": (), "sampler": None, "checkpoint": None,
        "checkpoint_seconds": 1.0,
    }  # fmt: skip


ENTRIES = {
    "hypergradient": (
        hypergrad.hypergradient,
        {**POINT, "estimator": IMPLICIT, "state": None, "key": None, "strict": False},
    ),
    "check_hypergradient": (
        hypergrad.check_hypergradient,
        {**POINT, "estimator": IMPLICIT, "solve": False, "directions": 1, "step": None,
         "tolerance": None, "seed": 0, "key": None},
    ),
    "metasmoothness": (
        hypergrad.metasmoothness,
        {**POINT, "estimator": UNROLLED, "step": jnp.asarray(0.1), "directions": 2, "seed": 0,
         "key": None},
    ),
    "recommend": (
        hypergrad.recommend,
        {**POINT, "solver": None, "update": None, "steps": 2, "tolerance": 1e-6, "probe": 2,
         "key": None},
    ),
    "run": run_of(outer.Alternating(IMPLICIT, optax.adam(0.1))),
    "retrain_gap": (
        outer.retrain_gap,
        {"problem": PROBLEM, "solver": Newton(), "initialise": lambda key: W, "params": W,
         "hparams": LAM, "inner_data": BATCH, "outer_data": BATCH, "trainings": 1, "seed": 0},
    ),
    "second_order_report": (
        outer.second_order_report,
        {"f": game, "params": W, "hparams": LAM,
         "batch": None, "gradient_tol": 1e-4, "rank_tol": None},
    ),
}  # fmt: skip


#: Done as often as they say.
ENDLESS = ("directions", "trainings", "steps", "probe")


def fair(argument, value):
    """Whether a value is wrong, or is at least done with in this century."""
    right = argument == "problem" and isinstance(value, BilevelProblem)
    return not right and not (argument in ENDLESS and value is HUGE)


def of_the_user(error, value):
    """Whether an error came out of a function that the user gave."""
    codes = {function.__code__ for function in (inner, validation, game, inspect.unwrap(optax.sgd))}
    frames = {frame.f_code for frame, _ in traceback.walk_tb(error.__traceback__)}
    return bool(codes & frames) or value is len


@pytest.mark.parametrize("values", [1, pytest.param(len(VALUES), marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ENTRIES)
def test_one_wrong_argument(name, values, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # for checkpoints of any name
    function, given = ENTRIES[name]
    rng = random.Random(name)
    for argument, value in ((a, v) for a in given for v in rng.sample(VALUES, values)):
        if not fair(argument, value):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                function(**{**given, argument: value})
            except Exception as error:
                said = "expected" in str(error).lower() or of_the_user(error, value)
                if not said or not isinstance(error, ValueError | TypeError):
                    pytest.fail(f"{name}({argument}={value!r:.200}): {error!r:.300}")


ESTIMATORS = (
    IMPLICIT, UNROLLED, ForwardUnrolled(optax.sgd(0.1), steps=2),
    TruncatedUnrolled(optax.sgd(0.1), steps=2, window=1), OnlineUnrolled(optax.sgd(0.1), steps=2),
    Unrolled(optax.sgd(0.1), steps=2, warm_start=True), OverKeys(UNROLLED, 2), LaplaceEvidence(),
)  # fmt: skip
VERBS = {
    "init": ("problem", "params", "hparams", "inner_batch", "key"),
    "fit": ("problem", "state", "hparams", "inner_batch", "key"),
    "hypergradient": ("problem", "state", "hparams", "inner_batch", "outer_batch", "key"),
}


@pytest.mark.parametrize("values", [1, pytest.param(len(VALUES), marks=pytest.mark.slow)])
@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("number", range(len(ESTIMATORS)))
def test_one_wrong_argument_of_a_verb(number, verb, values):
    estimator, rng = ESTIMATORS[number], random.Random(f"{number}{verb}")

    def called(argument, value):
        given = {**POINT, "key": jax.random.key(0)}
        given["state"] = estimator.init(PROBLEM, W, LAM, BATCH, key=given["key"])
        given = {name: given[name] for name in VERBS[verb]} | {argument: value}
        return eqx.filter(getattr(estimator, verb)(**given), eqx.is_array)

    for argument, value in ((a, v) for a in VERBS[verb] for v in rng.sample(VALUES, values)):
        if not fair(argument, value):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                jax.eval_shape(
                    lambda given=(argument, value): called(*given)
                )  # nothing is computed
            except Exception as error:
                said = "expected" in str(error).lower() or of_the_user(error, value)
                if not said or not isinstance(error, ValueError | TypeError):
                    pytest.fail(f"{verb}({argument}={value!r:.200}): {error!r:.300}")
