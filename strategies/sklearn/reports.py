"""What a fitted search tells: features switched off, penalties by name, and three figures."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array
from sklearn.utils.validation import check_is_fitted

from strategies.sklearn.objective import final_step, head_of
from strategies.sklearn.penalties import STEP


class Reports:
    """Methods of a fitted search; figures need Matplotlib."""

    @property
    def coef_(self) -> np.ndarray:
        """Coefficients of `best_estimator_` in the units of the features before `penalties`."""
        check_is_fitted(self)
        best: Any = self.best_estimator_  # type: ignore[attr-defined]
        coef = final_step(best).coef_
        penalties = best.named_steps.get(STEP) if isinstance(best, Pipeline) else None
        factors = 1.0 if penalties is None else penalties.factors_
        return (coef.toarray() if hasattr(coef, "toarray") else np.asarray(coef)) / factors

    def switched_off(self) -> list[str]:
        """Names of the features whose coefficients are all zero in `best_estimator_`."""
        coef = np.atleast_2d(self.coef_)
        return [
            name
            for name, off in zip(self._names(), np.all(coef == 0.0, axis=0), strict=True)
            if off
        ]

    def _names(self) -> list[str]:
        best: Any = self.best_estimator_  # type: ignore[attr-defined]
        width = np.shape(self.coef_)[-1]
        head = head_of(best)
        if head is not None:
            return [str(name) for name in head.get_feature_names_out()]
        return [str(n) for n in getattr(best, "feature_names_in_", [f"x{i}" for i in range(width)])]

    def plot_convergence(self, ax: Any = None) -> Any:
        """The criterion of every trial and the best so far; returns the axes."""
        check_is_fitted(self)
        ax = _axes(ax)
        trials = self.trials_  # type: ignore[attr-defined]
        values = np.array([np.nan if t.value is None else t.value for t in trials], float)
        best = np.minimum.accumulate(np.where(np.isnan(values), np.inf, values))
        for stage in dict.fromkeys(trial.stage for trial in trials):
            at = [i for i, trial in enumerate(trials) if trial.stage == stage]
            ax.plot(np.array(at) + 1, values[at], "o", label=stage)
        ax.step(np.arange(len(best)) + 1, best, where="post", label="best so far")
        ax.set(xlabel="trial", ylabel=f"criterion: {self.criterion_ or 'minus the score'}")  # type: ignore[attr-defined]
        ax.legend()
        return ax

    def plot_overtuning(self, X: Any, y: Any, X_held: Any, y_held: Any, ax: Any = None) -> Any:
        """Scores by cross-validation against scores on samples that were held out.

        Every row of `cv_results_` is fitted on `X`, `y` and scored on the others. A cloud that
        turns down at its right end says that the folds were over-tuned. Returns the axes.
        """
        check_is_fitted(self)
        ax = _axes(ax)
        search: Any = self
        results = search.cv_results_
        metric = search.refit if search.multimetric_ else "score"
        scorer = search.scorer_[metric] if search.multimetric_ else search.scorer_
        held = []
        for params in results["params"]:
            candidate = clone(search.best_estimator_).set_params(**params).fit(X, y)
            held.append(scorer(candidate, X_held, y_held))
        ax.plot(results[f"mean_test_{metric}"], held, "o")
        ax.set(xlabel="score by cross-validation", ylabel="score on samples held out")
        return ax

    def plot_path(
        self, X: Any, y: Any, multiples: Sequence[float] | None = None, ax: Any = None
    ) -> Any:
        """Coefficients while all penalties are multiplied by a number; returns the axes.

        Of several classes or outputs, the norm of a feature's coefficients is drawn.

        **Raises:** `AttributeError` where `best_estimator_` has no coefficients, as with a kernel.
        """
        several = len(np.atleast_2d(self.coef_)) > 1
        ax = _axes(ax)
        best: Any = self.best_estimator_  # type: ignore[attr-defined]
        name = "alpha" if "alpha" in final_step(best).get_params() else "C"
        power = 1.0 if name == "alpha" else -1.0
        tuned = getattr(final_step(best), name)
        # Two decades to each side show where all coefficients arrive at zero.
        at = np.geomspace(0.01, 100.0, 25) if multiples is None else np.asarray(multiples)
        lines = []
        for multiple in at:
            candidate = clone(best)
            final_step(candidate).set_params(**{name: tuned * multiple**power})
            candidate.fit(X, y)
            coef = np.atleast_2d(check_array(final_step(candidate).coef_, ensure_2d=False))
            lines.append(np.linalg.norm(coef, axis=0) if several else coef[0])
        ax.semilogx(at, np.array(lines))
        ax.axvline(1.0, color="black", linewidth=0.8)
        ax.set(
            xlabel="multiple of the tuned penalties", ylabel="norm" if several else "coefficient"
        )
        return ax


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    import matplotlib.pyplot as plt

    return plt.subplots()[1]
