"""A state keeps its types from `init` on: a step compiled for it is compiled once."""

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import pytest

from hypergrad import (
    CG,
    BilevelProblem,
    ForwardUnrolled,
    ImplicitDifferentiation,
    Newton,
    OnlineUnrolled,
    RecyclingCG,
    TruncatedUnrolled,
    Unrolled,
)
from hypergrad.hypernetwork import Hypernetwork, Uniform
from hypergrad.self_tuning import SelfTuning, Tuner
from hypergrad.self_tuning.convert import to_self_tuning
from tests.hypergrad.problems import RIDGE, XV, YV, X, Y

MODELS = BilevelProblem(
    lambda m, h, b: (
        jnp.mean((jax.vmap(m)(b[0]) - b[1]) ** 2) + jnp.exp(h["penalty"]) * m.squared_norm()
    ),
    lambda m, h, b: jnp.mean((jax.vmap(m)(b[0]) - b[1]) ** 2),
)
POINTS = (jnp.zeros(2), jnp.asarray([-1.0, -2.0]))
SGD = optax.sgd(0.1)


def model():
    """A linear model that responds to one penalty."""
    hparams = {"penalty": jnp.asarray(-1.0)}
    key = jax.random.key(0)
    return to_self_tuning(eqx.nn.Linear(2, "scalar", key=key), hparams, key=key), hparams


ESTIMATORS = {
    "implicit, Newton": ImplicitDifferentiation(Newton(), CG()),
    "implicit, recycling": ImplicitDifferentiation(SGD, RecyclingCG()),
    "unrolled": Unrolled(SGD, steps=3),
    "forward": ForwardUnrolled(SGD, steps=3),
    "truncated": TruncatedUnrolled(SGD, steps=3, window=2),
    "online": OnlineUnrolled(SGD, steps=3),
    "hypernetwork": Hypernetwork(Uniform(-3.0, 0.0), steps=2),
    "self-tuning": SelfTuning(SGD),
    "self-tuning, two steps": SelfTuning(SGD, steps=2),
}


def types(tree):
    """What a compiled function is looked up by."""
    leaves, structure = jax.tree.flatten(tree)
    return structure, [
        (x.shape, x.dtype, getattr(x, "weak_type", False)) if hasattr(x, "dtype") else x
        for x in leaves
    ]


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_fit_and_hypergradient_keep_the_types_of_the_state(name, dtype):
    estimator = ESTIMATORS[name]
    problem, start = (MODELS, model()) if name.startswith("self-tuning") else (RIDGE, POINTS)
    params, hparams, train, valid = jax.tree.map(
        lambda x: x.astype(dtype) if eqx.is_inexact_array(x) else x, (*start, (X, Y), (XV, YV))
    )
    state = estimator.init(problem, params, hparams, train, key=jax.random.key(1))
    # As a compiled function sees them; nothing has to be computed for it.
    fitted, _ = eqx.filter_eval_shape(estimator.fit, problem, state, hparams, train)
    after = eqx.filter_eval_shape(
        estimator.hypergradient, problem, fitted, hparams, train, valid
    ).state
    assert types(fitted) == types(state)
    assert types(after) == types(state)


def test_a_tuner_compiles_each_of_its_steps_once():
    params, hparams = model()
    traces = []

    def outer(m, h, b):
        traces.append("outer")
        return MODELS.outer(m, h, b)

    def inner(m, h, b):
        traces.append("inner")
        return MODELS.inner(m, h, b)

    tuner = Tuner(BilevelProblem(inner, outer), SelfTuning(SGD), train_steps=1)
    state = tuner.init(params, hparams, (X, Y), key=jax.random.key(1))
    state, _ = tuner.run(state, [((X, Y), (XV, YV))])
    first = len(traces)
    tuner.run(state, [((X, Y), (XV, YV))] * 3)
    assert len(traces) == first
