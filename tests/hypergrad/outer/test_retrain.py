import jax
import jax.numpy as jnp
import numpy as np
import optax

from hypergrad.inner import OptaxSolver
from hypergrad.outer import retrain_gap
from hypergrad.problem import BilevelProblem

SOLVER = OptaxSolver(optax.sgd(0.2), steps=400)


def test_no_gap_where_the_inner_solution_is_unique(ridge):
    gap = retrain_gap(
        ridge.problem,
        SOLVER,
        lambda key: jax.random.normal(key, (4,)),
        ridge.solution(ridge.hparams),
        ridge.hparams,
        ridge.inner,
        ridge.outer,
    )
    np.testing.assert_allclose(gap.joint, ridge.value(ridge.hparams), rtol=1e-10)
    assert abs(gap.gap) < 1e-6 * gap.joint
    assert not gap.significant
    assert gap.params.shape == (3, 4)


def test_a_gap_where_the_parameters_remember():
    # The inner loss sees only the first coordinate: the second keeps whatever it was started with.
    problem = BilevelProblem(
        lambda w, h, b: (w[0] - h) ** 2, lambda w, h, b: jnp.sum((w - 1.0) ** 2)
    )
    gap = retrain_gap(
        problem,
        SOLVER,
        lambda key: 0.1 * jax.random.normal(key, (2,)),
        jnp.ones(2),
        1.0,
        None,
        None,
        trainings=5,
    )
    assert gap.joint < 1e-10
    assert gap.significant
    assert 0.5 < gap.gap < 2.0
    np.testing.assert_allclose(gap.params[:, 0], 1.0, atol=1e-6)
