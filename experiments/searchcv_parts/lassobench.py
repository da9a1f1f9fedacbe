"""LassoBench's synthetic problems (Šehić et al. 2022): one penalty of a Lasso per feature.

The suite's real problems (leukemia, DNA, RCV1, and others) are files of LIBSVM's site, which
scikit-learn does not ship; they are not here.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from scipy.optimize import minimize
from sklearn.linear_model import Lasso, LassoCV
from sklearn.metrics import check_scoring
from sklearn.model_selection import KFold, train_test_split

from strategies.sklearn import HypergradSearchCV
from strategies.sklearn.folds import Table
from strategies.sklearn.objective import CrossValidation
from strategies.space import Float, SearchSpace

# Every twentieth feature counts, with +1 and -1 in turn.
_EVERY = 20


def correlated(
    samples: int, features: int, corr: float, w: np.ndarray, snr: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """The samples of celer 0.7's `make_correlated_data`, number for number.

    Columns are an autoregressive process; the noise has the targets' norm over `snr`.
    """
    rng = np.random.RandomState(seed)
    column = rng.randn(samples)
    x = np.empty((samples, features))
    x[:, 0] = column
    for j in range(1, features):
        column = corr * column + np.sqrt(1 - corr**2) * rng.randn(samples)
        x[:, j] = column
    clean = x @ w
    noise = rng.randn(samples)
    return x, clean + noise / np.linalg.norm(noise) * np.linalg.norm(clean) / snr


#: Samples and features of the suite's synthetic problems.
SIZES = {
    "synt_simple": (30, 60),
    "synt_medium": (50, 100),
    "synt_high": (150, 300),
    "synt_hard": (500, 1000),
}


@dataclass(frozen=True)
class Synthetic:
    """One of them: five folds, 15 % held out, penalties from the largest to a hundredth of it."""

    name: str

    @cached_property
    def w(self) -> np.ndarray:
        """The true coefficients."""
        w = np.zeros(SIZES[self.name][1])
        w[::_EVERY] = np.resize([1.0, -1.0], len(w[::_EVERY]))
        return w

    @cached_property
    def parts(self) -> list[np.ndarray]:
        """Features to search on and held out, then targets."""
        x, y = correlated(*SIZES[self.name], 0.6, self.w, 10, 42)
        return train_test_split(x, y, test_size=0.15, random_state=42)

    @cached_property
    def splits(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Of the part to search on."""
        return list(KFold(5, shuffle=True, random_state=42).split(self.parts[0]))

    @property
    def largest(self) -> float:
        """The penalty above which all coefficients are zero."""
        x, _, y, _ = self.parts
        return float(np.abs(x.T @ y).max() / len(y))

    def oracle(self, held: bool) -> float:
        """The mean squared error of the true coefficients."""
        x, x_held, y, y_held = self.parts
        residual = y_held - x_held @ self.w if held else y - x @ self.w
        return float(np.mean(residual**2))

    def row(self, method: str, loss: float, coef: np.ndarray) -> dict[str, Any]:
        """Loss and held-out error over the oracle's, and the F-score of the support."""
        _, x_held, _, y_held = self.parts
        on, true = coef.ravel() != 0, self.w != 0
        return {
            "problem": self.name,
            "method": method,
            "loss / oracle": loss / self.oracle(False),
            "held-out error / oracle": float(np.mean((y_held - x_held @ coef.ravel()) ** 2))
            / self.oracle(True),
            "F-score": 2 * float(np.sum(on & true)) / float(np.sum(on) + np.sum(true)),
        }

    def lasso_cv(self) -> dict[str, Any]:
        """The best penalty for all features."""
        x, _, y, _ = self.parts
        found = LassoCV(cv=self.splits, fit_intercept=False).fit(x, y)
        return self.row("LassoCV", float(found.mse_path_.mean(axis=1).min()), found.coef_)

    def search(self, trials: int, spread: float | None) -> tuple[np.ndarray, dict[str, Any]]:
        """Ours: the best loss so far by trials, and what was chosen."""
        x, _, y, _ = self.parts
        found = HypergradSearchCV(
            Lasso(fit_intercept=False),
            SearchSpace({"alpha": Float(self.largest / 100, self.largest, log=True)}),
            penalty="per_feature",
            ratio_spread=spread,
            scoring="neg_mean_squared_error",
            cv=self.splits,
            n_trials=trials,
            patience=None,
            finalists=1,
            generalization=None,
        ).fit(x, y)
        losses = np.array([np.mean(trial.folds) for trial in found.trials_])
        kind = "no prior" if spread is None else "default prior"
        row = self.row(f"HypergradSearchCV, {kind}", -found.best_score_, found.coef_)
        return np.minimum.accumulate(losses) / self.oracle(False), row

    def lbfgsb(self, trials: int) -> tuple[np.ndarray, dict[str, Any]]:
        """SciPy's L-BFGS-B on the same criterion and gradient, in the logarithm."""
        x, _, y, _ = self.parts
        lasso = Lasso(fit_intercept=False)
        size = x.shape[1]
        function = CrossValidation(
            lasso,
            Table(x, y, self.splits, None, None, False),
            criterion="squared_error",
            scorer=check_scoring(lasso),
            searched=frozenset(["alpha"]),
            groups=[np.array([j]) for j in range(size)],
            width=size,
        )
        values: list[float] = []
        oracle = self.oracle(False)

        def loss(unit: np.ndarray) -> tuple[float, np.ndarray]:
            alpha = self.largest * 100 ** (unit - 1)
            found = function({"alpha": alpha})
            values.append(found.value / oracle)
            return values[-1], found.gradient["alpha"] * alpha * np.log(100) / oracle

        box = [(0.0, 1.0)] * size
        found = minimize(
            loss,
            np.full(size, 0.5),
            jac=True,
            bounds=box,
            method="L-BFGS-B",
            options={"maxfun": trials},
        )
        level, factors = function.split(self.largest * 100 ** (found.x - 1))
        coef = Lasso(alpha=level, fit_intercept=False).fit(x / factors, y).coef_ / factors
        best = np.minimum.accumulate(values)[:trials]
        return best, self.row("L-BFGS-B", found.fun * oracle, coef)


__all__ = ["SIZES", "Synthetic", "correlated"]
