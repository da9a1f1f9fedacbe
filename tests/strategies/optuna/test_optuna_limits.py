"""Constraints, several directions, and an end, in studies of Optuna."""

import math

import optuna
import pytest

from strategies import BayesSearcher, Float, RandomSearcher, SearchSpace, Stop
from strategies.front import front
from strategies.local import minimize
from strategies.observation import report as local_report
from strategies.optuna import (
    HypergradSampler,
    StopStudy,
    observations_of,
    report,
    report_of,
    study_of,
)
from strategies.searched import searched

SPACE = SearchSpace({"x": Float(-5.0, 5.0), "y": Float(-5.0, 5.0)})


def asked(trial):
    return trial.suggest_float("x", -5.0, 5.0), trial.suggest_float("y", -5.0, 5.0)


def test_a_constraint_of_a_script_without_gradients():
    def objective(trial):
        x, y = asked(trial)
        trial.set_constraint("enough", 1 - x - y)
        return x * x + y * y

    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(objective, n_trials=30)
    near = [trial.constraints["enough"] < 0.25 for trial in study.trials]
    assert sum(near) > 15
    assert 0.5 <= study.best_value < 0.6


def test_constraints_of_a_report_are_those_of_the_trial():
    def objective(trial):
        x, y = asked(trial)
        trial.set_constraint("enough", 1 - x - y)
        return report(
            trial,
            x * x + y * y,
            {"x": 2 * x, "y": 2 * y},
            constraints={"enough": 1 - x - y, "odd": math.nan if trial.number == 0 else -1.0},
            constraint_gradients={"enough": {"x": -1.0, "y": -1.0}},
        )

    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(objective, n_trials=15)
    assert study.trials[0].constraints["odd"] == math.inf
    assert math.isnan(report_of(study.trials[0]).constraints["odd"])
    assert study.best_value < 0.51
    history = observations_of(study, SPACE)
    assert not history[0].feasible
    assert history[1].constraint_gradients == {"enough": {"x": -1.0, "y": -1.0}}


def test_a_constraints_func():
    sampler = HypergradSampler(space=SPACE, constraints_func=lambda t: [1 - t.params["x"]])
    study = optuna.create_study(sampler=sampler)
    study.optimize(lambda trial: sum(asked(trial)), n_trials=2)
    assert study.trials[0].constraints["0"] == 1 - study.trials[0].params["x"]
    assert observations_of(study, SPACE)[1].constraints.keys() == {"0"}
    with pytest.raises(ValueError, match="'constraints_func': expected a function"):
        HypergradSampler(constraints_func=[1.0])


def test_a_constraint_that_is_nan_is_violated_for_optuna_too():
    sampler = HypergradSampler(
        space=SPACE, constraints_func=lambda t: [math.nan if t.params["x"] < 0 else -1.0]
    )
    study = optuna.create_study(sampler=sampler)
    for x in (-4.0, 2.0):
        study.enqueue_trial({"x": x, "y": 0.0})
    study.optimize(lambda trial: sum(asked(trial)), n_trials=2)
    assert study.trials[0].constraints["0"] == math.inf
    assert study.best_trial.number == 1


@pytest.mark.parametrize("found", [None, 1.0, "ab", ["a"], [None], [-1.0, {}]])
def test_a_constraints_func_that_finds_no_numbers_is_named(found):
    study = optuna.create_study(sampler=HypergradSampler(constraints_func=lambda trial: found))
    with pytest.raises(ValueError, match="'constraints_func': expected a list of numbers"):
        study.optimize(lambda trial: sum(asked(trial)), n_trials=1)


def test_several_directions():
    def objective(trial):
        x, y = asked(trial)
        trial.set_constraint("right", -x)
        return (x - 1) ** 2 + y * y, -((x + 1) ** 2) - y * y

    study = optuna.create_study(
        directions=["minimize", "maximize"], sampler=HypergradSampler(seed=0)
    )
    study.optimize(objective, n_trials=15)
    history = observations_of(study, SPACE)
    assert history[3].values == (study.trials[3].values[0], -study.trials[3].values[1])
    found = {item.values[0] for item in front(history)}
    assert found == {trial.values[0] for trial in study.best_trials}
    wrong = optuna.create_study(
        directions=["minimize"] * 2,
        sampler=HypergradSampler(space=SPACE, searcher=BayesSearcher),
    )
    with pytest.raises(ValueError, match="'searcher': expected one for 2 objectives"):
        wrong.optimize(objective, n_trials=1)


def test_several_values_of_a_report_and_the_way_back():
    def objective(config):
        x, y = config["x"], config["y"]
        return local_report(
            values=[x * x, (y - 1) ** 2],
            gradients=[{"x": 2 * x, "y": 0.0}, None],
            constraints={"a": x},
        )

    result = minimize(objective, SPACE, trials=3, searcher=RandomSearcher(SPACE))
    study = study_of(result)
    assert len(study.directions) == 2
    again = observations_of(study, SPACE)
    for mine, theirs in zip(result.history, again, strict=True):
        assert theirs.values == pytest.approx(mine.values)
        assert (theirs.constraints, theirs.gradients) == (mine.constraints, mine.gradients)

    def asked_of(trial):
        x, y = asked(trial)
        return report(trial, values=[x * x, y * y], gradients=[{"x": 2 * x, "y": 0.0}, None])

    study = optuna.create_study(directions=["minimize"] * 2)
    study.optimize(asked_of, n_trials=1)
    x, y = (study.trials[0].params[name] for name in ("x", "y"))
    assert study.trials[0].values == [x * x, y * y]
    assert report_of(study.trials[0]).gradients == [{"x": 2 * x, "y": 0.0}, None]


def test_a_study_ends():
    callback = StopStudy(Stop(patience=4))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(lambda trial: sum(asked(trial)), n_trials=100, callbacks=[callback])
    assert len(study.trials) < 60
    assert callback.reason == "4 trials without a better one"
    assert study.best_trial.number == len(study.trials) - 5
    with pytest.raises(ValueError, match="'stop': expected a Stop"):
        StopStudy(5)


def test_a_study_of_anything_ends_and_is_shown():
    """Trials before the first complete one, names and ranges that no space of ours has."""

    def objective(trial):
        if trial.number < 2:
            raise optuna.TrialPruned
        trial.suggest_int("seed", 0, 2**31 - 1)
        trial.suggest_categorical("opt", ["a", "b"])
        return trial.suggest_float("opt/lr", 0, 1 + trial.number) + 1.0

    callback = StopStudy(Stop(patience=3))
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.optimize(objective, n_trials=60, callbacks=[callback])
    assert callback.reason == "3 trials without a better one"
    seen = searched(study)
    assert [item.number for item in seen.history] == list(range(2, len(study.trials)))
    assert seen.best.number == study.best_trial.number == len(study.trials) - 4
    with pytest.raises(ValueError, match="expected a study with a complete trial"):
        searched(optuna.create_study())
