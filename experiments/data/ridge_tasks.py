"""Related tasks for searches across tasks: penalised regressions on spectra of any condition.

Features are normal with eigenvalues from 1 down to 1 / condition, in 20 dimensions. Ridge
regression is judged by its excess risk over all data, logistic regression by its loss on 4,000
fresh examples; a search sees the loss on a validation set a third of the training set's size.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
from scipy.special import expit

from strategies.space import Float, Int, SearchSpace

Family = Literal["ridge", "logistic"]

#: What is known of a task before it is tuned.
CONTEXT = SearchSpace(
    {
        "n": Int(30, 1000, log=True),
        "noise": Float(0.1, 3.0, log=True),
        "condition": Float(1.0, 1e4, log=True),
    }
)
#: What is tuned: the weight of the squared norm beside the mean loss.
SPACE = SearchSpace({"l2": Float(1e-6, 1e2, log=True)})
#: Penalties among which the best one of a task is looked for.
GRID = np.logspace(-6, 2, 81)
_SIZE, _TEST = 20, 4000
_NEWTON = 25


@dataclass(frozen=True)
class Task:
    """One data set.

    - `family`: what is fitted.
    - `context`: of `CONTEXT`.
    - `seed`: of its data.
    """

    family: Family
    context: dict[str, Any]
    seed: int

    @cached_property
    def _data(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng([self.seed, 7])
        spectrum = np.logspace(0, -math.log10(self.context["condition"]), _SIZE)
        w = rng.standard_normal(_SIZE) * math.sqrt(_SIZE / spectrum.sum()) / math.sqrt(_SIZE)
        n = self.context["n"]
        sizes = {"train": n, "validation": n // 3, "test": _TEST}
        found: dict[str, np.ndarray] = {"spectrum": spectrum, "w": w}
        for name, count in sizes.items():
            x = rng.standard_normal((count, _SIZE)) * np.sqrt(spectrum)
            if self.family == "ridge":
                y = x @ w + self.context["noise"] * rng.standard_normal(count)
            else:
                y = np.sign(expit(4 * x @ w / self.context["noise"]) - rng.random(count))
            found |= {f"{name} x": x, f"{name} y": y}
        return found

    def fitted(self, l2: float) -> np.ndarray:
        """The minimiser of mean loss plus penalty."""
        x, y = self._data["train x"], self._data["train y"]
        ridge = l2 * np.eye(_SIZE)
        if self.family == "ridge":
            return np.asarray(np.linalg.solve(x.T @ x / len(x) + ridge, x.T @ y / len(x)))
        w = np.zeros(_SIZE)
        for _ in range(_NEWTON):
            p = expit(-y * (x @ w))
            slope = -x.T @ (y * p) / len(x) + l2 * w
            curvature = (x.T * (p * (1 - p))) @ x / len(x) + ridge
            step = np.linalg.solve(curvature, slope)
            # Newton's step, bounded where the loss is nearly flat.
            w -= step * min(1.0, 5.0 / max(float(np.linalg.norm(step)), 1e-12))
        return w

    def _loss(self, w: np.ndarray, part: str) -> float:
        margin = self._data[f"{part} x"] @ w
        y = self._data[f"{part} y"]
        if self.family == "ridge":
            return float(np.mean((margin - y) ** 2))
        return float(np.mean(np.logaddexp(0.0, -y * margin)))

    def seen(self, config: dict[str, Any]) -> float:
        """What a search sees: the loss on the validation set."""
        return self._loss(self.fitted(config["l2"]), "validation")

    def true(self, l2: float) -> float:
        """What counts: the expected loss, up to a constant."""
        w = self.fitted(l2)
        if self.family == "ridge":
            return float((w - self._data["w"]) ** 2 @ self._data["spectrum"])
        return self._loss(w, "test")

    @cached_property
    def _grid(self) -> np.ndarray:
        return np.array([self.true(l2) for l2 in GRID])

    @property
    def best(self) -> float:
        """The best penalty of the grid."""
        return float(GRID[np.argmin(self._grid)])

    def regret(self, l2: float) -> float:
        """`(f - best) / (worst - best)` over the grid of penalties, no less than 0.

        Not over the median: where half of the grid is all but optimal that is nearly nothing, and
        one such task would be the mean of all.
        """
        low, high = self._grid.min(), self._grid.max()
        return max(0.0, float((self.true(l2) - low) / (high - low)))


def tasks(family: Family, count: int, seed: int) -> list[Task]:
    """Tasks with contexts drawn from `CONTEXT`."""
    rng = np.random.default_rng([seed, 11])
    return [Task(family, CONTEXT.sample(rng), 1000 * seed + i) for i in range(count)]


__all__ = ["CONTEXT", "GRID", "SPACE", "Family", "Task", "tasks"]
