"""The same seed and results give the same suggestions: any engine, any workers, any restart."""

import functools
import json
import threading

import numpy as np
import optuna
import pytest
from ray._private.dict import flatten_dict

from strategies.ledger import Ledger
from strategies.local import minimize
from strategies.observation import Observation
from strategies.observation import report as local_report
from strategies.optuna import HypergradSampler, report, suggest
from strategies.ray import HypergradSearch, result
from strategies.searchers import (
    BayesSearcher,
    CARBSSearcher,
    EvolutionSearcher,
    GridSearcher,
    HypergradientSearcher,
    NGramSearcher,
    ParetoSearcher,
    RandomSearcher,
    SobolSearcher,
    TPESearcher,
    TreeSearcher,
)
from strategies.space import Categorical, Choice, Float, Int, SearchSpace

optuna.logging.set_verbosity(optuna.logging.ERROR)

SPACE = SearchSpace(
    {
        "l2": Float(1e-3, 1e1, log=True, shape=(3,)),
        "scale": Categorical(["none", "standard"]),
        "model": Choice({"linear": {}, "mlp": {"depth": Int(1, 4), "drop": Float(0, 0.9)}}),
    }
)
GRID = {"l2": [[0.1] * 3, [1.0] * 3]}
SEARCHERS = {
    "hypergradient": HypergradientSearcher,
    "bayes": BayesSearcher,
    "pareto": functools.partial(ParetoSearcher, startup=3),
    "tpe": functools.partial(TPESearcher, startup=3),
    "evolution": functools.partial(EvolutionSearcher, population=4, contest=2),
    "sobol": SobolSearcher,
    "grid": functools.partial(GridSearcher, points=GRID),
    "carbs": functools.partial(CARBSSearcher, startup=3),
    "tree": TreeSearcher,
    "ngrams": NGramSearcher,
    "random": RandomSearcher,
}


# Four workers show the most; the others take as long again.
WORKERS = [
    pytest.param(1, marks=pytest.mark.slow),
    pytest.param(2, marks=pytest.mark.slow),
    4,
]


def trained(config):
    """Value, gradient and cost of a configuration."""
    l2 = np.asarray(config["l2"])
    off = np.log(l2) - np.log([0.1, 1.0, 3.0])
    value = float(off @ off) + (config["scale"] == "none")
    gradient = {"l2": (2 * off / l2).tolist()}
    if config["model"]["kind"] == "mlp":
        inside = config["model"]["mlp"]
        value += (inside["drop"] - 0.3) ** 2 + 0.1 * inside["depth"] - 0.5
        gradient["model/mlp/drop"] = 2 * (inside["drop"] - 0.3)
    return value, gradient, 1.0 + float(l2[0])


class Alone:
    """A ledger that is asked and told directly."""

    def __init__(self, make, folder):
        self.make, self.path = make, folder / "state.json"
        self.ledger = Ledger(make(SPACE, seed=3))

    def ask(self):
        suggestion = self.ledger.ask()
        return suggestion.number, suggestion.config

    def tell(self, number, config):
        value, gradient, cost = trained(config)
        self.ledger.tell(Observation(config, value, gradient, cost=cost, number=number))

    def restart(self):
        self.ledger.save(self.path)
        self.ledger = Ledger(self.make(SPACE, seed=3))
        self.ledger.restore(self.path)


class OnOptuna:
    """A study in a file."""

    def __init__(self, make, folder):
        self.make, self.url = make, f"sqlite:///{folder}/study.db"
        self.trials = {}
        self.restart()

    def ask(self):
        trial = self.study.ask()
        self.trials[trial.number] = trial
        return trial.number, suggest(trial, SPACE)

    def tell(self, number, config):
        value, gradient, cost = trained(config)
        trial = self.trials.pop(number)
        self.study.tell(trial.number, report(trial, value, gradient, cost=cost))

    def restart(self):
        self.study = optuna.create_study(
            storage=self.url,
            study_name="study",
            load_if_exists=True,
            sampler=HypergradSampler(searcher=self.make, space=SPACE, seed=3),
        )


class OnRay:
    """A search algorithm, called as Ray calls it."""

    def __init__(self, make, folder):
        self.make, self.path = make, str(folder / "search.json")
        self.search = HypergradSearch(make, space=SPACE, metric="loss", mode="min", seed=3)
        self.count = 0

    def ask(self):
        self.count += 1
        return self.count - 1, self.search.suggest(str(self.count - 1))

    def tell(self, number, config):
        value, gradient, cost = trained(config)
        row = json.loads(json.dumps(result(value, gradient, metric="loss", cost=cost)))
        # Ray numbers reports and takes the time.
        row = flatten_dict({**row, "training_iteration": 1, "time_total_s": 0.1})
        self.search.on_trial_complete(str(number), row)

    def restart(self):
        self.search.save(self.path)
        self.search = HypergradSearch(self.make, space=SPACE, metric="loss", mode="min", seed=3)
        self.search.restore(self.path)


def suggestions(engine, workers, *, restarts=()):
    """What is suggested to some workers that end in an order of their own."""
    found, running = [], []
    order = np.random.default_rng(workers)
    while len(found) < 10:
        if len(found) in restarts:
            engine.restart()
        for _ in range(workers - len(running)):
            number, config = engine.ask()
            assert number == len(found)
            found.append(config)
            running.append((number, config))
        engine.tell(*running.pop(int(order.integers(len(running)))))
    return found


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("name", SEARCHERS)
def test_every_engine_suggests_the_same_also_after_restarts(name, workers, tmp_path):
    make = SEARCHERS[name]
    expected = suggestions(Alone(make, tmp_path), workers)
    assert len({repr(config) for config in expected}) > 4
    for engine in (Alone, OnOptuna, OnRay):
        found = suggestions(engine(make, tmp_path), workers, restarts=(4, 5, 8))
        assert found == expected, engine.__name__


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("name", ["hypergradient", "bayes", "tpe"])
def test_threads_change_nothing_but_what_is_known(name, workers):
    """Whatever the order in which threads end: each suggestion is the pure function's."""
    made = SEARCHERS[name](SPACE, seed=3)
    asked, lock, pure = [], threading.Lock(), made.propose

    def propose(number, history, pending):
        suggestion = pure(number, history, pending)
        with lock:
            asked.append((suggestion, list(history), list(pending)))
        return suggestion

    made.propose = propose

    def objective(config):
        value, gradient, cost = trained(config)
        return local_report(value, gradient, cost=cost)

    minimize(objective, SPACE, trials=10, searcher=made, workers=workers)
    fresh = SEARCHERS[name](SPACE, seed=3)
    assert len(asked) == 10
    for suggestion, history, pending in asked:
        assert fresh.propose(suggestion.number, history[::-1], pending[::-1]) == suggestion


@pytest.mark.parametrize("name", ["sobol", "grid", "random"])
def test_searchers_that_do_not_learn_suggest_the_same_to_any_number_of_workers(name, tmp_path):
    found = [suggestions(Alone(SEARCHERS[name], tmp_path), workers) for workers in (1, 2, 4)]
    assert found[0] == found[1] == found[2]
