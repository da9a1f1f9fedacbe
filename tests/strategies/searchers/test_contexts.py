"""Contexts: what earlier tasks tell of the next one, on each door, and in state files."""

import math
from functools import partial

import numpy as np
import optuna
import pytest

from strategies import Ledger, RandomSearcher
from strategies.local import minimize
from strategies.observation import Observation, Suggestion
from strategies.optuna import HypergradSampler, observations_of
from strategies.searchers.bayes import BayesSearcher
from strategies.space import Categorical, Float, Int, SearchSpace

SPACE = SearchSpace({"lr": Float(1e-4, 1.0, log=True)})
TASKS = SearchSpace({"size": Int(100, 10_000, log=True), "kind": Categorical(["a", "b"])})


def best_for(context):
    """The best learning rate falls with the size of the data, and is another one for each kind."""
    return 10 ** (-0.5 * math.log10(context["size"]) - (context["kind"] == "b"))


def loss(config, context):
    return float(math.log10(config["lr"] / best_for(context)) ** 2)


def tuned(ledger, context, trials=4):
    return minimize(
        lambda c: loss(c, context), SPACE, searcher=ledger, trials=trials, context=context
    )


@pytest.fixture(scope="module")
def ledger():
    """Twelve tasks of four trials each."""
    ledger = Ledger(BayesSearcher(SPACE, seed=0, context=TASKS))
    rng = np.random.default_rng(0)
    for _ in range(12):
        tuned(ledger, TASKS.sample(rng))
    return ledger


NEW = {"size": 2000, "kind": "b"}


def test_the_first_configuration_for_a_new_task_is_nearly_its_best(ledger):
    for context in (NEW, {"size": 300, "kind": "a"}):
        asked = ledger.searcher.propose(48, ledger.history, [], context)
        assert loss(asked.config, context) < 0.05  # a factor of 1.7 in the learning rate
        assert asked.note["context"] == context


def test_a_result_is_of_its_context_only(ledger):
    fresh = Ledger(ledger.searcher)
    fresh.warm_start(ledger.history)
    found = tuned(fresh, NEW, 2)
    assert len(found.history) == len(found.trials) == 2
    assert found.best_value == min(loss(item.config, NEW) for item in found.history)
    assert len(fresh.history) == 50
    assert tuned(fresh, NEW, 2).trials == []  # they are there


def test_progress_is_that_of_the_task(ledger, capsys):
    fresh = Ledger(ledger.searcher)
    fresh.warm_start(ledger.history)
    minimize(
        lambda c: 7.0, SPACE, searcher=fresh, trials=2, context={**NEW, "size": 999}, progress=True
    )
    said = capsys.readouterr().err
    assert "trial 0/2" in said
    assert "trial 2/2  best 7" in said


def test_it_goes_on_from_a_file_and_not_with_other_contexts(ledger, tmp_path):
    path = tmp_path / "state.json"
    ledger.save(path)
    again = Ledger(BayesSearcher(SPACE, seed=0, context=TASKS))
    again.restore(path)
    mine = ledger.searcher.propose(48, ledger.history, [], NEW)
    assert again.ask(NEW).config == mine.config
    others = SearchSpace({"size": Int(100, 9_000, log=True), "kind": Categorical(["a", "b"])})
    for context in (others, None):
        with pytest.raises(ValueError, match=r"context 'size': expected"):
            Ledger(BayesSearcher(SPACE, seed=0, context=context)).restore(path)


def test_the_order_of_the_history_does_not_matter(ledger):
    first = ledger.searcher.propose(48, ledger.history, [], NEW)
    assert ledger.searcher.propose(48, ledger.history[::-1], [], NEW).config == first.config


def test_pending_suggestions_of_a_new_task_are_avoided(ledger):
    fresh = Ledger(ledger.searcher)
    fresh.warm_start(ledger.history)
    asked = [math.log10(fresh.ask(NEW).config["lr"]) for _ in range(3)]
    assert min(abs(a - b) for i, a in enumerate(asked) for b in asked[:i]) > 1e-3


def test_discrete_configurations_are_tried_again_on_another_task():
    space = SearchSpace({"c": Categorical(["x", "y", "z"])})
    ledger = Ledger(BayesSearcher(space, seed=0, context=TASKS))
    for context in (NEW, {**NEW, "kind": "a"}):
        tried = set()
        for _ in range(3):
            asked = ledger.ask(context)
            tried.add(asked.config["c"])
            ledger.tell(Observation(asked.config, ord(asked.config["c"]), number=asked.number))
        assert len(tried) == 3


def test_constraints_and_gradients_come_with_contexts():
    """The gradient is that of the loss; rates above a bound that falls with size are forbidden."""
    ledger = Ledger(BayesSearcher(SPACE, seed=1, context=TASKS))
    for size in (100, 1000, 10_000):
        context = {"size": size, "kind": "a"}
        for _ in range(5):
            asked = ledger.ask(context)
            rate = asked.config["lr"]
            slope = 2 * math.log10(rate / best_for(context)) / (rate * math.log(10))
            ledger.tell(
                Observation(
                    asked.config,
                    loss(asked.config, context),
                    gradient={"lr": slope},
                    constraints={"stable": math.log10(rate * size**0.5)},
                    number=asked.number,
                )
            )
    here = ledger.searcher.within(ledger.history, context)
    assert min(item.value for item in here if item.violation < 0.05) < 0.05


@pytest.mark.parametrize(
    ("context", "message"),
    [
        (None, r"'context': expected a mapping with \['size', 'kind'\], received nothing"),
        (3.0, r"'context': expected a mapping with \['size', 'kind'\], received 3.0"),
        ({"size": 2000}, r"'context': 'kind': expected .* received nothing \(missing key\)"),
        ({"size": 20, "kind": "a"}, r"'context': 'size': expected an integer in \[100, 10000\]"),
        ({**NEW, "width": 3}, r"'context': 'width': expected one of the keys"),
    ],
)
def test_a_context_of_another_space_is_refused_by_name(ledger, context, message):
    with pytest.raises(ValueError, match=message):
        ledger.ask(context)
    with pytest.raises(ValueError, match=message):
        ledger.tell(Observation({"lr": 0.1}, 1.0, note={"context": context} if context else {}))


def test_a_searcher_without_contexts_takes_none():
    for searcher in (BayesSearcher(SPACE), RandomSearcher(SPACE)):
        with pytest.raises(ValueError, match="'context': expected"):
            Ledger(searcher).ask(NEW)
    with pytest.raises(ValueError, match=r"'context': expected none, or a BayesSearcher"):
        minimize(lambda c: 0.0, SPACE, trials=1, context=NEW)
    with pytest.raises(ValueError, match="'context': expected a SearchSpace, received 3"):
        BayesSearcher(SPACE, context=3)


def test_optuna_trials_of_many_tasks_in_one_study():
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = HypergradSampler(
        searcher=partial(BayesSearcher, context=TASKS),
        space=SPACE,
        context=lambda trial: trial.user_attrs["task"],
    )
    study = optuna.create_study(sampler=sampler)
    rng = np.random.default_rng(1)
    for number in range(24):
        study.enqueue_trial({}, user_attrs={"task": NEW if number == 23 else TASKS.sample(rng)})
    study.optimize(
        lambda trial: loss(
            {"lr": trial.suggest_float("lr", 1e-4, 1.0, log=True)}, trial.user_attrs["task"]
        ),
        n_trials=24,
    )
    assert study.trials[-1].value < 0.1
    stored = study.trials[-1].system_attrs["hypergrad:suggestion"]
    assert stored["note"]["context"] == NEW
    # Its parameters are the user's: it is of that task all the same, and for other searches too.
    study.enqueue_trial({"lr": 0.5}, user_attrs={"task": NEW})
    study.optimize(lambda trial: trial.suggest_float("lr", 1e-4, 1.0, log=True), n_trials=1)
    known = observations_of(study, SPACE)
    assert len(known) == 25
    assert [item.note["context"] for item in known[-2:]] == [NEW, NEW]
    view = sampler._view.look(study, study.trials, study.trials[0])[0]
    assert view[-1].config == {"lr": 0.5}
    assert view[-1].note == {"context": NEW}
    fresh = Ledger(BayesSearcher(SPACE, seed=0, context=TASKS))
    assert fresh.warm_start(known) == {}


def test_what_has_no_context_is_of_no_task(ledger):
    failed = Observation({"lr": 0.3}, None, number=48, status="failed")
    waiting = [Suggestion(49, {"lr": 0.2})]
    expected = ledger.searcher.propose(50, ledger.history, [], NEW).config
    found = ledger.searcher.propose(50, [*ledger.history, failed], waiting, NEW)
    assert found.config == expected
    assert ledger.searcher.within([failed, *waiting, found], NEW) == [found]


def test_ray_searches_for_the_context_it_is_given(ledger):
    from strategies.ray import HypergradSearch

    fresh = Ledger(ledger.searcher)
    fresh.warm_start(ledger.history)
    search = HypergradSearch(fresh, metric="loss", mode="min", context=NEW)
    config = search.suggest("t1")
    assert loss(config, NEW) < 0.05
    search.on_trial_complete("t1", {"loss": 0.5, "config/lr": config["lr"]})
    told = fresh.history[-1]
    assert (told.value, told.note["context"]) == (0.5, NEW)
    # What waits for another task is not handed out to this one.
    other = fresh.ask({**NEW, "kind": "a"})
    search.suggest("t2")
    assert [s.note["context"] for s in fresh.pending] == [other.note["context"], NEW]
    # A trial that is not known belongs to this task.
    search.on_trial_complete("from elsewhere", {"loss": 0.4, "config/lr": 0.01})
    assert fresh.history[48].value == 0.4
    assert fresh.history[48].note == {"context": NEW}
