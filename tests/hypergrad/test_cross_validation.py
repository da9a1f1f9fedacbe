"""All folds at once against a loop over them."""

import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad import (
    BilevelProblem,
    ImplicitDifferentiation,
    Newton,
    ProximalStep,
    cross_validated,
    hypergradient,
)

rng = np.random.default_rng(0)
DATA = (jnp.asarray(rng.normal(size=(11, 3))), jnp.asarray(rng.normal(size=11)))
SPLITS = [(np.delete(np.arange(11), held), held) for held in np.array_split(np.arange(11), 3)]


def mse(w, h, batch):
    return jnp.mean((batch[0] @ w - batch[1]) ** 2)


def ridge(w, h, batch):
    return mse(w, h, batch) + jnp.exp(h) * jnp.sum(w**2)


def looped(problem, estimator, h):
    parts = []
    for train, held in SPLITS:
        one, other = (tuple(a[rows] for a in DATA) for rows in (train, held))
        out = hypergradient(problem, jnp.zeros(3), h, one, other, estimator=estimator)
        parts.append((len(held) / 11, out))
    value = sum(weight * out.value for weight, out in parts)
    grad = sum(weight * out.grad for weight, out in parts)
    return value, grad, [out.state.params for _, out in parts]


def soft(point, lam, step):
    return jnp.sign(point) * jnp.maximum(jnp.abs(point) - step * jnp.exp(lam), 0)


PROBLEMS = {
    "ridge": BilevelProblem(ridge, mse),
    "lasso": BilevelProblem(None, mse, ProximalStep(mse, soft, 0.2)),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_folds_of_unequal_size_are_those_of_a_loop(name):
    problem, estimator = PROBLEMS[name], ImplicitDifferentiation(Newton())
    value, grad, params = looped(problem, estimator, -2.0)
    folded = cross_validated(problem, SPLITS)
    out = hypergradient(folded, jnp.zeros((3, 3)), -2.0, DATA, DATA, estimator=estimator)
    np.testing.assert_allclose(out.value, value, rtol=1e-8)
    np.testing.assert_allclose(out.grad, grad, rtol=1e-5)
    np.testing.assert_allclose(out.state.params, jnp.stack(params), atol=1e-7)


def test_bad_folds_and_params_that_are_not_stacked():
    with pytest.raises(ValueError, match="at least two folds, received 1"):
        cross_validated(PROBLEMS["ridge"], SPLITS[:1])
    with pytest.raises(ValueError, match="fold 1: expected validation rows"):
        cross_validated(PROBLEMS["ridge"], [SPLITS[0], (np.arange(3), np.arange(0))])
    folded = cross_validated(PROBLEMS["ridge"], SPLITS)
    with pytest.raises(ValueError, match=r"leading axis of 3 folds, received shape \(4,\)"):
        hypergradient(folded, jnp.zeros(4), -2.0, DATA, DATA)
