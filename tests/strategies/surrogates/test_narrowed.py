"""Categoricals of a thousand choices: what the process need not look at."""

import numpy as np

from strategies import BayesSearcher, Categorical, Float, Ledger, Observation, SearchSpace
from strategies.searchers import bayes
from strategies.surrogates.narrowed import narrowed

NAMES = [f"c{i}" for i in range(1000)]


def history(space, count, value=lambda config: 0.0):
    rng, ledger = np.random.default_rng(0), Ledger(BayesSearcher(space))
    for _ in range(count):
        config = space.sample(rng)
        ledger.tell(Observation(config, value(config)))
    return ledger.history


def test_choices_that_nobody_tried_are_left_out():
    space = SearchSpace(
        {
            "wide": Categorical(NAMES, default="c500"),
            "few": Categorical(NAMES[:60]),
            "weighted": Categorical(NAMES, weights=range(1, 1001)),
            "parent": Categorical(NAMES),
            "child": Float(0.0, 1.0, when={"parent": "c7"}),
            "x": Float(0.0, 1.0),
        }
    )
    tried = history(space, 30)
    made = narrowed(space, tried, np.random.default_rng(1))
    choices = made.domains["wide"].choices
    seen = {item.config["wide"] for item in tried} | {"c500"}
    assert seen < set(choices)
    assert len(choices) == len(seen) + 20
    assert made.domains["wide"].default == "c500"
    assert all(
        made.domains[path] == space.domains[path] for path in space.domains if path != "wide"
    )
    for config in [item.config for item in tried]:
        assert made.validate(config) == config
    for _ in range(20):
        config = made.sample(np.random.default_rng(2))
        assert space.validate(config) == config


def test_where_most_choices_were_tried_all_stay():
    space = SearchSpace({"wide": Categorical(NAMES[:120]), "x": Float(0.0, 1.0)})
    assert narrowed(space, history(space, 300), np.random.default_rng(0)) is space
    few = SearchSpace({"few": Categorical(NAMES[:100]), "x": Float(0.0, 1.0)})
    assert narrowed(few, history(few, 3), np.random.default_rng(0)) is few


def test_a_thousand_choices_cost_what_was_tried(monkeypatch):
    """Not the time is counted, but the columns that every covariance is made of."""
    space = SearchSpace({"c": Categorical(NAMES), "x": Float(0.0, 1.0)})
    columns = []

    def counted(rows, *arguments, **options):
        columns.append(rows.x.shape[1])
        return fit(rows, *arguments, **options)

    fit = bayes.fit
    monkeypatch.setattr(bayes, "fit", counted)
    ledger = Ledger(BayesSearcher(space, seed=0))
    for _ in range(30):
        asked = ledger.ask()
        value = (int(asked.config["c"][1:]) % 10) / 10 + asked.config["x"]
        ledger.tell(Observation(asked.config, value, number=asked.number))
    assert max(columns) <= 30 + 20 + 2
    # Choices that nobody tried are still found, and it searches.
    assert len({item.config["c"] for item in ledger.history}) > 5
    assert ledger.best.value < 0.3
    again = ledger.searcher.propose(30, ledger.history[::-1], [])
    assert again.config == ledger.ask().config
