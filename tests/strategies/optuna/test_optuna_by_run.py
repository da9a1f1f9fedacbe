"""Objectives that ask for whatever Optuna allows, and the names of what they ask for."""

import math
import re

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import TrialState, create_trial

from strategies.optuna import HypergradSampler, report, space_to_optuna, suggest
from strategies.optuna.branches import Asked
from strategies.optuna.names import names_found
from strategies.optuna.shared import SharedParameters
from strategies.searchers import RandomSearcher
from strategies.space import Categorical, Float, SearchSpace

optuna.logging.set_verbosity(optuna.logging.ERROR)

#: One parameter that no domain of ours has, each beside ordinary ones.
ODD = {
    "many": lambda t: t.suggest_int("seed", 0, 2**31 - 1),
    "many on a log scale": lambda t: t.suggest_int("rate", 9 * 10**8, 18 * 10**9, log=True),
    "huge integer": lambda t: t.suggest_int("n", 10**20, 10**20 + 10**6),
    "beside a group": lambda t: (
        t.suggest_categorical("opt", ["a", "b"]),
        t.suggest_float("opt/lr", 1e-5, 1, log=True),
    ),
    "no path": lambda t: (t.suggest_float("/lr", 0, 1), t.suggest_float("a//b", 0, 1)),
    "nameless": lambda t: t.suggest_float("", 0, 1),
    "escaped already": lambda t: [t.suggest_float(n, 0, 1) for n in ("a", "a/b", "a%2Fb")],
    "narrow": lambda t: t.suggest_float("when", 1.7e12, 1.7e12 + 1000),
    "fine steps": lambda t: t.suggest_float("m", 0, 1e6, step=1e-4),
    "as wide as can be": lambda t: t.suggest_float("w", -1.7e308, 1.7e308),
    "as long as can be": lambda t: t.suggest_float("l", 1e-307, 1e308, log=True),
    "lists": lambda t: t.suggest_categorical("layers", [(8,), [8, 4], None, "8"]),
    "equal choices": lambda t: t.suggest_categorical("same", ["a", "a", 1, True]),
}


@pytest.mark.filterwarnings("ignore:Choices for a categorical")
@pytest.mark.parametrize("kind", ODD)
def test_everything_that_optuna_allows_is_searched(kind, tmp_path, caplog):
    asked = []

    def objective(trial):
        asked.append(ODD[kind](trial))
        return sum((trial.suggest_float(f"p{i}", -5, 5) - 1) ** 2 for i in range(2))

    storage = f"sqlite:///{tmp_path}/study.db"
    study = optuna.create_study(sampler=HypergradSampler(seed=0), storage=storage)
    study.optimize(objective, n_trials=8)
    attributes = [t.system_attrs for t in study.get_trials(deepcopy=False)]
    assert ["hypergrad:suggestion" in a for a in attributes] == [False] + [True] * 7
    # The searcher is shown all trials, with its notes: none is lost on the way.
    view = study.sampler._view
    history, _ = view.look(study, study.get_trials(deepcopy=False), create_trial(value=0.0))
    assert len(history) == 8
    for seen in history[1:]:
        assert seen.note == attributes[seen.number]["hypergrad:suggestion"]["note"]
    assert caplog.records == []


@pytest.mark.filterwarnings("ignore:Choices for a categorical")
def test_a_script_gets_its_own_tuples_whatever_the_storage_makes_of_them(tmp_path):
    sizes, given = [(8, (4, 2)), {"wide": (64,)}, [3], None], []

    def objective(trial):
        size = trial.suggest_categorical("size", sizes)
        assert any(size is one for one in sizes)
        given.append(sizes.index(size))
        return given[-1] + trial.suggest_float("x", 0, 1)

    chosen = {}
    for storage in (None, f"sqlite:///{tmp_path}/study.db"):
        study = optuna.create_study(sampler=HypergradSampler(seed=0), storage=storage)
        study.optimize(objective, n_trials=12)
        chosen[storage], given = given, []
        notes = [t.system_attrs.get("hypergrad:suggestion") for t in study.trials]
        history, _ = study.sampler._view.look(study, study.trials)
        assert [item.note for item in history[1:]] == [note["note"] for note in notes[1:]]
    # What was searched is what was tried: the storage changes nothing.
    first, second = chosen.values()
    assert first == second
    assert first.count(0) > len(first) / len(sizes)


@pytest.mark.parametrize(
    "distribution",
    [
        optuna.distributions.IntDistribution(0, 2**40, step=3),
        optuna.distributions.IntDistribution(5, 10**12, log=True),
        optuna.distributions.FloatDistribution(1e9, 1e9 + 1e4, step=1e-7),
        optuna.distributions.FloatDistribution(-1e308, 1e308),
        optuna.distributions.FloatDistribution(1e-300, 1e300, log=True),
        CategoricalDistribution(["a", "a", "b"]),
    ],
)
def test_values_come_back_from_optuna_as_they_were(distribution):
    names = names_found(Asked({"x": distribution}, {}))
    n = names.space.dimension
    for u in [0.0, 1.0, *np.random.default_rng(0).random(50)]:
        value = names.to_params({"x": names.space.domains["x"].decode(np.full(n, u))})["x"]
        assert isinstance(value, str) or distribution.low <= value <= distribution.high
        again = names.to_params(names.from_params({"x": value}))["x"]
        if isinstance(value, float) and distribution.step is None:
            assert again == pytest.approx(value, rel=1e-9)
        else:
            assert again == value


def test_gradients_are_found_by_the_names_of_the_script():
    def script(trial):
        x = [trial.suggest_float(f"x.{i}", -1, 1) for i in range(2)]
        odd = trial.suggest_float("x", 1e9, 1e9 + 0.5)
        lr = trial.suggest_float("x/lr", 1e-4, 1, log=True)
        y = trial.suggest_float("y[0]", -1, 1)
        gradient = {"x.1": 1.0, "x": 2.0, "x/lr": 3.0, "y[0]": 4.0}
        return report(trial, x[0] + x[1] + odd + lr + y, gradient)

    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.optimize(script, n_trials=2)
    view = study.sampler._view
    (first, _), _ = view.look(study, study.get_trials(deepcopy=False), create_trial(value=0.0))
    assert set(first.gradient) == {"x.1", "x", "x%2Flr", "y"}
    assert first.gradient["x"] == 2.0 * 0.5  # per unit of its coordinate
    assert first.gradient["x%2Flr"] == 3.0
    assert first.gradient["y"] == [4.0]


def trial_with(**ranges):
    distributions = {
        name: optuna.distributions.FloatDistribution(0, high) for name, high in ranges.items()
    }
    return create_trial(params=dict.fromkeys(ranges, 0.0), distributions=distributions, value=0.0)


def test_spaces_that_change_during_a_study():
    shared = SharedParameters()
    trials = [trial_with(a=1, b=1) for _ in range(4)]
    assert {n: d.high for n, d in shared.of(trials).distributions.items()} == {"a": 1, "b": 1}
    # A range that was widened, a parameter that is gone, and a new one.
    trials += [trial_with(a=2, c=1) for _ in range(9)]
    assert {n: d.high for n, d in shared.of(trials).distributions.items()} == {"a": 2}
    trials.append(trial_with(a=2, c=1))
    assert {n: d.high for n, d in shared.of(trials).distributions.items()} == {"a": 2, "c": 1}
    assert shared.of([*trials, trial_with(a=2)]).distributions.keys() == {"a"}


def branch(**params):
    """A trial that asked for these in this order: choices are text, numbers are 0 to 9."""
    ranges = {
        name: CategoricalDistribution(["a", "b", "c"])
        if isinstance(value, str)
        else optuna.distributions.IntDistribution(0, 9)
        for name, value in params.items()
    }
    return create_trial(params=params, distributions=ranges, value=0.0)


def test_conditions_are_those_that_explain_what_was_asked_for():
    trials = [
        branch(n=1, kind="a", x=0),
        branch(n=2, kind="b", sub="a", y=1, z=1),
        branch(n=3, kind="b", sub="c", y=1),
    ]
    found = SharedParameters().of(trials)
    assert list(found.distributions) == ["kind", "n", "sub", "x", "y", "z"]
    # The number explains `x` as well, as three different ones do everything.
    assert found.conditions == {
        "x": ("kind", ("a",)),
        "sub": ("kind", ("b",)),
        "y": ("kind", ("b",)),
        "z": ("sub", ("a",)),
    }
    space = names_found(found).space
    assert dict(space.domains["z"].when) == {"kind": ("b",), "sub": ("a",)}
    # What contradicts it takes the condition away; its children go with a parent.
    whim = SharedParameters().of([*trials, branch(n=1, kind="a"), branch(n=4, kind="c", sub="b")])
    assert "x" not in whim.distributions
    assert found.within({"n", "sub", "x", "z"}).distributions.keys() == {"n"}


def test_parameters_under_a_condition_are_searched():
    def script(trial):
        if trial.suggest_categorical("kind", ["a", "b"]) == "a":
            return 1.0 + trial.suggest_float("x", 0, 1)
        depth = trial.suggest_int("depth", 1, 3)
        return sum((trial.suggest_float(f"w{i}", 0, 1) - 0.4) ** 2 for i in range(depth))

    study = optuna.create_study(sampler=HypergradSampler(searcher=RandomSearcher, seed=0))
    study.optimize(script, n_trials=20)
    view = study.sampler._view
    assert view.space.domains["depth"].when == view.space.domains["w0"].when == {"kind": ("b",)}
    history, _ = view.look(study, study.trials, create_trial(value=0.0))
    assert [one.number for one in history] == list(range(20))
    # What is asked for is what was suggested, by both branches.
    for trial in study.trials[12:]:
        assert view.suggested(trial).items() == trial.params.items()
    assert {trial.params["kind"] for trial in study.trials[12:]} == {"a", "b"}


def test_new_parameter_is_searched_after_a_while():
    def objective(trial):
        found = (trial.suggest_float("a", 0, 1) - 0.3) ** 2
        return found + ((trial.suggest_float("b", 0, 1) - 0.6) ** 2 if later else 0.0)

    later = False
    study = optuna.create_study(sampler=HypergradSampler(searcher=RandomSearcher, seed=0))
    study.optimize(objective, n_trials=4)
    later = True
    study.optimize(objective, n_trials=11)
    assert set(study.sampler._view.space.domains) == {"a", "b"}


LEGAL = re.compile(r"[\w\-. :/]+")


def test_names_are_those_that_trackers_allow():
    space = SearchSpace({"l2": Float(1e-3, 1, log=True, shape=(2, 2)), "m": {"n": Float(0, 1)}})
    study = optuna.create_study(sampler=HypergradSampler(space=space))
    study.optimize(lambda t: report(t, suggest(t, space)["m"]["n"], {"m/n": 1.0}), n_trials=2)
    names = [*study.best_params, *study.best_trial.user_attrs]
    assert names == ["l2.0.0", "l2.0.1", "l2.1.0", "l2.1.1", "m/n", "hypergrad"]
    assert all(LEGAL.fullmatch(name) for name in names)


def test_number_beside_an_array_keeps_its_name():
    space = SearchSpace({"x": Float(0, 1, shape=(2,)), "x.0": Float(0, 1)})
    assert list(space_to_optuna(space)) == ["x[0]", "x[1]", "x.0"]


def test_studies_with_former_names_are_read_and_continued():
    space = SearchSpace({"x": Float(0, 1, shape=(2,)), "c": Categorical(["a", "b"])})
    study = optuna.create_study(sampler=HypergradSampler(space=space))
    former = {f"x[{i}]": space_to_optuna(space)[f"x.{i}"] for i in range(2)}
    former["c"] = space_to_optuna(space)["c"]
    study.add_trial(
        create_trial(params={"x[0]": 0.25, "x[1]": 0.5, "c": "a"}, distributions=former, value=1.0)
    )
    study.enqueue_trial({"x[0]": 0.125, "x[1]": 0.75, "c": "b"})
    seen = []

    def objective(trial):
        seen.append(suggest(trial, space))
        return float(len(seen))

    study.optimize(objective, n_trials=2)
    assert seen[0] == {"x": [0.125, 0.75], "c": "b"}
    assert suggest(study.trials[0], space) == {"x": [0.25, 0.5], "c": "a"}
    assert suggest(optuna.trial.FixedTrial(study.trials[1].params), space) == seen[0]
    history, _ = study.sampler._view.look(study, study.trials, study.trials[2])
    assert [o.config for o in history][:2] == [suggest(study.trials[0], space), seen[0]]
    # A script that asks by the former names by itself is offered suggestions, too.
    trial = study.ask()
    asked = trial.suggest_float("x[0]", 0, 1)
    assert study.sampler._view.suggested(study.trials[-1])["x.0"] == asked


@pytest.mark.parametrize(
    "damage",
    [
        {"hypergrad:report": {"value": 1.0, "unknown": 2}},
        {"hypergrad:report": {"hypergrad:parts": 3}},
        {"hypergrad:report": 5},
        {"hypergrad:report": {"value": 1.0, "gradient": "x", "gradient_error": "y"}},
        {
            "hypergrad:report": {
                "value": 0.5,
                "cost": "a",
                "resource": [1, 2],
                "gradient_error": "x",
            }
        },
        {"constraints": 1},
        {"constraints": {"a": "b"}},
        {"constraints:a": None},
        {"constraints:a": {"b": 1}},
        {"fixed_params": [1]},
        {"hypergrad:suggestion": {"config": {"x": 7}, "note": 3}},
        {"hypergrad:suggestion": {"hypergrad:parts": "many"}},
        {"hypergrad:suggestion": [1, 2]},
        {"retry_history": 3},
        {"retry_history": ["a", None]},
    ],
)
def test_attribute_that_is_damaged_costs_its_trial_at_most_its_gradient(damage, caplog):
    space = SearchSpace({"x": Float(0, 1)})
    study = optuna.create_study(sampler=HypergradSampler(space=space))
    study.optimize(lambda t: report(t, suggest(t, space)["x"], {"x": 1.0}), n_trials=2)
    for key, content in damage.items():
        broken = create_trial(
            params={"x": 0.5},
            distributions=space_to_optuna(space),
            value=0.5,
            system_attrs={key: content},
        )
        study.add_trial(broken)
        # What a trial of another program leaves while it runs is read again when it ends.
        running = study.ask()
        suggest(running, space)
        study._storage.set_trial_system_attr(running._trial_id, key, content)
        study.tell(running, 0.25)
    study.optimize(lambda t: suggest(t, space)["x"], n_trials=2)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 6
    history, _ = study.sampler._view.look(study, study.trials, create_trial(value=0.0))
    assert history[2].value == 0.5
    if not any(key.startswith("constraints") for key in damage):  # Optuna itself reads them for it
        assert math.isfinite(study.best_value)


@pytest.mark.parametrize("direction", ["minimize", "maximize"])
def test_infeasible_trials_are_behind_all_feasible_ones(direction):
    space = SearchSpace({"x": Float(0, 1)})
    sign = 1 if direction == "minimize" else -1
    study = optuna.create_study(direction=direction, sampler=HypergradSampler(space=space))

    def objective(trial):
        x = suggest(trial, space)["x"]
        trial.set_constraint("x >= 0.7", 0.7 - x)
        return report(trial, sign * x, {"x": sign})

    study.enqueue_trial({"x": 0.5})
    study.enqueue_trial({"x": 0.75})
    study.enqueue_trial({"x": 0.625})
    study.optimize(objective, n_trials=20)
    trials = study.get_trials(deepcopy=False)
    known, _ = study.sampler._view.look(study, trials, create_trial(value=0.0))
    history = RandomSearcher(space).seen(known)
    near, far = history[2], history[0]
    worst = max(o.value for o in history if o.config["x"] >= 0.7)
    assert worst < near.value < far.value
    assert far.value == pytest.approx(worst + 0.2)
    assert (near.gradient, history[1].gradient) == (None, {"x": 1.0})
    # Without the constraint the search would end at 0.
    assert sum(t.params["x"] >= 0.7 for t in trials) >= 6
    assert study.best_trial.params["x"] >= 0.7
