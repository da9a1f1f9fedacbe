"""Optuna's TPE behind our interface: pure, as good as Optuna's own, and polite without Optuna."""

import subprocess
import sys

import numpy as np
import optuna
import pytest

from strategies import (
    Categorical,
    Choice,
    Float,
    Int,
    Observation,
    Ordered,
    Ordinal,
    RandomSearcher,
    SearchSpace,
    Simplex,
    TPESearcher,
)
from strategies.ledger import Ledger

SPACE = SearchSpace(
    {
        "lr": Float(1e-4, 1.0, log=True),
        "grid": Float(0.0, 1.0, step=0.3),
        "lograte": Float(1e-3, 1.0, log=True, step=0.01),
        "width": Int(4, 64, log=True),
        "batch": Ordinal([16, 32, 64, 128]),
        "mix": Simplex(3),
        "knots": Ordered(0.0, 1.0, 2),
        "x": Float(-1, 1, shape=(2, 2)),
        "model": Choice({"a": {}, "b": {"depth": Int(1, 3), "act": Categorical([None, (1, 2)])}}),
        "fixed": 3,
    }
)


def loss(config):
    far = (np.log10(config["lr"]) + 2) ** 2 + abs(config["batch"] - 64) / 32 + config["grid"]
    far += config["mix"][0] + np.sum(np.abs(config["x"])) + np.log2(config["width"]) / 3
    return float(far + (config["model"]["kind"] == "a"))


def search(ledger, count, status=lambda number: "complete"):
    for _ in range(count):
        asked = ledger.ask()
        value, kind = loss(asked.config), status(asked.number)
        ledger.tell(
            Observation(
                asked.config,
                None if kind == "failed" else value,
                status=kind,
                number=asked.number,
                resource=3.0,
            )
        )
    return ledger.best.value


def test_it_searches_spaces_of_every_kind():
    ours = [search(Ledger(TPESearcher(SPACE, seed=seed)), 40) for seed in range(3)]
    random = [search(Ledger(RandomSearcher(SPACE, seed=seed)), 40) for seed in range(3)]
    assert np.median(ours) < np.median(random)


def test_failed_and_pruned_trials_and_pending_ones():
    def status(number):
        return ("complete", "failed", "pruned")[number % 3]

    ledger = Ledger(TPESearcher(SPACE, seed=0, startup=4))
    search(ledger, 14, status)
    batch = [ledger.ask().config for _ in range(3)]
    assert all(SPACE.validate(config) == config for config in batch)
    assert len({repr(config) for config in batch}) == 3
    assert ledger.ask().note["origin"] == "model"


def test_a_suggestion_depends_on_seed_number_and_history_only():
    ledger = Ledger(TPESearcher(SPACE, seed=3))
    search(ledger, 13)
    history = ledger.history
    first = ledger.searcher.propose(13, history, []).config
    assert TPESearcher(SPACE, seed=3).propose(13, history[::-1], []).config == first
    assert TPESearcher(SPACE, seed=4).propose(13, history, []).config != first
    assert ledger.searcher.propose(14, history, []).config != first


def test_it_is_optunas_estimator():
    space = SearchSpace({"x": Float(-3, 3), "n": Int(0, 9), "c": Categorical(["a", "b"])})

    def objective(x, n, c):
        return x**2 + abs(n - 4) + (c == "a")

    rng = np.random.default_rng(0)
    history = []
    for number in range(15):
        config = space.sample(rng)
        history.append(Observation(config, objective(**config), number=number))
    # Many suggestions of ours and many of Optuna's, on the same data, come from one distribution.
    ours = [TPESearcher(space).propose(15 + i, history, []).config["x"] for i in range(60)]
    theirs = []
    for seed in range(60):
        again = optuna.create_study(
            sampler=optuna.samplers.TPESampler(n_startup_trials=0, seed=1000 + seed)
        )
        kinds = {
            "x": optuna.distributions.FloatDistribution(-3, 3),
            "n": optuna.distributions.IntDistribution(0, 9),
            "c": optuna.distributions.CategoricalDistribution(["a", "b"]),
        }
        for item in history:
            again.add_trial(
                optuna.trial.create_trial(params=item.config, distributions=kinds, value=item.value)
            )
        theirs.append(again.ask(kinds).params["x"])
    assert abs(np.mean(ours) - np.mean(theirs)) < 3 * np.std(theirs) * np.sqrt(2 / 60)
    assert 0.5 < np.std(ours) / np.std(theirs) < 2.0


def test_no_study_is_announced(caplog):
    optuna.logging.enable_propagation()
    try:
        with caplog.at_level("INFO"):
            search(Ledger(TPESearcher(SPACE, startup=2)), 4)
    finally:
        optuna.logging.disable_propagation()
    assert not caplog.records


def test_without_optuna_the_line_to_install_it_is_given():
    code = (
        "import sys; sys.modules['optuna'] = None\n"
        "from strategies import Float, SearchSpace, TPESearcher\n"
        "TPESearcher(SearchSpace({'x': Float(0, 1)}))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert 'ImportError: TPESearcher needs Optuna: pip install "hypergrad-engine[optuna]"' in (
        run.stderr
    )


def test_bad_options():
    with pytest.raises(ValueError, match="'startup': expected an integer >= 1, received 0"):
        TPESearcher(SPACE, startup=0)
