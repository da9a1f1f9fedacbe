"""The evidence against closed forms, against itself in other forms, and against retraining."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import BilevelProblem, InaccurateHypergradientWarning, Newton, hypergradient
from hypergrad.evidence import (
    KFAC,
    BlockDiagonal,
    Diagonal,
    EvidenceProblem,
    Exact,
    LaplaceEvidence,
    Linearised,
    Subsets,
)
from hypergrad.outer import Alternating, run

N, CLASSES = 16, 3


def predict(params, hparams, x):
    """A small network, its input scaled by a hyperparameter."""
    scale = jnp.exp(hparams["scale"]) if "scale" in hparams else 1.0
    return jnp.tanh(scale * x @ params["a"] + params["b"]) @ params["c"]


def network(seed=0):
    """Softmax network, weights, hyperparameters and data; all of them random."""
    keys = jax.random.split(jax.random.key(seed), 5)
    params = {
        "a": 0.7 * jax.random.normal(keys[0], (4, 5)),
        "b": 0.3 * jax.random.normal(keys[1], (5,)),
        "c": 0.9 * jax.random.normal(keys[2], (5, CLASSES)),
    }
    hparams = {"decay": {"a": jnp.asarray(0.3), "b": jnp.asarray(-0.2), "c": jnp.zeros(5)}}
    hparams["decay"]["c"] = jnp.linspace(-0.5, 0.5, CLASSES)
    batch = (
        jax.random.normal(keys[3], (N, 4)),
        jax.random.randint(keys[4], (N,), 0, CLASSES),
    )
    problem = EvidenceProblem(predict, "categorical", lambda h, p: h["decay"])
    return problem, params, hparams, batch


def found(bound, seed=0, key=None, **options):
    problem, params, hparams, batch = network(seed)
    estimator = LaplaceEvidence(bound=bound, **options)
    state = estimator.init(problem, params, hparams, batch)
    return estimator.hypergradient(problem, state, hparams, batch, None, key=key)


def dense_log_det(problem, params, hparams, batch):
    """From its definition: Jacobian and curvature by JAX, one example after the other."""
    flat, unravel = jax.flatten_util.ravel_pytree(params)
    prior = jax.flatten_util.ravel_pytree(problem.model.precisions(params, hparams))[0]
    total = jnp.diag(prior)
    for x, y in zip(*batch, strict=True):
        jacobian = jax.jacobian(lambda w: problem.model.predict(unravel(w), hparams, x))(flat)  # noqa: B023
        outputs = problem.model.predict(params, hparams, x)
        curvature = -jax.hessian(lambda f: problem.model.log_likelihood(f, hparams, y))(outputs)  # noqa: B023
        total = total + jacobian.T @ curvature @ jacobian
    return jnp.linalg.slogdet(total)[1] - jnp.sum(jnp.log(prior))


def test_both_forms_are_the_definition():
    problem, params, hparams, batch = network()
    fitted = problem.inner_loss(params, hparams, batch)[0]
    value, slope = jax.value_and_grad(
        lambda h: (
            (
                problem.inner_loss(params, h, batch)[0]
                + 0.5 * dense_log_det(problem, params, h, batch)
            )
            / N
        )
    )(hparams)
    assert float(abs(value - fitted / N)) > 0.1
    for form in ("ggn", "ntk"):
        here = found(Exact(form))
        np.testing.assert_allclose(here.value, value, rtol=1e-11)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), here.grad, slope
        )


def test_finer_partitions_are_looser():
    """Nested partitions: each bound is above the one that it refines."""
    ladder = [Exact()] + [Subsets(size) for size in (8, 4, 2, 1)]
    values = [float(found(bound).value) for bound in ladder]
    assert all(a < b for a, b in itertools.pairwise(values)), values
    for size in (8, 4):
        joint, each = found(Subsets(size)), found(Subsets(size, "each"))
        assert float(joint.value) < float(each.value)
    exact, blocks, diagonal = (
        float(found(b).value) for b in (Exact(), BlockDiagonal(), Diagonal())
    )
    assert exact < blocks < diagonal


def test_one_subset_of_all_is_exact():
    exact = found(Exact())
    for size in (N, N + 5):  # the second has rows that count for nothing
        whole = found(Subsets(size))
        np.testing.assert_allclose(whole.value, exact.value, rtol=1e-12)


@pytest.mark.parametrize("outputs", ["joint", "each", "one"])
def test_random_subsets_are_unbiased(outputs):
    """All draws of a partition in turn have the partition's bound as their mean."""
    problem, params, hparams, batch = network()
    size = 4
    whole = found(Subsets(size, "joint" if outputs == "joint" else "each"))
    bound = Subsets(size, outputs, draws=1)
    blocks = jnp.arange(N).reshape(-1, size)
    pairs = [(block, jnp.asarray(c)) for block in blocks for c in range(CLASSES)]

    def value(h):
        here = Linearised(problem.model, params, h, batch)
        log_dets = [bound.log_det(here, pair) for pair in pairs]
        fitted = problem.inner_loss(params, h, batch)[0]
        return (fitted + 0.5 * sum(log_dets) / len(log_dets)) / N

    mean, slope = jax.jit(jax.value_and_grad(value))(hparams)
    np.testing.assert_allclose(mean, whole.value, rtol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), slope, whole.grad)


def test_draws_are_a_random_part_and_tell_their_spread():
    bound = Subsets(4, draws=3)
    subsets, _ = bound.draws(N, CLASSES, jax.random.key(0))
    assert subsets.shape == (3, 4)
    assert len(set(np.ravel(subsets).tolist())) == 12
    several = [found(bound, key=jax.random.key(i)) for i in range(12)]
    exact = found(Subsets(4))
    away = [
        jax.flatten_util.ravel_pytree(jax.tree.map(jnp.subtract, s.grad, exact.grad))[0]
        for s in several
    ]
    size = jnp.linalg.norm(jax.flatten_util.ravel_pytree(exact.grad)[0])
    actual = float(jnp.sqrt(jnp.mean(jnp.asarray([a @ a for a in away]))) / size)
    told = float(np.mean([s.info.error for s in several]))
    assert 0.3 < told / actual < 3.0
    # The more is seen, the less is left to chance.
    assert np.isnan(float(found(Subsets(4, draws=1), key=jax.random.key(0)).info.error))


def test_kronecker_factors_of_a_layer_are_those_of_k_fac():
    """Rows of one length: the textbook factors. One example and one output: no approximation."""
    x = jax.random.normal(jax.random.key(1), (6, 3))
    x = x / jnp.linalg.norm(x, axis=1, keepdims=True)
    y = jax.random.normal(jax.random.key(2), (6, 2))
    problem = EvidenceProblem(
        lambda w, h, x: x @ w, "gaussian", lambda h, w: h["p"], lambda h: h["v"]
    )
    h = {"p": jnp.asarray(0.4), "v": jnp.asarray(-0.3)}
    w = jnp.ones((3, 2))
    here = Linearised(problem.model, w, h, (x, y))
    activations, curvature = x.T @ x, jnp.exp(-h["v"]) * jnp.eye(2)
    truth = jnp.linalg.slogdet(jnp.eye(6) + jnp.exp(-h["p"]) * jnp.kron(activations, curvature))[1]
    received = KFAC().log_det(here, jnp.arange(6))
    np.testing.assert_allclose(received, truth, rtol=1e-12)
    np.testing.assert_allclose(BlockDiagonal().log_det(here, jnp.arange(6)), truth, rtol=1e-12)
    first = found(KFAC())
    assert all(bool(jnp.all(jnp.isfinite(leaf))) for leaf in jax.tree.leaves(first.grad))
    # Not far from what it stands for.
    np.testing.assert_allclose(first.value, found(BlockDiagonal()).value, rtol=0.1)


def linear():
    x = jax.random.normal(jax.random.key(3), (12, 4))
    y = x @ jnp.array([1.0, -2.0, 0.5, 0.0]) + 0.3 * jax.random.normal(jax.random.key(4), (12,))
    problem = EvidenceProblem(
        lambda w, h, x: x @ w, "gaussian", lambda h, w: h["precision"], lambda h: h["variance"]
    )
    hparams = {"precision": jnp.array([0.1, -0.4, 0.9, 1.5]), "variance": jnp.asarray(-1.2)}
    return problem, hparams, (x, y)


def test_a_linear_model_has_the_evidence_in_closed_form():
    problem, hparams, (x, y) = linear()

    def exact(h):
        covariance = x * jnp.exp(-h["precision"]) @ x.T + jnp.exp(h["variance"]) * jnp.eye(12)
        log = jax.scipy.stats.multivariate_normal.logpdf(y, jnp.zeros(12), covariance)
        return -log / 12

    value, slope = jax.value_and_grad(exact)(hparams)
    estimator = LaplaceEvidence(Newton())
    here = hypergradient(problem, jnp.zeros(4), hparams, (x, y), estimator=estimator)
    np.testing.assert_allclose(here.value, value, rtol=1e-11)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9), here.grad, slope)


def test_with_the_indirect_part_it_is_the_derivative_of_retraining():
    """Central differences of training anew; without that part the answer is another."""
    keys = jax.random.split(jax.random.key(5), 3)
    x, y = jax.random.normal(keys[0], (20, 2)), jax.random.bernoulli(keys[1], 0.4, (20,))
    batch = (x, y.astype(jnp.int32))
    problem = EvidenceProblem(
        lambda w, h, x: jnp.stack([jnp.exp(h["scale"]) * x @ w, jnp.zeros(())]),
        "categorical",
        lambda h, w: h["precision"],
    )
    hparams = {"precision": jnp.asarray(-0.5), "scale": jnp.asarray(0.4)}
    whole = LaplaceEvidence(Newton(), indirect=True)
    part = LaplaceEvidence(Newton())
    solve = lambda h, e: hypergradient(problem, jnp.zeros(2), h, batch, estimator=e)  # noqa: E731
    here, direct = solve(hparams, whole), solve(hparams, part)
    step = 1e-4
    for name in hparams:
        up, down = (
            solve({**hparams, name: hparams[name] + sign * step}, part).value for sign in (1, -1)
        )
        difference = (up - down) / (2 * step)
        np.testing.assert_allclose(here.grad[name], difference, rtol=1e-6)
        assert abs(float(direct.grad[name] - difference)) > 1e-3 * abs(float(difference))
    np.testing.assert_allclose(here.value, direct.value, rtol=1e-12)


def test_an_outer_algorithm_finds_the_precision_that_made_the_weights():
    """Weights of standard deviation 1/2: a log precision of 1.39, known as well as 40 tell it."""
    keys = jax.random.split(jax.random.key(6), 3)
    x = jax.random.normal(keys[0], (200, 40))
    y = x @ (0.5 * jax.random.normal(keys[1], (40,))) + 0.1 * jax.random.normal(keys[2], (200,))
    problem = EvidenceProblem(
        lambda w, h, x: x @ w, "gaussian", lambda h, w: h["precision"], lambda h: h["variance"]
    )
    start = {"precision": jnp.asarray(-2.0), "variance": jnp.asarray(0.0)}
    algorithm = Alternating(LaplaceEvidence(Newton()), optax.adam(0.2))
    result = run(problem, algorithm, jnp.zeros(40), start, (x, y), None, steps=100, every=100)
    assert abs(float(result.hparams["precision"]) - np.log(4)) < 0.5
    assert abs(float(result.hparams["variance"]) - np.log(0.01)) < 0.3


def test_a_precision_without_bound_is_said_and_not_silent():
    problem, _, batch = linear()
    hparams = {"precision": jnp.full(4, jnp.inf), "variance": jnp.asarray(0.0)}
    estimator = LaplaceEvidence()
    with pytest.warns(InaccurateHypergradientWarning, match="not finite"):
        here = hypergradient(problem, jnp.ones(4), hparams, batch, estimator=estimator)
    assert bool(here.info.breakdown)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: EvidenceProblem(predict, None, lambda h, p: 0.0), "likelihood"),
        (lambda: EvidenceProblem(predict, "gaussian", lambda h, p: 0.0), "log_variance"),
        (lambda: Exact("dense"), "form"),
        (lambda: Subsets(0), "size"),
        (lambda: Subsets(4, "all"), "outputs"),
        (lambda: Subsets(4, draws=0), "draws"),
        (lambda: Subsets(4, "one"), "draws"),
        (lambda: LaplaceEvidence(bound="exact"), "bound"),
        (lambda: found(Subsets(4, draws=2)), "key"),
        (lambda: found(Subsets(4, draws=5), key=jax.random.key(0)), "at most 4"),
    ],
)
def test_bad_options_are_named(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_what_is_no_evidence_problem_is_refused():
    _, params, hparams, batch = network()
    plain = BilevelProblem(lambda *_: jnp.zeros(()), lambda *_: jnp.zeros(()))
    with pytest.raises(ValueError, match="EvidenceProblem"):
        LaplaceEvidence().init(plain, params, hparams, batch)


def test_a_prior_that_does_not_fit_the_weights_is_refused():
    _, params, hparams, batch = network()
    problem = EvidenceProblem(predict, "categorical", lambda h, p: {"a": h["decay"]["a"]})
    with pytest.raises(ValueError, match="log_precision"):
        hypergradient(problem, params, hparams, batch, estimator=LaplaceEvidence())


def test_a_hyperparameter_that_nothing_reads_is_refused_by_name():
    problem, params, hparams, batch = network()
    hparams = {**hparams, "typo": jnp.asarray(1.0)}
    with pytest.raises(ValueError, match="typo"):
        hypergradient(problem, params, hparams, batch, estimator=LaplaceEvidence())
