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
weights and noise are shared by all coordinates and taken from a grid. Ripples whose height varies
with all coordinates, as those of Ackley's function, are such bumps up to some noise; what they
hide, the trend, is what they leave of the gradients.
"""

import functools
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
# Of recurring bumps: cycles in the unit interval, so near to each other that none between two is
# missed, how much nearer they are looked at, and how far a bump keeps its phase.
_CYCLES = np.arange(1.5, 40.0, 0.75)
_BETWEEN = (0.0, -0.375, -0.25, -0.125, 0.125, 0.25, 0.375)
_COHERENCE = (0.25, 0.5, 1.0)
_WEIGHTS = (0.3, 0.05, 0.01)
# Shares of a derivative's variance that a sum of functions of one coordinate does not explain,
# those with which shapes are compared, and shares of the variance of the values.
_NOISE = (1e-6, 1e-4, 1e-2, 1e-1, 1.0)
_ROUGHLY = (1e-4, 1e-1)
_VALUE_NOISE = (0.0, 1e-4, 1e-2, 1e-1, 1.0)
# Logarithm of the likelihood ratio that makes recurring bumps a fact.
_EVIDENCE = 10.0
# Length scales of the smooth functions of all coordinates at once that a sum has to outdo.
_JOINT = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
# Coordinates and points that decide about the shared hyperparameters.
_DECIDING = 8
_POINTS = 25
# So many mixtures are compared at once: fewer and more take longer.
_TOGETHER = 8
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


class Choice(NamedTuple):
    """The most likely of a grid of hyperparameters, and logarithms of likelihood ratios.

    - `additive`: to a smooth function of all coordinates. Few gradients, or those of one descent,
      are explained by a sum of functions of one coordinate whatever the function is, but then by
      such a function as well.
    - `recurring`: to the best without bumps that recur.
    """

    parts: tuple[_Part, ...]
    noise: float
    additive: float
    recurring: float


def fit_additive(
    x: Array,
    values: Array,
    gradients: Array,
    errors: Array,
    base: int,
    choice: Choice | None = None,
) -> AdditiveSurrogate | None:
    """The surrogate of some values and gradients.

    **Arguments:**

    - `x`: `(n, d)`, points of the unit cube.
    - `values`: `(n,)`, finite.
    - `gradients`: `(n, d)`, finite.
    - `errors`: `(n,)`, their relative errors.
    - `base`: row of the point with which all others are compared.
    - `choice`: its hyperparameters, by default `choose` of the same gradients.

    **Returns:** `None` if functions of one coordinate each do not explain the gradients: better
    than a smooth function of all coordinates, and up to their errors, or but for a tenth where the
    evidence for bumps that recur is strong. Then the values may differ from the sum, too.
    """
    n, _ = x.shape
    target = gradients.T
    parts, noise, additive, recurring = choice or choose(x, gradients, errors)
    exact = noise == _NOISE[0]
    if additive <= 0 or (not exact and (noise == _NOISE[-1] or recurring < _EVIDENCE)):
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
    shares = _VALUE_NOISE[:1] if exact else _VALUE_NOISE
    sums = _with_noise(sums, left, float(np.var(values)), shares)
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


def _with_noise(sums: Array, left: Array, spread: float, shares: Sequence[float]) -> Array:
    """Covariances of the differences `left` of values with the most likely noise."""
    n = len(left)
    floor = 1e-9 * float(np.trace(sums)) / max(n, 1) + 1e-300
    # The noise of the base point is in all differences.
    own, shared = floor * np.eye(n), spread * (np.eye(n) + 1.0)

    def misfit(share: float) -> float:
        matrix = sums + own + share * shared
        return float(np.linalg.slogdet(matrix)[1] + left @ np.linalg.solve(matrix, left))

    return sums + own + min(shares, key=misfit) * shared


def choose(x: Array, gradients: Array, errors: Array) -> Choice:
    """The hyperparameters, from the coordinates and points that decide: the last of them."""
    return _chosen(*((part[-_POINTS:]).tobytes() for part in (x, gradients, errors)), x.shape[1])


@functools.lru_cache(maxsize=32)
def _chosen(places: bytes, slopes: bytes, shares: bytes, size: int) -> Choice:
    """Of the arrays' bytes, so that those of the last suggestions are remembered."""
    x, target = (np.frombuffer(part).reshape(-1, size) for part in (places, slopes))
    return _most_likely(x, target.T, np.frombuffer(shares))


def _most_likely(x: Array, target: Array, errors: Array) -> Choice:
    deciding = np.argsort(-np.sum(target**2, axis=1), kind="stable")[:_DECIDING]
    target = target[deciding]
    # All matrices are symmetric: of each the lower triangle, row after row.
    rows, columns = np.tril_indices(target.shape[1])
    r = x.T[deciding][:, rows] - x.T[deciding][:, columns]
    apart = np.sum((x[rows] - x[columns]) ** 2, axis=1)
    identity = (rows == columns).astype(float)
    known = identity * errors[rows] ** 2

    @functools.cache
    def block(length: float, omega: float) -> Array:
        return _kernel([_Part(length, omega, 1.0)], r)[2]

    def misfits(mixtures: Sequence[tuple[_Part, ...]], noises: Sequence[float]) -> Array:
        shares = np.asarray(noises)[:, None, None]
        found = []
        for i in range(0, len(mixtures), _TOGETHER):
            mixed = [
                sum(part.weight * block(part.length, part.omega) for part in one)
                for one in mixtures[i : i + _TOGETHER]
            ]
            found.append(_misfits(np.stack(mixed) + shares * identity + known, target))
        return np.concatenate(found)

    def mixture(trend: float, weight: float, length: float, cycles: float) -> tuple[_Part, ...]:
        return _Part(trend, 0.0, weight), _Part(length, 2 * np.pi * cycles, 1.0 - weight)

    # The bumps that recur first, with little noise and with much, then what they are mixed with.
    trend, weight, coherence = _TREND[0], _WEIGHTS[1], _COHERENCE[1]
    plain: list[tuple[_Part, ...]] = [(_Part(length, 0.0, 1.0),) for length in _TREND]
    ways = list(itertools.product(_TREND, _WEIGHTS))
    plain += [mixture(*way, length, 0.0) for way in ways for length in _BUMPS]
    likely: dict[tuple[_Part, ...], float] = {}
    for noise in _ROUGHLY:
        cycles = 0.0
        for by in (_CYCLES, _BETWEEN):
            close = [cycles + float(more) for more in by]
            rough = [mixture(trend, weight, coherence, often) for often in close]
            cycles = close[int(np.argmin(misfits(rough, [noise])))]
        recurring = [mixture(*way, length, cycles) for way in ways for length in _COHERENCE]
        both = [*plain, *recurring]
        for parts, found in zip(both, misfits(both, [noise]), strict=True):
            likely[parts] = min(likely.get(parts, np.inf), float(found))
    best = min(likely, key=likely.__getitem__)
    evidence = min(likely[parts] for parts in plain) - likely[best]
    by_noise = misfits([best], _NOISE)
    noise = _NOISE[int(np.argmin(by_noise))]

    # The same derivatives, up to the same noise, under a squared exponential of the distance.
    length = np.asarray(_JOINT)[:, None, None]
    rivals = np.exp(-0.5 * apart / length**2) * (1.0 - (r / length) ** 2)
    # A function of one coordinate is such a sum.
    rival = np.inf
    if x.shape[1] > 1:
        rival = float(_misfits(rivals + (noise * identity + known), target).min())
    return Choice(best, noise, rival - float(by_noise.min()), evidence)


def _misfits(triangles: Array, target: Array) -> Array:
    """For each of some matrices, a row of them for each coordinate, how little it explains.

    That is the negative logarithm of the likelihood, with the best scale of each coordinate;
    infinite for a matrix that is not positive definite.

    **Arguments:**

    - `triangles`: `(m, d, n (n + 1) / 2)`, the lower triangles.
    - `target`: `(d, n)`.
    """
    n = target.shape[1]
    rows, columns = np.tril_indices(n)
    # The last row of the factor of the matrix with the target below it is the half-solved target.
    joint = np.zeros((len(triangles), len(target), n + 1, n + 1))
    joint[..., rows, columns] = triangles
    joint[..., n, :n] = target / np.maximum(size := np.abs(target).max(axis=1), 1e-300)[:, None]
    joint[..., n, n] = 1e30
    try:
        factor = np.linalg.cholesky(joint)  # reads no more than the lower triangle
    except np.linalg.LinAlgError:
        if len(triangles) == 1:
            return np.array([np.inf])
        return np.concatenate([_misfits(one[None], target) for one in triangles])
    power = np.maximum(np.sum(factor[..., n, :n] ** 2, axis=2) * size**2 / n, 1e-300)
    logs = np.sum(np.log(np.diagonal(factor[..., :n, :n], axis1=2, axis2=3)), axis=2)
    return np.sum(0.5 * n * np.log(power) + logs, axis=1)
