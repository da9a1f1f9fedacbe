"""Sparse features, as words of documents: never made dense."""

import resource
import sys
import time
from typing import Any

import numpy as np
from scipy import sparse
from scipy.stats import loguniform
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from strategies.sklearn import HypergradSearchCV

# Words of a document, and how their frequency falls with the rank (Zipf's law, flattened).
_WORDS, _EXPONENT = 40, 0.8
# A word in so many says something of the class.
_TELLING = 50
_RANGE = (1e-3, 1e2)


def documents(size: int, words: int, seed: int) -> tuple[sparse.csr_array, np.ndarray]:
    """Word frequencies of drawn documents, each of norm one, and two classes."""
    rng = np.random.default_rng(seed)
    share = np.arange(1, words + 1) ** -_EXPONENT
    columns = rng.choice(words, size=size * _WORDS, p=share / share.sum())
    rows = np.repeat(np.arange(size), _WORDS)
    x = sparse.csr_array((np.ones(len(columns)), (rows, columns)), shape=(size, words))
    x = sparse.csr_array(x / np.sqrt(x.multiply(x).sum(axis=1))[:, None])
    w = np.where(rng.random(words) < 1.0 / _TELLING, rng.normal(scale=20.0, size=words), 0.0)
    return x, (rng.random(size) < 1.0 / (1.0 + np.exp(-(x @ w)))).astype(int)


def _peak() -> float:
    """The largest memory so far, in MB."""
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def compared(size: int, words: int) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """Ours and a grid of 20 points; scores, times, and by how much the largest memory grew."""
    x, y = documents(2 * size, words, 0)
    x, held, y, y_held = x[:size], x[size:], y[:size], y[size:]
    cv = StratifiedKFold(3, shuffle=True, random_state=0)
    options: dict[str, Any] = {"scoring": "neg_log_loss", "cv": cv}
    model = LogisticRegression(max_iter=1000)
    searches = {
        "ours, one penalty": HypergradSearchCV(
            model, {"C": loguniform(*_RANGE)}, finalists=1, **options
        ),
        "GridSearchCV, 20 points": GridSearchCV(model, {"C": np.geomspace(*_RANGE, 20)}, **options),
    }
    rows: list[dict[str, Any]] = []
    for method, search in searches.items():
        before, began, spent = _peak(), time.perf_counter(), time.process_time()
        search.fit(x, y)
        rows.append(
            {
                "method": method,
                "score by cross-validation": float(search.best_score_),
                "held-out score": -float(log_loss(y_held, search.predict_proba(held))),
                "seconds": time.perf_counter() - began,
                "processor seconds": time.process_time() - spent,
                "memory beyond, MB": _peak() - before,
            }
        )
    ours, grid = rows
    spread = searches["GridSearchCV, 20 points"]
    error = spread.cv_results_["std_test_score"][spread.best_index_] / np.sqrt(3)
    score, cost = "score by cross-validation", "processor seconds"
    return rows, {
        "memory": ours["memory beyond, MB"],
        "short": float((grid[score] - ours[score]) / error),
        "grid": grid[cost],
        "ratio": ours[cost] / grid[cost],
    }


__all__ = ["compared", "documents"]
