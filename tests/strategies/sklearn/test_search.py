"""`HypergradSearchCV` where `GridSearchCV` stood."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import sparse
from scipy.stats import loguniform
from sklearn import config_context
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF
from sklearn.impute import SimpleImputer
from sklearn.kernel_ridge import KernelRidge
from sklearn.linear_model import ElasticNet, Lasso, LogisticRegression, PoissonRegressor, Ridge
from sklearn.metrics import make_scorer
from sklearn.model_selection import GridSearchCV, GroupKFold, KFold, PredefinedSplit
from sklearn.neural_network import MLPClassifier, MLPRegressor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, PolynomialFeatures, StandardScaler
from sklearn.svm import SVC, SVR, LinearSVC
from sklearn.tree import DecisionTreeRegressor
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from strategies.sklearn import FeaturePenalties, HypergradSearchCV, OvertunedWarning
from strategies.sklearn.objective import CrossValidation
from strategies.sklearn.penalties import groups_of
from strategies.sklearn.trials import Trial, journal
from strategies.space import Float, Ordinal, SearchSpace

X, Y = load_diabetes(return_X_y=True, as_frame=True)
X, Y = X.iloc[:120], Y.iloc[:120]
SPACE = {"alpha": loguniform(1e-3, 1e2)}


def test_one_penalty_is_level_with_a_grid_of_a_hundred():
    grid = GridSearchCV(Ridge(), {"alpha": np.geomspace(1e-3, 1e2, 100)}).fit(X, Y)
    search = HypergradSearchCV(Ridge(), SPACE, n_trials=15).fit(X, Y)
    error = grid.cv_results_["std_test_score"][grid.best_index_] / np.sqrt(5)
    assert search.best_score_ >= grid.best_score_ - 0.1 * error
    assert type(search.best_estimator_) is Ridge
    expected = Ridge(**search.best_params_).fit(X, Y)
    np.testing.assert_array_equal(search.best_estimator_.coef_, expected.coef_)
    assert search.criterion_ == "r2"
    assert search.penalties_ == {"all": search.best_params_["alpha"]}
    results = search.cv_results_
    np.testing.assert_allclose(1 - results["hypergrad_criterion"], results["mean_test_score"])
    # Two tangents may tell that nothing is left.
    assert len(results["params"]) == min(3, len(search.trials_))
    assert 2 <= len(search.trials_) < 15
    assert {"param_alpha", "mean_fit_time", "rank_test_score", "split4_test_score"} <= set(results)
    assert search.n_features_in_ == 10
    np.testing.assert_array_equal(search.feature_names_in_, X.columns)
    np.testing.assert_array_equal(search.predict(X), search.best_estimator_.predict(X))
    again = pickle.loads(pickle.dumps(search))
    np.testing.assert_array_equal(again.predict(X), search.predict(X))
    assert "best_estimator_" in search._repr_html_()
    assert clone(search).get_params()["n_trials"] == 15


def test_the_spaces_of_scikit_learn_and_ours():
    lists = HypergradSearchCV(
        Ridge(), [{"alpha": [0.01, 1.0]}, {"alpha": [1.0, 10.0], "fit_intercept": [False]}]
    ).fit(X, Y)
    kinds = {trial.config["grids"]["kind"] for trial in lists.trials_}
    assert kinds == {"0", "1"}
    space = SearchSpace({"alpha": Float(1e-3, 10.0, log=True), "tol": Ordinal([1e-4, 1e-3])})
    assert HypergradSearchCV(Ridge(), space, n_trials=4).fit(X, Y).best_params_["tol"] in (
        1e-4,
        1e-3,
    )
    # A grid of what no gradient exists for is searched entry by entry.
    tree = HypergradSearchCV(DecisionTreeRegressor(random_state=0), {"max_depth": [1, 2, 3]})
    with pytest.warns(UserWarning, match="DecisionTreeRegressor is not among"):
        tree.fit(X, Y)
    assert sorted(tree.cv_results_["param_max_depth"]) == [1, 2, 3]
    grid = GridSearchCV(DecisionTreeRegressor(random_state=0), {"max_depth": [1, 2, 3]}).fit(X, Y)
    assert tree.best_params_ == grid.best_params_
    assert tree.best_score_ == grid.best_score_


def test_a_grid_of_one_candidate():
    search = HypergradSearchCV(Ridge(), {"alpha": [0.3], "tol": [1e-5]}).fit(X, Y)
    assert search.best_params_ == {"alpha": 0.3, "tol": 1e-5}
    assert search.best_score_ == GridSearchCV(Ridge(), {"alpha": [0.3]}).fit(X, Y).best_score_
    assert HypergradSearchCV(Ridge(), {}).fit(X, Y).best_params_ == {}


def test_several_labels_of_a_sample_have_no_gradient():
    labels = np.stack([Y > 100, Y > 150], axis=1).astype(int)
    network = MLPClassifier((3,), max_iter=5, random_state=0)
    search = HypergradSearchCV(network, {"alpha": [0.1, 1.0]}, cv=2)
    with pytest.warns(UserWarning, match="several labels"):
        search.fit(X, labels)
    assert search.predict(X).shape == labels.shape


def test_estimators_in_a_grid():
    steps = make_pipeline(StandardScaler(), Ridge())
    scaler = {"standardscaler": [StandardScaler(), PolynomialFeatures(), "passthrough"]}
    search = HypergradSearchCV(steps, {**scaler, "ridge__alpha": [0.1, 10.0]}, n_trials=6)
    results = search.fit(X, Y).cv_results_
    np.testing.assert_allclose(1 - results["hypergrad_criterion"], results["mean_test_score"])
    last = HypergradSearchCV(steps, {"ridge": [Ridge(), Lasso(), Ridge(alpha=10.0)]})
    with pytest.warns(UserWarning, match="the last step itself"):
        last.fit(X, Y)
    grid = GridSearchCV(steps, {"ridge": [Ridge(), Lasso(), Ridge(alpha=10.0)]}).fit(X, Y)
    assert last.best_score_ == grid.best_score_
    assert repr(last.best_params_) == repr(grid.best_params_)


def test_penalties_per_feature_and_per_group():
    search = HypergradSearchCV(
        Lasso(),
        {"alpha": loguniform(0.01, 10.0)},
        penalty="per_feature",
        n_trials=12,
        generalization=None,
    ).fit(X * 20, Y)
    assert list(search.penalties_) == list(X.columns)
    assert isinstance(search.best_estimator_.named_steps["penalties"], FeaturePenalties)
    assert isinstance(search.best_estimator_.named_steps["lasso"], Lasso)
    # The tuned penalties are those of the genuine fit: its optimality conditions hold.
    coef, penalties = search.coef_, np.array(list(search.penalties_.values()))
    centred = X * 20 - (X * 20).mean()
    residual = Y - search.predict(X * 20)
    slope = centred.to_numpy().T @ residual.to_numpy() / len(Y)
    on = coef != 0
    np.testing.assert_allclose(slope[on], (penalties * np.sign(coef))[on], rtol=0.02)
    assert np.all(np.abs(slope[~on]) <= 1.02 * penalties[~on])
    assert search.switched_off() == [n for n, c in zip(X.columns, coef, strict=True) if c == 0]
    groups = HypergradSearchCV(
        Ridge(),
        SPACE,
        penalty={"body": ["age", "sex", "bmi", "bp"]},
        n_trials=6,
        generalization="fresh",
    ).fit(X, Y)
    assert list(groups.penalties_) == ["body", "remainder"]
    assert groups.groups_["remainder"] == [f"s{i}" for i in range(1, 7)]
    assert np.isfinite(groups.generalization_score_)
    groups.plot_convergence()
    groups.plot_path(X, Y)
    groups.plot_overtuning(X[:60], Y[:60], X[60:], Y[60:])


def test_a_pipeline_whose_first_steps_are_fitted_per_fold():
    table = X.copy()
    table.iloc[::7, 2] = np.nan
    table["region"] = pd.Series(np.array(list("abc"))[np.arange(len(X)) % 3], index=X.index)
    numbers = make_pipeline(SimpleImputer(), StandardScaler())
    columns = make_column_transformer(
        (numbers, list(X.columns)), (OneHotEncoder(sparse_output=False), ["region"])
    )
    model = make_pipeline(columns, Ridge())
    search = HypergradSearchCV(
        model, {"ridge__alpha": [0.1, 100.0]}, penalty="per_group", n_trials=6, generalization=None
    ).fit(table, Y)
    assert list(search.penalties_) == ["pipeline", "onehotencoder"]
    names = [f"pipeline__{name}" for name in X.columns] + [
        f"onehotencoder__region_{c}" for c in "abc"
    ]
    groups = groups_of({"body": ["age", "pipeline__sex", 2], "c": ["region_c"]}, names)
    assert {name: members.tolist() for name, members in groups.items()} == {
        "body": [0, 1, 2],
        "c": [12],
        "remainder": [*range(3, 12)],
    }
    results = search.cv_results_
    # The folds' own preprocessing, in the criterion as in scikit-learn's fits.
    np.testing.assert_allclose(1 - results["hypergrad_criterion"], results["mean_test_score"])
    # Preprocessing can be searched beside.
    steps = make_pipeline(PolynomialFeatures(), StandardScaler(), Ridge())
    both = HypergradSearchCV(
        steps, {"ridge__alpha": [0.1, 1e3], "polynomialfeatures__degree": [1, 2]}, n_trials=8
    ).fit(X, Y)
    results = both.cv_results_
    np.testing.assert_allclose(1 - results["hypergrad_criterion"], results["mean_test_score"])


def test_weights_groups_and_several_scores():
    weight = np.tile([1.0, 3.0], 60)
    search = HypergradSearchCV(
        Ridge(),
        SPACE,
        cv=GroupKFold(3),
        scoring={"r2": "r2", "mse": "neg_mean_squared_error"},
        refit="mse",
        n_trials=5,
    ).fit(X, Y, groups=np.arange(120) % 7, sample_weight=weight)
    results = search.cv_results_
    assert search.criterion_ == "squared_error"
    np.testing.assert_allclose(-results["hypergrad_criterion"], results["mean_test_mse"])
    assert "mean_test_r2" in results
    expected = Ridge(**search.best_params_).fit(X, Y, sample_weight=weight)
    np.testing.assert_allclose(search.best_estimator_.coef_, expected.coef_)
    with config_context(enable_metadata_routing=True):
        routed = HypergradSearchCV(
            Ridge().set_fit_request(sample_weight=True).set_score_request(sample_weight=True),
            SPACE,
            cv=3,
            n_trials=4,
        ).fit(X, Y, sample_weight=weight)
        expected = Ridge(**routed.best_params_).fit(X, Y, sample_weight=weight)
        np.testing.assert_allclose(routed.best_estimator_.coef_, expected.coef_)
        last = Ridge().set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        scaled = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), last)
        routed = HypergradSearchCV(scaled, {"ridge__alpha": [0.1, 10.0]}, cv=3, n_trials=4).fit(
            X, Y, sample_weight=weight
        )
        alpha = routed.best_params_["ridge__alpha"]
        expected = Ridge(alpha).fit(StandardScaler().fit_transform(X), Y, sample_weight=weight)
        np.testing.assert_allclose(routed.best_estimator_[-1].coef_, expected.coef_)
        assert "with gradients" in routed.explanation_
    chosen = HypergradSearchCV(Ridge(), SPACE, n_trials=4, refit=lambda results: 1).fit(X, Y)
    assert chosen.best_index_ == 1
    both = HypergradSearchCV(
        Ridge(),
        SPACE,
        penalty="per_feature",
        scoring=["r2", "neg_mean_squared_error"],
        refit=lambda results: 1,
        n_trials=4,
    ).fit(X, Y)
    assert both.best_index_ == 1
    assert both.generalization_score_ is None


def test_a_splitter_without_a_seed_is_asked_once():
    search = HypergradSearchCV(Ridge(), SPACE, cv=KFold(4, shuffle=True), n_trials=4).fit(X, Y)
    results = search.cv_results_
    np.testing.assert_allclose(1 - results["hypergrad_criterion"], results["mean_test_score"])


def test_splits_that_are_listed():
    folds = list(KFold(3).split(X))
    listed = HypergradSearchCV(Ridge(), SPACE, cv=folds, n_trials=3).fit(X, Y)
    once = HypergradSearchCV(Ridge(), SPACE, cv=iter(folds), n_trials=3).fit(X, Y)
    assert once.best_score_ == listed.best_score_
    # A part of the samples has no such splits.
    fixed = PredefinedSplit(np.arange(len(X)) % 2)
    many = HypergradSearchCV(Ridge(), SPACE, penalty="per_feature", cv=fixed, n_trials=3)
    assert many.fit(X, Y).generalization_score_ is None
    with pytest.raises(ValueError, match=r"'generalization'.*lists the samples"):
        many.set_params(generalization="fresh").fit(X, Y)


def test_sparse_features_stay_sparse():
    rng = np.random.default_rng(0)
    x = sparse.random_array((200, 300), density=0.05, rng=rng, format="csr")
    y = (np.asarray(x[:, :20].sum(axis=1)).ravel() > 0.5).astype(int)
    model = LogisticRegression(tol=1e-8, max_iter=1000)
    search = HypergradSearchCV(model, {"C": [0.01, 100.0]}, n_trials=4, scoring="neg_log_loss").fit(
        x, y
    )
    results = search.cv_results_
    np.testing.assert_allclose(
        -results["hypergrad_criterion"], results["mean_test_score"], rtol=1e-4
    )


BAD = {
    "a parameter that there is not": (Ridge(), {"alpah": [0.1, 1.0]}, {}, {}, "'alpah'"),
    "a step's parameter that there is not": (
        make_pipeline(StandardScaler(), Ridge()),
        {"ridge__alpah": [0.1, 1.0]},
        {},
        {},
        "'ridge__alpah'.*'ridge__alpha'",
    ),
    "no smooth stand-in": (
        Ridge(),
        SPACE,
        {"scoring": make_scorer(lambda y, p: 0.0)},
        {},
        "'scoring'",
    ),
    "negative weights": (Ridge(), SPACE, {}, {"sample_weight": np.full(120, -1.0)}, "weights >= 0"),
    "negative counts": (PoissonRegressor(), SPACE, {}, {}, "y: expected targets >= 0"),
    "fewer samples than folds": (Ridge(), SPACE, {"cv": 200}, {}, "n_splits=200"),
    "a feature in two groups": (
        Ridge(),
        SPACE,
        {"penalty": {"a": ["age"], "b": ["age"]}},
        {},
        "one group",
    ),
    "a feature that there is not": (Ridge(), SPACE, {"penalty": {"a": ["agee"]}}, {}, "'agee'"),
    "no blocks": (Ridge(), SPACE, {"penalty": "per_group"}, {}, "'penalty'"),
    "penalties of a tree": (
        DecisionTreeRegressor(),
        {"max_depth": [1, 2]},
        {"penalty": "per_feature"},
        {},
        "'penalty'.*DecisionTreeRegressor",
    ),
    "an unknown criterion": (Ridge(), SPACE, {"criterion": "loss"}, {}, "'criterion'"),
    "continuous classes": (LinearSVC(), {"C": [0.1, 1.0]}, {"cv": KFold(2)}, {}, "continuous"),
    "a score of its own for several": (
        Ridge(),
        SPACE,
        {"scoring": ["r2"], "refit": lambda results: 0, "generalization": "fresh"},
        {},
        "'generalization'.*function",
    ),
    "a fold without a class": (
        LinearSVC(),
        {"C": [0.1, 1.0]},
        {"cv": KFold(2)},
        {},
        "none of class 1 in that of split 0",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named(case):
    estimator, space, options, fit, message = BAD[case]
    y = Y + 0.5 if case != "a fold without a class" else (np.arange(120) < 60).astype(int)
    y = y - 100.0 if case == "negative counts" else y
    with pytest.raises(ValueError, match=message):
        HypergradSearchCV(estimator, space, **options).fit(X, y, **fit)


def test_penalties_that_fit_the_folds_are_told():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(40, 60)), rng.normal(size=40)
    search = HypergradSearchCV(Ridge(), {"alpha": [1e-2, 1e4]}, penalty="per_feature", n_trials=20)
    with pytest.warns(OvertunedWarning, match="generalization_score_"):
        search.fit(x, y)
    assert search.best_score_ > search.generalization_score_


def test_constant_features_are_harmless():
    table = X.assign(constant=1.0)
    search = HypergradSearchCV(Ridge(), SPACE, n_trials=4).fit(table, Y)
    assert search.coef_[-1] == 0.0


class Sometimes(Ridge):
    """A subclass may train otherwise, so that no model is known of it."""

    def fit(self, X, y, sample_weight=None):
        if self.alpha > 1.0:
            raise ValueError("too large")
        return super().fit(X, y)


@pytest.mark.filterwarnings("ignore")
def test_failed_fits_are_rows_with_the_error_score():
    search = HypergradSearchCV(Sometimes(), {"alpha": [0.1, 0.5, 2.0, 3.0]}, n_trials=6).fit(X, Y)
    results = search.cv_results_
    failed = np.asarray(results["param_alpha"], float) > 1.0
    assert failed.any()
    np.testing.assert_array_equal(np.isnan(results["mean_test_score"]), failed)
    assert search.best_params_["alpha"] < 1.0


SCRIPT = """
import sys, time
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Ridge
from strategies.sklearn import HypergradSearchCV

class Slow(Ridge):
    def fit(self, X, y, sample_weight=None):
        time.sleep(0.02)
        return super().fit(X, y)

X, y = load_diabetes(return_X_y=True)
model = Slow() if sys.argv[2] == "scores" else Ridge()
space = {"alpha": [0.001, 0.01, 0.1, 1.0]}
search = HypergradSearchCV(model, space, n_trials=4, resume=sys.argv[1])
search.fit(X[:100], y[:100])
print(search.best_params_["alpha"], search.best_score_, len(search.trials_))
"""


@pytest.mark.parametrize("kind", ["scores", "gradients"])
def test_a_killed_search_goes_on_where_it_was(tmp_path, kind):
    def start(path):
        return subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", SCRIPT, str(path), kind],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parents[3],
        )

    whole = start(tmp_path / "whole")
    expected, errors = whole.communicate(timeout=300)
    assert whole.returncode == 0, errors
    path = tmp_path / "killed"
    killed = start(path)
    while not path.exists() or path.read_text().count("\n") < 3:
        time.sleep(0.01)
        assert killed.poll() is None or path.read_text().count("\n") >= 3
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    # A torn last line, as a kill within a write would leave it.
    before = path.read_text()
    path.write_text(before[: before.rfind("\n") + 1] + '{"trial": {"sta')
    kept = [json.loads(line) for line in before.splitlines() if line.endswith("}")]
    resumed = start(path)
    output, errors = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, errors
    assert output == expected
    after = [json.loads(line) for line in path.read_text().splitlines()]
    assert after[: len(kept)] == kept
    numbers = [line["trial"]["number"] for line in after if "trial" in line]
    assert numbers == list(range(len(numbers)))


def test_a_candidate_is_fitted_once_though_the_trial_was_cut_off_after_its_fits(tmp_path):
    path = tmp_path / "trials"

    def start():
        tree = DecisionTreeRegressor(max_features=1)
        space = {"max_depth": [1, 2, 3]}
        return HypergradSearchCV(tree, space, n_trials=3, resume=path).fit(X, Y)

    whole = start()
    lines = path.read_text().splitlines(keepends=True)
    assert ["trial" in line for line in lines] == [False, False, True] + [False, True] * 2
    path.write_text("".join(lines[:-1]))
    resumed = start()
    scores = [search.cv_results_["mean_test_score"] for search in (whole, resumed)]
    np.testing.assert_array_equal(*scores)
    assert path.read_text().count('"fit"') == 3


def test_a_file_of_another_search_is_refused(tmp_path):
    path = tmp_path / "search"
    HypergradSearchCV(Ridge(), SPACE, n_trials=3, resume=path).fit(X, Y)
    with pytest.raises(ValueError, match="'resume'"):
        HypergradSearchCV(Ridge(), SPACE, n_trials=3, resume=path).fit(X, Y + 1)


def test_a_flipped_bit_in_its_file_is_damage(tmp_path):
    path = tmp_path / "search"
    with journal(path, "of this") as kept:
        for number in range(3):
            kept.add_trial(Trial("one", number, {"x": 0.5}, 1.5, {"x": 0.25}, [1.0, 2.0]))
        kept.add_fit({"scores": [1.0, 2.0]})
    with journal(path, "of this") as whole:
        trials, fits = whole.trials, whole.fits
    good, rng = path.read_bytes(), random.Random(0)
    for _ in range(300):
        damaged = bytearray(good)
        damaged[rng.randrange(len(good) - 1)] ^= 1 << rng.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="'resume': expected"), journal(path, "of this"):
            pass
    # What is whole but for the end of the last line is all there.
    for end in (b"\n", b"", *(bytes([ord("\n") ^ 1 << bit]) for bit in range(8))):
        path.write_bytes(good[:-1] + end)
        with journal(path, "of this") as whole:
            assert (whole.trials, whole.fits) == (trials, fits)
        assert path.read_bytes() == good


ALPHA, C = {"alpha": [0.1, 1.0]}, {"C": [0.1, 1.0]}
#: Estimators of twelve kinds, in the fewest trials that are a search.
CHECKED = [
    (Ridge(), ALPHA),
    (Lasso(), ALPHA),
    (ElasticNet(), ALPHA),
    (LogisticRegression(), C),
    (LinearSVC(), C),
    (SVC(), C),
    (SVR(), C),
    (KernelRidge(), ALPHA),
    (PoissonRegressor(), ALPHA),
    (GaussianProcessRegressor(RBF(), optimizer=None), ALPHA),
    (
        MLPClassifier(
            hidden_layer_sizes=(4,), max_iter=60, learning_rate_init=0.05, random_state=0
        ),
        ALPHA,
    ),
    (
        MLPRegressor(hidden_layer_sizes=(4,), max_iter=60, learning_rate_init=0.05, random_state=0),
        ALPHA,
    ),
    (make_pipeline(StandardScaler(), Ridge()), {"ridge__alpha": [0.1, 1.0]}),
    (DecisionTreeRegressor(random_state=0), {"max_depth": [2, 3]}),
]


#: Checks whose targets may be negative, unless a tag says that they must not.
NEGATIVE_TARGETS = (
    "check_fit_check_is_fitted",
    "check_fit_idempotent",
    "check_n_features_in",
    "check_n_features_in_after_fitting",
    "check_regressor_data_not_an_array",
    "check_regressors_no_decision_function",
    "check_regressors_train",
)


def failed_by_grids(search):
    """What `GridSearchCV` fails over the same estimator, for the same reason."""
    tags, failed = get_tags(search.estimator), {}
    if tags.target_tags.multi_output:
        failed["check_supervised_y_2d"] = "the tag of several outputs is not passed on"
    if tags.input_tags.allow_nan:
        failed["check_estimators_nan_inf"] = "the tag of missing values is not passed on"
    if tags.target_tags.positive_only:
        failed |= dict.fromkeys(NEGATIVE_TARGETS, "the tag of positive targets is not passed on")
    return failed


@pytest.mark.slow
@parametrize_with_checks(
    [HypergradSearchCV(model, grid, n_trials=2, finalists=1) for model, grid in CHECKED],
    expected_failed_checks=failed_by_grids,
)
def test_checks_of_scikit_learn(estimator, check):
    check(estimator)


@parametrize_with_checks(
    [HypergradSearchCV(DecisionTreeRegressor(random_state=0), {"max_depth": [2, 3]}, n_trials=2)],
    expected_failed_checks=failed_by_grids,
)
@pytest.mark.filterwarnings("ignore:BayesSearcher on scores")
def test_checks_of_scikit_learn_without_gradients(estimator, check):
    check(estimator)


def test_several_classes_and_a_score_that_is_not_smooth():
    x, y = load_breast_cancer(return_X_y=True)
    model = make_pipeline(StandardScaler(), LogisticRegression())
    search = HypergradSearchCV(
        model, {"logisticregression__C": [1e-3, 1e2]}, scoring="roc_auc", n_trials=6
    ).fit(x[:150], y[:150])
    assert search.criterion_ == "log_loss"
    assert search.best_score_ == search.cv_results_["mean_test_score"].max()
    assert set(search.classes_) == {0, 1}
    assert search.predict_proba(x).shape == (569, 2)


@pytest.mark.slow
def test_length_scales_of_a_gaussian_process():
    x = X * 20
    process = GaussianProcessRegressor(RBF([1.0] * 10), optimizer=None, normalize_y=True)
    space = SearchSpace(
        {
            "alpha": Float(0.1, 10.0, log=True),
            "kernel__length_scale": Float(0.3, 30.0, log=True, shape=(10,)),
        }
    )
    own = HypergradSearchCV(process, space, criterion="marginal_likelihood", n_trials=6).fit(x, Y)
    assert list(own.penalties_) == list(X.columns)
    assert own.best_estimator_.kernel_.length_scale == pytest.approx(list(own.penalties_.values()))
    # A step in front of a kernel with a single length scale is the same model.
    single = GaussianProcessRegressor(RBF(), optimizer=None, normalize_y=True)
    grid = {"alpha": [0.1, 10.0], "kernel__length_scale": [0.3, 30.0]}
    search = HypergradSearchCV(
        single,
        grid,
        penalty="per_feature",
        criterion="marginal_likelihood",
        n_trials=9,
        generalization=None,
    ).fit(x, Y)
    scales = np.array(list(search.penalties_.values()))
    assert np.ptp(scales) > 0
    expected = GaussianProcessRegressor(
        RBF(scales), alpha=search.best_params_["gaussianprocessregressor__alpha"], optimizer=None
    ).set_params(normalize_y=True)
    np.testing.assert_allclose(search.predict(x), expected.fit(x, Y).predict(x), rtol=1e-6)


def test_after_ctrl_c_no_search_is_repeated_for_a_score(monkeypatch):
    call, calls = CrossValidation.__call__, []

    def interrupted(self, params):
        calls.append(params)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return call(self, params)

    monkeypatch.setattr(CrossValidation, "__call__", interrupted)
    search = HypergradSearchCV(Ridge(), SPACE, generalization="fresh").fit(X, Y)
    assert search.stopped_ == "it was interrupted"
    assert search.generalization_score_ is None
    assert len(calls) == 2
