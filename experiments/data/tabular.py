"""The data sets that scikit-learn bundles, split into three."""

from typing import Literal, NamedTuple

import numpy as np

Name = Literal["digits", "breast_cancer", "wine", "iris", "diabetes"]


class Part(NamedTuple):
    """Examples `x`, shape `(n, ...)`, and their labels or targets `y`, shape `(n,)`."""

    x: np.ndarray
    y: np.ndarray


class Data(NamedTuple):
    """Training, validation and test part."""

    train: Part
    validation: Part
    test: Part


def tabular(name: Name, *, seed: int = 0, fractions: tuple[float, float] = (0.25, 0.25)) -> Data:
    """One of the bundled sets, features as they are (not scaled), float64.

    **Arguments:**

    - `name`: digits 1797 x 64 (10 classes), breast_cancer 569 x 30 (2), wine 178 x 13 (3), iris
      150 x 4 (3), diabetes 442 x 10 (regression).
    - `seed`: of the split.
    - `fractions`: shares of validation and test. Classes keep their proportions.
    """
    # Of this function alone, and slow to import.
    import sklearn.datasets
    from sklearn.model_selection import train_test_split

    x, y = getattr(sklearn.datasets, f"load_{name}")(return_X_y=True)
    validation, test = fractions
    kinds = None if name == "diabetes" else y
    rest, hidden = train_test_split(
        np.arange(len(y)), test_size=test, random_state=seed, stratify=kinds
    )
    inner, outer = train_test_split(
        rest,
        test_size=validation / (1 - test),
        random_state=seed,
        stratify=None if kinds is None else kinds[rest],
    )
    return Data(*(Part(x[rows], y[rows]) for rows in (inner, outer, hidden)))
