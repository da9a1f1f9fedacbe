"""GO-UCB: the network's derivatives, the ball in the paper's formulas, and what a search finds."""

import numpy as np
import pytest

from strategies import Ledger, ParametricSearcher, RandomSearcher
from strategies.observation import Observation
from strategies.space import Categorical, Float, SearchSpace
from strategies.surrogates.network import Network
from strategies.surrogates.weight_ball import weight_ball

NETWORK = Network((3, 5, 4, 1))
RNG = np.random.default_rng(0)
W, X = NETWORK.begin(RNG, 2), RNG.standard_normal((7, 3))


def slopes(function, at, step=1e-6):
    """Central differences of a function of a vector."""
    each = np.eye(len(at)) * step
    return np.array([(function(at + e) - function(at - e)) / (2 * step) for e in each])


def test_derivatives_of_the_network_are_those_of_differences():
    by_weights = NETWORK.by_weights(W[0], X)
    for n in (0, 6):
        wanted = slopes(lambda w, n=n: NETWORK.values(w[None], X[n : n + 1])[0, 0], W[0])
        np.testing.assert_allclose(by_weights[n], wanted, atol=1e-8)
    _, by_inputs = NETWORK.by_inputs(W, X)
    for m in (0, 1):
        wanted = slopes(lambda x, m=m: NETWORK.values(W[m : m + 1], x[None])[0, 0], X[3])
        np.testing.assert_allclose(by_inputs[m, 3], wanted, atol=1e-8)
    upstream = RNG.standard_normal((2, 7))
    pulled = NETWORK.pulled_back(W, X, lambda out: upstream)
    for m in (0, 1):
        wanted = upstream[m] @ NETWORK.by_weights(W[m], X)
        np.testing.assert_allclose(pulled[m], wanted, atol=1e-10)


@pytest.fixture
def ball():
    y = RNG.standard_normal(7)
    return weight_ball(NETWORK, W[0], X, y, ridge=0.5, beta=0.3), y


def test_the_ball_is_the_papers(ball):
    """Centre and reach by Σ itself, which has as many rows as there are weights."""
    ball, y = ball
    g = NETWORK.by_weights(W[0], X)
    sigma = 0.5 * np.eye(NETWORK.count) + g.T @ g
    missed = y - NETWORK.values(W[:1], X)[0]
    center = W[0] + np.linalg.solve(sigma, g.T @ missed)
    np.testing.assert_allclose(ball.center, center, atol=1e-9)
    places = RNG.standard_normal((4, 3))
    mean, reach = ball.predict(places)
    further = NETWORK.by_weights(center, places)
    wanted = np.sqrt(0.3 * np.einsum("ij,ij->i", further, np.linalg.solve(sigma, further.T).T))
    np.testing.assert_allclose(reach, wanted, rtol=1e-8)
    np.testing.assert_allclose(mean, NETWORK.values(center[None], places)[0])
    away = W[1] - center
    assert ball.squared(W[1]) == pytest.approx(away @ sigma @ away)


def test_the_least_of_the_ball_is_below_the_first_order_up_to_the_second(ball):
    ball, _ = ball
    for place in RNG.standard_normal((6, 3)):
        w, value = ball.lowest(place)
        assert ball.squared(w) <= 0.3 * (1 + 1e-9)
        assert value == pytest.approx(NETWORK.values(w[None], place[None])[0, 0])
        hessian = slopes(lambda w, p=place: NETWORK.by_weights(w, p[None])[0], ball.center)
        curvature = np.linalg.norm(hessian, 2)
        for beta in (0.01, 0.001):
            small = weight_ball(NETWORK, ball.center, X, np.full(7, np.nan), ridge=0.5, beta=beta)
            mean, reach = small.predict(place[None])
            # Above by a term of the second order at most: as Σ >= 0.5, |w - ŵ|² <= 2 β.
            assert small.lowest(place)[1] - (mean - reach)[0] <= 1.1 * curvature * beta


def test_pending_points_narrow_the_ball_and_do_not_move_it():
    y = np.r_[RNG.standard_normal(6), np.nan]
    start = W[0]
    known = weight_ball(NETWORK, start, X[:6], y[:6], ridge=0.5, beta=0.3)
    both = weight_ball(NETWORK, start, X, y, ridge=0.5, beta=0.3)
    assert both.predict(X[6:])[1][0] < known.predict(X[6:])[1][0]


SPACE = SearchSpace({**{f"x{i}": Float(0, 1) for i in range(6)}, "kind": Categorical(["a", "b"])})


def realisable(config):
    """A network of three units on six coordinates, and a choice."""
    x = np.array([config[f"x{i}"] for i in range(6)]) - 0.5
    u = np.random.default_rng(3).standard_normal((6, 3))
    return float(np.tanh(2 * x @ u).sum() + (config["kind"] == "a"))


def searched(searcher, trials):
    ledger = Ledger(searcher)
    for _ in range(trials):
        asked = ledger.ask()
        ledger.tell(Observation(asked.config, realisable(asked.config), number=asked.number))
    return ledger


@pytest.mark.parametrize(("options", "random"), [({}, 300), ({"exact": False}, 300)])
def test_a_realisable_function_is_minimised(options, random):
    found = searched(ParametricSearcher(SPACE, seed=0, startup=15, **options), 22)
    assert found.best.value < searched(RandomSearcher(SPACE, seed=0), random).best.value
    assert found.history[-1].note["origin"] == "model"


def test_without_refitting_the_ball_moves_from_what_the_startup_taught():
    searcher = ParametricSearcher(SPACE, seed=0, startup=25, refit=False)
    found = searched(searcher, 31)
    assert found.history[-1].note["origin"] == "model"
    before, after = (
        searcher._believe(found.history[:count], [], np.random.default_rng(0)).center
        for count in (26, 31)
    )
    assert np.linalg.norm(before - after) > 1e-3


def test_it_is_pure_and_survives_failures_and_pending():
    searcher = ParametricSearcher(SPACE, seed=1, startup=6)
    ledger = searched(searcher, 7)
    ledger.tell(Observation(ledger.ask().config, None, number=7))
    waiting = ledger.ask()
    first = ledger.ask()
    again = ParametricSearcher(SPACE, seed=1, startup=6)
    assert again.propose(9, ledger.history[::-1], [waiting]).config == first.config
    assert first.config != waiting.config


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"network": []}, "'network': expected at least one hidden layer"),
        ({"network": [0]}, "'network': expected an integer >= 1, received 0"),
        ({"beta": 0}, "'beta': expected a positive finite number"),
        ({"ridge": 1e-6}, "'ridge': expected a number >= 1e-3, received 1e-06"),
        ({"startup": 1}, "'startup': expected an integer >= 2"),
    ],
)
def test_options_are_checked_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        ParametricSearcher(SPACE, **options)
