"""One policy for trials that fail, on all engines: the same reports, the same observations."""

import logging
import math
import warnings

import numpy as np
import optuna
import pytest
from ray.tune.utils.util import flatten_dict

from strategies import optuna as on_optuna
from strategies import ray as on_ray
from strategies.local import minimize
from strategies.observation import report
from strategies.schedulers import ASHA, run
from strategies.searchers import ParetoSearcher, RandomSearcher
from strategies.space import Float, Int, SearchSpace

optuna.logging.set_verbosity(optuna.logging.ERROR)
SPACE = SearchSpace({"x": Float(0, 1), "l2": Float(0, 1, shape=(2,)), "depth": Int(1, 4)})
GRADIENT = {"x": 1.0, "l2": [2.0, 3.0]}


class TrialError(Exception):
    """What a trial may raise."""


def raises():
    raise TrialError("on purpose")


#: What a trial does, and the status, value and gradient of its observation.
CASES = {
    "complete": (lambda: (0.5, GRADIENT, {}), ("complete", 0.5, GRADIENT)),
    "no gradient": (lambda: (0.5, None, {}), ("complete", 0.5, None)),
    "NaN": (lambda: (math.nan, GRADIENT, {}), ("failed", None, None)),
    "infinity": (lambda: (math.inf, GRADIENT, {}), ("failed", None, None)),
    "raises": (raises, ("failed", None, None)),
    "NaN in a gradient": (
        lambda: (0.5, {"x": math.nan, "l2": [2.0, 3.0]}, {}),
        ("complete", 0.5, {"l2": [2.0, 3.0]}),
    ),
    "tuned": (
        lambda: (0.5, None, {"config": {"x": 0.25}}),
        ("complete", 0.5, None),
    ),
}
#: The embedded engines, which run beside the code that made the mistake, raise a `ValueError`.
MISTAKES = {
    "wrong shape": (
        lambda: (0.5, {"x": 1.0, "l2": [1.0] * 3}, {}),
        ("complete", 0.5, {"x": 1.0}),
        "'l2'",
    ),
    "unknown key": (
        lambda: (0.5, {"x": 1.0, "y": 1.0}, {}),
        ("complete", 0.5, {"x": 1.0}),
        "'y'",
    ),
    "of a discrete one": (
        lambda: (0.5, {"x": 1.0, "depth": 1.0}, {}),
        ("complete", 0.5, {"x": 1.0}),
        "'depth'",
    ),
    "tuned out of the space": (
        lambda: (0.5, {"x": 1.0}, {"config": {"x": 2.0}}),
        ("complete", 0.5, None),
        "'x'",
    ),
}


def embedded(trial, searcher=RandomSearcher):
    def objective(config):
        value, gradient, more = trial()
        return report(value, gradient, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return minimize(objective, SPACE, trials=1, searcher=searcher(SPACE)).history[0]


def scheduler(trial, searcher=RandomSearcher):
    def objective(job):
        value, gradient, more = trial()
        return report(value, gradient, **more)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        found = run(objective, ASHA(searcher(SPACE), 2, eta=2, configurations=1))
    return found.candidates[0].results[0]


def optuna_study(trial, searcher=RandomSearcher):
    seen = []

    class Spy(searcher):
        def propose(self, number, history, pending):
            seen[:] = history
            return super().propose(number, history, pending)

    def objective(given):
        on_optuna.suggest(given, SPACE)
        value, gradient, more = trial()
        return on_optuna.report(given, value, gradient, **more)

    study = optuna.create_study(sampler=on_optuna.HypergradSampler(searcher=Spy(SPACE)))
    study.optimize(objective, n_trials=1, catch=(TrialError,))
    on_optuna.suggest(study.ask(), SPACE)
    return seen[0]


def ray_search(trial, searcher=RandomSearcher):
    search = on_ray.HypergradSearch(searcher, space=SPACE, metric="loss", mode="min")
    search.suggest("a")
    try:
        value, gradient, more = trial()
        row = on_ray.result(value, gradient, metric="loss", **more)
        search.on_trial_complete("a", flatten_dict({**row, "training_iteration": 1}))
    except TrialError:
        search.on_trial_complete("a", error=True)
    return search.ledger.history[0]


ENGINES = {
    "embedded": embedded,
    "scheduler": scheduler,
    "Optuna": optuna_study,
    "Ray": ray_search,
}


def outcome(observation):
    gradient = observation.gradient
    if gradient is not None:
        gradient = {key: np.asarray(entry).tolist() for key, entry in gradient.items()}
    return observation.status, observation.value, gradient


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("case", CASES)
def test_same_report_same_observation(case, engine):
    trial, expected = CASES[case]
    observation = ENGINES[engine](trial)
    assert outcome(observation) == expected
    if case == "tuned":
        assert observation.config["x"] == 0.25


@pytest.mark.parametrize("engine", ["Optuna", "Ray"])
@pytest.mark.parametrize("case", MISTAKES)
def test_entry_that_does_not_fit_is_dropped_and_named(case, engine, caplog):
    trial, expected, named = MISTAKES[case]
    with caplog.at_level(logging.WARNING):
        observation = ENGINES[engine](trial)
    assert outcome(observation) == expected
    assert named in caplog.text
    assert SPACE.validate(observation.config)


@pytest.mark.parametrize("engine", ["embedded", "scheduler"])
@pytest.mark.parametrize("case", MISTAKES)
def test_entry_that_does_not_fit_is_an_error_beside_its_code(case, engine):
    trial, _, named = MISTAKES[case]
    with pytest.raises(ValueError, match=named):
        ENGINES[engine](trial)


@pytest.mark.parametrize("cost", [-1.0, 0.0])
def test_what_a_searcher_demands_is_asked_by_every_engine(cost, caplog):
    trial = CASES["no gradient"][0]
    for engine in ("embedded", "scheduler"):
        with pytest.raises(ValueError, match="'cost': expected a positive number"):
            ENGINES[engine](lambda: (*trial()[:2], {"cost": cost}), ParetoSearcher)
    for engine in ("Optuna", "Ray"):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            found = ENGINES[engine](lambda: (*trial()[:2], {"cost": cost}), ParetoSearcher)
        assert outcome(found) == ("failed", None, None)
        assert "'cost': expected a positive number" in caplog.text
