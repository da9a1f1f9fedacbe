"""A fixed point is given by its map, or by a residual of either sign."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from hypergrad import (
    BilevelProblem,
    FixedPoint,
    ImplicitDifferentiation,
    Newton,
    check_hypergradient,
    hypergradient,
)
from hypergrad.linear import GMRES, Identity, Neumann
from tests.hypergrad.problems import relative_error

RNG = np.random.default_rng(0)
WEIGHTS = RNG.normal(size=(5, 5))
WEIGHTS = jnp.asarray(0.6 * WEIGHTS / np.linalg.norm(WEIGHTS, 2))
SHIFT, TARGET = (jnp.asarray(RNG.normal(size=5)) for _ in range(2))


def layer(z, weights, batch):
    return jnp.tanh(weights @ z + SHIFT)


def outer(z, weights, batch):
    return jnp.mean((z - TARGET) ** 2)


def unrolled(weights):
    step = lambda z, _: (layer(z, weights, None), None)  # noqa: E731
    return jax.lax.scan(step, jnp.zeros(5), None, length=200)[0]


MAPS = {
    "FixedPoint": FixedPoint(layer),
    "w - T(w)": lambda z, weights, batch: z - layer(z, weights, batch),
    "T(w) - w": lambda z, weights, batch: layer(z, weights, batch) - z,
}


@pytest.mark.parametrize("optimality", MAPS.values(), ids=MAPS.keys())
def test_either_sign_gives_the_same_hypergradient(optimality):
    problem = BilevelProblem(None, outer, optimality)
    truth = jax.grad(lambda w: outer(unrolled(w), w, None))(WEIGHTS)
    star = unrolled(WEIGHTS)
    for solver, error in ((GMRES(), 1e-5), (Neumann(40), 1e-6), (Identity(), 0.9)):
        estimator = ImplicitDifferentiation(None, solver)
        out = hypergradient(problem, star, WEIGHTS, estimator=estimator)
        assert relative_error(out.grad, truth) < error
        assert jnp.vdot(out.grad, truth) > 0
    solution = Newton().run(problem, jnp.zeros(5), WEIGHTS, None)
    assert relative_error(solution.params, star) < 1e-6


def test_the_check_does_not_mind_the_sign():
    problem = BilevelProblem(None, outer, MAPS["T(w) - w"])
    report = check_hypergradient(problem, unrolled(WEIGHTS), WEIGHTS, directions=1)
    assert report.ok, str(report)
