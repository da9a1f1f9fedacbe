"""Text-like data: tens of thousands of features, a handful of them in each row."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.sparse
from jax.experimental.sparse import BCOO

from hypergrad.implicit import ImplicitDifferentiation
from hypergrad.inner import OptaxSolver
from hypergrad.linear.cg import CG
from hypergrad.outer import HOAG, SOBA, Box, run
from hypergrad.problem import BilevelProblem

ROWS, FEATURES = 150, 20_000


def words(rows, rng):
    """A CSR matrix whose columns are used as words are: few often, most hardly ever."""
    chosen = np.minimum(rng.zipf(1.3, size=(rows, 30)) - 1, FEATURES - 1)
    where = (np.repeat(np.arange(rows), 30), chosen.ravel())
    counts = scipy.sparse.csr_matrix((np.ones(rows * 30), where), shape=(rows, FEATURES))
    counts.data = np.log1p(counts.data)
    return counts


def cross_entropy(w, hparams, batch):
    return jnp.mean(jnp.logaddexp(0, -batch["y"] * (batch["x"] @ w)))


def penalised(w, hparams, batch):
    return cross_entropy(w, hparams, batch) + 0.5 * jnp.exp(hparams) * jnp.sum(w**2)


PROBLEM = BilevelProblem(penalised, cross_entropy)


@pytest.fixture(scope="module")
def corpus():
    rng = np.random.default_rng(0)
    truth = rng.normal(size=FEATURES)
    parts = []
    for _ in range(2):
        x = words(ROWS, rng)
        y = np.sign(x @ truth + 0.3 * rng.normal(size=ROWS))
        parts.append({"x": BCOO.from_scipy_sparse(x), "y": jnp.asarray(y)})
    return parts


def sizes(jaxpr):
    """Of every intermediate value, inner programs included."""
    for equation in jaxpr.eqns:
        yield from (np.prod(v.aval.shape) for v in equation.outvars)
        for parameter in jax.tree.leaves(equation.params, is_leaf=lambda p: hasattr(p, "jaxpr")):
            if hasattr(parameter, "jaxpr"):
                yield from sizes(parameter.jaxpr)


def test_a_csr_problem_is_tuned_without_a_dense_copy(corpus):
    inner, outer = corpus
    descent = OptaxSolver(optax.sgd(0.1, momentum=0.9, nesterov=True), steps=500)
    estimator = ImplicitDifferentiation(descent, CG(tol=1e-10), error_estimate=False)
    start = jnp.asarray(1.0)
    algorithm = HOAG(estimator, "exponential", constraint=Box(-12.0, 2.0))
    result = run(PROBLEM, algorithm, jnp.zeros(FEATURES), start, inner, outer, steps=12)
    assert result.value < result.history[0]["value"] - 0.02
    assert result.history[0]["hypergradient_norm"] > 1e-3

    def hypergradient(w, h, inner, outer):
        state = estimator.init(PROBLEM, w, h, inner)
        return estimator.hypergradient(PROBLEM, state, h, inner, outer).grad

    w = result.params
    traced = jax.make_jaxpr(hypergradient)(w, start, inner, outer)
    assert max(sizes(traced.jaxpr)) <= max(FEATURES, ROWS * 30) * 2

    dense = [{**part, "x": part["x"].todense()} for part in corpus]
    np.testing.assert_allclose(
        jax.jit(hypergradient)(w, start, inner, outer), hypergradient(w, start, *dense), rtol=1e-8
    )


def test_a_nan_among_the_stored_values_is_named(corpus):
    inner, outer = corpus
    x = inner["x"]
    broken = {**inner, "x": BCOO((x.data.at[7].set(jnp.nan), x.indices), shape=x.shape)}
    start = (jnp.zeros(FEATURES), jnp.asarray(1.0))
    with pytest.raises(
        ValueError, match=r"inner_data\['x'\].* expected finite values, received 1 of .*\[7\]"
    ):
        run(PROBLEM, SOBA(), *start, broken, outer, steps=1)
