"""Cox's model against scikit-survival, where that is installed."""

import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.model_selection import KFold

from strategies.sklearn import HypergradSearchCV
from strategies.sklearn.folds import Table
from strategies.sklearn.objective import CrossValidation

pytest.importorskip("sksurv")
from sksurv.linear_model import CoxPHSurvivalAnalysis
from sksurv.linear_model.coxph import CoxPHOptimizer


@pytest.fixture(scope="module")
def data():
    """Times with ties, of two thirds events."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(103, 5)) * [1, 2, 3, 0.1, 5] + 2
    death = rng.exponential(size=103) * np.exp(-(x - 2) @ [0.5, 0.2, 0, 1, 0])
    censoring = rng.exponential(size=103) * 2
    y = np.zeros(103, dtype=[("event", bool), ("time", float)])
    y["event"] = death <= censoring
    y["time"] = np.ceil(10 * np.minimum(death, censoring)) / 10
    return x, y


@pytest.mark.parametrize("ties", ["breslow", "efron"])
def test_what_held_out_samples_add_to_the_partial_likelihood(data, ties):
    x, y = data
    splits = list(KFold(4).split(x))
    model = CoxPHSurvivalAnalysis(ties=ties, tol=1e-14)
    function = CrossValidation(
        model,
        Table(x, y, splits, None, None, False),
        criterion="auto",
        scorer=None,
        searched=frozenset(["alpha"]),
        groups=[np.arange(2), np.arange(2, 5)],
        width=5,
    )
    alpha = np.array([3.0, 20.0])
    found = function({"alpha": alpha})

    def negative(rows, coef):
        part = y[rows]
        optimizer = CoxPHOptimizer(x[rows], part["event"], part["time"], np.zeros(5), "breslow")
        return optimizer.nlog_likelihood(coef) * len(rows)

    expected = []
    for train, test in splits:
        # scikit-survival takes a penalty per feature itself.
        each = alpha[[0, 0, 1, 1, 1]]
        coef = CoxPHSurvivalAnalysis(each, ties=ties, tol=1e-14).fit(x[train], y[train]).coef_
        added = negative(np.arange(len(y)), coef) - negative(train, coef)
        expected.append(added / y["event"][test].sum())
    np.testing.assert_allclose(found.folds, expected, rtol=1e-6)
    direction, step = np.array([0.3, -0.7]), 1e-3
    ends = [function({"alpha": alpha + s * step * direction}).value for s in (1, -1)]
    slope = (ends[0] - ends[1]) / (2 * step)
    assert found.gradient["alpha"] @ direction == pytest.approx(slope, rel=1e-4)


def test_a_search_gives_the_genuine_model(data):
    x, y = data
    search = HypergradSearchCV(
        CoxPHSurvivalAnalysis(),
        {"alpha": [1e-1, 1e3]},
        penalty="per_feature",
        n_trials=6,
        generalization=None,
    ).fit(x, y)
    assert search.criterion_ == "partial_likelihood"
    penalties = np.array(list(search.penalties_.values()))
    expected = CoxPHSurvivalAnalysis(penalties).fit(x, y)
    np.testing.assert_allclose(search.coef_, expected.coef_, rtol=1e-4, atol=1e-6)
    assert search.score(x, y) == pytest.approx(expected.score(x, y), abs=1e-3)


def test_other_models_do_not_take_events_and_times(data):
    x, y = data
    with pytest.raises(ValueError, match="events and times"):
        HypergradSearchCV(Ridge(), {"alpha": [0.1, 1.0]}).fit(x, y)
    with pytest.raises(ValueError, match="events and times"):
        HypergradSearchCV(CoxPHSurvivalAnalysis(), {"alpha": [0.1, 1.0]}).fit(x, y["time"])
