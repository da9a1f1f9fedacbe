"""Bandits: the rule's exact values, regret on known instances, the ledger, bad input."""

import math
import random

import numpy as np
import pytest
from scipy.optimize import minimize as minimise

from strategies import Float, Ledger, Observation, Ordinal, RandomSearcher, SearchSpace
from strategies.bandits import BinnedTsallisINF, ChebCB, TsallisINF
from strategies.bandits.tsallis_inf import tsallis_inf
from strategies.local import minimize

ARMS = SearchSpace({"arm": Ordinal([0, 1, 2, 3])})


def test_the_rule_minimises_the_regularised_loss():
    losses, rate = np.array([3.0, 1.0, 7.0, 1.5]), 0.4

    def objective(z):
        p = np.exp(z) / np.exp(z).sum()
        return p @ losses - 4 / rate * np.sqrt(p).sum()

    z = minimise(objective, np.zeros(4), tol=1e-12).x
    found = tsallis_inf(losses, rate)
    np.testing.assert_allclose(found, np.exp(z) / np.exp(z).sum(), atol=1e-5)
    np.testing.assert_allclose(tsallis_inf(losses + 100, rate), found, rtol=1e-12)


@pytest.mark.parametrize("arms", [1, 2, 20, 100_000])
def test_equal_losses_are_drawn_alike_and_hopeless_ones_hardly(arms):
    np.testing.assert_allclose(tsallis_inf(np.full(arms, 1e3), 2.0), 1 / arms, rtol=1e-9)
    losses = np.r_[0.0, np.full(arms, 1e6)]
    found = tsallis_inf(losses, 0.1)
    np.testing.assert_allclose(found.sum(), 1)
    # For a gap this large p = 4 / (rate gap)² to leading order.
    np.testing.assert_allclose(found[1], 4 / (0.1 * 1e6) ** 2, rtol=1e-2)


def play(bandit, loss, rounds, seed=0, contexts=None):
    """The losses of a bandit by its learner, without a ledger."""
    learner, rng, paid = bandit.learner(), np.random.default_rng(seed), []
    for t in range(rounds):
        context = None if contexts is None else contexts[t]
        arm, probability = learner.draw(rng, context)
        paid.append(loss(t, arm))
        learner.learn(arm, paid[-1] - bandit.lowest, probability, context)
    return np.array(paid)


def test_the_regret_on_draws_is_logarithmic_and_below_the_bound():
    means, rounds = np.array([2.0, 3.0, 3.0, 3.0]), 2000
    noise = np.random.default_rng(1).uniform(-1, 1, (rounds, 4))
    paid = [
        play(TsallisINF(ARMS), lambda t, arm: means[arm] + noise[t, arm], rounds, seed)
        for seed in range(2)
    ]
    regret = np.mean([np.sum(p) for p in paid]) - np.sum(2.0 + noise[:, 0])
    # Zimmert & Seldin 2021, theorem 1: a sum over the three arms of gap 1, of the order of log(T);
    # what holds against any losses, 4 sqrt(K T), is 358.
    assert regret < 3 * (4 * np.log(rounds) + 12) + 10
    late = np.mean([np.mean(p[-500:]) for p in paid])
    assert late < 2.0 + 0.1


def test_the_regret_is_bounded_where_losses_are_turned_against_it():
    """The best arm changes halfway: no fixed arm is good, and the sum stays near the best one."""
    rounds = 2000

    def loss(t, arm):
        early = t < rounds // 2
        return 1.0 if (arm == 0) == early else 2.0

    paid = play(TsallisINF(ARMS), loss, rounds)
    best = min(sum(loss(t, arm) for t in range(rounds)) for arm in range(4))
    assert paid.sum() - best < 4 * np.sqrt(4 * rounds)


def moving(contexts):
    """The best arm moves with the context, so that no fixed one is good."""
    places = np.linspace(-1, 1, 4)
    return lambda t, arm: 1 + 5 * (contexts[t] - places[arm]) ** 2


@pytest.fixture(scope="module")
def contexts():
    return np.random.default_rng(2).uniform(-1, 1, 1200)


def test_a_context_beats_every_fixed_arm(contexts):
    loss = moving(contexts)
    table = np.array([[loss(t, arm) for arm in range(4)] for t in range(1200)])
    fixed, each = table[-400:].mean(0).min(), table[-400:].min(1).mean()
    cheb = play(ChebCB(ARMS, (-1, 1)), loss, 1200, contexts=contexts)[-400:].mean()
    bins = play(BinnedTsallisINF(ARMS, (-1, 1)), loss, 1200, contexts=contexts)[-400:].mean()
    assert cheb < 1.1 * each
    assert cheb < bins < fixed


def test_cheb_cb_fits_what_is_a_polynomial(contexts):
    bandit, loss = ChebCB(ARMS, (-1, 1)), moving(contexts)
    learner = bandit.learner()
    for t in range(80):
        learner.learn(t % 4, loss(t, t % 4) - 1, 0.25, contexts[t])
    at = np.linspace(-1, 1, 7)
    found = [[learner.scale * (c @ learner._features(x)) for x in at] for c in learner.coefficients]
    exact = [[5 * (x - place) ** 2 for x in at] for place in np.linspace(-1, 1, 4)]
    np.testing.assert_allclose(found, exact, atol=1e-6)


def told(ledger, loss, rounds, contexts=None):
    for t in range(rounds):
        suggestion = ledger.ask(None if contexts is None else float(contexts[t]))
        value = loss(t, suggestion.config["arm"])
        ledger.tell(Observation(suggestion.config, value, number=suggestion.number))
    return [item.config["arm"] for item in ledger.history]


@pytest.mark.parametrize("kind", [TsallisINF, BinnedTsallisINF, ChebCB])
def test_a_ledger_is_resumed_with_the_probabilities_of_its_draws(kind, contexts, tmp_path):
    def made():
        return Ledger(kind(ARMS, seed=3) if kind is TsallisINF else kind(ARMS, (-1, 1), seed=3))

    given = contexts if made().searcher.contextual else None
    loss = moving(contexts)
    whole = made()
    arms = told(whole, loss, 40, given)
    assert len(set(arms[-20:])) < 4 or len(set(arms)) > 1
    half = made()
    told(half, loss, 20, given)
    half.ask(None if given is None else 0.5)  # pending, and never told
    half.save(tmp_path / "state")
    again = made()
    again.restore(tmp_path / "state")
    again.forget(20)
    assert [o.note["probability"] for o in again.history] == [
        o.note["probability"] for o in whole.history[:20]
    ]
    context = None if given is None else float(given[20])
    number, history = 20, whole.history[:20]
    one = whole.searcher.propose(number, history, [], context)
    random.Random(0).shuffle(history)
    other = made().searcher.propose(number, history, [], context)
    restored = again.searcher.propose(number, again.history, [], context)
    assert one.config == other.config == restored.config == whole.history[20].config
    assert one.note == other.note == restored.note


def test_an_arm_that_never_returns_is_played_less_and_less():
    """Failures are losses as large as any; what is pending for ever stops nothing."""
    ledger, arms = Ledger(TsallisINF(ARMS, seed=1)), []
    for _ in range(120):
        suggestion = ledger.ask()
        arms.append(suggestion.config["arm"])
        value = {0: 2.0, 2: math.nan}.get(arms[-1], 3.0)
        if len(arms) > 3:  # the first ones hang, and nobody ever says so
            ledger.tell(Observation(suggestion.config, value, number=suggestion.number))
    assert len(ledger.pending) == 3
    assert arms[-60:].count(2) < arms[-60:].count(0)
    known = Ledger(TsallisINF(ARMS, failed=1e4))
    suggestion = known.ask()
    known.tell(Observation(suggestion.config, None, number=0))
    losses = [loss for _, loss, _ in known.searcher._losses(known.history)]
    assert losses == [1e4 - 1]


def test_an_arm_that_is_never_told_does_not_look_free():
    """It hangs whenever it is played: after some rounds each of these counts as failed."""
    ledger, arms = Ledger(TsallisINF(ARMS, seed=2)), []
    for _ in range(300):
        suggestion = ledger.ask()
        arms.append(suggestion.config["arm"])
        if arms[-1] != 2:
            value = 2.0 if arms[-1] == 0 else 3.0
            ledger.tell(Observation(suggestion.config, value, number=suggestion.number))
    assert arms[-100:].count(2) < 15 < 50 < arms[-100:].count(0)
    # What comes back after all is counted as what it was.
    late = ledger.pending[0]
    ledger.tell(Observation(late.config, 7.0, number=late.number))
    assert 6.0 in [loss for _, loss, _ in ledger.searcher._losses(ledger.history)]


def test_a_loss_below_the_scale_is_refused_and_nothing_is_lost():
    ledger = Ledger(TsallisINF(ARMS))
    told(ledger, lambda t, arm: 2.0, 3)
    suggestion = ledger.ask()
    with pytest.raises(ValueError, match=r"at least lowest=1, received 0\.5"):
        ledger.tell(Observation(suggestion.config, 0.5, number=suggestion.number))
    assert len(ledger.history) == 3
    assert ledger.pending == [suggestion]
    ledger.tell(Observation(suggestion.config, 1.5, number=suggestion.number))
    assert len(ledger.history) == 4


def test_losses_of_zero_are_a_scale_too():
    bandit = TsallisINF(ARMS, lowest=0)
    assert np.isfinite(play(bandit, lambda t, arm: 0.0, 5)).all()


def test_it_runs_on_the_embedded_engine(tmp_path):
    result = minimize(
        lambda config: 1.0 + config["arm"], ARMS, trials=60, searcher=TsallisINF(ARMS),
        state_path=tmp_path / "state",
    )  # fmt: skip
    arms = [trial.config["arm"] for trial in result.trials]
    assert arms[-30:].count(0) > 20


def test_bad_input_is_named(contexts):
    with pytest.raises(ValueError, match="finite number of arms, received 'x'"):
        TsallisINF({"x": Float(0.0, 1.0)})
    for context in (None, math.nan, [1.0, 2.0]):
        with pytest.raises(ValueError, match="'context': expected a finite number for ChebCB"):
            ChebCB(ARMS, (-1, 1)).propose(0, [], [], context)
    with pytest.raises(ValueError, match="TsallisINF has none"):
        TsallisINF(ARMS).propose(0, [], [], 0.5)
    with pytest.raises(ValueError, match="contextual bandit, received one beside RandomSearcher"):
        Ledger(RandomSearcher(ARMS)).ask(0.5)
    with pytest.raises(ValueError, match="'contexts': expected"):
        ChebCB(ARMS, (1, 1))


@pytest.mark.parametrize("size", [1e-300, 1e-3, 1.0, 1e9, 1e300])
@pytest.mark.parametrize("bandit", [TsallisINF, BinnedTsallisINF, ChebCB])
def test_losses_of_any_size_and_all_alike_are_drawn_from(bandit, size):
    contextual = () if bandit is TsallisINF else ((0.0, 1.0),)
    rng = np.random.default_rng(0)
    for losses in (np.zeros(8), np.ones(8), np.eye(8)[3], rng.random(8)):
        ledger = bandit(ARMS, *contextual, lowest=0.0).ledger
        for loss in losses * size:
            suggestion = ledger.ask(*([rng.random()] if contextual else []))
            ledger.tell(Observation(suggestion.config, loss, number=suggestion.number))
            assert 0 < suggestion.note["probability"] <= 1 + 1e-9
