"""Every searcher that there is under Optuna's own suites of tests for samplers."""

import functools

import optuna
import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    parametrize_suggest_method,
)

from strategies import searchers
from strategies.optuna import HypergradSampler

optuna.logging.set_verbosity(optuna.logging.ERROR)

SEARCHERS = [name for name in searchers.__all__ if name != "Searcher"]
#: Where the searcher would otherwise draw at random in all of these short studies.
OPTIONS = {
    "EvolutionSearcher": {"population": 2, "contest": 2},
    "GridSearcher": {"points": 3},
    "TPESearcher": {"startup": 2},
}


class TestSampler(BasicSamplerTestCase, RelativeSamplerTestCase):
    """All of them; the thirty-six pairs of distributions only where time does not count."""

    @pytest.fixture(params=SEARCHERS)
    def sampler(self, request):
        searcher = getattr(searchers, request.param)
        searcher = functools.partial(searcher, **OPTIONS.get(request.param, {}))
        return functools.partial(HypergradSampler, searcher=searcher, seed=1)

    @pytest.mark.slow
    @parametrize_suggest_method("x")
    @parametrize_suggest_method("y")
    def test_combination_of_different_distributions_objective(
        self, sampler, suggest_method_x, suggest_method_y
    ):
        super().test_combination_of_different_distributions_objective(
            sampler, suggest_method_x, suggest_method_y
        )

    def test_a_combination(self, sampler):
        super().test_combination_of_different_distributions_objective(
            sampler,
            lambda trial: trial.suggest_float("x", 1e-7, 10, log=True),
            lambda trial: trial.suggest_categorical("y", [0, 1, 2]),
        )
