"""The estimator: cross-validated search along hypergradients, in the place of `GridSearchCV`."""

import copy
import numbers
import os
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from sklearn.base import is_classifier
from sklearn.model_selection import check_cv
from sklearn.model_selection._search import BaseSearchCV
from sklearn.utils import indexable
from sklearn.utils._param_validation import Interval, StrOptions

from strategies.sklearn.fitted import attributes
from strategies.sklearn.generalization import generalization, wanted
from strategies.sklearn.penalties import with_feature_penalties
from strategies.sklearn.reports import Reports
from strategies.sklearn.run import Run
from strategies.sklearn.splits import FrozenSplits
from strategies.space import SearchSpace
from strategies.stopping import INTERRUPTED, Stop


class HypergradSearchCV(Reports, BaseSearchCV):
    """Cross-validated search along hypergradients, in the place of `GridSearchCV`.

    Where the estimator, or a pipeline's last step, has a differentiable model (Ridge, Lasso,
    ElasticNet, LogisticRegression, LinearSVC, SVC, SVR, KernelRidge, Poisson-, Gamma- and
    TweedieRegressor, GaussianProcessRegressor, MLPClassifier, MLPRegressor, scikit-survival's
    CoxPHSurvivalAnalysis) a *trial* trains all folds in one compiled program and gives a
    smooth criterion with its derivative in every penalty; the searcher is `HypergradientSearcher`.
    The best trials are then fitted and scored by scikit-learn itself, fold by fold: these are the
    rows of `cv_results_`, and the best one is refitted. For anything else every trial is such a
    row, and `BayesSearcher` decides; a `UserWarning` and `explanation_` say why.

    Parameters:
        estimator: An estimator or a pipeline. A pipeline's first steps are fitted per fold.
        param_space: A grid, a list of grids, distributions of `scipy.stats`, or a `SearchSpace` (or
            the mapping of domains that makes one) with scikit-learn's names of parameters. A grid
            of numbers for a differentiable parameter means the range between its ends.
        penalty: `"single"`, `"per_feature"`, `"per_group"` (the blocks of a `ColumnTransformer`) or
            a mapping from groups to lists of features (names or positions). With other than
            `"single"` the parameter `alpha` or `C` (for kernels `gamma`, for a Gaussian process the
            length scale) gets one value for each;
            `best_estimator_` is a pipeline with a step `FeaturePenalties` in front of the genuine
            estimator.
        ratio_spread: Penalties of features or groups have a prior: their logarithms are normal
            around their mean, with this standard deviation (1 is a factor of e). It keeps them
            from fitting the folds; `None` for no prior.
        criterion: What is minimised by trials: `"auto"`, the one that stands for `scoring`, a name
            in the table below, a function `(output, y, weights) -> scalar` of `jax.numpy` arrays,
            or `None` to search without gradients.
        n_trials: Most trials.
        patience: Trials without an improvement after which to stop; gradients only. A search of one
            number also stops where two tangents leave nothing to gain. `None` for never.
        timeout: Seconds after which no further trial starts.
        stop: A `strategies.Stop` by time, cost (seconds of all trials), patience or expected gain,
            beside `patience` and `timeout`; patience and gain are those of each stage.
        finalists: Number of best trials that scikit-learn fits and scores; gradients only.
        generalization: `"fresh"` (the whole search is repeated without a fifth of the samples, and
            scored on them), `"nested"` (with five folds in turn), a splitter, or `None`. `"auto"`
            is `"fresh"` where penalties are one per feature or group, else `None`. See
            `generalization_score_`.
        resume: A file. What is finished is in it, so that the same search, started again after a
            crash, goes on from there.
        random_state: An integer; `None` is 0.
        scoring, n_jobs, refit, cv, verbose, pre_dispatch, error_score, return_train_score: As in
            `GridSearchCV`. A randomised splitter without a seed is asked for splits once. `n_jobs`
            is for scikit-learn's fits, of one candidate at a time; trials run in this process.

    The smooth criterion that stands for a scorer; the reported scores are always the scorer's own:

    | scorer | criterion |
    | --- | --- |
    | `r2`, `explained_variance`, a regressor's own score | `r2`, one minus it |
    | `neg_mean_squared_error` | `squared_error` |
    | `neg_root_mean_squared_error` | `root_squared_error` |
    | `neg_mean_absolute_error`, `neg_median_absolute_error` | `absolute_error` |
    | `neg_mean_poisson_deviance`, `neg_mean_gamma_deviance` | `deviance` |
    | the own score of a Poisson, Gamma or Tweedie regression | `d2`, one minus it |
    | any of a classifier (`accuracy`, `roc_auc`, `f1`, `neg_log_loss`, ...) | `log_loss` |
    | the same of a support vector machine | `squared_hinge` |
    | the same of an `SVC` of several classes | `pairwise_squared_hinge`, one against one |
    | any of a Cox model | `partial_likelihood` of the held-out samples |

    A Gaussian process has `marginal_likelihood` and `leave_one_out` as well, to be chosen.

    Attributes:
        trials_: All trials, a `Trial` each: configuration, criterion, gradient.
        criterion_: What was minimised.
        explanation_: How the search went about it, in a sentence.
        ledger_: What the searcher was told, in the last stage; `strategies.importance`, plots and
            pages take the fitted search itself. `None` for a single candidate.
        stopped_: Why it ended before its trials were used up, by `stop` or by Ctrl-C, after which
            the best trials so far are fitted and scored; else `None`.
        penalties_: Tuned penalties (the parameter's values) by the name of the feature or group.
        groups_: Names of the features of each group.
        generalization_score_: A score, on samples that the search has not seen, of a model that was
            searched for in the same way; `best_score_` is optimistic, the more so the more
            hyperparameters are tuned. `None` if not asked for, and after Ctrl-C.

    Those of `GridSearchCV` are there as well; `cv_results_` has columns `hypergrad_*`.
    """

    _parameter_constraints: ClassVar[dict] = {
        **BaseSearchCV._parameter_constraints,
        "param_space": [Mapping, list, tuple, SearchSpace],
        "penalty": [str, Mapping],
        "ratio_spread": [Interval(numbers.Real, 0, None, closed="neither"), None],
        "criterion": [str, callable, None],
        "n_trials": [Interval(numbers.Integral, 1, None, closed="left")],
        "patience": [Interval(numbers.Integral, 1, None, closed="left"), None],
        "timeout": [Interval(numbers.Real, 0, None, closed="neither"), None],
        "stop": [Stop, None],
        "finalists": [Interval(numbers.Integral, 1, None, closed="left")],
        "generalization": [StrOptions({"auto", "fresh", "nested"}), "cv_object"],
        "resume": [str, os.PathLike, None],
        "random_state": [Interval(numbers.Integral, 0, None, closed="left"), None],
    }

    #: Samples for which programs are compiled, if more than there are.
    _rows: int | None = None

    def __init__(
        self,
        estimator: Any,
        param_space: Any,
        *,
        penalty: Any = "single",
        ratio_spread: float | None = 1.0,
        criterion: Any = "auto",
        n_trials: int = 30,
        patience: int | None = 5,
        timeout: float | None = None,
        stop: Stop | None = None,
        finalists: int = 3,
        generalization: Any = "auto",
        resume: Any = None,
        random_state: int | None = None,
        scoring: Any = None,
        n_jobs: int | None = None,
        refit: Any = True,
        cv: Any = None,
        verbose: int = 0,
        pre_dispatch: Any = "2*n_jobs",
        error_score: Any = np.nan,
        return_train_score: bool = False,
    ):
        super().__init__(
            estimator=estimator,
            scoring=scoring,
            n_jobs=n_jobs,
            refit=refit,
            cv=cv,
            verbose=verbose,
            pre_dispatch=pre_dispatch,
            error_score=error_score,
            return_train_score=return_train_score,
        )
        self.param_space = param_space
        self.penalty = penalty
        self.ratio_spread = ratio_spread
        self.criterion = criterion
        self.n_trials = n_trials
        self.patience = patience
        self.timeout = timeout
        self.stop = stop
        self.finalists = finalists
        self.generalization = generalization
        self.resume = resume
        self.random_state = random_state

    def __getstate__(self) -> dict[str, Any]:
        # A run's data and programs stay in this process.
        return {k: v for k, v in super().__getstate__().items() if k != "_run"}

    def fit(self, X: Any, y: Any = None, **params: Any) -> "HypergradSearchCV":
        """Search, then refit the best candidate on all samples.

        Args:
            X: Samples.
            y: Targets.
            **params: `sample_weight`, `groups` and others, as `GridSearchCV.fit` takes them.
        """
        # The run changes the splitter, and for feature penalties the estimator.
        X, y = indexable(X, y)
        worker = copy.copy(self)
        for name in [name for name in vars(worker) if name.endswith("_")]:
            delattr(worker, name)
        worker._validate_params()
        # Once only: an iterator of splits is used up by it.
        splitter = check_cv(self.cv, y, classifier=is_classifier(self.estimator))
        kind = wanted(self, splitter)
        worker.cv = FrozenSplits(splitter)
        if self.penalty != "single":
            worker.estimator = with_feature_penalties(self.estimator)
        worker._run = Run(self, X, y, params)
        BaseSearchCV.fit(worker, X, y, **params)
        run = worker._run
        del worker._run
        found = {name: value for name, value in vars(worker).items() if name.endswith("_")}
        for name in [name for name in vars(self) if name.endswith("_")]:
            delattr(self, name)
        self.__dict__.update(found, **attributes(run, worker))
        # Who has ended the search by Ctrl-C waits for no further one.
        kind = None if self.stopped_ == INTERRUPTED else kind
        self.generalization_score_ = generalization(self, X, y, params, kind)
        return self

    def _run_search(self, evaluate_candidates: Any, *, callback_ctx: Any = None) -> None:
        self._run(self, evaluate_candidates, callback_ctx)

    def _format_results(
        self, candidate_params: Any, n_splits: int, out: Any, more_results: Any = None
    ) -> Any:
        return self._run.results(
            super()._format_results, candidate_params, n_splits, out, more_results
        )
