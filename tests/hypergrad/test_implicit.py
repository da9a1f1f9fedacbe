"""Implicit differentiation against golden numbers, dense solves and its own contract."""

import warnings

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import (
    CG,
    BilevelProblem,
    ImplicitDifferentiation,
    InaccurateHypergradientError,
    InaccurateHypergradientWarning,
    Newton,
    OptaxSolver,
    hypergradient,
)
from tests.hypergrad.problems import (
    RIDGE,
    XV,
    YV,
    X,
    Y,
    dense_hypergradient,
    half_mse,
    logistic,
    mlp,
    relative_error,
    ridge_inner,
    solved,
)

# Without the error estimate, which has tests of its own and takes time to compile.
TIGHT = ImplicitDifferentiation(linear_solver=CG(tol=1e-13), error_estimate=False)
SOLVING = ImplicitDifferentiation(Newton(), CG(tol=1e-13), error_estimate=False)


def test_golden_ridge_with_one_penalty():
    out = hypergradient(RIDGE, jnp.zeros(2), -1.0, (X, Y), (XV, YV), estimator=SOLVING)
    np.testing.assert_allclose(out.state.params, [0.68609383, 0.87061288], atol=1e-8)
    assert abs(out.value - 0.06342753432645731) < 1e-10
    assert abs(out.grad - 0.08721369186448863) < 1e-10
    assert out.info.inner_residual < 1e-12
    assert out.info.linear_residual < 1e-12
    assert not out.info.breakdown
    assert not out.info.nonpositive_curvature
    assert "after 2 products" in str(out.info)


def test_golden_ridge_with_one_penalty_per_feature():
    lam = np.array([-1.0, 0.5])
    out = hypergradient(RIDGE, jnp.zeros(2), lam, (X, Y), (XV, YV), estimator=SOLVING)
    assert abs(out.value - 0.10888803736460559) < 1e-10
    np.testing.assert_allclose(out.grad, [0.05430231, 0.16407205], atol=1e-8)


def test_golden_example_weights():
    def inner(w, lam, batch):
        x, y = batch
        residual = x @ w - y
        return 0.5 * jnp.mean(jax.nn.sigmoid(lam) * residual**2) + 0.05 * jnp.sum(w**2)

    problem = BilevelProblem(inner, half_mse)
    lam = jnp.array([0.0, 1.0, -1.0])
    out = hypergradient(problem, jnp.zeros(2), lam, (X, Y), (XV, YV), estimator=SOLVING)
    assert abs(out.value - 0.056284077599021785) < 1e-10
    np.testing.assert_allclose(out.grad, [-0.02748634, 0.00661199, -0.01866503], atol=1e-8)


def test_losses_with_a_derivative_of_their_own():
    """`jax.custom_vjp` has no forward mode: at top level, compiled, or inside a loop."""

    @jax.custom_vjp
    def weighted(residual, lam):
        return 0.5 * jnp.mean(jax.nn.sigmoid(lam) * residual**2)

    def pull(saved, g):
        residual, weight = saved
        factor = g / residual.size
        return factor * weight * residual, 0.5 * factor * residual**2 * weight * (1 - weight)

    weighted.defvjp(lambda r, lam: (weighted(r, lam), (r, jax.nn.sigmoid(lam))), pull)

    def plain(w, lam, batch):
        x, y = batch
        return weighted(x @ w - y, lam) + 0.05 * jnp.sum(w**2)

    def looped(w, lam, batch):
        total, _ = jax.lax.scan(lambda t, _: (t + plain(w, lam, batch) / 4, None), 0.0, None, 4)
        return total

    def outer(w, lam, batch):
        x, y = batch
        return weighted(x @ w - y, jnp.full(len(y), 40.0))  # a weight of 1

    lam = jnp.array([0.0, 1.0, -1.0])
    with_error = ImplicitDifferentiation(Newton(), CG(tol=1e-13))
    for inner, estimator in ((plain, SOLVING), (jax.jit(plain), with_error), (looped, SOLVING)):
        problem = BilevelProblem(inner, outer)
        out = hypergradient(problem, jnp.zeros(2), lam, (X, Y), (XV, YV), estimator=estimator)
        assert abs(out.value - 0.056284077599021785) < 1e-10
        np.testing.assert_allclose(out.grad, [-0.02748634, 0.00661199, -0.01866503], atol=1e-8)
        assert not out.info.error > 1e-6  # NaN without an estimate


@pytest.mark.parametrize("make", [logistic, mlp])
def test_against_dense_float64_solve(make):
    problem, params, lam, train, valid = make()
    params = solved(problem, params, lam, train)
    out = hypergradient(problem, params, lam, train, valid, estimator=TIGHT)
    truth = dense_hypergradient(problem, params, lam, train, valid)
    assert relative_error(out.grad, truth) < 1e-9
    assert jax.tree.structure(out.grad) == jax.tree.structure(lam)


@pytest.mark.parametrize("make", [logistic, mlp])
def test_float32_stays_float32(make):
    problem, params, lam, train, valid = make(dtype=jnp.float32)
    estimator = ImplicitDifferentiation(Newton(tol=1e-7), error_estimate=False)
    out = hypergradient(problem, params, lam, train, valid, estimator=estimator)
    wide = jax.tree.map(
        lambda a: a.astype(jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a,
        (out.state.params, lam, train, valid),
    )
    wide_params = solved(problem, wide[0], wide[1], wide[2])
    truth = dense_hypergradient(problem, wide_params, *wide[1:])
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(out.grad))
    assert relative_error(out.grad, truth) < 1e-4


def test_changing_values_never_compiles_again():
    traces = []

    def inner(w, lam, batch):
        traces.append(1)
        return ridge_inner(w, lam, batch)

    problem = BilevelProblem(inner, half_mse)
    estimator = ImplicitDifferentiation(OptaxSolver(optax.sgd(0.3), 200), error_estimate=False)
    out = hypergradient(problem, jnp.zeros(2), -1.0, (X, Y), (XV, YV), estimator=estimator)
    again = hypergradient(
        problem, None, -1.0, (X, Y), (XV, YV), estimator=estimator, state=out.state
    )
    count = len(traces)
    for lam in (-0.9, -0.5, 0.3):
        out = hypergradient(problem, jnp.zeros(2), lam, (X, Y), (XV, YV), estimator=estimator)
        again = hypergradient(
            problem, None, lam, (X, Y), (XV, YV), estimator=estimator, state=again.state
        )
        assert relative_error(again.grad, out.grad) < 1e-5
    assert len(traces) == count


def test_under_jit_vmap_and_scan():
    problem, params, lam, train, valid = logistic(rows=20, features=3, classes=2)

    def step(lam):
        return hypergradient(problem, params, lam, train, valid, estimator=SOLVING)

    lams = jnp.stack([lam, lam + 0.5, lam - 0.5])
    one_by_one = [step(row) for row in lams]
    truth = jnp.stack([out.grad for out in one_by_one])
    mapped = eqx.filter_jit(jax.vmap(lambda row: step(row).grad))(lams)
    _, scanned = jax.lax.scan(lambda _, row: (None, step(row).grad), None, lams)
    assert relative_error(mapped, truth) < 1e-9
    assert relative_error(scanned, truth) < 1e-9


def test_scan_over_outer_steps_keeps_the_state_structure():
    estimator = ImplicitDifferentiation(OptaxSolver(optax.adam(0.05), 20), error_estimate=False)
    state = estimator.init(RIDGE, jnp.zeros(2), jnp.asarray(-1.0), (X, Y))

    def step(carry, _):
        state, lam = carry
        state, _ = estimator.fit(RIDGE, state, lam, (X, Y))
        out = estimator.hypergradient(RIDGE, state, lam, (X, Y), (XV, YV))
        return (out.state, lam - 0.5 * out.grad), out.value

    (_, _), values = jax.lax.scan(step, (state, jnp.asarray(-1.0)), length=60)
    assert values[-1] < 0.06
    assert values[-1] < values[20] < values[10]


def test_warm_start_saves_products():
    problem, params, lam, train, valid = logistic()
    params = solved(problem, params, lam, train)
    estimator = ImplicitDifferentiation(error_estimate=False)
    cold = hypergradient(problem, params, lam, train, valid, estimator=estimator)
    near = lam + 1e-4
    warm = hypergradient(problem, params, near, train, valid, estimator=estimator, state=cold.state)
    again = hypergradient(problem, params, near, train, valid, estimator=estimator)
    assert warm.info.iterations < again.info.iterations - 3
    assert relative_error(warm.grad, again.grad) < 1e-5


@pytest.mark.parametrize("size", [1e-30, 1e-12, 1e12, 1e30])
def test_cotangent_of_any_size_in_float32(size):
    problem, params, lam, train, valid = logistic(dtype=jnp.float32)
    params = solved(problem, params, lam, train)
    scaled = BilevelProblem(problem.inner, lambda w, lam, b: size * problem.outer(w, lam, b))
    estimator = ImplicitDifferentiation(error_estimate=False)
    out = hypergradient(scaled, params, lam, train, valid, estimator=estimator)
    truth = dense_hypergradient(problem, params, lam, train, valid)
    assert relative_error(out.grad / size, truth) < 1e-4


@pytest.mark.parametrize("size", [1e-3, 1.0, 40.0])
def test_the_state_keeps_the_adjoint_and_what_it_is_to_be_multiplied_by(size):
    problem, params, lam, train, valid = logistic()
    params = solved(problem, params, lam, train)
    scaled = BilevelProblem(problem.inner, lambda w, lam, b: size * problem.outer(w, lam, b))
    estimator = ImplicitDifferentiation(linear_solver=CG(tol=1e-12), error_estimate=False)
    state = hypergradient(scaled, params, lam, train, valid, estimator=estimator).state
    count = params.size
    hessian = jax.hessian(problem.inner)(params, lam, train).reshape(count, count)
    cotangent = jax.grad(scaled.outer)(params, lam, valid).ravel()
    truth = jnp.linalg.solve(hessian, cotangent)
    assert relative_error(state.cotangent_size * state.adjoint.ravel(), truth) < 1e-9


def test_zero_cotangent_gives_zero_for_free():
    problem = BilevelProblem(ridge_inner, lambda w, lam, batch: jnp.sum((w - batch) ** 2))
    params = solved(RIDGE, jnp.zeros(2), -1.0, (X, Y))
    out = hypergradient(problem, params, -1.0, (X, Y), params)
    assert out.grad == 0
    assert out.info.iterations == 0
    assert out.info.linear_residual == 0
    assert not out.info.breakdown


def test_scalar_params():
    a, b = 2.0, 0.5
    problem = BilevelProblem(
        lambda w, lam, _: 0.5 * (w - a) ** 2 + 0.5 * jnp.exp(lam) * w**2,
        lambda w, lam, _: 0.5 * (w - b) ** 2,
    )
    out = hypergradient(problem, 0.0, 0.3, estimator=SOLVING)
    weight = np.exp(0.3)
    w = a / (1 + weight)
    assert abs(out.state.params - w) < 1e-12
    assert abs(out.grad + (w - b) * weight * w / (1 + weight)) < 1e-12


def test_bfloat16_and_mixed_dtypes():
    def inner(p, lam, batch):
        x, y = batch
        prediction = x @ p["a"].astype(jnp.float32) + p["b"]
        penalty = jnp.exp(lam) * (jnp.sum(p["a"].astype(jnp.float32) ** 2) + p["b"] ** 2)
        return 0.5 * jnp.mean((prediction - y) ** 2) + penalty

    def outer(p, lam, batch):
        x, y = batch
        return 0.5 * jnp.mean((x @ p["a"].astype(jnp.float32) + p["b"] - y) ** 2)

    problem = BilevelProblem(inner, outer)
    batches = jax.tree.map(lambda a: a.astype(jnp.float32), ((X, Y), (XV, YV)))
    exact = {"a": jnp.zeros(2), "b": jnp.zeros(())}
    exact = solved(problem, exact, -1.0, batches[0])
    truth = dense_hypergradient(problem, exact, jnp.asarray(-1.0), *batches)
    params = {"a": exact["a"].astype(jnp.bfloat16), "b": exact["b"].astype(jnp.float32)}
    lam = jnp.asarray(-1.0, jnp.bfloat16)
    out = hypergradient(
        problem, params, lam, *batches, estimator=ImplicitDifferentiation(error_estimate=False)
    )
    assert out.grad.dtype == jnp.bfloat16
    assert out.info.linear_residual.dtype == jnp.float32
    assert abs(float(out.grad) - float(truth[0])) < 0.05 * abs(float(truth[0]))


def test_equinox_model_with_leaves_that_are_not_differentiable(key):
    model = eqx.nn.MLP(3, "scalar", 4, 1, activation=jnp.tanh, key=key)
    x = jax.random.normal(key, (20, 3))
    y = jnp.sin(x[:, 0])

    def mse(model, batch):
        x, y = batch
        return jnp.mean((jax.vmap(model)(x) - y) ** 2)

    def inner(model, lam, batch):
        leaves = jax.tree.leaves(eqx.filter(model, eqx.is_inexact_array))
        penalty = sum(jnp.sum(jnp.exp(lam["decay"]) * leaf**2) for leaf in leaves)
        return mse(model, batch) + penalty

    problem = BilevelProblem(inner, lambda model, lam, batch: mse(model, batch))
    lam = {"decay": jnp.asarray(-3.0), "steps": jnp.asarray(3), "name": "adam"}
    out = hypergradient(problem, model, lam, (x, y), (x + 0.1, y), estimator=SOLVING)
    assert out.grad["steps"] is None
    assert out.grad["name"] is None
    h = 1e-4
    values = [
        hypergradient(
            problem,
            out.state.params,
            {**lam, "decay": lam["decay"] + shift},
            (x, y),
            (x + 0.1, y),
            estimator=SOLVING,
        ).value
        for shift in (h, -h)
    ]
    difference = (values[0] - values[1]) / (2 * h)
    assert abs(out.grad["decay"] - difference) < 1e-5 * abs(difference)


def test_stochastic_problem_with_aux(key):
    def inner(w, lam, batch, key):
        x, y = batch
        noise = 0.1 * jax.random.normal(key, x.shape)
        return ridge_inner(w, lam, (x + noise, y)), {"noise": noise}

    def outer(w, lam, batch, key):
        return half_mse(w, lam, batch), {"w": w}

    problem = BilevelProblem(inner, outer, has_aux=True, stochastic=True)
    out = hypergradient(problem, jnp.zeros(2), -1.0, (X, Y), (XV, YV), estimator=SOLVING, key=key)
    noisy = (X + 0.1 * jax.random.normal(key, X.shape), Y)
    fixed = hypergradient(RIDGE, jnp.zeros(2), -1.0, noisy, (XV, YV), estimator=SOLVING)
    assert relative_error(out.grad, fixed.grad) < 1e-10
    np.testing.assert_array_equal(out.aux["w"], out.state.params)
    with pytest.raises(ValueError, match="pass `key`"):
        hypergradient(problem, jnp.zeros(2), -1.0, (X, Y), (XV, YV))


def test_damping_solves_the_damped_system():
    params = solved(RIDGE, jnp.zeros(2), -1.0, (X, Y))
    damped = ImplicitDifferentiation(linear_solver=CG(tol=1e-13), damping=0.5, error_estimate=False)
    out = hypergradient(RIDGE, params, -1.0, (X, Y), (XV, YV), estimator=damped)
    hessian = X.T @ X / 3 + (np.exp(-1.0) + 0.5) * jnp.eye(2)
    g = XV.T @ (XV @ params - YV) / 2
    truth = -np.exp(-1.0) * params @ jnp.linalg.solve(hessian, g)
    assert abs(out.grad - truth) < 1e-12


# Bad input


def test_a_learning_rate_is_refused_by_name():
    def train(w, lam, batch):
        return w - lam["rate"] * jax.grad(ridge_inner)(w, lam["l2"], batch)

    problem = BilevelProblem(
        lambda w, lam, batch: ridge_inner(w, lam["l2"], batch),
        lambda w, lam, batch: half_mse(w, None, batch),
    )
    lam = {"rate": 0.1, "l2": -1.0}
    with pytest.raises(ValueError, match=r"cannot see hyperparameter 'rate'.*`Unrolled`"):
        hypergradient(
            problem,
            jnp.zeros(2),
            lam,
            (X, Y),
            (XV, YV),
            estimator=ImplicitDifferentiation(train),
        )


def test_a_threshold_is_refused_by_name(key):
    def inner(w, lam, batch):
        keep = jax.random.uniform(key, w.shape) < lam["keep"]
        return ridge_inner(w * keep, lam["l2"], batch)

    problem = BilevelProblem(inner, lambda w, lam, batch: half_mse(w, None, batch))
    lam = {"keep": 0.9, "l2": -1.0}
    with pytest.raises(ValueError, match=r"'keep'.*identically zero"):
        hypergradient(problem, jnp.zeros(2), lam, (X, Y), (XV, YV))


def test_a_term_without_params_is_refused_by_name():
    def inner(w, lam, batch):
        return ridge_inner(w, lam["l2"], batch) + lam["offset"] ** 2

    problem = BilevelProblem(inner, lambda w, lam, batch: half_mse(w, None, batch))
    with pytest.raises(ValueError, match="'offset'"):
        hypergradient(problem, jnp.zeros(2), {"l2": -1.0, "offset": 1.0}, (X, Y), (XV, YV))


def test_a_leaf_of_the_outer_loss_only_gets_its_direct_gradient():
    problem = BilevelProblem(
        lambda w, lam, batch: ridge_inner(w, lam["l2"], batch),
        lambda w, lam, batch: half_mse(w, None, batch) / lam["temperature"],
    )
    lam = {"l2": -1.0, "temperature": 2.0}
    out = hypergradient(problem, jnp.zeros(2), lam, (X, Y), (XV, YV), estimator=SOLVING)
    assert abs(out.grad["l2"] - 0.08721369186448863 / 2) < 1e-10
    assert abs(out.grad["temperature"] + out.value / 2) < 1e-12


@pytest.mark.parametrize(
    ("inner", "outer", "message"),
    [
        (ridge_inner, lambda w, lam, b: lam**2, r"outer loss does not depend on params.*only on"),
        (ridge_inner, lambda w, lam, b: jnp.sum(b[1]), "neither params nor hparams"),
        (lambda w, lam, b: lam * jnp.sum(w), half_mse, "no curvature"),
        (lambda w, lam, b: lam * w, half_mse, r"inner loss: expected a real scalar.*\(2,\)"),
        (ridge_inner, lambda w, lam, b: w, r"outer loss: expected a real scalar.*\(2,\)"),
    ],
)
def test_losses_that_make_no_problem(inner, outer, message):
    with pytest.raises(ValueError, match=message):
        hypergradient(BilevelProblem(inner, outer), jnp.zeros(2), -1.0, (X, Y), (XV, YV))


def test_nothing_to_differentiate():
    with pytest.raises(ValueError, match="nothing to differentiate"):
        hypergradient(RIDGE, jnp.zeros(2), 3, (X, Y), (XV, YV))
    with pytest.raises(ValueError, match="params: expected at least one"):
        hypergradient(RIDGE, jnp.zeros(2, int), 3.0, (X, Y), (XV, YV))
    with pytest.raises(ValueError, match="needs params"):
        hypergradient(RIDGE, None, 3.0, (X, Y), (XV, YV))


def test_bad_options():
    with pytest.raises(ValueError, match="damping"):
        ImplicitDifferentiation(damping=-1.0)
    with pytest.raises(ValueError, match="linear_solver"):
        ImplicitDifferentiation(linear_solver="cg")
    with pytest.raises(ValueError, match="curvature"):
        ImplicitDifferentiation(curvature="hessian")
    with pytest.raises(ValueError, match="unseen"):
        ImplicitDifferentiation(unseen="zero")
    with pytest.raises(ValueError, match="tol"):
        CG(tol=-1.0)
    with pytest.raises(ValueError, match="max_steps"):
        CG(max_steps=-1)


def test_indefinite_hessian_is_reported():
    problem = BilevelProblem(
        lambda w, lam, b: 0.5 * (w[0] ** 2 - w[1] ** 2) + lam * jnp.sum(w),
        lambda w, lam, b: w[0] + 2 * w[1],
    )
    params = jnp.array([-1.0, 1.0])
    with pytest.warns(InaccurateHypergradientWarning, match="not positive definite"):
        out = hypergradient(problem, params, 1.0)
    assert out.info.nonpositive_curvature
    assert jnp.isfinite(out.grad)
    with pytest.raises(InaccurateHypergradientError, match="positive definite"):
        hypergradient(problem, params, 1.0, strict=True)


def test_a_singular_hessian_is_reported():
    problem = BilevelProblem(
        lambda w, lam, b: 0.5 * (w[0] - lam) ** 2 + 0 * w[1], lambda w, lam, b: w[0] + w[1]
    )
    with pytest.warns(InaccurateHypergradientWarning, match="not positive definite"):
        out = hypergradient(problem, jnp.array([1.0, 3.0]), 1.0)
    assert jnp.isinf(out.info.error)
    assert jnp.isfinite(out.grad)


def test_nan_in_the_products_is_contained_and_reported():
    @jax.custom_jvp
    def poisoned(g):
        return g

    poisoned.defjvp(lambda p, t: (p[0], jnp.nan * t[0]))

    def optimality(w, lam, batch):
        return poisoned(jax.grad(ridge_inner)(w, lam, batch))

    problem = BilevelProblem(None, half_mse, optimality)
    params = solved(RIDGE, jnp.zeros(2), -1.0, (X, Y))
    with pytest.warns(InaccurateHypergradientWarning, match="not finite"):
        out = hypergradient(
            problem,
            params,
            -1.0,
            (X, Y),
            (XV, YV),
            estimator=ImplicitDifferentiation(error_estimate=False),
        )
    assert out.info.breakdown


def test_no_products_is_no_silent_zero():
    params = solved(RIDGE, jnp.zeros(2), -1.0, (X, Y))
    idle = ImplicitDifferentiation(linear_solver=CG(max_steps=0), error_estimate=False)
    with pytest.warns(InaccurateHypergradientWarning, match="not solved well enough"):
        out = hypergradient(RIDGE, params, -1.0, (X, Y), (XV, YV), estimator=idle)
    assert out.info.linear_residual == 1


def test_a_state_of_other_params_is_refused():
    state = TIGHT.init(RIDGE, jnp.zeros(2), jnp.asarray(-1.0), (X, Y))
    with pytest.raises(ValueError, match="another structure"):
        hypergradient(
            RIDGE, jnp.zeros((2, 1)), -1.0, (X, Y), (XV, YV), estimator=TIGHT, state=state
        )


def test_a_loss_that_is_not_finite_is_reported():
    problem = BilevelProblem(ridge_inner, lambda w, lam, b: jnp.log(-jnp.sum(w**2)))
    params = solved(RIDGE, jnp.zeros(2), -1.0, (X, Y))
    with pytest.warns(InaccurateHypergradientWarning, match="not finite"):
        out = hypergradient(problem, params, -1.0, (X, Y), (XV, YV))
    assert out.info.breakdown
    assert out.info.error == jnp.inf
    with pytest.raises(InaccurateHypergradientError, match="not finite"):
        hypergradient(problem, params, -1.0, (X, Y), (XV, YV), strict=True)
    with pytest.raises(eqx.EquinoxRuntimeError, match="strict"):
        eqx.filter_jit(
            lambda p: hypergradient(problem, p, -1.0, (X, Y), (XV, YV), strict=True).grad
        )(params)


def test_an_unsolved_inner_problem_warns_once_per_call_site():
    far = jnp.array([5.0, -5.0])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("default")
        for _ in range(3):
            hypergradient(RIDGE, far, -1.0, (X, Y), (XV, YV))
        assert len(seen) == 1
        hypergradient(RIDGE, far, -1.0, (X, Y), (XV, YV))
        assert len(seen) == 2
    assert issubclass(seen[0].category, InaccurateHypergradientWarning)
    assert seen[0].filename == __file__


def test_the_losses_run_once_for_all_their_derivatives():
    calls = []

    def inner(w, lam, batch):
        calls.append("inner")
        return 0.5 * jnp.sum((w - batch) ** 2) + 0.5 * jnp.sum(jnp.exp(lam) * w**2)

    def outer(w, lam, batch):
        calls.append("outer")
        return jnp.sum(w**3)

    estimator = ImplicitDifferentiation()
    problem = BilevelProblem(inner, outer)
    w, lam = jnp.ones(3), jnp.zeros(3)
    state = estimator.init(problem, w, lam, w)
    calls.clear()
    jax.make_jaxpr(lambda s: estimator.hypergradient(problem, s, lam, w, w).grad)(state)
    assert sorted(calls) == ["inner", "outer"]
