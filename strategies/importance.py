"""How much each hyperparameter matters: shares of the objective's variance, with intervals."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from strategies.arguments import integer, one_of, switch
from strategies.searched import Searched, searched
from strategies.space import Categorical, Domain, Float, SearchSpace
from strategies.surrogates.gaussian_process import GaussianProcess, Rows, fit
from strategies.surrogates.outputs import standardised
from strategies.surrogates.posterior_draws import draw

#: Resamples or posterior draws behind an interval, and the share of them that it holds.
_DRAWS = 48
_LEVEL = 0.9
#: Fewer observations say nothing about shares.
_FEWEST = 4
#: Rows of the process, values and derivatives, and those that its hyperparameters are fitted to.
_ROWS, _FIT_ROWS = 600, 200
#: Points of the design over which variances are taken; the most numbers that it may have.
_POINTS, _NUMBERS = 1024, 4_000_000
#: Draws of all other hyperparameters over which a surface is averaged; fewer, down to the second
#: number, where all its points would have more numbers than the third.
_AVERAGED, _AVERAGED_LEAST, _SURFACE_NUMBERS = 64, 4, 100_000_000
#: Draws of a hyperparameter from which the variance of its prior is taken.
_PRIOR_DRAWS = 512


@dataclass(frozen=True)
class Share:
    """The part of the variance that one hyperparameter explains.

    - `share`: between 0 and 1.
    - `low`, `high`: ends of the 90 % interval.
    """

    share: float
    low: float
    high: float


def importance(
    source: Any,
    space: SearchSpace | Mapping[str, Any] | None = None,
    *,
    method: str = "anova",
    entries: bool = False,
    seed: int = 0,
) -> dict[str, Share]:
    """How much of the objective's variance each hyperparameter explains.

    **Arguments:**

    - `source`: a result of `minimize`, a `Ledger` or whatever has one, a scheduler, an
      `optuna.Study`, or observations. Complete ones count, at the largest resource that four have.
    - `space`: of the observations, or of a study; see `strategies.searched.searched`.
    - `method`:
        - `"anova"`: functional ANOVA (Hutter, Hoos and Leyton-Brown, ICML 2014) of the Gaussian
          process on all values and gradients: the variance of the mean over all others (the main
          effect), over the total. Interactions make up the rest to one. The interval is that of
          functions drawn from the process.
        - `"gradients"`: the mean squared gradient that was seen, times the variance of the
          hyperparameter's prior, both in unit coordinates, over their sum (derivative-based
          sensitivity: Sobol' and Kucherenko 2009). No model, and no bound on the dimension; for
          hyperparameters with gradients only. The interval is that of bootstrapped trials.
        - `"process"`: the same with the expected squared slope of the process's prior, the inverse
          square of the length scale, in place of the gradients seen. Estimate and interval are
          those of processes fitted to bootstrapped trials.
    - `entries`: one share for each entry of an array, as `"l2[0]"`, in place of one for the array.
    - `seed`: of the draws.

    **Returns:** Shares by path, the largest first.

    **Raises:** `ValueError` with fewer than four complete trials, for `"gradients"` where no trial
    reported one, and for a method of another name.
    """
    methods: dict[str, Callable[[Searched, Mapping[str, np.ndarray], int], np.ndarray]]
    methods = {"anova": _anova, "gradients": _gradients, "process": _process}
    method = one_of("method", method, methods)
    entries = switch("entries", entries)
    seed = integer("seed", seed, 0)
    seen = searched(source, space)
    if len(seen.complete) < _FEWEST:
        raise ValueError(
            f"'source': expected at least {_FEWEST} complete trials, received {len(seen.complete)}"
        )
    groups = seen.groups(entries=entries)
    if method == "gradients":
        smooth = seen.space.differentiable
        groups = {name: where for name, where in groups.items() if smooth[where].all()}
        if np.isnan(seen.slopes[:, smooth]).all():
            raise ValueError("'source': expected trials with gradients, received none")
    draws = methods[method](seen, groups, seed)
    tail = (1.0 - _LEVEL) / 2
    low, high = np.quantile(draws[1:], [tail, 1.0 - tail], axis=0)
    shares = {
        name: Share(float(draws[0, i]), float(low[i]), float(high[i]))
        for i, name in enumerate(groups)
    }
    return dict(sorted(shares.items(), key=lambda item: -item[1].share))


# Each gives a matrix of shares, a column for each group: first the estimate, then draws of it.


def _gradients(seen: Searched, groups: Mapping[str, np.ndarray], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spread = _prior_variance(seen.space)
    squared = spread * seen.slopes**2
    # A group whose gradient is known in part has none.
    terms = np.stack([squared[:, where].sum(1) for where in groups.values()], 1)
    terms = terms[np.isfinite(terms).any(1)]
    count = len(terms)
    samples = [np.arange(count), *(rng.integers(count, size=(_DRAWS, count)))]
    return np.stack([_shares(_mean(terms[rows])) for rows in samples])


def _process(seen: Searched, groups: Mapping[str, np.ndarray], seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    spread = _prior_variance(seen.space)
    count = len(seen.complete)
    # A trial that is drawn twice would tell the process that there is no noise.
    draws = [np.unique(rng.integers(count, size=count)) for _ in range(_DRAWS // 2)]
    found = []
    for rows in [np.arange(count), *(rows for rows in draws if len(rows) >= _FEWEST)]:
        process, stretch = _fitted(seen, groups, rows)
        slope = spread * (stretch / process.scales) ** 2
        found.append(_shares(np.array([slope[where].sum() for where in groups.values()])))
    return _with_median(np.stack(found))


def _anova(seen: Searched, groups: Mapping[str, np.ndarray], seed: int) -> np.ndarray:
    process, stretch = _fitted(seen, groups, np.arange(len(seen.complete)))
    first, second = _design(seen.space, seed)
    function = draw(process, _DRAWS, np.random.default_rng(seed))

    def at(units: np.ndarray) -> np.ndarray:
        return function(seen.space.snap(units) * stretch)

    # Sobol' indices by the estimator of Janon et al. (2014): the covariance of the value with the
    # one that shares a hyperparameter with it, over the variance.
    left = at(first)
    parts = []
    for where in groups.values():
        mixed = second.copy()
        mixed[:, where] = first[:, where]
        right = at(mixed)
        centre = (left + right).mean(0) / 2
        variance = ((left - centre) ** 2 + (right - centre) ** 2).mean(0) / 2
        covariance = ((left - centre) * (right - centre)).mean(0)
        parts.append(np.clip(covariance / np.maximum(variance, 1e-300), 0.0, 1.0))
    return _with_median(np.stack(parts, 1))


def surface(
    seen: Searched, coordinates: Sequence[np.ndarray], cells: Sequence[np.ndarray]
) -> np.ndarray | None:
    """What the process of `"anova"` expects over two groups of coordinates, the others averaged.

    **Arguments:**

    - `coordinates`: two arrays of unit coordinates.
    - `cells`: two matrices of values for them, `(n, len(coordinates[0]))` and
      `(m, len(coordinates[1]))`.

    **Returns:** Values, shape `(n, m)`; `None` with too few trials for a process.
    """
    if len(seen.complete) < _FEWEST:
        return None
    process, stretch = _fitted(seen, seen.groups(), np.arange(len(seen.complete)))
    room = _SURFACE_NUMBERS // (len(cells[0]) * len(cells[1]) * seen.space.dimension)
    others = _design(seen.space, 0)[0][: min(max(room, _AVERAGED_LEAST), _AVERAGED)]
    others = np.tile(others, (len(cells[1]), 1))
    others[:, coordinates[1]] = np.repeat(cells[1], len(others) // len(cells[1]), 0)
    mean = np.empty((len(cells[0]), len(cells[1])))
    for row, cell in zip(mean, cells[0], strict=True):
        others[:, coordinates[0]] = cell
        at = process.predict(seen.space.snap(others) * stretch)[0]
        row[:] = at.reshape(len(cells[1]), -1).mean(1)
    return seen.values.mean() + max(float(seen.values.std()), 1e-12) * mean


def _fitted(
    seen: Searched, groups: Mapping[str, np.ndarray], rows: np.ndarray
) -> tuple[GaussianProcess, np.ndarray]:
    """The process on the chosen trials, with a length scale a group, and its stretch."""
    scales, stretch = np.zeros(seen.space.dimension, np.intp), np.ones(seen.space.dimension)
    for number, (name, where) in enumerate(groups.items()):
        scales[where] = number
        if isinstance(seen.space.domains.get(name), Categorical):
            stretch[where] = np.sqrt(0.5)  # any two choices are at distance one
    # The best and the rest evenly, if there are more than the process can take.
    if len(rows) > _ROWS:
        ranked = rows[np.argsort(seen.values[rows], kind="stable")]
        rows = ranked[np.linspace(0, len(ranked) - 1, _ROWS).astype(int)]
    y, by_value = standardised(seen.values[rows])
    x = seen.units[rows] * stretch
    data = Rows.values(x)
    known = np.isfinite(seen.slopes[rows]) & (seen.slopes[rows] != 0.0)
    if 0 < known.sum() <= _ROWS - len(rows):
        which, along = np.nonzero(known)
        slopes = seen.slopes[rows][which, along] * by_value[which] / stretch[along]
        directions = np.eye(seen.space.dimension)[along]
        data = data.join(Rows(x[which], directions, np.zeros(len(which))))
        y = np.r_[y, slopes]
    chosen = np.unique(np.linspace(0, len(y) - 1, min(len(y), _FIT_ROWS)).astype(int))
    return fit(data, y, scales, fit_rows=chosen), stretch


def _design(space: SearchSpace, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Two independent matrices of unit coordinates of the prior, evenly spread.

    Every hyperparameter has a value, whatever the others are: conditions come later.
    """
    # Of this function alone, and slow to import.
    from scipy.stats import qmc

    width = 2 * space.uniforms
    points = 2 ** int(np.log2(min(_POINTS, max(64, _NUMBERS // space.dimension))))
    rng = np.random.default_rng(seed)
    if width <= qmc.Sobol.MAXDIM:
        uniform = qmc.Sobol(width, rng=rng).random(points)
    else:
        uniform = rng.random((points, width))
    return _encoded(space, uniform[:, ::2]), _encoded(space, uniform[:, 1::2])


def _encoded(space: SearchSpace, uniform: np.ndarray) -> np.ndarray:
    """Unit coordinates of the hyperparameters' draws, whether or not they are active."""
    units, start = np.empty((len(uniform), space.dimension)), 0
    for path, where in space.slices.items():
        domain = space.domains[path]
        part = uniform[:, start : start + domain.uniforms]
        start += domain.uniforms
        if _uniform(domain):
            units[:, where] = part
        elif domain.size:
            units[:, where] = [domain.encode(domain.draw(row)) for row in part]
    return units


def _prior_variance(space: SearchSpace) -> np.ndarray:
    """Variance of each unit coordinate under the prior."""
    places = (np.arange(_PRIOR_DRAWS) + 0.5) / _PRIOR_DRAWS
    found = np.empty(space.dimension)
    for path, where in space.slices.items():
        domain = space.domains[path]
        if _uniform(domain):
            found[where] = 1 / 12
        elif domain.size:
            # Each coordinate depends on one variate: the same will do for all of them.
            rows = [domain.encode(domain.draw(np.full(domain.uniforms, u))) for u in places]
            found[where] = np.var(rows, axis=0)
    return found


def _uniform(domain: Domain) -> bool:
    """Whether the unit coordinates of draws are the variates themselves."""
    return isinstance(domain, Float) and domain.step is None and domain.spread is None


def _with_median(drawn: np.ndarray) -> np.ndarray:
    return np.concatenate([np.median(drawn, axis=0)[None], drawn])


def _mean(terms: np.ndarray) -> np.ndarray:
    """Of each column, over what is known; zero where nothing is."""
    known = np.isfinite(terms)
    return np.where(known, terms, 0.0).sum(0) / np.maximum(known.sum(0), 1)


def _shares(parts: np.ndarray) -> np.ndarray:
    return parts / max(float(parts.sum()), 1e-300)


__all__ = ["Share", "importance"]
