"""How well the outcome of a search does on samples that the search has not seen."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
from sklearn.base import clone, is_classifier
from sklearn.model_selection import (
    GroupShuffleSplit,
    KFold,
    PredefinedSplit,
    ShuffleSplit,
    StratifiedKFold,
    StratifiedShuffleSplit,
    check_cv,
)
from sklearn.model_selection._split import _CVIterableWrapper
from sklearn.utils import _safe_indexing
from sklearn.utils.validation import _check_method_params, _num_samples

# The part of the samples that a fresh split holds out, and the number of nested folds.
_HELD_OUT = 0.2
_OUTER_FOLDS = 5
# A gap of so many standard errors of the best candidate's score is worth a warning.
_LARGE = 2.0


class OvertunedWarning(UserWarning):
    """The best score promises clearly more than a fresh split keeps."""


def wanted(search: Any, splitter: Any) -> Any:
    """What `generalization` asks for, of a search with these folds; `None` for nothing.

    **Raises:** `ValueError` where it asks for what cannot be, before anything is searched.
    """
    kind = search.generalization
    listed = isinstance(splitter, _CVIterableWrapper | PredefinedSplit)
    several = isinstance(search.scoring, list | tuple | set | dict)
    # With several scores and a function to choose by, none of them is the search's own.
    unscored = callable(search.refit) and several
    if kind == "auto":
        possible = search.refit and not listed and not unscored
        return "fresh" if search.penalty != "single" and possible else None
    if kind is None:
        return None
    if not search.refit:
        raise ValueError(f"'generalization': expected None with refit=False, received {kind!r}")
    if unscored:
        raise ValueError(
            "'generalization': expected None where refit is a function of several scores, received "
            f"{kind!r}"
        )
    if listed:
        raise ValueError(
            "'generalization': expected None where cv lists the samples of its splits, which do "
            f"not fit a part of them, received {kind!r}"
        )
    return kind


def generalization(
    search: Any, X: Any, y: Any, params: Mapping[str, Any], kind: Any
) -> float | None:
    """The mean score of searches that were repeated without the samples that score them.

    `kind` is what is `wanted`. Warns if the score is far below `best_score_`.
    """
    if kind is None:
        return None
    again = clone(search).set_params(generalization=None, resume=None)
    scores = []
    # A part of the samples is searched with the program of all of them.
    size = _num_samples(X)
    for train, test in _outer(search, X, y, params, kind):
        inside = _check_method_params(X, params=dict(params), indices=train)
        part = None if y is None else _safe_indexing(y, train)
        searched = clone(again)
        searched._rows = size
        fitted = searched.fit(_safe_indexing(X, train), part, **inside)
        held = None if y is None else _safe_indexing(y, test)
        scores.append(fitted.score(_safe_indexing(X, test), held))
    score = float(np.mean(scores))
    if hasattr(search, "best_score_"):
        _warn(search, score, len(scores))
    return score


def _outer(search: Any, X: Any, y: Any, params: Mapping[str, Any], kind: Any) -> Any:
    seed = search.random_state or 0
    groups = params.get("groups")
    classifier = is_classifier(search.estimator)
    if isinstance(kind, str):
        if groups is not None:
            count = _OUTER_FOLDS if kind == "nested" else 1
            kind = GroupShuffleSplit(count, test_size=_HELD_OUT, random_state=seed)
        elif kind == "nested":
            folds = StratifiedKFold if classifier else KFold
            kind = folds(_OUTER_FOLDS, shuffle=True, random_state=seed)
        else:
            once = StratifiedShuffleSplit if classifier else ShuffleSplit
            kind = once(1, test_size=_HELD_OUT, random_state=seed)
    return list(check_cv(kind, y, classifier=classifier).split(X, y, groups))


def _warn(search: Any, score: float, count: int) -> None:
    metric = search.refit if search.multimetric_ else "score"
    folds = [
        search.cv_results_[f"split{k}_test_{metric}"][search.best_index_]
        for k in range(search.n_splits_)
    ]
    # Of the difference of two means over samples of a fold's size, roughly.
    error = float(np.std(folds, ddof=1)) * np.sqrt(1.0 / len(folds) + 1.0 / count)
    if search.best_score_ - score > _LARGE * error:
        warnings.warn(
            f"best_score_ {search.best_score_:.4g} is {search.best_score_ - score:.2g} above "
            f"generalization_score_ {score:.4g} (standard error {error:.2g}): the penalties "
            "fit the folds. Fewer of them (penalty='per_group', 'single'), a smaller n_trials or "
            "more folds may generalise better",
            OvertunedWarning,
            stacklevel=3,
        )
