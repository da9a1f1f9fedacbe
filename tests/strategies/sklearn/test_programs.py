"""One program for all folds and all searches; sparse products; when a search of one number ends."""

from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import sparse
from scipy.optimize import approx_fprime
from sklearn.datasets import load_diabetes, make_classification
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import check_scoring
from sklearn.model_selection import KFold, StratifiedKFold, cross_val_score

from strategies.searchers import HypergradientSearcher
from strategies.sklearn import HypergradSearchCV, programs
from strategies.sklearn.folds import Table
from strategies.sklearn.models.sparse_matrix import SparseMatrix
from strategies.sklearn.objective import CrossValidation
from strategies.sklearn.prior import RatioPrior
from strategies.sklearn.stages import Budget
from strategies.sklearn.trials import Journal, Stage, Trial
from strategies.space import Float, SearchSpace
from strategies.stopping import Stop

X, Y = (part[:90] for part in load_diabetes(return_X_y=True))


def objective(estimator, x, y, rows=None):
    classifier = y.dtype.kind == "i"
    splits = list((StratifiedKFold if classifier else KFold)(3).split(x, y))
    return splits, CrossValidation(
        estimator,
        Table(x, y, splits, None, None, classifier),
        criterion="auto",
        scorer=check_scoring(estimator),
        searched=frozenset(["C" if classifier else "alpha"]),
        groups=None,
        width=x.shape[1],
        rows=rows,
    )


def test_searches_share_a_program_and_parts_of_a_table_have_its_shape():
    first = objective(Ridge(alpha=1.0), X, Y)[1]
    first({"alpha": 0.3})
    (_, program), *_ = first._programs.values()
    assert program._cache_size() == 1
    # Another value of what is searched, another table, and a part of it filled up.
    second = objective(Ridge(alpha=7.0), X + 1.0, Y[::-1])[1]
    second({"alpha": 0.3})
    part = objective(Ridge(), X[:70], Y[:70], rows=len(X))[1]({"alpha": 0.3})
    assert next(iter(second._programs.values()))[1] is program
    assert program._cache_size() == 1
    alone = objective(Ridge(), X[:70], Y[:70])[1]({"alpha": 0.3})
    np.testing.assert_allclose(part.folds, alone.folds, rtol=1e-12)
    np.testing.assert_allclose(part.gradient["alpha"], alone.gradient["alpha"], rtol=1e-10)
    # What is built in makes another program.
    other = objective(Ridge(fit_intercept=False), X, Y)[1]
    other._program({})
    assert next(iter(other._programs.values()))[1] is not program


def test_a_searched_parameter_that_is_inactive_has_the_estimators_own_value():
    for alpha in (1.0, 50.0):
        function = objective(Ridge(alpha=alpha), X, Y)[1]
        function({"alpha": 0.3})
        own, same = function({}), function({"alpha": alpha})
        np.testing.assert_allclose(own.folds, same.folds, rtol=1e-10)
        assert own.gradient == {}


def test_the_number_of_programs_is_bounded(monkeypatch):
    monkeypatch.setattr(programs, "_KEPT", 2)
    monkeypatch.setattr(programs, "_programs", OrderedDict())
    for tol in (1e-1, 1e-2, 1e-3, 1e-5):
        objective(Ridge(tol=tol), X, Y)[1]._program({})
    assert len(programs._programs) == 2


def test_sparse_products_are_those_of_scipy():
    rng = np.random.default_rng(0)
    entries = rng.integers(0, [[7], [30]], (2, 60))
    several = [
        sparse.csr_array((rng.normal(size=60), (entries[0], entries[1])), shape=(7, 30)),
        sparse.csr_array((rng.normal(size=9), (entries[0, :9], entries[1, :9])), shape=(7, 30)),
    ]
    with jax.enable_x64(True):
        right, left_ = jnp.asarray(rng.normal(size=(30, 2))), jnp.asarray(rng.normal(size=(7, 2)))
        stacked = SparseMatrix.stacked(several)
        found = jax.vmap(lambda x: (x @ right, x.T @ left_, x.squared() @ right))(stacked)
        for number, x in enumerate(several):
            expected = x @ right, x.T @ left_, (x * x) @ right
            for one, other in zip(found, expected, strict=True):
                np.testing.assert_allclose(one[number], other, atol=1e-12)


def test_a_sparse_logistic_regression_is_that_of_dense_features():
    x, y = make_classification(80, 6, random_state=0)
    x = np.where(np.abs(x) > 0.5, x, 0.0)
    estimator = LogisticRegression(tol=1e-10, max_iter=10**4)
    splits, function = objective(estimator, sparse.csr_array(x), y)
    found = function({"C": 0.3})
    scores = cross_val_score(estimator.set_params(C=0.3), x, y, cv=splits, scoring="neg_log_loss")
    np.testing.assert_allclose(found.folds, -scores, rtol=1e-5)
    near = [function({"C": 0.3 + step}).value for step in (-1e-3, 1e-3)]
    assert found.gradient["C"] == pytest.approx((near[1] - near[0]) / 2e-3, rel=1e-3)


@pytest.mark.parametrize(
    ("density", "loss"), [(False, 1.3), (False, -9.0), (True, 1.3), (True, -9.0)]
)
def test_the_prior_leaves_the_shared_level_alone(density, loss):
    prior = RatioPrior(0.7, 50, density)
    start, slope = np.array([0.3, 2.0, 5.0]), np.array([0.4, -0.2, 0.1])
    value, gradient = prior(loss + slope @ start, slope, start)

    def along(logs):
        penalties = np.exp(logs)
        return prior(loss + slope @ penalties, slope, penalties)[0]

    numeric = approx_fprime(np.log(start), along, 1e-7) / start
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5)
    assert value > loss + slope @ start
    assert prior(loss, slope, np.full(3, 0.2))[0] == loss


def stage_of(*known):
    space = SearchSpace({"alpha": Float(0.0, 1.0)})
    stage = Stage("tuned", HypergradientSearcher(space), Journal(None, ""))
    for number, (at, value, slope) in enumerate(known):
        stage.finish(Trial("tuned", number, {"alpha": at}, value, {"alpha": slope}, [value] * 3))
    return stage


def test_patience_counts_from_the_last_start_and_without_any_success():
    stage = stage_of((0.5, 1.0, 1.0), (0.6, 2.0, 1.0), (0.7, 2.0, 1.0))
    budget = Budget(30, None, None, Stop(patience=2))
    assert budget.over(stage)
    assert budget.stopped == "2 trials without a better one"
    stage.start_at(Trial("shared", 0, {"alpha": 0.2}, 0.5, {"alpha": 0.1}), {"alpha": 0.2}, 3)
    budget.begin()
    assert not budget.over(stage)
    assert budget.stopped is None
    stage.finish(Trial("tuned", 3, {"alpha": 0.3}, 0.6, {"alpha": 0.1}, [0.6]))
    assert not budget.over(stage)
    stage.finish(Trial("tuned", 4, {"alpha": 0.1}, 0.6, {"alpha": 0.1}, [0.6]))
    assert budget.over(stage)
    failures = stage_of((0.5, None, 1.0), (0.6, None, 1.0))
    assert Budget(30, 2, None).settled(failures)
    assert not Budget(30, 3, None).settled(failures)


def test_a_search_of_many_penalties_begins_in_the_middle_and_goes_on_from_the_shared_one():
    search = HypergradSearchCV(
        Ridge(),
        SearchSpace({"alpha": Float(1e-3, 1e1, log=True)}),
        penalty="per_feature",
        n_trials=9,
        generalization=None,
    ).fit(X, Y)
    stages = [trial.stage for trial in search.trials_]
    assert stages[:3] == ["tuned"] * 3
    shared = [trial for trial in search.trials_ if trial.stage == "shared"]
    assert 1 <= len(shared) <= 3
    assert stages[-1] == "tuned"
    np.testing.assert_allclose(search.trials_[0].config["alpha"], 0.1)
    # The shared penalty's trials have a derivative in each, which the others begin with.
    assert len(shared[0].gradient["alpha"]) == X.shape[1]
    after = search.trials_[stages.index("shared") + len(shared) :]
    assert min(t.value for t in after) < min(t.value for t in shared)
