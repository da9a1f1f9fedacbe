"""`HypergradSampler` under Optuna's own test suites, and in real studies on real storages."""

import json
import math
import warnings

import jax.numpy as jnp
import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState

from strategies.observation import Suggestion
from strategies.optuna import (
    HypergradSampler,
    report,
    report_of,
    space_from_optuna,
    space_to_optuna,
    suggest,
)
from strategies.searchers import RandomSearcher, Searcher
from strategies.space import Categorical, Choice, Constant, Float, Int, Ordinal, SearchSpace

optuna.logging.set_verbosity(optuna.logging.ERROR)


SPACE = SearchSpace(
    {
        "l2": Float(1e-3, 1e1, log=True, shape=(3,)),
        "model": {"depth": Int(1, 4), "scale": Categorical(["none", "standard"])},
    }
)


class Spy(Searcher):
    """Random search that keeps what it was shown."""

    shown: list

    def _propose(self, number, history, pending):
        self.shown = [*getattr(self, "shown", []), (number, history, pending)]
        return Suggestion(number, self.space.sample(self.rng(number)), {"remark": number})


@pytest.fixture(params=["memory", "sqlite", "journal"])
def storage(request, tmp_path):
    """A function that opens the same storage again, as another process would."""
    if request.param == "memory":
        kept = optuna.storages.InMemoryStorage()
        return lambda: kept
    if request.param == "sqlite":
        return lambda: f"sqlite:///{tmp_path}/study.db"
    return lambda: JournalStorage(JournalFileBackend(str(tmp_path / "journal")))


def bowl(config):
    """A value and its exact gradient; the discrete part shifts the value."""
    centre = np.log([0.1, 1.0, 3.0])
    l2 = np.asarray(config["l2"])
    off = np.log(l2) - centre
    value = float(off @ off) + config["model"]["depth"] + (config["model"]["scale"] == "none")
    return value, {"l2": 2 * off / l2}


def objective(trial):
    config = suggest(trial, SPACE)
    value, gradient = bowl(config)
    return report(trial, value, gradient, info={"inner_residual": 1e-6})


def test_reload_continues_as_if_uninterrupted(storage):
    """The searcher's chains survive in the storage: nothing of the sampler is kept."""

    def run(name, parts):
        for n in parts:
            study = optuna.create_study(
                study_name=name,
                storage=storage(),
                sampler=HypergradSampler(space=SPACE, seed=2),
                load_if_exists=True,
            )
            study.optimize(objective, n_trials=n)
        return study

    whole, parts = run("whole", [9]), run("parts", [4, 1, 4])
    assert [t.params for t in whole.trials] == [t.params for t in parts.trials]
    notes = [t.system_attrs["hypergrad:suggestion"]["note"]["move"] for t in parts.trials]
    assert "step" in notes
    assert whole.best_value < 3
    norm = np.linalg.norm(report_of(whole.trials[0]).gradient["l2"])
    summary = f"gradient norm {norm:.3g}, inner_residual 1e-06"
    assert whole.trials[0].user_attrs["hypergrad"] == summary


def test_gradient_needs_fewer_trials_than_tpe():
    best = {}
    for name, sampler in [
        ("ours", HypergradSampler(space=SPACE, seed=0)),
        ("tpe", optuna.samplers.TPESampler(seed=0)),
    ]:
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=25)
        best[name] = study.best_value
    assert best["ours"] < 1.01 < best["tpe"]


def test_what_the_searcher_is_shown():
    """Values, gradients, notes, costs and states of all kinds of trials."""
    spy = Spy(SPACE)
    study = optuna.create_study(sampler=HypergradSampler(searcher=spy), direction="maximize")

    def full(trial):
        config = suggest(trial, SPACE)
        value, gradient = bowl(config)
        return report(trial, value, gradient)

    def plain(trial):
        return bowl(suggest(trial, SPACE))[0]

    def broken(trial):
        suggest(trial, SPACE)
        raise RuntimeError

    def nan(trial):
        return report(trial, math.nan, bowl(suggest(trial, SPACE))[1])

    def infinite(trial):
        suggest(trial, SPACE)
        return math.inf

    def pruned(trial):
        suggest(trial, SPACE)
        trial.report(7.0, 3)
        raise optuna.TrialPruned

    def tuned(trial):
        suggest(trial, SPACE)
        return report(trial, 1.0, config={"l2": [0.5, 0.5, 0.5]})

    for part in (full, plain, broken, nan, infinite, pruned, tuned):
        study.optimize(part, n_trials=1, catch=(RuntimeError,))
    running = study.ask()
    running.suggest_float("l2[0]", 1e-3, 1e1, log=True)
    last = study.ask()
    last.suggest_float("l2[0]", 1e-3, 1e1, log=True)
    number, history, pending = spy.shown[-1]
    assert number == 8
    assert [p.number for p in pending] == [7]
    assert pending[0].note == {"remark": 7}
    status = [o.status for o in history]
    assert status == ["complete", "complete", *["failed"] * 3, "pruned", "complete"]
    first = study.trials[0]
    assert history[0].value == -first.value
    assert history[0].gradient["l2"] == pytest.approx([-g for g in report_of(first).gradient["l2"]])
    assert history[0].note == {"remark": 0}
    assert history[0].cost > 0
    assert history[1].gradient is None
    assert (history[5].value, history[5].resource) == (-7.0, 3)
    assert history[6].config["l2"] == [0.5, 0.5, 0.5]
    assert [o.number for o in history] == list(range(7))


def test_gradient_that_does_not_fit_is_dropped_and_named(caplog):
    spy = Spy(SPACE)
    study = optuna.create_study(sampler=HypergradSampler(searcher=spy))

    def wrong(trial):
        suggest(trial, SPACE)
        return report(trial, 1.0, {"l2": [1.0, 2.0], "model": {"depth": 1.0}, "nowhere": 2.0})

    study.optimize(wrong, n_trials=3)
    _, history, _ = spy.shown[-1]
    assert [o.gradient for o in history] == [None, None]
    assert [o.value for o in history] == [1.0, 1.0]
    assert [record.message.split("'")[1] for record in caplog.records] == [
        "l2",
        "model/depth",
        "nowhere",
    ]


def test_enqueued_and_fixed_values_are_the_users_own():
    spy = Spy(SPACE)
    study = optuna.create_study(sampler=HypergradSampler(searcher=spy))
    study.enqueue_trial({"model/depth": 3, "l2[0]": 0.5})
    study.optimize(objective, n_trials=2)
    _, history, _ = spy.shown[-1]
    assert history[0].config["model"]["depth"] == 3
    assert history[0].config["l2"][0] == 0.5
    assert history[0].note == {}  # it became another configuration than was suggested
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        study.sampler = optuna.samplers.PartialFixedSampler({"model/depth": 2}, study.sampler)
    study.optimize(objective, n_trials=2)
    assert [t.params["model/depth"] for t in study.trials[2:]] == [2, 2]


def test_scripts_that_suggest_by_themselves_need_no_space():
    def script(trial):
        x = [trial.suggest_float(f"x[{i}]", -1, 1) for i in range(2)]
        lr = trial.suggest_float("opt/lr", 1e-4, 1, log=True)
        trial.suggest_categorical("fixed", ["only"])
        off = math.log(lr / 0.02) / 5
        value = (x[0] - 0.3) ** 2 + (x[1] + 0.2) ** 2 + off**2
        gradient = {
            "x": jnp.asarray([2 * (x[0] - 0.3), 2 * (x[1] + 0.2)]),
            "opt": {"lr": 2 * off / (5 * lr)},
        }
        return report(trial, value, gradient)

    study = optuna.create_study(sampler=HypergradSampler(seed=1))
    study.optimize(script, n_trials=15)
    assert study.best_value < 1e-4


def test_conditions_travel_through_optuna():
    space = SearchSpace(
        {
            "model": Choice({"svm": {"C": Float(0.1, 10, log=True)}, "knn": {"k": Int(1, 9)}}),
            "seed": 7,
        }
    )
    spy = Spy(space)
    study = optuna.create_study(sampler=HypergradSampler(searcher=spy, seed=0))

    def conditional(trial):
        config = suggest(trial, space)
        assert config["seed"] == 7
        if config["model"]["kind"] == "svm":
            assert "knn" not in config["model"]
            return report(trial, 1.0, {"model": {"svm": {"C": 2.0}}})
        return float(config["model"]["knn"]["k"])

    study.optimize(conditional, n_trials=12)
    assert {t.params["model/kind"] for t in study.trials} == {"svm", "knn"}
    _, history, _ = spy.shown[-1]
    assert len(history) == 11
    svm = [o for o in history if o.config["model"]["kind"] == "svm"]
    assert all(o.gradient == {"model/svm/C": 2.0} for o in svm)
    assert all(o.note == {"remark": o.number} for o in history)


def test_threads_see_each_other(tmp_path):
    spy = Spy(SPACE)
    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path}/threads.db", sampler=HypergradSampler(searcher=spy)
    )
    study.optimize(objective, n_trials=12, n_jobs=3)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 12
    params = [json.dumps(t.params, sort_keys=True) for t in study.trials]
    assert len(set(params)) == 12
    for number, history, pending in spy.shown:
        seen = {o.number for o in history} | {p.number for p in pending}
        # Whoever asked before is either finished or pending.
        asked = {n for n, *_ in spy.shown[: [s[0] for s in spy.shown].index(number)]}
        assert asked <= seen


@pytest.mark.parametrize("seed", range(3))
def test_what_is_remembered_is_what_the_storage_has(storage, seed):
    """Of whatever order of trials, here and elsewhere, a sampler without a memory sees the same."""
    spy, afresh = Spy(SPACE), Spy(SPACE)
    here = optuna.create_study(
        study_name="s", storage=storage(), sampler=HypergradSampler(searcher=spy)
    )
    elsewhere = optuna.load_study(
        study_name="s", storage=storage(), sampler=HypergradSampler(space=SPACE, seed=1)
    )
    rng = np.random.default_rng(seed)
    running = []

    def ask(study):
        trial = study.ask()
        running.append((study, trial, objective(trial)))
        return trial

    def tell(study, trial, value):
        outcome = rng.integers(4)
        if outcome == 0:
            study.tell(trial, state=TrialState.FAIL)
        elif outcome == 1:
            trial.report(value + 1, 3)
            study.tell(trial, state=TrialState.PRUNED)
        else:
            study.tell(trial, value)

    for _ in range(40):
        match rng.choice(["here", "told", "elsewhere", "added"], p=[0.4, 0.4, 0.1, 0.1]):
            case "here":
                trial = ask(here)
                again = HypergradSampler(searcher=afresh)
                frozen = here.get_trials()[trial.number]
                again.sample_relative(here, frozen, space_to_optuna(SPACE))
                assert spy.shown[-1] == afresh.shown[-1]
            case "told" if running:
                tell(*running.pop(rng.integers(len(running))))
            case "elsewhere":
                ask(elsewhere)
            case "added" if here.trials:
                here.add_trial(here.trials[-1])
    assert max(len(history) for _, history, _ in spy.shown) > 5


def test_storage_is_not_read_again_by_the_only_process(tmp_path, monkeypatch):
    study = optuna.create_study(
        storage=f"sqlite:///{tmp_path}/one.db", sampler=HypergradSampler(space=SPACE, seed=0)
    )
    study.optimize(objective, n_trials=2)
    looks = []
    read = optuna.Study.get_trials
    monkeypatch.setattr(
        optuna.Study, "get_trials", lambda self, **how: looks.append(1) or read(self, **how)
    )
    study.optimize(objective, n_trials=3)
    assert not looks
    other = optuna.load_study(study_name=study.study_name, storage=f"sqlite:///{tmp_path}/one.db")
    other.sampler = optuna.samplers.RandomSampler(seed=0)
    other.optimize(objective, n_trials=1)
    study.optimize(objective, n_trials=3)
    assert len(looks) == 1


def test_a_result_that_could_not_be_stored_is_not_remembered(monkeypatch):
    spy = Spy(SPACE)
    study = optuna.create_study(sampler=HypergradSampler(searcher=spy))
    study.optimize(objective, n_trials=2)

    def full(*arguments, **options):
        raise OSError("no space left on device")

    trial = study.ask()
    value = objective(trial)
    with monkeypatch.context() as patch:
        patch.setattr(study._storage, "set_trial_state_values", full)
        with pytest.raises(OSError, match="no space"):
            study.tell(trial, value)
    study.optimize(objective, n_trials=1)
    _, history, pending = spy.shown[-1]
    assert [o.number for o in history] == [0, 1]
    assert [p.number for p in pending] == [2]
    # Given up by somebody else, as trials without a heartbeat are.
    study._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
    study.optimize(objective, n_trials=1)
    _, history, pending = spy.shown[-1]
    assert [o.number for o in history] == [0, 1, 2, 3]
    assert not pending


def test_a_younger_trial_that_asked_first_is_pending():
    """Threads take their numbers first and queue up for their suggestions after."""
    spy = Spy(SPACE)
    sampler = HypergradSampler(searcher=spy)
    study = optuna.create_study(sampler=sampler)
    study.optimize(objective, n_trials=2)
    older, younger = (study._storage.create_new_trial(study._study_id) for _ in range(2))
    for trial in (younger, older):
        sampler.sample_relative(study, study._storage.get_trial(trial), space_to_optuna(SPACE))
    assert [p.number for p in spy.shown[-1][2]] == [3]


def test_a_sampler_does_not_mix_two_studies():
    spy = Spy(SPACE)
    sampler = HypergradSampler(searcher=spy)
    optuna.create_study(sampler=sampler).optimize(objective, n_trials=2)
    second = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    second.optimize(objective, n_trials=2)
    second.sampler = sampler
    second.optimize(objective, n_trials=1)
    assert [o.value for o in spy.shown[-1][1]] == [t.value for t in second.trials[:2]]


def test_threads_give_the_same_suggestions_as_one(tmp_path):
    """Randomness belongs to the number of the trial, not to the thread."""

    def run(n_jobs):
        sampler = HypergradSampler(searcher=RandomSearcher, space=SPACE, seed=4)
        study = optuna.create_study(sampler=sampler)
        study.optimize(objective, n_trials=8, n_jobs=n_jobs)
        return {t.number: t.params for t in study.trials}

    assert run(1) == run(3)


def test_bracket_views_of_the_hyperband_pruner():
    def steps(trial):
        config = suggest(trial, SPACE)
        value, gradient = bowl(config)
        for step in range(9):
            trial.report(value + 1 / (step + 1), step)
            if trial.should_prune():
                raise optuna.TrialPruned
        return report(trial, value, gradient)

    study = optuna.create_study(
        sampler=HypergradSampler(space=SPACE, seed=0),
        pruner=optuna.pruners.HyperbandPruner(min_resource=1, max_resource=9),
    )
    study.optimize(steps, n_trials=20)
    states = {t.state for t in study.trials}
    assert states == {TrialState.COMPLETE, TrialState.PRUNED}


@pytest.mark.parametrize("size", [64, 20_000])
def test_long_gradients_are_stored_in_chunks(storage, size):
    study = optuna.create_study(storage=storage())
    trial = study.ask()
    gradient = np.linspace(0, 1, size) ** 3
    assert report(trial, jnp.float32(0.5), {"l2": gradient}) == 0.5
    study.tell(trial, 0.5)
    attributes = optuna.load_study(study_name=study.study_name, storage=storage()).trials[0]
    stored = {**attributes.system_attrs, **attributes.user_attrs}
    assert all(len(json.dumps(v)) < 65_000 for v in stored.values())
    assert report_of(attributes).gradient["l2"] == gradient.tolist()
    assert stored["hypergrad"] == f"gradient norm {np.linalg.norm(gradient):.3g}"


def test_report_of_nan_infinity_and_unreliable_gradients(storage):
    study = optuna.create_study(storage=storage())
    trial = study.ask()
    value = report(trial, math.nan, {"x": [math.nan, 1.0]}, gradient_error=math.inf)
    assert math.isnan(value)
    study.tell(trial, value)
    assert study.trials[0].state == TrialState.FAIL
    assert report_of(study.trials[0]).gradient_error == math.inf
    assert study.trials[0].user_attrs["hypergrad"] == "gradient norm nan, its error inf"


@pytest.mark.parametrize(
    ("domain", "distribution"),
    [
        (Float(-1, 2), FloatDistribution(-1, 2)),
        (Float(1e-3, 2, log=True), FloatDistribution(1e-3, 2, log=True)),
        (Float(0, 1, step=0.25), FloatDistribution(0, 1, step=0.25)),
        (Int(1, 9), IntDistribution(1, 9)),
        (Int(1, 9, log=True), IntDistribution(1, 9, log=True)),
        (Int(2, 8, step=3), IntDistribution(2, 8, step=3)),
        (Categorical(["a", None, 2]), CategoricalDistribution(["a", None, 2])),
    ],
)
def test_round_trip_of_domains(domain, distribution):
    space = SearchSpace({"group": {"x": domain}})
    assert space_to_optuna(space) == {"group/x": distribution}
    assert space_from_optuna({"group/x": distribution}) == space


def test_round_trip_of_arrays_and_constants():
    space = SearchSpace({"a": Float(0, 1, shape=(2, 3)), "b": Float(0, 1, shape=(1,)), "c": 3})
    distributions = space_to_optuna(space)
    assert list(distributions)[:2] == ["a.0.0", "a.0.1"]
    assert len(distributions) == 7
    back = space_from_optuna(distributions)
    assert back.domains == {k: d for k, d in space.domains.items() if k != "c"}
    ragged = {"a[0]": FloatDistribution(0, 1), "a[2]": FloatDistribution(0, 1)}
    assert set(space_from_optuna(ragged).domains) == {"a[0]", "a[2]"}
    assert space_from_optuna({"x": FloatDistribution(0, 1), "y": IntDistribution(3, 3)}).domains[
        "y"
    ] == Constant(3)


def test_choices_that_storages_would_change_are_stored_as_text(storage):
    layers = [(64,), (64, 32), [1, 2]]
    space = SearchSpace({"layers": Categorical(layers), "size": Ordinal([(1, 2), (3, 4)])})
    for _ in range(2):
        study = optuna.create_study(
            study_name="tuples",
            storage=storage(),
            sampler=HypergradSampler(space=space),
            load_if_exists=True,
        )
        study.optimize(lambda t: float(layers.index(suggest(t, space)["layers"])), n_trials=6)
    assert [t.state for t in study.trials] == [TrialState.COMPLETE] * 12
    assert study.trials[0].params["layers"] in ("(64,)", "(64, 32)", "[1, 2]")
    assert study.best_value == 0


@pytest.mark.parametrize("domain", [Float(1, 8, log=True, step=1), Int(1, 9, log=True, step=2)])
def test_what_optuna_cannot_express_is_named(domain):
    with pytest.raises(ValueError, match=r"'x'.*logarithmic grid"):
        space_to_optuna(SearchSpace({"x": domain}))


def test_mistakes_in_the_set_up_are_named():
    with pytest.raises(ValueError, match="'space'"):
        HypergradSampler(searcher=RandomSearcher(SPACE), space=SPACE)
    with pytest.raises(ValueError, match="at least one"):
        space_from_optuna({"y": IntDistribution(3, 3)})
    study = optuna.create_study()
    with pytest.raises(ValueError, match="'gradient'"):
        report(study.ask(), 1.0, [1.0, 2.0])
    with pytest.raises(ValueError, match="'value'"):
        report(study.ask(), [1.0, 2.0])


def test_what_was_enqueued_and_never_asked_for_is_told():
    study = optuna.create_study(sampler=HypergradSampler(seed=0))
    study.enqueue_trial({"x": 0.25, "lr": 0.1})
    with pytest.warns(UserWarning, match="did not ask for 'lr'") as told:
        study.optimize(lambda trial: trial.suggest_float("x", 0, 1), n_trials=3)
    assert len(told) == 1
    assert study.trials[0].params == {"x": 0.25}


@pytest.mark.parametrize("value", ["abc", 1j, {"loss": 1.0}])
def test_a_report_of_no_number_is_a_failed_trial(value):
    study = optuna.create_study(sampler=HypergradSampler(seed=0))

    def objective(trial):
        config = suggest(trial, {"x": Float(0, 1)})
        return report(trial, value if trial.number == 1 else config["x"])

    with pytest.warns(UserWarning, match="trial 1 failed: 'value': expected a number"):
        study.optimize(objective, n_trials=3)
    assert [t.state.name for t in study.trials] == ["COMPLETE", "FAIL", "COMPLETE"]


def test_other_samplers_of_optuna_take_our_space():
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=12)
    assert all(t.state == TrialState.COMPLETE for t in study.trials)
    assert set(study.best_params) == {*(f"l2.{i}" for i in range(3)), "model/depth", "model/scale"}
