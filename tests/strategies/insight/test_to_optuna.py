"""Any search as a study of Optuna, and back."""

import json

import numpy as np
import pytest

from strategies import Categorical, Choice, Float, Int, RandomSearcher, SearchSpace, report
from strategies.local import minimize
from strategies.schedulers import Hyperband, run

pytest.importorskip("optuna")

import optuna

from strategies.optuna import observations_of, space_to_optuna, study_of

optuna.logging.set_verbosity(optuna.logging.WARNING)

SPACE = SearchSpace(
    {
        "l2": Float(1e-4, 1.0, log=True, shape=(3,)),
        "model": Choice({"tree": {"depth": Int(1, 5)}, "line": {}}),
        "norm": Categorical([None, "batch", (1, 2)]),
    }
)

#: What an array's entries are called in Optuna.
ENTRIES = [name for name in space_to_optuna(SPACE) if name.startswith("l2")]


def trial(config):
    if config["norm"] == "batch":
        raise RuntimeError("no")
    l2 = np.array(config["l2"])
    return report(np.sum(np.log(l2) ** 2), {"l2": 2 * np.log(l2) / l2}, cost=3.0)


@pytest.fixture(scope="module")
def found():
    with pytest.warns(UserWarning, match="failed"):
        return minimize(trial, SPACE, trials=15, searcher=RandomSearcher(SPACE))


def test_a_study_has_all_trials_and_gives_the_same_observations_back(found):
    study = found.to_optuna()
    assert len(study.trials) == 15
    assert study.best_value == found.best_value
    for back, item in zip(observations_of(study, SPACE), found.history, strict=True):
        assert (back.config, back.value, back.status) == (item.config, item.value, item.status)
        assert (back.gradient, back.cost, back.resource) == (item.gradient, item.cost, None)
    first = next(t for t in study.trials if t.state == optuna.trial.TrialState.COMPLETE)
    assert len(ENTRIES) == 3
    assert set(ENTRIES) <= first.params.keys()
    assert len(json.loads(first.user_attrs["gradient"])["l2"]) == 3
    assert first.duration.total_seconds() == pytest.approx(3.0)


def test_optuna_itself_can_work_on_it(found, tmp_path):
    study = found.to_optuna(study_name="ours", storage=f"sqlite:///{tmp_path}/study.db")
    # The parameters that all trials have.
    importances = optuna.importance.get_param_importances(
        study, evaluator=optuna.importance.FanovaImportanceEvaluator(seed=0)
    )
    assert len(importances) == 5
    assert set(ENTRIES) <= set(importances)
    study.optimize(lambda t: t.suggest_float(ENTRIES[0], 1e-4, 1.0, log=True), n_trials=1)
    again = optuna.load_study(study_name="ours", storage=f"sqlite:///{tmp_path}/study.db")
    assert len(again.trials) == 16


def test_rungs_are_intermediate_values():
    space = SearchSpace({"x": Float(0, 1)})
    scheduler = run(
        lambda job: job.config["x"] + 1 / job.resource,
        Hyperband(RandomSearcher(space), max_resource=9),
    )
    study = study_of(scheduler)
    assert len(study.trials) == len(scheduler.candidates)
    assert study.best_value == scheduler.incumbent.value
    longest = max(study.trials, key=lambda t: len(t.intermediate_values))
    assert list(longest.intermediate_values) == [1, 3, 9]
    assert longest.value == longest.intermediate_values[9]
    for item in observations_of(study, space):
        assert item.resource in (1, 3, 9)
