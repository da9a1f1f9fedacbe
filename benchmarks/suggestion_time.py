"""How long a searcher takes to suggest, after how many observations in how many dimensions.

`python -m benchmarks.suggestion_time [--quick] [--cpu-time] [--out DIR]` times `propose`, the pure
function behind every suggestion, on histories of observations spread over the space, half of them
near the best one, of a smooth function with several valleys. Columns:

- `ms`: milliseconds of one suggestion, the median;
- `limit, ms`: what it may take, where there is a limit;
- `time`: their ratio, at most 1.

Gradients are exact and complete. The rows without a limit show how the time grows to 1,000
observations and hundreds of dimensions: there the Gaussian process sees each gradient only along
itself, and a subset of the observations.
"""

from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np

from benchmarks.measure import interleaved, options, report
from strategies import (
    BayesSearcher,
    EvolutionSearcher,
    Float,
    HypergradientSearcher,
    Ledger,
    Observation,
    ParetoSearcher,
    RandomSearcher,
    SearchSpace,
    SobolSearcher,
    TPESearcher,
)
from strategies.space import Point

# Searcher, its name, dimensions, observations, with gradients, limit in milliseconds.
CASES: list[tuple[Callable[..., Any], str, int, int, bool, float | None]] = [
    (RandomSearcher, "random", 9, 100, False, 10.0),
    (HypergradientSearcher, "hypergradient", 9, 100, True, 100.0),
    (HypergradientSearcher, "hypergradient", 20, 100, True, 100.0),
    (BayesSearcher, "Bayes", 9, 100, False, 60.0),
    (BayesSearcher, "Bayes with gradients", 20, 100, True, 300.0),
    (SobolSearcher, "Sobol", 9, 100, False, None),
    (EvolutionSearcher, "evolution", 9, 100, False, None),
    (TPESearcher, "TPE", 9, 100, False, None),
    (ParetoSearcher, "Pareto", 9, 100, False, None),
    (RandomSearcher, "random", 300, 1000, False, None),
    (HypergradientSearcher, "hypergradient", 9, 1000, True, None),
    (HypergradientSearcher, "hypergradient", 300, 100, True, None),
    (HypergradientSearcher, "hypergradient", 300, 1000, True, None),
    (BayesSearcher, "Bayes", 9, 1000, False, None),
    (BayesSearcher, "Bayes with gradients", 9, 1000, True, None),
    (BayesSearcher, "Bayes with gradients", 300, 100, True, None),
    (BayesSearcher, "Bayes with gradients", 300, 1000, True, None),
]


def history(space: SearchSpace, count: int, *, gradients: bool) -> list[Observation]:
    """Observations of a bowl with bumps, every second one near the best."""
    rng = np.random.default_rng(0)
    size = space.dimension
    centre = rng.uniform(0.3, 0.7, size)
    weights = np.geomspace(0.1, 10.0, size)
    found = []
    for number in range(count):
        near = centre + 0.2 * rng.standard_normal(size) / np.sqrt(number + 1)
        x = np.clip(near if number % 2 else rng.random(size), 0.0, 1.0)
        off = x - centre
        value = float(weights @ (off**2 + 0.05 * np.sin(9 * x)))
        slope = weights * (2 * off + 0.45 * np.cos(9 * x))
        found.append(
            Observation(
                {"x": x.tolist()},
                value,
                {"x": slope.tolist()} if gradients else None,
                cost=1.0 + float(x[0]),
                number=number,
            )
        )
    return found


def coordinates(quick: bool, clock: Callable[[], float]) -> list[dict[str, Any]]:
    """Unit coordinates of a configuration with 1,000 entries, unchecked and checked before."""
    space = SearchSpace({f"x{i}": Float(1e-3, 1.0, log=True) for i in range(1000)})
    config = space.sample(np.random.default_rng(0))
    point = space.point(config)
    runs: dict[str, Callable[[], Any]] = {
        "a configuration": lambda: space.encode(config),
        "checked before": lambda: Point(space, point.flat).unit,
        "asked before": lambda: space.encode(point),
    }
    seconds = interleaved(runs, repeats=3 if quick else 9, clock=clock)
    return [
        {"coordinates of 1,000 floats": name, "ms": 1e3 * median(taken)}
        for name, taken in seconds.items()
    ]


def main() -> None:
    """Measure, print and save."""
    arguments = options(__doc__ or "").parse_args()
    rows = []
    for make, name, size, count, gradients, limit in CASES:
        space = SearchSpace({"x": Float(0, 1, shape=(size,))})
        # What a searcher sees in a search was told to a ledger.
        searcher = make(space, seed=0)
        ledger = Ledger(searcher)
        for observation in history(space, count, gradients=gradients):
            ledger.tell(observation)
        told = ledger.history
        seconds = interleaved(
            {"propose": lambda searcher=searcher, told=told: searcher.propose(len(told), told, [])},
            repeats=3 if arguments.quick else 9,
            clock=arguments.clock,
        )["propose"]
        milliseconds = 1e3 * median(seconds)
        row = {
            "searcher": name,
            "dimensions": size,
            "observations": count,
            "ms": milliseconds,
        }
        if limit is not None:
            row |= {"limit, ms": limit, "time": milliseconds / limit}
        rows.append(row)
    tables = {
        "suggestions": rows,
        "coordinates": coordinates(arguments.quick, arguments.clock),
    }
    report("suggestion_time", tables, {"time": 1.0}, arguments)


if __name__ == "__main__":
    main()
