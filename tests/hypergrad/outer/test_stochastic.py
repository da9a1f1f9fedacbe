"""The stochastic methods against loops written out in NumPy, and against closed forms."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from hypergrad import outer
from hypergrad.outer import (
    BOME,
    F2SA,
    MRBO,
    PBGD,
    SOBA,
    SRBA,
    SUSTAIN,
    VRBO,
    Batches,
    Box,
    Minibatches,
    StocBiO,
    run,
)
from hypergrad.outer.neumann_estimate import neumann_sum, neumann_term
from hypergrad.outer.value_gap import gap_gradients
from hypergrad.problem import BilevelProblem
from tests.hypergrad.outer.test_single_loop import gap, scan

BOX = Box(-3.0, 1.0)
STEP, RATE = 0.2, 0.5
NEW = ["StocBiO", "MRBO", "VRBO", "SUSTAIN", "SRBA", "BOME", "PBGD"]


class Dense:
    """The ridge problem's derivatives on some rows, in NumPy."""

    def __init__(self, ridge):
        arrays = jax.tree.map(np.asarray, (ridge.inner, ridge.outer))
        self.train, self.validation = ((part["x"], part["y"]) for part in arrays)

    def gradient(self, w, h, rows=slice(None)):
        x, y = self.train[0][rows], self.train[1][rows]
        return x.T @ (x @ w - y) / len(y) + np.exp(h) * w

    def hessian(self, h, rows=slice(None)):
        x = self.train[0][rows]
        return x.T @ x / len(x) + np.diag(np.exp(h))

    def outer_gradient(self, w, rows=slice(None)):
        x, y = self.validation[0][rows], self.validation[1][rows]
        return x.T @ (x @ w - y) / len(y)

    def mixed(self, w, h, q):
        return np.exp(h) * w * q

    def neumann(self, w, h, draws, outer_rows, step=STEP):
        """Minus the mixed product with all terms of the series, one Hessian for each of draws."""
        term = total = self.outer_gradient(w, outer_rows)
        for rows in draws:
            term = term - step * self.hessian(h, rows) @ term
            total = total + term
        return -self.mixed(w, h, step * total)


@pytest.fixture(scope="module")
def dense(ridge):
    return Dense(ridge)


def steps_of(ridge, algorithm, sampler, count):
    """The states, and the rows of each step's batches: inner fits, the linear system, outer."""
    key = jax.random.key(3)
    batches = [sampler(ridge.inner, ridge.outer, jnp.asarray(k), key) for k in range(count)]
    step = jax.jit(lambda s, b: algorithm.step(ridge.problem, s, b))
    start = jnp.asarray([0.3, -0.2, 0.1, 0.5])
    states = [algorithm.init(ridge.problem, start, ridge.hparams, batches[0])]
    infos = []
    for batch in batches:
        state, info = step(states[-1], batch)
        states.append(state)
        infos.append(info)
    rows = [
        SimpleNamespace(
            fits=np.asarray(b.inner_rows), linear=np.asarray(b.linear_rows), outer=b.outer_rows
        )
        for b in batches
    ]
    return states, infos, rows


def same(state, w, h):
    np.testing.assert_allclose(state.params, w, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(state.hparams, h, rtol=1e-9, atol=1e-12)


def test_stocbio_is_two_loops(ridge, dense):
    sampler = Minibatches(6, policy="independent", fits=5)
    # The mixed product of this problem has no rows; the Hessians have one batch each.
    algorithm = StocBiO(optax.sgd(RATE), inner_steps=2, products=3, step_size=STEP)
    states, infos, draws = steps_of(ridge, algorithm, sampler, 3)
    w, h = np.asarray(states[0].params), np.zeros(4)
    for state, rows in zip(states[1:], draws, strict=True):
        for fit in range(2):
            w = w - STEP * dense.gradient(w, h, rows.fits[fit])
        h = h - RATE * dense.neumann(w, h, rows.fits[2:5], rows.outer)
        same(state, w, h)
    assert int(infos[0].calls) == 2 + 3 + 2


def test_mrbo_has_recursive_momentum(ridge, dense):
    sampler = Minibatches(6, policy="independent", fits=4)
    algorithm = MRBO(optax.sgd(RATE), products=3, step_size=STEP, momentum=0.5)
    states, infos, draws = steps_of(ridge, algorithm, sampler, 4)
    w = last_w = np.asarray(states[0].params)
    h = last_h = d = e = np.zeros(4)
    for k, (state, rows) in enumerate(zip(states[1:], draws, strict=True)):
        keep = 0 if k == 0 else 1 - 0.5 * (k + 1) ** (-2 / 3)
        gradient = lambda w, h, rows=rows: dense.gradient(w, h, rows.fits[0])  # noqa: E731
        along = lambda w, h, r=rows: dense.neumann(w, h, r.fits[1:4], r.outer)  # noqa: E731
        d = gradient(w, h) + keep * (d - gradient(last_w, last_h))
        e = along(w, h) + keep * (e - along(last_w, last_h))
        last_w, last_h = w, h
        w, h = w - STEP * (k + 1) ** (-1 / 3) * d, h - RATE * e
        same(state, w, h)
    assert int(infos[0].calls) == 2 * (1 + 3 + 2)


def test_sustain_draws_one_term(ridge, dense):
    sampler = Minibatches(6, policy="independent", fits=5)
    algorithm = SUSTAIN(optax.sgd(RATE), products=5, step_size=STEP, momentum=0.5)
    states, infos, draws = steps_of(ridge, algorithm, sampler, 4)
    w = last_w = np.asarray(states[0].params)
    h = last_h = d = e = np.zeros(4)
    lengths = []
    for k, (state, rows) in enumerate(zip(states[1:], draws, strict=True)):
        length = int(algorithm.length(SimpleNamespace(key=None), jnp.asarray(k)))
        lengths.append(length)

        def along(w, h, rows=rows, length=length):
            term = dense.outer_gradient(w, rows.outer)
            for fit in rows.fits[1 : 1 + length]:
                term = term - STEP * dense.hessian(h, fit) @ term
            return -dense.mixed(w, h, 5 * STEP * term)

        keep = 0 if k == 0 else 1 - 0.5 * (k + 1) ** (-2 / 3)
        gradient = lambda w, h, rows=rows: dense.gradient(w, h, rows.fits[0])  # noqa: E731
        d = gradient(w, h) + keep * (d - gradient(last_w, last_h))
        e = along(w, h) + keep * (e - along(last_w, last_h))
        last_w, last_h = w, h
        w, h = w - STEP * (k + 1) ** (-1 / 3) * d, h - RATE * e
        same(state, w, h)
        assert int(infos[k].calls) == 2 * (1 + length + 2)
    assert len(set(lengths)) > 1


def test_sustain_draws_its_lengths_by_a_key_that_no_loss_gets():
    keys = jax.random.split(jax.random.key(5), 300)
    here = lambda key: SimpleNamespace(key=key)  # noqa: E731
    lengths = jax.vmap(lambda key: SUSTAIN(products=7).length(here(key), jnp.asarray(0)))(keys)
    assert set(lengths.tolist()) == set(range(7))

    def by(key):
        return jax.random.randint(key, (), 0, 7)

    for given in (by, *(lambda key, fit=fit: by(jax.random.fold_in(key, fit)) for fit in range(7))):
        assert float(jnp.mean(jax.vmap(given)(keys) == lengths)) < 0.3


def test_srba_recurses_between_passes(ridge, dense):
    algorithm = SRBA(optax.sgd(RATE), step_size=STEP, period=3)
    states, infos, draws = steps_of(ridge, algorithm, Minibatches(6), 4)
    w, v, h = np.asarray(states[0].params), np.asarray(states[0].adjoint), np.zeros(4)

    def terms(w, v, h, train=slice(None), validation=slice(None)):
        pull = dense.outer_gradient(w, validation)
        curvature = dense.hessian(h, train) @ v + pull
        return np.stack([dense.gradient(w, h, train), curvature, dense.mixed(w, h, v)])

    kept, last = None, None
    for k, (state, rows) in enumerate(zip(states[1:], draws, strict=True)):
        batch = (rows.linear, rows.outer)
        fresh = k % 3 == 0
        kept = terms(w, v, h) if fresh else terms(w, v, h, *batch) - terms(*last, *batch) + kept
        last = (w, v, h)
        w, v, h = w - STEP * kept[0], v - STEP * kept[1], h - RATE * kept[2]
        same(state, w, h)
        np.testing.assert_allclose(state.adjoint, v, rtol=1e-9)
    # A pass holds four mini-batches of each, three terms of the one and one of the other.
    assert [int(info.calls) for info in infos] == [16, 8, 8, 16]


def test_vrbo_recurses_in_its_inner_loop(ridge, dense):
    sampler = Minibatches(6, policy="independent", fits=2 * 4)
    algorithm = VRBO(optax.sgd(RATE), inner_steps=2, products=3, step_size=STEP, period=2)
    states, infos, draws = steps_of(ridge, algorithm, sampler, 3)
    w, h = np.asarray(states[0].params), np.zeros(4)
    every = slice(None)
    for k, (state, rows) in enumerate(zip(states[1:], draws, strict=True)):
        if k % 2 == 0:
            d, e = dense.gradient(w, h), dense.neumann(w, h, [every] * 3, every)
        last_w, last_h = w, h
        h = h - RATE * e
        np.testing.assert_allclose(state.hypergradient, e, rtol=1e-9)
        for t in range(2):
            fits = rows.fits[4 * t : 4 * t + 4]
            gradient = lambda w, h, fits=fits: dense.gradient(w, h, fits[0])  # noqa: E731
            along = lambda w, h, f=fits, r=rows: dense.neumann(w, h, f[1:], r.outer)  # noqa: E731
            d = gradient(w, h) - gradient(last_w, last_h) + d
            e = along(w, h) - along(last_w, last_h) + e
            last_w, last_h = w, h
            w = w - STEP * d
        same(state, w, h)
    inner = 2 * 2 * (1 + 3 + 2)
    assert [int(info.calls) for info in infos] == [inner + 5 * 4 + 4, inner, inner + 5 * 4 + 4]


def test_the_first_step_of_variance_reduction_is_exact(ridge, dense):
    """On mini-batches the hypergradient is that of all data, and so is the inner gradient."""
    sampler = Minibatches(6, policy="independent", fits=12)
    states, _, _ = steps_of(ridge, SRBA(optax.sgd(RATE), step_size=STEP), sampler, 1)
    w = np.asarray(states[0].params)
    exact = dense.mixed(w, np.zeros(4), states[0].adjoint)
    np.testing.assert_allclose(states[1].hypergradient, exact, rtol=1e-12)
    vrbo = VRBO(optax.sgd(RATE), inner_steps=1, products=3, step_size=STEP)
    states, _, _ = steps_of(ridge, vrbo, sampler, 1)
    exact = dense.neumann(w, np.zeros(4), [slice(None)] * 3, slice(None))
    np.testing.assert_allclose(states[1].hypergradient, exact, rtol=1e-12)


def test_the_series_tends_to_the_exact_hypergradient(ridge):
    truth = jax.grad(ridge.value)(ridge.hparams)
    batches = Batches(ridge.inner, ridge.outer)
    here = batches.restrict(ridge.problem, ridge.solution(ridge.hparams), ridge.hparams, key=None)
    errors = [
        float(jnp.linalg.norm(neumann_sum(here, batches, 0, q, 0.3)[1] - truth)) for q in (10, 20)
    ]
    rate = 1 - 0.3 * np.linalg.eigvalsh(jax.hessian(here.inner_loss)(here.w))[0]
    assert errors[1] < 1.05 * rate**10 * errors[0]
    terms = [neumann_term(here, batches, 0, 6, 0.3, jnp.asarray(i))[1] for i in range(6)]
    # The mean over the draws is the sum of as many terms: the random term is unbiased.
    np.testing.assert_allclose(
        np.mean(terms, axis=0), neumann_sum(here, batches, 0, 5, 0.3)[1], rtol=1e-10
    )


@pytest.mark.parametrize(
    "algorithm",
    [
        StocBiO(optax.sgd(5.0), products=60, step_size=0.3, constraint=BOX),
        VRBO(optax.sgd(5.0), products=60, step_size=0.3, constraint=BOX),
        SRBA(optax.sgd(4.0), step_size=0.3, constraint=BOX),
    ],
    ids=["StocBiO", "VRBO", "SRBA"],
)
def test_on_full_batches_the_bilevel_solution_is_found(ridge, algorithm):
    state, _ = scan(ridge, algorithm, 600)
    assert gap(ridge, state.visited) < 1e-4
    np.testing.assert_allclose(state.params, ridge.solution(state.visited), atol=1e-3)


def test_srba_converges_with_constant_steps_where_soba_hovers(ridge):
    sampler = Minibatches(6)
    srba, _ = scan(ridge, SRBA(optax.sgd(1.0), step_size=0.1, constraint=BOX), 4000, sampler)
    soba, _ = scan(
        ridge, SOBA(optax.sgd(1.0), step_size=0.1, exponent=0.0, constraint=BOX), 4000, sampler
    )
    assert gap(ridge, srba.visited) < 1e-4
    assert gap(ridge, soba.visited) > 1e-3


def scalar(w, h, batch):
    return 0.5 * (w - h) ** 2


SCALAR = BilevelProblem(scalar, lambda w, h, batch: 0.5 * (w - 1) ** 2 + 0.5 * (h + 1) ** 2)


@pytest.mark.parametrize("kind", [PBGD, F2SA])
def test_penalties_end_at_their_own_solution(kind):
    """The minimum of `(w − 1)²/2 + (h + 1)²/2 + γ (w − h)²/2` is at `h = −1 / (1 + 2γ)`."""
    for multiplier in (3.0, 10.0):
        extra = {"growth": 0.0} if kind is F2SA else {}
        algorithm = kind(
            optax.sgd(0.05), inner_steps=20, step_size=0.5, multiplier=multiplier, **extra
        )
        at = run(SCALAR, algorithm, 0.5, 0.5, jnp.zeros(1), jnp.zeros(1), steps=600, every=600)
        np.testing.assert_allclose(at.hparams, -1 / (1 + 2 * multiplier), atol=1e-4)


def test_bome_lowers_the_gap_and_finds_the_solution(ridge):
    batches = Batches(ridge.inner, ridge.outer)
    w = jnp.asarray([0.3, -0.2, 0.1, 0.5])
    here = batches.restrict(ridge.problem, w, ridge.hparams, key=None)
    found = gap_gradients(here, batches, 5, 0.2)
    algorithm = BOME(optax.sgd(RATE), inner_steps=5, step_size=STEP, barrier=0.5)
    start = algorithm.init(ridge.problem, w, ridge.hparams, batches)
    state, _ = algorithm.step(ridge.problem, start, batches)
    along = jnp.concatenate([(w - state.params) / STEP, -state.hparams / RATE])
    slope = jnp.concatenate([found.gap.params, found.gap.hparams])
    pull = jnp.concatenate([found.outer.params, found.outer.hparams])
    # The nearest direction to the outer gradient along which the gap falls fast enough.
    assert float(along @ slope) >= 0.5 * float(slope @ slope) * (1 - 1e-9)
    excess = along - pull
    np.testing.assert_allclose(excess, slope * (excess @ slope) / (slope @ slope), atol=1e-9)
    end = run(
        SCALAR,
        BOME(optax.sgd(0.05), inner_steps=100, step_size=0.05),
        *(0.5, 0.5, jnp.zeros(1), jnp.zeros(1)),
        steps=600,
        every=600,
    )
    np.testing.assert_allclose(end.hparams, 0.0, atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *((getattr(outer, name), "step_size") for name in ["SOBA", "SABA", "F2SA", *NEW]),
        (SOBA, "radius"),
        (SRBA, "radius"),
        (MRBO, "momentum"),
        (SUSTAIN, "momentum"),
        (F2SA, "multiplier"),
        (F2SA, "most"),
        (PBGD, "multiplier"),
        (BOME, "barrier"),
    ],
)
def test_numbers_that_are_not_positive_are_refused(kind, name):
    for given in (0.0, -0.1, float("nan")):
        with pytest.raises(ValueError, match=rf"{kind.__name__}: {name}: expected a number > 0"):
            kind(**{name: given})


@pytest.mark.parametrize("kind", [BOME, PBGD])
def test_an_inner_loss_is_needed(ridge, kind):
    problem = BilevelProblem(None, ridge.problem.outer, optimality=lambda w, h, b: w - h)
    with pytest.raises(ValueError, match=rf"{kind.__name__}.*only an optimality map"):
        kind().init(problem, ridge.params, ridge.hparams, Batches(ridge.inner, ridge.outer))


@pytest.mark.parametrize("name", NEW)
def test_runs_descend_and_resume_bit_for_bit(ridge, name, tmp_path):
    algorithm = getattr(outer, name)(constraint=BOX)
    sampler = Minibatches(6, policy="independent", fits=10)
    start = ridge.solution(ridge.hparams)
    data = (start, ridge.hparams, ridge.inner, ridge.outer)

    def drive(steps, **options):
        return run(
            ridge.problem, algorithm, *data, steps=steps, every=4, sampler=sampler, **options
        )

    whole = drive(40)
    assert float(ridge.value(whole.hparams)) < float(ridge.value(ridge.hparams))
    path = tmp_path / "run.npz"
    drive(8, checkpoint=path)
    resumed = drive(40, checkpoint=path)
    np.testing.assert_array_equal(resumed.hparams, whole.hparams)
    np.testing.assert_array_equal(resumed.params, whole.params)


@pytest.mark.parametrize("algorithm", [BOME(), PBGD()])
def test_an_inner_solution_is_no_stationary_point(algorithm):
    # Hyperparameters that reach the outer loss through params only stand still there at first.
    problem = BilevelProblem(
        lambda w, h, b: 0.5 * jnp.sum((w - h) ** 2), lambda w, h, b: jnp.sum((w - 1) ** 2)
    )
    result = run(problem, algorithm, jnp.full(2, 0.5), 0.5, None, None, steps=40, tol=1e-6)
    assert result.status == "steps"
    assert result.hparams > 0.55
    assert abs(result.history[0]["stationarity"] - 2**0.5) < 1e-6
