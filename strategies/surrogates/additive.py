r"""An additive surrogate, learnt from gradients and values: `f(x) = c + Σ h_i(x_i)`.

Of a sum of functions of one coordinate each, a gradient observes every one of them: `∂f/∂x_i` is
`h_i'(x_i)`, whatever the other coordinates are. So `n` gradients in `d` dimensions are `d`
regressions in one dimension with `n` points each, which cost next to nothing and tell valleys apart
that no surrogate over all coordinates at once could resolve (additive Gaussian processes: Duvenaud,
Nickisch and Rasmussen 2011; Kandasamy, Schneider and Póczos 2015). Values come second: given the
gradients, the `h_i` are independent, and a value observes their sum.

Each `h_i` is a Gaussian process with a smooth component, the trend, and one of bumps, which may
recur (spectral mixtures: Wilson and Adams 2013):

    k(r) = Re E(r),   E(r) = exp(iωr - r²/2l²),   ω = 0 or 2π/period
    cov(h, h') = -k'(r),   cov(h', h') = -k''(r),   -k''(0) = ω² + 1/l², the unit of each component

The scale of each `h_i` is at its maximum of the likelihood in closed form; length scales, periods,
weights and noise are shared by all coordinates and taken from a grid.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


class _Part(NamedTuple):
    """A component: its length scale, angular frequency and share of the derivative's variance."""

    length: float
    omega: float
    weight: float


_TREND = (0.3, 1.0)
_BUMPS = (0.02, 0.04, 0.08, 0.16)
_PERIODS = tuple(np.geomspace(0.05, 0.6, 18))
# How far a recurring bump keeps its phase.
_COHERENCE = 0.5
_WEIGHTS = (0.3, 0.05, 0.01)
_NOISE = (1e-6, 1e-4, 1e-2)
# Coordinates and points that decide about the shared hyperparameters.
_DECIDING = 8
_POINTS = 25
# Places in each coordinate at which the surrogate is known: all over, and closer to the base point.
_GRID = np.linspace(0.0, 1.0, 161)
_CLOSE = np.geomspace(1e-7, 0.02, 20)


def _kernel(parts: Sequence[_Part], r: Array) -> tuple[Array, Array, Array]:
    """`k`, `-k'` and `-k''` at some differences."""
    value, slope, curvature = np.zeros_like(r), np.zeros_like(r), np.zeros_like(r)
    for part in parts:
        inner = 1.0 / part.length**2
        unit = part.weight / (part.omega**2 + inner)
        bell = unit * np.exp(-0.5 * inner * r**2)
        turn, along = np.cos(part.omega * r), r * inner
        if part.omega:
            across = np.sin(part.omega * r)
            slope += bell * (along * turn + part.omega * across)
            curvature += bell * (
                (part.omega**2 + inner - along**2) * turn - 2 * part.omega * along * across
            )
        else:
            slope += bell * along
            curvature += bell * (inner - along**2)
        value += bell * turn
    return value, slope, curvature


@dataclass(frozen=True)
class AdditiveSurrogate:
    """What `fit_additive` found, at some places in each coordinate.

    - `places`: `(m, d)`, all over the unit interval, and closer to the base point.
    - `mean`, `deviation`: `(m, d)`, of `h_i` there minus `h_i` at the base point.
    - `surprise`: mean square of the values, given the gradients, in units of what was expected:
      near 1 or below if the function is additive.
    """

    places: Array
    mean: Array
    deviation: Array
    surprise: float


def fit_additive(
    x: Array, values: Array, gradients: Array, errors: Array, base: int
) -> AdditiveSurrogate | None:
    """The surrogate of some values and gradients.

    **Arguments:**

    - `x`: `(n, d)`, points of the unit cube.
    - `values`: `(n,)`, finite.
    - `gradients`: `(n, d)`, finite.
    - `errors`: `(n,)`, their relative errors.
    - `base`: row of the point with which all others are compared.

    **Returns:** `None` if functions of one coordinate each do not explain the gradients up to their
    errors.
    """
    n, _ = x.shape
    target = gradients.T
    parts, noise = _chosen(x, target, errors)
    if noise > _NOISE[0]:
        return None
    r = x.T[:, :, None] - x.T[:, None, :]
    inverse = np.linalg.inv(_kernel(parts, r)[2] + np.diag(noise + errors**2))
    weights = (inverse @ target[..., None])[..., 0]
    scale = np.maximum(np.sum(target * weights, axis=1) / n, 1e-300)
    ways = np.clip(x[base][:, None] + np.r_[-_CLOSE, _CLOSE], 0.0, 1.0)
    places = np.concatenate([np.repeat(_GRID[None], x.shape[1], 0), ways, x.T], axis=1)
    count = places.shape[1] - n
    # Everything is relative to the base: `D_i(q) = h_i(q) - h_i(base)`.
    anchor = x[base][:, None]
    slope = _kernel(parts, places[:, :, None] - x.T[:, None, :])[1]
    slope = slope - _kernel(parts, anchor[:, :, None] - x.T[:, None, :])[1]
    mean = (slope @ weights[..., None])[..., 0]
    half = slope @ inverse
    seen = places[:, count:]
    joint = (
        _kernel(parts, places[:, :, None] - seen[:, None, :])[0]
        - _kernel(parts, places - anchor)[0][:, :, None]
        - _kernel(parts, seen - anchor)[0][:, None, :]
        + _kernel(parts, np.zeros(1))[0]
        - half @ np.swapaxes(slope[:, count:], 1, 2)
    ) * scale[:, None, None]
    top = 2 * (_kernel(parts, np.zeros(1))[0] - _kernel(parts, places - anchor)[0])
    variance = scale[:, None] * (top - np.sum(half * slope, axis=2))
    others = np.arange(n) != base
    left = (values - values[base] - mean[:, count:].sum(axis=0))[others]
    sums = joint[:, count:].sum(axis=0)[np.ix_(others, others)]
    sums += np.eye(n - 1) * (1e-9 * float(np.trace(sums)) / max(n - 1, 1) + 1e-300)
    solved = np.linalg.solve(sums, left)
    cross = joint[:, :count, others]
    mean = mean[:, :count] + cross @ solved
    variance = variance[:, :count] - np.sum((cross @ np.linalg.inv(sums)) * cross, axis=2)
    return AdditiveSurrogate(
        places[:, :count].T,
        mean.T,
        np.sqrt(np.maximum(variance, 0.0)).T,
        float(left @ solved) / max(n - 1, 1),
    )


def _chosen(x: Array, target: Array, errors: Array) -> tuple[tuple[_Part, ...], float]:
    """The most likely of a grid of hyperparameters."""
    deciding = np.argsort(-np.sum(target**2, axis=1), kind="stable")[:_DECIDING]
    latest = slice(-_POINTS, None)
    target = target[deciding][:, latest]
    r = x.T[deciding][:, latest, None] - x.T[deciding][:, None, latest]
    known = np.diag(errors[latest] ** 2)
    bumps = [(length, 0.0) for length in _BUMPS]
    bumps += [(_COHERENCE, 2 * np.pi / period) for period in _PERIODS]
    blocks = {
        shape: _kernel([_Part(*shape, 1.0)], r)[2]
        for shape in [*((length, 0.0) for length in _TREND), *bumps]
    }
    mixtures: list[tuple[_Part, ...]] = [(_Part(length, 0.0, 1.0),) for length in _TREND]
    for trend, bump, weight in itertools.product(_TREND, bumps, _WEIGHTS):
        mixtures.append((_Part(trend, 0.0, weight), _Part(*bump, 1.0 - weight)))
    identity = np.eye(target.shape[1])

    def misfit(parts: tuple[_Part, ...], noise: float) -> float:
        mixed = sum(part.weight * blocks[part.length, part.omega] for part in parts)
        return _misfit(mixed + noise * identity + known, target)

    found = min(mixtures, key=lambda parts: misfit(parts, _NOISE[1]))
    return found, min(_NOISE, key=lambda noise: misfit(found, noise))


def _misfit(matrix: Array, target: Array) -> float:
    """Negative logarithm of the likelihood, with the best scale of each coordinate."""
    try:
        factor = np.linalg.cholesky(matrix)
    except np.linalg.LinAlgError:
        return np.inf
    half = np.linalg.solve(factor, target[..., None])[..., 0]
    n = target.shape[1]
    power = np.maximum(np.sum(half**2, axis=1) / n, 1e-300)
    logs = np.sum(np.log(np.diagonal(factor, axis1=1, axis2=2)), axis=1)
    return float(np.sum(0.5 * n * np.log(power) + logs))
