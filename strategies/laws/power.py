"""A power law, its intervals and what it predicts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

#: The share of resamples inside an interval.
_LEVEL = 0.95


@dataclass(frozen=True)
class Estimate:
    """What a law predicts at a point.

    - `value`: the prediction.
    - `low`, `high`: of a new optimum, with 95 % probability; NaN for a law without resamples.
    - `reach`: how far the point lies outside of what was fitted, as a multiple of the fitted range
      in logarithms; 0 inside. The interval assumes that the law still holds there.
    """

    value: float
    low: float
    high: float
    reach: float = 0.0


@dataclass(frozen=True)
class PowerLaw:
    """`target = coefficient · Π input ** exponent`.

    Made by `fit`, or from published numbers: `PowerLaw(("N", "D"), "lr", 1.79, (-0.713, 0.307))`.

    - `inputs`, `target`: names.
    - `coefficient`, `exponents`: natural units.
    - `samples`: resampled `(log coefficient, *exponents)`, shape `(bootstrap, 1 + inputs)`.
    - `noise`: resampled residuals in logs, shape `(bootstrap,)`.
    - `ranges`: smallest and largest value of each input that was fitted.
    - `spread`: standard deviation of the residuals, in logs.
    """

    inputs: tuple[str, ...]
    target: str
    coefficient: float
    exponents: tuple[float, ...]
    samples: np.ndarray | None = field(default=None, repr=False)
    noise: np.ndarray | None = field(default=None, repr=False)
    ranges: tuple[tuple[float, float], ...] = ()
    spread: float = float("nan")

    @classmethod
    def fit(
        cls,
        points: Sequence[Mapping[str, float]],
        inputs: Sequence[str],
        target: str,
        *,
        bootstrap: int = 1000,
        seed: int = 0,
    ) -> "PowerLaw":
        """Least squares in logarithms; intervals by resampling its residuals.

        **Arguments:**

        - `points`: optima at several sizes, as `optima` finds them: positive numbers.
        - `inputs`: names of what the target depends on.
        - `target`: name of what is predicted.
        - `bootstrap`: resamples. `seed`: of the resampling.

        **Raises:** `ValueError` for fewer than `len(inputs) + 2` points, for inputs that do not
        vary independently, and for numbers that are not positive.
        """
        inputs = tuple(inputs)
        if len(points) < len(inputs) + 2:
            raise ValueError(
                f"'points': expected at least {len(inputs) + 2} for {len(inputs)} inputs (with "
                f"fewer a law fits whatever they are), received {len(points)}"
            )
        table = np.array(
            [[_positive(point, name) for name in (*inputs, target)] for point in points]
        )
        logs = np.log(table)
        centre = logs[:, :-1].mean(0)
        design = np.column_stack([np.ones(len(logs)), logs[:, :-1] - centre])
        if np.linalg.matrix_rank(design, tol=1e-8) < design.shape[1]:
            raise ValueError(
                f"'points': expected {', '.join(inputs)} to vary independently, received a fixed "
                "combination of them"
            )
        # Orthonormal columns: the leverage is what each point pulls on its own fitted value.
        q, r = np.linalg.qr(design)
        fitted = q @ (q.T @ logs[:, -1])
        residual = logs[:, -1] - fitted
        leverage = np.clip((q**2).sum(1), 0.0, 1.0 - 1e-9)
        free = len(logs) - design.shape[1]
        # As large as the noise is, where a fit has made them smaller.
        honest = residual / np.sqrt(1.0 - leverage)
        honest -= honest.mean()
        rng = np.random.default_rng(seed)
        drawn = rng.choice(honest, (bootstrap, len(logs)))
        solved = np.linalg.solve(r, q.T @ (fitted + drawn).T).T
        solved[:, 0] -= solved[:, 1:] @ centre
        here = np.linalg.solve(r, q.T @ logs[:, -1])
        return cls(
            inputs,
            target,
            float(np.exp(here[0] - here[1:] @ centre)),
            tuple(float(e) for e in here[1:]),
            solved,
            rng.choice(honest, bootstrap),
            tuple((float(c.min()), float(c.max())) for c in table[:, :-1].T),
            float(np.sqrt(residual @ residual / free)),
        )

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """95 % intervals of `"coefficient"` and of the exponent of each input.

        **Raises:** `ValueError` for a law that was not fitted.
        """
        if self.samples is None:
            raise ValueError(
                "intervals: expected a law that was fitted, received published numbers"
            )
        low, high = np.quantile(self.samples, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], axis=0)
        low[0], high[0] = np.exp([low[0], high[0]])
        names = ("coefficient", *self.inputs)
        return {n: (float(a), float(b)) for n, a, b in zip(names, low, high, strict=True)}

    def predict(self, point: Mapping[str, float]) -> Estimate:
        """The target at a point that names all inputs.

        **Raises:** `ValueError` for an input that is missing or not positive.
        """
        x = np.log([_positive(point, name) for name in self.inputs])
        value = float(self.coefficient * np.exp(x @ np.asarray(self.exponents)))
        low = high = float("nan")
        if self.samples is not None and self.noise is not None:
            drawn = self.samples[:, 0] + self.samples[:, 1:] @ x + self.noise
            low, high = np.exp(np.quantile(drawn, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2]))
        reach = 0.0
        for at, (a, b) in zip(x, self.ranges, strict=False):
            outside = max(np.log(a) - at, at - np.log(b), 0.0)
            reach = max(reach, outside / np.log(b / a))
        return Estimate(value, float(low), float(high), float(reach))


def _positive(point: Mapping[str, float], name: str) -> float:
    value = point.get(name)
    if value is None or not np.isfinite(value) or value <= 0:
        raise ValueError(f"{name!r}: expected a positive number in each point, received {value!r}")
    return float(value)
