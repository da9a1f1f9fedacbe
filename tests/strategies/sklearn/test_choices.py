"""Lists beside domains, enumerations and words among the choices of `HypergradSearchCV`."""

import enum

import numpy as np
import pytest
from scipy.stats import loguniform
from sklearn.datasets import make_regression
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.svm import SVR
from sklearn.tree import DecisionTreeRegressor

from strategies.sklearn import HypergradSearchCV
from strategies.sklearn.spaces import space_of
from strategies.space import Categorical, Float, Ordinal


class Kernel(enum.StrEnum):
    SMOOTH = "rbf"
    STRAIGHT = "linear"


class Depth(enum.IntEnum):
    FLAT = 1
    DEEP = 3


DATA = make_regression(40, 3, noise=3.0, random_state=0)
STEPS = make_pipeline(FunctionTransformer(), Ridge())
CASES = {
    "words": (SVR(), {"C": [0.1, 1.0, 10.0], "gamma": ["scale", "auto", 0.1]}),
    "a list beside a domain": (SVR(), {"C": Float(0.1, 10.0, log=True), "gamma": ["scale", 0.1]}),
    "texts": (SVR(), {"kernel": list(Kernel), "C": [1.0, 3.0]}),
    "numbers": (DecisionTreeRegressor(), {"max_depth": list(Depth), "ccp_alpha": Float(0, 0.1)}),
    "functions": (
        STEPS,
        {"functiontransformer__func": [np.abs, np.negative], "ridge__alpha": Float(0.1, 1.0)},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_every_choice_is_tried_and_found_again(case, tmp_path):
    estimator, params = CASES[case]
    found = [
        HypergradSearchCV(estimator, params, n_trials=6, cv=2, resume=tmp_path / "trials").fit(
            *DATA
        )
        for _ in range(2)
    ]
    # Nothing is drawn anew: trees without a seed differ from fit to fit.
    assert repr(found[0].best_params_) == repr(found[1].best_params_)
    scores = [search.cv_results_["mean_test_score"] for search in found]
    np.testing.assert_array_equal(*map(sorted, scores))
    assert len(found[1].trials_) == len(found[0].trials_)


def test_what_is_listed_beside_domains_is_chosen_from():
    params = {"C": Float(0.1, 1.0), "gamma": ["scale", 0.1], "degree": np.arange(1, 4)}
    domains = space_of(params | {"epsilon": loguniform(0.01, 1.0)}).domains
    assert domains["gamma"] == Categorical(["scale", 0.1])
    assert domains["degree"] == Ordinal([1, 2, 3])
    assert domains["epsilon"] == Float(0.01, 1.0, log=True)
