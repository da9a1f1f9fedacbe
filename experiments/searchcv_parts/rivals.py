"""All searches of a set, alternated over several splits into training and held-out samples."""

import importlib.util
import sys
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy.stats import loguniform
from sklearn.base import clone
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.metrics import check_scoring
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    KFold,
    RandomizedSearchCV,
    StratifiedKFold,
    train_test_split,
)

from experiments.searchcv_parts.sets import Problem
from strategies.sklearn import HypergradSearchCV

GRID, FINE, ONE, MANY, EACH = (
    "GridSearchCV, 20 points",
    "GridSearchCV, 100 points",
    "ours, one penalty",
    "ours, one per group",
    "ours, one per feature",
)
_FOLDS = 5


def searches(problem: Problem, seed: int, rivals: bool) -> dict[str, Callable]:
    """Makers of the searches; `rivals` are those that no claim needs."""
    folds = StratifiedKFold if problem.classes else KFold
    cv = folds(_FOLDS, shuffle=True, random_state=seed)
    space = {problem.parameter: loguniform(problem.low, problem.high)}
    options: dict[str, Any] = {"scoring": problem.scoring, "cv": cv}
    ours = {**options, "generalization": None, "random_state": seed, "finalists": 1}
    found: dict[str, Callable] = {
        FINE: lambda: GridSearchCV(problem.model, problem.grid(100), **options),
        GRID: lambda: GridSearchCV(problem.model, problem.grid(20), **options),
        ONE: lambda: HypergradSearchCV(problem.model, space, **ours),
    }

    def many(groups: Any) -> Callable:
        return lambda: HypergradSearchCV(problem.model, space, penalty=groups, **ours)

    if problem.groups != "per_feature":
        found[MANY] = many(problem.groups)
    if rivals or MANY not in found:
        found[EACH] = many("per_feature")
    if not rivals:
        return found
    found["RandomizedSearchCV, 20"] = lambda: RandomizedSearchCV(
        problem.model, space, n_iter=20, random_state=seed, **options
    )
    found["HalvingGridSearchCV, 20"] = lambda: HalvingGridSearchCV(
        problem.model, problem.grid(20), random_state=seed, **options
    )

    last = problem.own(problem.grid(20)[problem.parameter]).set_params(cv=cv)

    def own() -> Any:
        steps = clone(problem.model)
        steps.steps[-1] = ("own", last)
        return steps

    found[f"{type(last).__name__}, 20 points"] = own
    # Once loaded, the module has no specification, which `find_spec` refuses.
    if "optuna_integration" in sys.modules or importlib.util.find_spec("optuna_integration"):
        import optuna
        from optuna.distributions import FloatDistribution
        from optuna_integration import OptunaSearchCV

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        found["OptunaSearchCV, 20"] = lambda: OptunaSearchCV(
            problem.model,
            {problem.parameter: FloatDistribution(problem.low, problem.high, log=True)},
            n_trials=20,
            random_state=seed,
            **options,
        )
    return found


def _measured(problem: Problem, search: Any, parts: list[np.ndarray]) -> dict[str, float]:
    began, spent = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.fit(parts[0], parts[2])
    row = {
        "seconds": time.perf_counter() - began,
        "processor seconds": time.process_time() - spent,
        "held-out score": check_scoring(problem.model, problem.scoring)(search, parts[1], parts[3]),
        "score by cross-validation": float(getattr(search, "best_score_", np.nan)),
        "standard error": np.nan,
        "fits": np.nan,
    }
    # Searches with a grid of their own have none, and that of Optuna has no `params`.
    results = getattr(search, "cv_results_", {})
    tried = results.get("params", [])
    if tried:
        spread = results["std_test_score"][search.best_index_]
        row["standard error"] = float(spread) / np.sqrt(_FOLDS)
    candidates = len(tried) + len(getattr(search, "trials_", []))
    if candidates:
        row["fits"] = float(_FOLDS * candidates)
    return row


def compared(
    name: str, problem: Problem, splits: int, rivals: bool
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Rows of means over splits, and what the claims need of a set."""
    found: dict[str, list[dict[str, float]]] = {}
    for seed in range(splits):
        parts = train_test_split(
            problem.x,
            problem.y,
            test_size=0.3,
            random_state=seed,
            stratify=problem.y if problem.classes else None,
        )
        for method, make in searches(problem, seed, rivals).items():
            found.setdefault(method, []).append(_measured(problem, make(), parts))

    def column(method: str, key: str) -> np.ndarray:
        return np.array([row[key] for row in found[method]])

    shown = [
        "score by cross-validation",
        "standard error",
        "held-out score",
        "fits",
        "seconds",
        "processor seconds",
    ]
    rows = [
        {"set": name, "method": method, **{k: float(np.mean(column(method, k))) for k in shown}}
        for method in found
    ]
    score, cost = "score by cross-validation", "processor seconds"
    short = (column(FINE, score) - column(ONE, score)) / column(FINE, "standard error")
    # Groups that were known beforehand, if there are any.
    chosen = MANY if MANY in found else EACH
    one, each = column(ONE, "held-out score"), column(chosen, "held-out score")
    return rows, {
        "short": float(np.max(short)),
        "grid": float(np.median(column(GRID, cost))),
        "first": float(column(ONE, cost)[0] / column(GRID, cost)[0]),
        "ratio": float(np.median(column(ONE, cost)) / np.median(column(GRID, cost))),
        # Scores are negative losses.
        "loss": float((np.mean(each) - np.mean(one)) / np.mean(one)),
        "wins": float(np.mean(each > one)),
    }


__all__ = ["compared"]
