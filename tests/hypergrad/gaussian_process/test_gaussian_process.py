"""Gaussian processes against closed forms, quadrature and finite differences of inference anew."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import BilevelProblem, InaccurateHypergradientWarning, hypergradient
from hypergrad.gaussian_process import (
    ExpectationPropagation,
    Gaussian,
    GPProblem,
    LaplaceGP,
    LeaveOneOut,
    Likelihood,
    MarginalLikelihood,
    Probit,
    Sites,
    VariationalGP,
    matern52,
    squared_exponential,
)
from hypergrad.gaussian_process.sites import Posterior
from hypergrad.outcome import Outcome
from hypergrad.outer import Alternating, run

H = {"log_sigma": jnp.asarray(0.6), "log_length": jnp.array([0.1, -0.3])}
# With a factor, which makes of a kernel what is none, by the same compiled program.
SCALED = H | {"factor": jnp.asarray(1.0)}
CLASSES = GPProblem(lambda h, x, z: h["factor"] * matern52(h, x, z), Probit())
REAL = GPProblem(matern52, Gaussian(lambda h: h["log_noise"]))
NOISY = H | {"log_noise": jnp.asarray(-1.5)}


def classified(count=20):
    keys = jax.random.split(jax.random.key(0), 2)
    x = jax.random.normal(keys[0], (count, 2))
    y = jnp.sign(x[:, 0] * x[:, 1] + 0.3 * jax.random.normal(keys[1], (count,)))
    return x, y


def measured(count=15):
    keys = jax.random.split(jax.random.key(1), 2)
    x = jax.random.normal(keys[0], (count, 2))
    return x, jnp.sin(2 * x[:, 0]) + 0.2 * jax.random.normal(keys[1], (count,))


def solved(estimator, problem, hparams, batch):
    return hypergradient(problem, problem.sites(batch), hparams, batch, estimator=estimator)


def close(a, b, rtol):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=1e-12), a, b)


def differences(estimator, problem, hparams, batch, step=1e-4):
    """Central differences of the value, the inference done anew at each point."""
    flat, unravel = jax.flatten_util.ravel_pytree(hparams)
    value = lambda h: solved(estimator, problem, unravel(h), batch).value  # noqa: E731
    each = [
        (value(flat + step * e) - value(flat - step * e)) / (2 * step) for e in np.eye(flat.size)
    ]
    return unravel(jnp.asarray(each))


def log_normal(hparams, batch):
    x, y = batch
    covariance = matern52(hparams, x, x) + jnp.exp(hparams["log_noise"]) * jnp.eye(len(y))
    return jax.scipy.stats.multivariate_normal.logpdf(y, jnp.zeros(len(y)), covariance)


def test_kernels_have_exact_derivatives_for_near_points_far_from_the_middle():
    """A thousand lengths wide: the expanded square is off by two in a hundred in float32."""
    x = (
        np.repeat(np.linspace(-0.5, 0.5, 5), 2)[:, None] * np.ones(2)
        + 1e-3 * np.arange(10)[:, None]
    )

    @jax.jit
    def slopes(log_length, x):
        h = {"log_sigma": jnp.zeros((), x.dtype), "log_length": log_length}
        kernel = lambda h, x, z: jnp.sum(squared_exponential(h, x, z) ** 2)  # noqa: E731
        found = jax.grad(kernel, (0, 1, 2))(h, x, x[1:])
        return found[0]["log_length"], *found[1:]

    length = jnp.full(2, np.log(1e-3))
    # Of the same points: what is compared is arithmetic.
    single = jnp.asarray(x, jnp.float32)
    exact = slopes(length.astype(jnp.float32).astype(float), single.astype(float))
    for a, b in zip(slopes(length.astype(jnp.float32), single), exact, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * float(jnp.abs(b).max()))


SITES = {
    # Of Laplace's approximation only the value is looked at here.
    "laplace": LaplaceGP(steps=3, through_sites=False),
    "ep": ExpectationPropagation(steps=3, step=1.0),
    "elbo": VariationalGP(steps=3, step=1.0, objective="elbo"),
    "ep at variational sites": VariationalGP(steps=3, step=1.0),
}


@pytest.mark.parametrize("name", [*SITES, "exact"])
def test_with_gaussian_noise_every_inference_is_exact(name):
    batch = measured()
    estimator = SITES.get(name, MarginalLikelihood())
    value, slope = jax.value_and_grad(lambda h: -log_normal(h, batch))(NOISY)
    found = solved(estimator, REAL, NOISY, batch)
    np.testing.assert_allclose(found.value, value, rtol=1e-9)
    if not name.startswith("ep at") and name != "laplace":
        close(found.grad, slope, 1e-6)


def test_the_noise_enters_through_the_sites():
    """At fixed sites a part of the noise's effect is missing; through the sites it is whole."""
    batch = measured()
    value = lambda h: -log_normal(h, batch)  # noqa: E731
    estimator = VariationalGP(steps=3, step=1.0, through_sites=True)
    close(solved(estimator, REAL, NOISY, batch).grad, jax.grad(value)(NOISY), 1e-6)


def test_leave_one_out_is_leaving_out_one():
    x, y = measured()

    def slow(hparams):
        covariance = matern52(hparams, x, x) + jnp.exp(hparams["log_noise"]) * jnp.eye(len(y))
        total = 0.0
        for i in range(len(y)):
            rest = np.delete(np.arange(len(y)), i)
            weights = jnp.linalg.solve(covariance[jnp.ix_(rest, rest)], covariance[rest, i])
            mean, variance = weights @ y[rest], covariance[i, i] - weights @ covariance[rest, i]
            total += jax.scipy.stats.norm.logpdf(y[i], mean, jnp.sqrt(variance))
        return -total

    value, slope = jax.jit(jax.value_and_grad(slow))(NOISY)
    found = solved(LeaveOneOut(), REAL, NOISY, (x, y))
    np.testing.assert_allclose(found.value, value, rtol=1e-9)
    close(found.grad, slope, 1e-7)


CONVERGED = {
    "laplace": LaplaceGP(steps=30),
    "ep": ExpectationPropagation(steps=60),
    "elbo": VariationalGP(steps=100, step=0.5, objective="elbo"),
    "ep at variational sites": VariationalGP(steps=100, step=0.5, through_sites=True),
}


@pytest.mark.parametrize("name", CONVERGED)
def test_the_gradient_is_that_of_inference_anew(name):
    batch, estimator = classified(), CONVERGED[name]
    found = solved(estimator, CLASSES, SCALED, batch)
    assert float(found.info.inner_residual) < 1e-9
    close(found.grad, differences(estimator, CLASSES, SCALED, batch), 1e-6)


def test_what_is_left_out_by_fixed_sites_is_told():
    batch = classified()
    part = solved(VariationalGP(steps=100, step=0.5), CLASSES, SCALED, batch)
    whole = solved(CONVERGED["ep at variational sites"], CLASSES, SCALED, batch)
    flat = lambda tree: jax.flatten_util.ravel_pytree(tree)[0]  # noqa: E731
    left_out = jnp.linalg.norm(flat(whole.grad) - flat(part.grad)) / jnp.linalg.norm(
        flat(whole.grad)
    )
    assert float(left_out) > 1e-4
    np.testing.assert_allclose(whole.aux, left_out, rtol=1e-6)
    assert part.aux is None


def test_evidences_of_one_observation_against_quadrature():
    """`∫ Φ(y f) N(f | 0, σ²) df = ½`: EP is exact for it, the bound is below, Laplace near.

    Of twenty observations so far apart that they know nothing of each other.
    """
    batch = (100 * jnp.arange(40.0).reshape(20, 2), jnp.ones(20))
    found = {
        name: -float(solved(estimator, CLASSES, SCALED, batch).value) / 20
        for name, estimator in CONVERGED.items()
    }
    truth = float(np.log(0.5))
    np.testing.assert_allclose(found["ep"], truth, rtol=1e-9)
    # With one observation the cavity is the prior, whatever the sites are.
    np.testing.assert_allclose(found["ep at variational sites"], truth, rtol=1e-9)
    assert truth - 0.1 < found["elbo"] < truth
    assert abs(found["laplace"] - truth) < 0.1


def test_the_evidence_at_variational_sites_is_closer_than_the_bound():
    batch = classified()
    truth, bound, like = (
        float(solved(CONVERGED[name], CLASSES, SCALED, batch).value)
        for name in ("ep", "elbo", "ep at variational sites")
    )
    assert abs(like - truth) < 0.5 * abs(bound - truth)
    assert bound > truth


def test_predictions_are_those_of_conditioning():
    x, y = measured()
    found = solved(MarginalLikelihood(), REAL, NOISY, (x, y))
    other = jnp.array([[0.3, -0.2], [2.0, 1.0]])
    mean, variance = REAL.predict(found.state.params, NOISY, (x, y), other)
    covariance = matern52(NOISY, x, x) + jnp.exp(NOISY["log_noise"]) * jnp.eye(len(y))
    cross = matern52(NOISY, x, other)
    weights = jnp.linalg.solve(covariance, cross)
    np.testing.assert_allclose(mean, weights.T @ y, rtol=1e-9)
    truth = jnp.diagonal(matern52(NOISY, other, other) - cross.T @ weights)
    np.testing.assert_allclose(variance, truth, rtol=1e-9)
    noisy = truth + jnp.exp(NOISY["log_noise"])
    log = REAL.log_predictive(found.state.params, NOISY, (x, y), (other, jnp.zeros(2)))
    expected = jax.scipy.stats.norm.logpdf(0.0, weights.T @ y, jnp.sqrt(noisy))
    np.testing.assert_allclose(log, expected, rtol=1e-9)


def test_quadrature_of_the_base_class_agrees_with_closed_forms():
    class Slow(Probit):
        log_mean = Likelihood.log_mean

    args = (jnp.asarray(0.7), jnp.asarray(2.5), jnp.asarray(-1.0), None)
    np.testing.assert_allclose(Slow().log_mean(*args), Probit().log_mean(*args), rtol=1e-8)
    # Far in the tail there is a finite slope.
    far = jax.grad(Probit().log_mean)(jnp.asarray(-300.0), jnp.asarray(0.5), jnp.asarray(1.0), None)
    np.testing.assert_allclose(far, 300 / 1.5, rtol=1e-4)


@pytest.mark.parametrize("kernel", [matern52, squared_exponential])
def test_kernels_are_positive_with_derivatives_at_distance_zero(kernel):
    x = jnp.array([[0.0, 1.0], [0.0, 1.0], [2.0, -1.0]])
    matrix = kernel(H, x, x)
    np.testing.assert_allclose(jnp.diagonal(matrix), np.exp(1.2), rtol=1e-12)
    assert float(jnp.min(jnp.linalg.eigvalsh(matrix))) > -1e-12
    slope = jax.grad(lambda h: jnp.sum(kernel(h, x, x)))(H)
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(slope))


class Heavy(Likelihood):
    """Student's t with four degrees of freedom; quadrature for all averages."""

    log_concave = False

    def log_density(self, f, y, hparams):
        return jax.scipy.stats.t.logpdf((y - f) / 0.3, 4.0)


def test_a_site_held_at_a_positive_precision_is_told():
    """An outlier's site would be negative: the bound is not stationary there, and says so."""
    x, y = measured()
    problem = GPProblem(matern52, Heavy())
    estimator = VariationalGP(steps=300, step=0.3, objective="elbo")
    calm = solved(estimator, problem, H, (x, y))
    outlier = solved(estimator, problem, H, (x, y.at[3].add(4.0)))
    assert bool(calm.info.outcome == Outcome.solved)
    assert bool(outlier.info.outcome == Outcome.approximate)
    assert float(jnp.min(outlier.state.params.precision)) == pytest.approx(1e-6)
    close(calm.grad, differences(estimator, problem, H, (x, y)), 1e-6)


def test_expectation_propagation_takes_a_likelihood_by_quadrature():
    """Traced, not run: no decision in the average hides a part of the derivative."""
    batch, problem, ep = measured(), GPProblem(matern52, Heavy()), ExpectationPropagation()
    state = ep.init(problem, problem.sites(batch), H, batch)
    shapes = jax.eval_shape(lambda h: ep.hypergradient(problem, state, h, batch, None).grad, H)
    assert shapes["log_length"].shape == (2,)


def test_sites_that_say_nothing_have_a_whole_derivative():
    """At precision zero, against a difference to one side: below it sites are held there."""
    kernel = matern52(H, measured(6)[0], measured(6)[0])
    shift = jnp.arange(6.0)

    @jax.jit
    def quadratic(precision):
        posterior = Posterior.of(kernel, Sites(shift, precision))
        return posterior.quadratic + posterior.log_det

    slope = jax.grad(quadratic)(jnp.zeros(6))
    steps = 1e-6 * jnp.eye(6)
    found = jnp.stack([(quadratic(step) - quadratic(jnp.zeros(6))) / 1e-6 for step in steps])
    np.testing.assert_allclose(slope, found, rtol=1e-4)


def test_the_derivative_is_taken_at_the_very_same_value():
    kernel = matern52(H, measured(6)[0], measured(6)[0])
    of = lambda precision: Posterior.of(kernel, Sites(jnp.ones(6), precision))  # noqa: E731
    precision = jnp.linspace(0.1, 100.0, 6)
    plain, told = of(precision), jax.jvp(of, (precision,), (jnp.ones(6),))[0]
    jax.tree.map(np.testing.assert_array_equal, plain, told)


def test_an_outer_algorithm_raises_the_evidence():
    batch = classified()
    start = {"log_sigma": jnp.asarray(0.0), "log_length": jnp.zeros(2), "factor": jnp.asarray(1.0)}
    algorithm = Alternating(VariationalGP(), optax.adam(0.1))
    found = run(CLASSES, algorithm, CLASSES.sites(batch), start, batch, None, steps=60, every=20)
    judge = CONVERGED["ep at variational sites"]
    first = solved(judge, CLASSES, start, batch).value
    last = solved(judge, CLASSES, found.hparams, batch).value
    assert float(last) < float(first) - 0.5


@pytest.mark.parametrize("name", CONVERGED)
def test_a_kernel_that_is_no_kernel_is_said_and_not_silent(name):
    batch = classified()
    wide, wrong = Sites(jnp.ones(20), jnp.ones(20)), SCALED | {"factor": jnp.asarray(-5.0)}
    with pytest.warns(InaccurateHypergradientWarning, match="not finite"):
        found = hypergradient(CLASSES, wide, wrong, batch, estimator=CONVERGED[name])
    assert bool(found.info.breakdown)


def test_a_kernel_that_is_no_kernel_in_regression():
    problem = GPProblem(lambda h, x, z: -matern52(h, x, z), REAL.likelihood)
    with pytest.warns(InaccurateHypergradientWarning, match="not finite"):
        found = solved(MarginalLikelihood(), problem, NOISY, measured())
    assert bool(found.info.breakdown)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: GPProblem(matern52, None), "likelihood"),
        (lambda: GPProblem(None, Probit()), "kernel"),
        (lambda: VariationalGP(objective="map"), "objective"),
        (lambda: VariationalGP(steps=0), "steps"),
        (lambda: ExpectationPropagation(step=1.5), "step"),
        (lambda: LaplaceGP(step=0.0), "step"),
        (lambda: solved(MarginalLikelihood(), CLASSES, SCALED, classified()), "Gaussian"),
        (
            lambda: hypergradient(
                CLASSES, jnp.zeros(20), SCALED, classified(), estimator=LaplaceGP()
            ),
            "Sites",
        ),
        (
            lambda: solved(
                VariationalGP(), CLASSES, SCALED | {"typo": jnp.zeros(())}, classified()
            ),
            "typo",
        ),
        (lambda: solved(LeaveOneOut(), REAL, NOISY | {"typo": jnp.zeros(())}, measured()), "typo"),
    ],
)
def test_bad_input_is_named(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_another_kind_of_problem_is_refused():
    plain = BilevelProblem(lambda *_: jnp.zeros(()), lambda *_: jnp.zeros(()))
    for estimator in (LaplaceGP(), MarginalLikelihood()):
        with pytest.raises(ValueError, match="GPProblem"):
            estimator.init(plain, None, H, classified())
