"""Splits that stay the same however often they are asked for."""

from collections.abc import Iterator
from typing import Any

import numpy as np


class FrozenSplits:
    """A splitter whose first answer is its answer for good.

    `BaseSearchCV` asks for the splits of every candidate anew; a splitter that is randomised
    without a seed would compare candidates on different folds.
    """

    def __init__(self, cv: Any):
        self.cv = cv
        self.splits: list[tuple[np.ndarray, np.ndarray]] | None = None

    def split(self, X: Any, y: Any = None, **params: Any) -> Iterator[tuple]:
        """Pairs of training and test indices."""
        if self.splits is None:
            self.splits = list(self.cv.split(X, y, **params))
        return iter(self.splits)

    def get_n_splits(self, X: Any = None, y: Any = None, **params: Any) -> int:
        """Number of splits."""
        return self.cv.get_n_splits(X, y, **params)

    def get_metadata_routing(self) -> Any:
        """That of the splitter."""
        return self.cv.get_metadata_routing()

    def __repr__(self) -> str:
        return repr(self.cv)
