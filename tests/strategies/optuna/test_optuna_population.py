"""A population that trains the trials of a study: one program, each member a trial of its own."""

import subprocess
import sys

import optuna
import pytest
from optuna.trial import TrialState

from strategies import Float, RandomSearcher, SearchSpace
from strategies.optuna import HypergradSampler, run_population
from strategies.population import PBT, FollowGradient, Population
from strategies.schedulers import ASHA, Hyperband
from tests.strategies.population.problem import SPACE, batch, evaluate, init, step

optuna.logging.set_verbosity(optuna.logging.WARNING)


@pytest.fixture(scope="module")
def population():
    return Population(init, step, evaluate, 4, space=SPACE, batch=batch)


def study_of(path=None, searcher=None):
    searcher = RandomSearcher(SPACE, seed=3) if searcher is None else searcher
    return optuna.create_study(
        sampler=HypergradSampler(searcher=searcher),
        storage=None if path is None else f"sqlite:///{path}",
        study_name="population",
        load_if_exists=True,
    )


def values(history):
    return [(o.number, o.config, o.value) for o in history]


def test_members_are_trials_with_the_results_of_the_local_engine(population):
    study = study_of()
    found = run_population(study, population, trials=10, steps=5)
    local = population.run(RandomSearcher(SPACE, seed=3), trials=10, steps=5)
    assert values(found.history) == values(local.history)
    assert study.best_value == found.best_value == local.best_value
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 10
    assert {t.last_step for t in study.trials} == {5}
    assert population.traces == 1


def test_a_sampler_of_optuna_will_do(population):
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    found = run_population(study, population, trials=5, steps=2)
    assert [t.value for t in study.trials] == [o.value for o in found.history]


def test_a_member_that_fails_is_a_failed_trial():
    space = SearchSpace({"x": Float(-1.0, 1.0)})
    roots = Population(
        lambda key, config: config["x"],
        lambda state, config, batch, key: (state, {}),
        lambda state, config: state**0.5,
        2,
        space=space,
    )
    study = study_of(searcher=RandomSearcher(space, seed=1))
    run_population(study, roots, trials=8, steps=1)
    states = {t.params["x"] >= 0: set() for t in study.trials}
    for trial in study.trials:
        states[trial.params["x"] >= 0].add(trial.state)
    assert states == {True: {TrialState.COMPLETE}, False: {TrialState.FAIL}}
    # They are results: the same call has nothing left to do.
    assert run_population(study, roots, trials=8, steps=1).trials == []


def test_rungs_are_trials_with_the_results_of_the_local_engine(population):
    study = study_of()

    def schedule():
        return Hyperband(RandomSearcher(SPACE, seed=3), max_resource=4, eta=2)

    found = run_population(study, population, search=schedule())
    local = population.run(schedule())
    assert values(found.history) == values(local.history)
    assert len(study.trials) == len(found.history)
    complete = [t for t in study.trials if t.state == TrialState.COMPLETE]
    assert {t.user_attrs["hypergrad:job"]["resource"] for t in complete} == {4}
    again = run_population(study, population, search=schedule())
    assert again.trials == []
    assert values(again.history) == values(local.history)


@pytest.mark.parametrize("members", [None, "members"])
def test_each_member_of_each_round_is_a_trial_and_a_stopped_one_goes_on(
    population, tmp_path, members
):
    path = None if members is None else tmp_path / members
    search = PBT(RandomSearcher(SPACE, seed=3), 8, 2, explore=FollowGradient())
    study = study_of(tmp_path / "db")
    stop = [lambda trial: trial.number >= 5]
    run_population(study, population, search=search, members_path=path, callbacks=stop)
    assert len(study.trials) == 8
    study = study_of(tmp_path / "db")
    found = run_population(study, population, search=search, members_path=path)
    local = population.run(search)
    assert values(found.history) == values(local.history)
    assert [dict(o.note) for o in found.history] == [dict(o.note) for o in local.history]
    assert found.lineage == local.lineage
    assert [t.value for t in study.trials[12:]] == [o.value for o in local.history[12:]]
    states = [t.state for t in study.trials]
    assert states == [TrialState.PRUNED] * 12 + [TrialState.COMPLETE] * 4


_KILLED = """
import os, signal, sys
import jax
jax.config.update("jax_enable_x64", True)
from strategies.optuna import run_population
from strategies.population import Population
from tests.strategies.optuna.test_optuna_population import study_of
from tests.strategies.population.problem import SPACE, batch, evaluate, init, step

seen = []


def stop(trial):
    seen.append(trial)
    if len(seen) == 6:
        os.kill(os.getpid(), signal.SIGKILL)


population = Population(init, step, evaluate, 4, space=SPACE, batch=batch)
run_population(
    study_of(sys.argv[1] + ".db"), population, trials=10, steps=5,
    members_path=sys.argv[1] + ".members", checkpoint_seconds=0, callbacks=[stop],
)
"""


def test_a_killed_population_loses_nothing(population, tmp_path):
    path = tmp_path / "study"
    done = subprocess.run([sys.executable, "-c", _KILLED, str(path)], check=False)
    assert done.returncode == -9
    study = study_of(f"{path}.db")
    states = [t.state for t in study.trials]
    assert states.count(TrialState.COMPLETE) >= 6
    if states[-1] != TrialState.RUNNING:
        study.ask()  # as a kill leaves it between asking and marking
    found = run_population(study, population, trials=10, steps=5, members_path=f"{path}.members")
    local = population.run(RandomSearcher(SPACE, seed=3), trials=10, steps=5)
    assert values(found.history) == values(local.history)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 10


def test_a_schedule_continues(population):
    study = study_of()

    def schedule():
        return ASHA(RandomSearcher(SPACE, seed=3), max_resource=4, eta=2, configurations=6)

    run_population(study, population, search=schedule(), trials=5)
    assert len(study.trials) == 5
    found = run_population(study, population, search=schedule())
    assert len({o.number for o in found.history}) == 6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trials": 4}, "'steps'"),
        ({"steps": 4}, "'trials'"),
        ({"search": PBT(RandomSearcher(SPACE), 4, 2), "steps": 3}, "as a PBT has its own steps"),
        (
            {"search": ASHA(RandomSearcher(SPACE), max_resource=4)},
            "'trials': expected a number, as this scheduler has no end",
        ),
        ({"search": 3}, "'search': expected a scheduler or a PBT, received 3"),
    ],
)
def test_options_that_do_not_fit(population, options, words):
    with pytest.raises(ValueError, match=words):
        run_population(study_of(), population, **options)


def test_studies_that_do_not_fit(population):
    with pytest.raises(ValueError, match="'study': expected one objective that is minimised"):
        run_population(optuna.create_study(direction="maximize"), population, trials=2, steps=2)
    study = study_of()
    run_population(study, population, trials=2, steps=2)
    with pytest.raises(ValueError, match="'steps': expected 2"):
        run_population(study, population, trials=4, steps=3)
