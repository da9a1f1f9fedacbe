"""Newton's method that stops early, and the criterion where it would have ended."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from strategies.sklearn.models.columns import Columns
from strategies.sklearn.models.conjugate_gradients import conjugate_gradients
from strategies.sklearn.models.newton import Penalty, newton


@pytest.mark.parametrize("outputs", [1, 3])
def test_the_correction_of_a_criterion_is_of_second_order(outputs):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        x, y = jnp.asarray(rng.normal(size=(60, 4))), jnp.asarray(rng.random((60, outputs)))
        columns = Columns(x, jnp.zeros(4), jnp.ones(4), jnp.ones(()))

        def loss(predictor):
            return jnp.mean(jnp.exp(predictor) - y * predictor)

        def criterion(w):
            return jnp.mean((columns.times(w)[:20] - jnp.log(y[:20] + 0.1)) ** 2)

        penalty = Penalty(lambda w: 0.1 * w, jnp.full((5, outputs), 0.1))
        cold, values, left = jnp.zeros((5, outputs)), [], []
        for tol in (1e-12, 3e-1, 1e-3):
            found = newton(
                loss, columns, penalty, jax.grad(criterion), cold, cold, tol=tol, max_steps=50
            )
            values.append([criterion(found.params), criterion(found.params) - found.correction])
            left.append(float(found.residual))
    exact, early, later = np.array(values)
    assert left[0] <= 1e-12
    assert left[1] > 1e-2
    (raw, corrected), (raw_later, corrected_later) = np.abs([early, later] - exact[0])
    assert corrected < raw
    assert corrected_later < 0.01 * raw_later
    if outputs == 1:
        # By factorisation the adjoint is exact: what is left falls as the gradient's square.
        assert corrected_later / corrected == pytest.approx((left[2] / left[1]) ** 2, rel=0.3)


def test_products_that_are_used_up_are_no_solution():
    curvatures = jnp.logspace(0, -4, 40)[:, None]
    rhs = jnp.ones_like(curvatures)

    def solved(most):
        return conjugate_gradients(
            lambda v: curvatures * v, rhs, lambda r: r, tol=1e-9, max_steps=most
        )

    found, failed = solved(400)
    assert not failed
    np.testing.assert_allclose(found, rhs / curvatures, rtol=1e-6)
    assert solved(5)[1]
