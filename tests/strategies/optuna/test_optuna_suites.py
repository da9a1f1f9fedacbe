"""Every searcher that there is under Optuna's own suites of tests for samplers."""

import functools

import optuna
import pytest
from optuna.testing.pytest_samplers import (
    BasicSamplerTestCase,
    RelativeSamplerTestCase,
    SingleOnlySamplerTestCase,
    parametrize_suggest_method,
)

import strategies
from strategies.optuna import HypergradSampler
from strategies.searchers import (
    AutoSearcher,
    BayesSearcher,
    CMAESSearcher,
    EvolutionSearcher,
    GridSearcher,
    HypergradientSearcher,
    ParetoSearcher,
    RandomSearcher,
    SobolSearcher,
    TPESearcher,
)

optuna.logging.set_verbosity(optuna.logging.ERROR)


class _Suites(BasicSamplerTestCase, RelativeSamplerTestCase, SingleOnlySamplerTestCase):
    """All of them; the thirty-six pairs of distributions only where time does not count."""

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


class TestHypergradientSampler(_Suites):
    @pytest.fixture
    def sampler(self):
        return HypergradSampler


class TestBayesSampler(_Suites):
    @pytest.fixture
    def sampler(self):
        return functools.partial(HypergradSampler, searcher=BayesSearcher, seed=1)


class TestParetoSampler(_Suites):
    @pytest.fixture
    def sampler(self):
        return functools.partial(HypergradSampler, searcher=ParetoSearcher, seed=1)


class TestTPESampler(_Suites):
    @pytest.fixture
    def sampler(self):
        searcher = functools.partial(TPESearcher, startup=2)
        return functools.partial(HypergradSampler, searcher=searcher, seed=1)


class TestEvolutionSampler(_Suites):
    @pytest.fixture
    def sampler(self):
        searcher = functools.partial(EvolutionSearcher, population=2, contest=2)
        return functools.partial(HypergradSampler, searcher=searcher, seed=1)


class TestSobolSampler(_Suites):
    @pytest.fixture
    def sampler(self):
        return functools.partial(HypergradSampler, searcher=SobolSearcher, seed=1)


class TestGridSampler(_Suites):
    @pytest.fixture
    def sampler(self):
        searcher = functools.partial(GridSearcher, points=3)
        return functools.partial(HypergradSampler, searcher=searcher, seed=1)


class TestRandomSampler(_Suites):
    @pytest.fixture
    def sampler(self):
        return functools.partial(HypergradSampler, searcher=RandomSearcher, seed=1)


class TestCMAESSampler(_Suites):
    @pytest.fixture
    def sampler(self):
        return functools.partial(HypergradSampler, searcher=CMAESSearcher, seed=1)


class TestAutoSampler(_Suites):
    @pytest.fixture
    def sampler(self):
        return functools.partial(HypergradSampler, searcher=AutoSearcher, seed=1)


def test_no_searcher_is_left_out():
    tested = {
        name.removeprefix("Test").removesuffix("Sampler") + "Searcher"
        for name in globals()
        if name.startswith("Test")
    }
    assert tested == {name for name in strategies.searchers.__all__ if name != "Searcher"}
    assert HypergradientSearcher.__name__ in tested
